//! What clients send (RFC 7285 §11.3–11.5), read with exactly one error where something is wrong.

use std::net::IpAddr;

use mesh_proto::Written;
use serde_json::{Map, Value};

use super::{error::Fault, maps::CostType};

/// Entries of a list.
const LIST_MAX: usize = 4_096;
/// Constraints of a request.
const CONSTRAINTS_MAX: usize = 64;

/// A body that must be an object, with each name once; unknown fields are ignored (§8.3.7).
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Fault> {
    let value = serde_json::from_slice(body).map_err(|error| Fault::syntax(&error))?;
    Written::json(body).map_err(|error| Fault::unclear(&error))?;
    match value {
        Value::Object(object) => Ok(object),
        // There is no field to name: the value is not an object.
        _ => Err(Fault { field: None, ..Fault::mistyped("") }),
    }
}

/// A list of texts; `None` if it is absent. Repeats count once, order is kept.
pub(super) fn texts(object: &Map<String, Value>, name: &str, path: &str) -> Result<Option<Vec<String>>, Fault> {
    let Some(value) = object.get(name) else { return Ok(None) };
    let list = value.as_array().ok_or_else(|| Fault::mistyped(path))?;
    if list.len() > LIST_MAX {
        return Err(Fault::wrong(path, &Value::String(format!("{} entries, more than {LIST_MAX}", list.len()))));
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut texts = vec![];
    for element in list {
        // An element of the wrong type is a wrong value of the list (§8.5.2).
        let text = element.as_str().ok_or_else(|| Fault::wrong(path, element))?;
        if seen.insert(text) {
            texts.push(text.to_owned());
        }
    }
    Ok(Some(texts))
}

/// A list that must be there.
pub(super) fn required(object: &Map<String, Value>, name: &str, path: &str) -> Result<Vec<String>, Fault> {
    texts(object, name, path)?.ok_or_else(|| Fault::missing(path))
}

/// The field `cost-type`.
pub(super) fn cost_type(object: &Map<String, Value>) -> Result<CostType, Fault> {
    let value = object.get("cost-type").ok_or_else(|| Fault::missing("cost-type"))?;
    let inner = value.as_object().ok_or_else(|| Fault::mistyped("cost-type"))?;
    let text = |name: &str| -> Result<(String, &Value), Fault> {
        let path = format!("cost-type/{name}");
        let value = inner.get(name).ok_or_else(|| Fault::missing(path.clone()))?;
        Ok((value.as_str().ok_or_else(|| Fault::mistyped(path))?.to_owned(), value))
    };
    let ((metric, metric_value), (mode, mode_value)) = (text("cost-metric")?, text("cost-mode")?);
    match CostType::parse(&metric, &mode) {
        (Some(metric), Some(mode)) => Ok(CostType { metric, mode }),
        (None, _) => Err(Fault::wrong("cost-type/cost-metric", metric_value)),
        (_, None) => Err(Fault::wrong("cost-type/cost-mode", mode_value)),
    }
}

/// A test that a cost must pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Constraint {
    operator: Operator,
    bound: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Greater,
    Less,
    AtLeast,
    AtMost,
    Equal,
}

impl Constraint {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let (operator, bound, None) = (words.next()?, words.next()?, words.next()) else { return None };
        let operator = match operator {
            "gt" => Operator::Greater,
            "lt" => Operator::Less,
            "ge" => Operator::AtLeast,
            "le" => Operator::AtMost,
            "eq" => Operator::Equal,
            _ => return None,
        };
        let bound: f64 = bound.parse().ok()?;
        bound.is_finite().then_some(Self { operator, bound })
    }

    fn holds(self, value: f64) -> bool {
        match self.operator {
            Operator::Greater => value > self.bound,
            Operator::Less => value < self.bound,
            Operator::AtLeast => value >= self.bound,
            Operator::AtMost => value <= self.bound,
            Operator::Equal => value == self.bound,
        }
    }
}

/// The field `constraints`, all of which must hold.
pub(super) fn constraints(object: &Map<String, Value>) -> Result<Vec<Constraint>, Fault> {
    let texts = texts(object, "constraints", "constraints")?.unwrap_or_default();
    if texts.len() > CONSTRAINTS_MAX {
        let value = format!("{} constraints, more than {CONSTRAINTS_MAX}", texts.len());
        return Err(Fault::wrong("constraints", &Value::String(value)));
    }
    let parse =
        |text: String| Constraint::parse(&text).ok_or_else(|| Fault::wrong("constraints", &Value::String(text)));
    texts.into_iter().map(parse).collect()
}

/// Does a cost pass? Ordinal costs are compared by rank, as the client sees them.
pub(super) fn pass(constraints: &[Constraint], told: &Value) -> bool {
    constraints.iter().all(|c| told.as_f64().is_some_and(|value| c.holds(value)))
}

/// A typed address as the client wrote it.
pub(super) fn addresses(texts: Vec<String>, path: &str) -> Result<Vec<(String, IpAddr)>, Fault> {
    let parse = |text: String| match typed(&text) {
        Some(address) => Ok((text, address)),
        None => Err(Fault::wrong(path, &Value::String(text))),
    };
    texts.into_iter().map(parse).collect()
}

fn typed(text: &str) -> Option<IpAddr> {
    match text.split_once(':')? {
        ("ipv4", address) => address.parse().ok().map(IpAddr::V4),
        ("ipv6", address) => address.parse().ok().map(IpAddr::V6),
        _ => None,
    }
}

/// An address as the protocol writes it.
pub(super) fn written(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => format!("ipv4:{v4}"),
        IpAddr::V6(v6) => format!("ipv6:{v6}"),
    }
}

/// A mode and a metric of a path.
pub(super) fn of_path(mode: &str, metric: &str) -> Option<CostType> {
    match CostType::parse(metric, mode) {
        (Some(metric), Some(mode)) => Some(CostType { metric, mode }),
        _ => None,
    }
}
