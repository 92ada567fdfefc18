//! The four checks of a chart, made: what is pure is in the library [`chart`], here are the process and the network.

#![expect(clippy::disallowed_methods, reason = "measures how long a check takes")]

mod follow;
mod helm;
mod registry;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use mesh_outbound::listed;
use mesh_proto::{
    intent::Problem,
    workload::{CheckReport, CheckStep, Release, Resources, WorkloadDocument},
};
use tokio::sync::Semaphore;

pub(crate) use self::follow::{archive_of, follow};
use self::{
    helm::{Helm, INSTALL, Order},
    registry::{Access, Registries},
};
use crate::{
    config::Config,
    domain::{release_name, release_of},
};
use chart::{
    archive,
    archive::Files,
    ingress,
    manifests::{self, DockerConfig, Keys, Manifest},
    reference::Image,
    report, structure,
};

/// Charts that are unpacked or rendered at once: each may take some 100 MB for a moment.
const AT_ONCE_MAX: usize = 2;
/// Images that are asked for at once.
const LOOK_UPS_MAX: usize = 4;
/// Longest time of all images of one chart.
const IMAGES_LIMIT: Duration = Duration::from_secs(60);

/// Makes the checks.
pub(crate) struct Checks {
    config: Config,
    registries: Registries,
    at_once: Semaphore,
}

/// Manifests, and what rendered them.
pub(crate) struct Rendered {
    pub(crate) yaml: String,
    pub(crate) renderer: String,
}

/// Why there are no manifests.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unrendered {
    /// What was asked for does not render.
    #[error("{0}")]
    Refused(String),
    /// There is nothing to render it with.
    #[error("{0}; {INSTALL}")]
    Away(String),
}

impl Checks {
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let keys = match config.registries_file.as_str() {
            "" => Keys::new(),
            path => {
                let text = std::fs::read_to_string(path).with_context(|| format!("read registries_file {path}"))?;
                let found = manifests::docker_config(&text)
                    .map_err(|why| anyhow::anyhow!("read registries_file {path}: {why}"))?;
                for why in found.skipped {
                    tracing::warn!(path, why, "an entry of registries_file is skipped");
                }
                found.keys
            }
        };
        let access = Access {
            keys,
            guard: mesh_outbound::Guard::new(listed(&config.registries_private), "registries_private"),
            plain: listed(&config.registries_plain),
            limit: Duration::from_millis(config.registry_limit_ms.max(1)),
        };
        let registries = Registries::new(access).context("read the system's certificates")?;
        Ok(Self { config: config.clone(), registries, at_once: Semaphore::new(AT_ONCE_MAX) })
    }

    /// Makes all four. Its time is the caller's to say.
    pub(crate) async fn check(&self, bytes: &Bytes, document: &WorkloadDocument) -> CheckReport {
        let _one = self.at_once.acquire().await;
        let mut report = CheckReport { sha256: chart::sha256(bytes), ..Default::default() };
        let mut steps = vec![];
        let begun = Instant::now();
        let (archive, of) = (bytes.clone(), document.clone());
        let (files, told) = match aside(move || structure(&archive, &of)).await {
            Ok((files, chart)) => {
                let told = format!("{} {} with {} files", chart.name, chart.version, files.files.len());
                report.chart_name = chart.name;
                report.chart_version = chart.version;
                (Some(files), report::passed("structure", told))
            }
            Err(problems) => (None, report::failed("structure", counted(problems.len()), problems)),
        };
        steps.push(took(told, begun));
        if let Some(files) = files {
            let begun = Instant::now();
            let order = Order {
                release: release_name(&report.chart_name, "check"),
                namespace: "default".into(),
                values: vec![values_of(document)],
            };
            let (manifests, told) = self.template(&files, &order, &mut report).await;
            steps.push(took(told, begun));
            if let Some((manifests, resources)) = manifests {
                report.resources = Some(resources);
                let begun = Instant::now();
                steps.push(took(self.images(&manifests, &mut report).await, begun));
                let begun = Instant::now();
                steps.push(took(ingress_step(&manifests, document), begun));
            }
        }
        report.steps = report::complete(steps);
        report
    }

    async fn template(
        &self,
        files: &Files,
        order: &Order,
        report: &mut CheckReport,
    ) -> (Option<(Vec<Manifest>, Resources)>, CheckStep) {
        let helm = match Helm::find(&self.config.helm).await {
            Ok(helm) => helm,
            Err(error) => return (None, report::not_checked("template", error.to_string(), INSTALL)),
        };
        report.renderer.clone_from(&helm.version);
        let text = match helm.template(files, order, self.limit()).await {
            Ok(text) => text,
            Err(helm::Error::Away(reason)) => return (None, report::not_checked("template", reason, INSTALL)),
            Err(helm::Error::Refused(reason)) => {
                let hint = "run `helm template` on the chart, and correct what it names".to_owned();
                let problem = Problem { path: "templates".into(), reason, hint };
                return (None, report::failed("template", "it does not render with its default values", vec![problem]));
            }
        };
        let read = aside(move || {
            let manifests = manifests::read(&text)?;
            let resources = manifests::resources(&manifests)?;
            Ok((manifests, resources))
        });
        match read.await {
            Ok((manifests, resources)) => {
                let told = format!("{} objects, rendered by {}", manifests.len(), helm.version);
                (Some((manifests, resources)), report::passed("template", told))
            }
            Err(problems) => (None, report::failed("template", counted(problems.len()), problems)),
        }
    }

    async fn images(&self, manifests: &[Manifest], report: &mut CheckReport) -> CheckStep {
        let images = match manifests::images(manifests) {
            Ok(images) => images,
            Err(problems) => return report::failed("images", counted(problems.len()), problems),
        };
        report.images = images.keys().cloned().collect();
        let DockerConfig { keys, skipped } = match manifests::pull_secrets(manifests) {
            Ok(found) => found,
            Err(problems) => return report::failed("images", counted(problems.len()), problems),
        };
        if images.is_empty() {
            return report::passed("images", "it names no image");
        }
        if !self.config.images {
            let hint = "set `images` of workload-manager";
            return report::not_checked("images", "images are not looked up here", hint);
        }
        let keys = Arc::new(keys);
        let asked: Vec<(String, String)> = images.iter().map(|(name, at)| (name.clone(), at.clone())).collect();
        let look_ups = asked.into_iter().map(|(name, at)| {
            let (keys, registries) = (keys.clone(), self.registries.clone());
            async move {
                let found = match Image::parse(&name) {
                    Err(reason) => {
                        let hint = "name it as registry/repository:tag".to_owned();
                        Err(registry::Error::Refused { reason, hint })
                    }
                    Ok(image) => registries.look_up(&image, &keys).await,
                };
                (name, at, found)
            }
        });
        let all = stream::iter(look_ups).buffer_unordered(LOOK_UPS_MAX).collect::<Vec<_>>();
        let Ok(mut answers) = tokio::time::timeout(IMAGES_LIMIT, all).await else {
            let reason = format!("its registries did not answer within {} s", IMAGES_LIMIT.as_secs());
            return self.unreachable(reason);
        };
        answers.sort_by(|a, b| a.0.cmp(&b.0));
        let (mut problems, mut away) = (vec![], vec![]);
        for (name, at, found) in answers {
            match found {
                Ok(()) => {}
                Err(registry::Error::Refused { reason, hint }) => {
                    let path = format!("{at} ({name})");
                    problems.push(Problem { path, reason, hint });
                }
                Err(registry::Error::Away(reason)) => away.push(reason),
            }
        }
        if !problems.is_empty() {
            return report::failed("images", counted(problems.len()), problems);
        }
        match away.first() {
            None if skipped.is_empty() => report::passed("images", format!("{} images are there", images.len())),
            None => {
                let told = format!("{} images are there; not used: {}", images.len(), skipped.join("; "));
                report::passed("images", told)
            }
            Some(reason) => {
                self.unreachable(format!("{} of {} images could not be asked for: {reason}", away.len(), images.len()))
            }
        }
    }

    fn unreachable(&self, reason: String) -> CheckStep {
        let hint = "see that workload-manager can reach the registry";
        match self.config.refuse_unreachable {
            true => {
                let path = "images".to_owned();
                let problem = Problem { path, reason: reason.clone(), hint: hint.into() };
                report::failed("images", reason, vec![problem])
            }
            false => report::not_checked("images", reason, hint),
        }
    }

    /// The manifests of one release of a chart, labelled with whose they are.
    pub(crate) async fn render(
        &self,
        bytes: &Bytes,
        document: &WorkloadDocument,
        release: &Release,
        instance_id: &str,
    ) -> Result<Rendered, Unrendered> {
        let _one = self.at_once.acquire().await;
        let archive = bytes.clone();
        let read = aside(move || archive::read(&archive).map_err(|error| vec![fault(error)]));
        let refused = |problems: Vec<Problem>| {
            let told = problems.first().map(|p| format!("{}: {} ({})", p.path, p.reason, p.hint)).unwrap_or_default();
            Unrendered::Refused(told)
        };
        let files = read.await.map_err(refused)?;
        let name = release_of(release, &document.name, instance_id);
        let namespace = if release.namespace.is_empty() { "default" } else { &release.namespace };
        let order = Order {
            release: name.clone(),
            namespace: namespace.to_owned(),
            values: vec![values_of(document), release.values.clone()],
        };
        let away = |error: helm::Error| match error {
            helm::Error::Away(reason) => Unrendered::Away(reason),
            helm::Error::Refused(reason) => Unrendered::Refused(reason),
        };
        let helm = Helm::find(&self.config.helm).await.map_err(away)?;
        let text = helm.template(&files, &order, self.limit()).await.map_err(away)?;
        let read = aside(move || {
            let manifests = manifests::read(&text)?;
            // Its own values may ask for what no cluster can read.
            manifests::resources(&manifests)?;
            Ok(manifests)
        });
        let mut manifests = read.await.map_err(refused)?;
        if release.ingress {
            let exposed = ingress::check(&manifests).map_err(refused)?;
            let value = ingress::ingress(&name, &exposed);
            manifests.push(Manifest { kind: "Ingress".into(), name, value });
        }
        let yaml = manifests::labelled(&manifests, &[("nemo.eu/workload", instance_id)]);
        Ok(Rendered { yaml, renderer: helm.version })
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(self.config.helm_limit_ms.max(1))
    }
}

/// The first check: the archive and what is in it.
fn structure(archive: &[u8], document: &WorkloadDocument) -> Result<(Files, structure::Chart), Vec<Problem>> {
    let files = archive::read(archive).map_err(|error| vec![fault(error)])?;
    let expected = Some((document.name.as_str(), document.version.as_str())).filter(|(name, _)| !name.is_empty());
    let chart = structure::check(&files, expected)?;
    Ok((files, chart))
}

fn fault(error: archive::Error) -> Problem {
    Problem { path: error.path, reason: error.reason, hint: error.hint }
}

/// Work of up to seconds, done where it keeps nobody waiting: whoever made the chart chose how long it takes.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Vec<Problem>> + Send + 'static,
) -> Result<T, Vec<Problem>> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        let reason = format!("it could not be looked at: {error}");
        Err(vec![Problem { path: String::new(), reason, hint: "tell us, with the chart".into() }])
    })
}

fn ingress_step(manifests: &[Manifest], document: &WorkloadDocument) -> CheckStep {
    if !document.chart.as_ref().is_some_and(|c| c.ingress_support) {
        return report::passed("ingress", "its document does not ask for it");
    }
    match ingress::check(manifests) {
        Ok(exposed) => {
            let named: Vec<String> = exposed.iter().map(|e| format!("{}:{}{}", e.service, e.port, e.path)).collect();
            report::passed("ingress", format!("can be exposed: {}", named.join(", ")))
        }
        Err(problems) => report::failed("ingress", counted(problems.len()), problems),
    }
}

fn values_of(document: &WorkloadDocument) -> String {
    document.chart.as_ref().map(|c| c.values.clone()).unwrap_or_default()
}

fn counted(problems: usize) -> String {
    if problems == 1 { "1 problem".into() } else { format!("{problems} problems") }
}

fn took(mut step: CheckStep, since: Instant) -> CheckStep {
    step.took_ms = u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX);
    step
}
