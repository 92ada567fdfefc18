//! What is measured beside the samples of instances, how often, and how it is packed.
//!
//! - [`catalog`]: every metric; [`kernel`], [`prometheus`] and [`otlp`]: what is read or received, parsed; [`series`]: what
//!   workloads say of themselves, in one form.
//! - [`settings`]: what is set by people and detectors; [`plan`]: what is due, what it gave; [`adaptive`]: a rate that
//!   follows its signal; [`budget`]: what an agent may say; [`pack`]: how it is said.
//! - [`tally`]: several processes or groups as one.
//! - Invariants: a reading that failed gives no value; nothing here grows with what is read beyond its limits.

pub mod adaptive;
pub mod budget;
pub mod catalog;
pub mod kernel;
pub mod otlp;
pub mod pack;
pub mod plan;
pub mod prometheus;
pub mod series;
pub mod settings;
pub mod tally;

use std::{borrow::Cow, collections::BTreeMap};

use mesh_proto::{
    Timestamp,
    telemetry::{MetricKind, Provenance},
    workload::WorkloadDocument,
};

/// A measured thing of this cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entity {
    /// `node`, `cluster`, `instance`, `storage` or `application`.
    pub kind: &'static str,
    /// Name or id within its kind.
    pub id: String,
    /// Whose; empty for infrastructure.
    pub owner: String,
}

impl Entity {
    /// Infrastructure of a kind.
    pub fn of(kind: &'static str, id: impl Into<String>) -> Self {
        Self { kind, id: id.into(), owner: String::new() }
    }
}

/// What a value is a value of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Metric {
    /// As OpenTelemetry's conventions name it.
    pub name: Cow<'static, str>,
    /// In UCUM.
    pub unit: Cow<'static, str>,
    /// How its values are read.
    pub kind: MetricKind,
    /// Tell apart the values of one name; sorted by name.
    pub labels: Vec<(Cow<'static, str>, String)>,
    /// Where values come from.
    pub provenance: Provenance,
    /// Does the rate of an adaptive probe follow it?
    pub leads: bool,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Of what.
    pub metric: Metric,
    /// In the metric's unit; finite.
    pub value: f64,
    /// When it was measured, if that was not when it was read.
    pub at: Option<Timestamp>,
}

impl Value {
    /// Something that only leads an adaptive rate.
    pub fn leading(name: &'static str, value: f64) -> Self {
        let metric = Metric {
            name: Cow::Borrowed(name),
            unit: Cow::Borrowed("1"),
            kind: MetricKind::Gauge,
            labels: vec![],
            provenance: Provenance::Measured,
            leads: true,
        };
        Self { metric, value, at: None }
    }

    /// The same value, computed by a model.
    #[must_use]
    pub fn modelled(mut self) -> Self {
        self.metric.provenance = Provenance::Modelled;
        self
    }
}

/// What one look at an entity gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Its values.
    pub values: Vec<Value>,
    /// Why values are missing, all or some.
    pub failure: Option<String>,
}

impl From<Result<Vec<Value>, String>> for Reading {
    fn from(read: Result<Vec<Value>, String>) -> Self {
        match read {
            Ok(values) => Self { values, failure: None },
            Err(failure) => Self { values: vec![], failure: Some(failure) },
        }
    }
}

/// Where a workload offers its own metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scraped {
    /// TCP port on its host.
    pub port: u16,
    /// Path, with its slash.
    pub path: String,
}

impl Scraped {
    /// As a document says by `METRICS_PORT` and `METRICS_PATH` in its environment, which the workload sees as well; the port
    /// is the exposed one where only a path is given. `None` if it says nothing, or what cannot be.
    pub fn of(document: &WorkloadDocument) -> Option<Self> {
        let variable = |name: &str| document.process.as_ref().and_then(|process| process.environment.get(name));
        let (port, path) = (variable("METRICS_PORT"), variable("METRICS_PATH"));
        let port = match (port, path) {
            (Some(port), _) => port.trim().parse::<u16>().ok(),
            (None, Some(_)) => document
                .expose
                .as_ref()
                .filter(|expose| matches!(expose.protocol.as_str(), "" | "http1"))
                .and_then(|expose| u16::try_from(expose.port).ok()),
            (None, None) => None,
        }?;
        let path = path.map_or("/metrics", String::as_str);
        let fits = path.starts_with('/') && path.len() <= 1_024 && path.bytes().all(|b| b.is_ascii_graphic());
        (port > 0 && fits).then(|| Self { port, path: path.to_owned() })
    }
}

/// A workload as probes need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Owner.
    pub owner: String,
    /// Its own metrics, if it has any.
    pub scraped: Option<Scraped>,
}

/// What runs on the cluster now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Running {
    /// By id.
    pub instances: BTreeMap<String, Watched>,
    /// Thousandths of a core in use, all together.
    pub load_milli: f64,
}

#[cfg(test)]
mod tests {
    use mesh_proto::workload::{Expose, ProcessSpec};

    use super::*;

    #[test]
    fn a_document_says_where_its_metrics_are() {
        let document = |variables: &[(&str, &str)], port: u32| WorkloadDocument {
            process: Some(ProcessSpec {
                environment: variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
                ..ProcessSpec::default()
            }),
            expose: Some(Expose { port, ..Expose::default() }),
            ..WorkloadDocument::default()
        };
        let said = |variables: &[(&str, &str)]| Scraped::of(&document(variables, 8_080));
        let at = |port: u16, path: &str| Some(Scraped { port, path: path.into() });
        assert_eq!(said(&[("METRICS_PORT", "9100")]), at(9_100, "/metrics"));
        assert_eq!(said(&[("METRICS_PORT", "9100"), ("METRICS_PATH", "/m?x=1")]), at(9_100, "/m?x=1"));
        assert_eq!(said(&[("METRICS_PATH", "/m")]), at(8_080, "/m"), "on the exposed port");
        for wrong in [&[][..], &[("METRICS_PORT", "0")], &[("METRICS_PORT", "99999")], &[("METRICS_PORT", "x")]] {
            assert_eq!(said(wrong), None, "{wrong:?}");
        }
        assert_eq!(said(&[("METRICS_PORT", "1"), ("METRICS_PATH", "/a b")]), None);
        assert_eq!(Scraped::of(&document(&[("METRICS_PATH", "/m")], 0)), None);
    }
}
