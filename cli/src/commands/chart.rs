//! `workload push`, `check` and `manifests` of Helm charts.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ::chart::{ARCHIVE_BYTES_MAX, archive, sha256, structure};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use mesh_proto::{
    chart::UploadChart,
    query::GetRequest,
    workload::{ChartSpec, CheckChartRequest, CheckOutcome, CheckReport, Release, WorkloadDocument},
};
use serde_json::json;

use super::catalogue::{instance, problems, register};
use crate::{
    context::{Context, Waiting, answer, show, to_json},
    outcome::{Outcome, conclude},
    output::{self, Format, Shown, table},
};

/// What a chart's document holds beside its archive.
#[derive(Clone, Debug, Default, Args)]
pub struct ChartOptions {
    /// The chart can be exposed: a Service must carry `nemo.eu/ingress-expose`.
    #[arg(long)]
    pub ingress: bool,
    /// YAML file that is laid over the chart's values.yaml.
    #[arg(long, value_name = "FILE")]
    pub values: Option<PathBuf>,
}

/// How a chart is released.
#[derive(Clone, Debug, Default, Args)]
pub struct ReleaseOptions {
    /// Of a chart: YAML file that is laid over the document's values.
    #[arg(long, value_name = "FILE")]
    pub values: Option<PathBuf>,
    /// Of a chart: name of the release.
    #[arg(long)]
    pub release: Option<String>,
    /// Of a chart: Kubernetes namespace.
    #[arg(long)]
    pub namespace: Option<String>,
    /// Of a chart: expose it.
    #[arg(long)]
    pub ingress: bool,
}

const REPORT: &str = "continuum.workload.v1.CheckReport";
/// Bytes of a file with values.
const VALUES_BYTES_MAX: usize = 64 * 1024;

/// Files of a chart's folder, and how deep they may lie.
const FILES_MAX: usize = 1_000;
const DEPTH_MAX: usize = 16;
/// Bytes of one of them, as the manager reads it.
const FILE_BYTES_MAX: usize = archive::FILE_BYTES_MAX as usize;

/// Is this a chart: an archive by its name, or a folder?
pub fn is_chart(file: &Path) -> bool {
    let name = file.to_string_lossy();
    name.ends_with(".tgz") || name.ends_with(".tar.gz") || file.is_dir()
}

/// A chart's archive: the file itself, or the folder packed.
fn archive(file: &Path) -> anyhow::Result<Bytes> {
    if !file.is_dir() {
        return Ok(bounded(file, ARCHIVE_BYTES_MAX)?.into());
    }
    let mut files = BTreeMap::new();
    gather(file, file, 0, &mut files)?;
    let folder = file.canonicalize().ok().and_then(|f| Some(f.file_name()?.to_string_lossy().into_owned()));
    let packed = archive::pack(&folder.unwrap_or_else(|| "chart".into()), &files);
    let packed = packed.with_context(|| format!("pack {}", file.display()))?;
    if packed.len() > ARCHIVE_BYTES_MAX {
        bail!("{} packs to more than {ARCHIVE_BYTES_MAX} bytes; leave out what it does not need", file.display());
    }
    Ok(packed.into())
}

/// Every file below a folder that is not hidden; links are not followed.
fn gather(root: &Path, folder: &Path, depth: usize, files: &mut BTreeMap<String, Bytes>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let (path, kind) = entry.and_then(|e| Ok((e.path(), e.file_type()?)))?;
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        if kind.is_dir() && depth < DEPTH_MAX {
            gather(root, &path, depth + 1, files)?;
        } else if !kind.is_file() {
            bail!(
                "{} is a link, lies too deep, or is not a file; package the chart with `helm package`",
                path.display()
            );
        } else {
            let below = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.insert(below, bounded(&path, FILE_BYTES_MAX)?.into());
        }
        let bytes: usize = files.values().map(Bytes::len).sum();
        if files.len() > FILES_MAX || bytes as u64 > archive::UNPACKED_BYTES_MAX {
            bail!(
                "{} holds more than {FILES_MAX} files or {} bytes, which no chart does; name the folder of a chart, or \
                 package it with `helm package`",
                root.display(),
                archive::UNPACKED_BYTES_MAX
            );
        }
    }
    Ok(())
}

/// A chart's archive and its document.
pub struct Chart {
    /// The archive.
    pub archive: Bytes,
    /// Its document.
    pub document: WorkloadDocument,
}

/// Reads a chart that can be pushed.
pub fn read(file: &Path, options: &ChartOptions) -> anyhow::Result<Chart> {
    let archive = archive(file)?;
    let found = archive::read(&archive).map_err(anyhow::Error::from).and_then(|files| {
        structure::check(&files, None).map_err(|found| {
            let (reason, hint) = problems(&found);
            anyhow::anyhow!("{reason} ({hint})")
        })
    });
    let found = found.with_context(|| format!("{} is not a chart that can be pushed", file.display()))?;
    let values = options.values.as_deref().map(values).transpose()?.unwrap_or_default();
    let chart = ChartSpec { sha256: sha256(&archive), ingress_support: options.ingress, values };
    let document = WorkloadDocument {
        name: found.name,
        version: found.version,
        kind: "chart".into(),
        description: found.description.chars().take(1_000).collect(),
        chart: Some(chart),
        ..WorkloadDocument::default()
    };
    Ok(Chart { archive, document })
}

fn bounded(file: &Path, most: usize) -> anyhow::Result<Vec<u8>> {
    let opened = std::fs::File::open(file).with_context(|| format!("open {}", file.display()))?;
    let mut bytes = vec![];
    opened.take(most as u64 + 1).read_to_end(&mut bytes).with_context(|| format!("read {}", file.display()))?;
    if bytes.len() > most {
        bail!("{} is larger than {most} bytes; leave out what the chart does not need", file.display());
    }
    Ok(bytes)
}

fn values(file: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(bounded(file, VALUES_BYTES_MAX)?);
    let text = text.map_err(|_| anyhow::anyhow!("{} is not UTF-8 text", file.display()))?;
    match ::chart::values_problem(&text) {
        Some(reason) => bail!("{} does not hold values: {reason}", file.display()),
        None => Ok(text),
    }
}

/// How a chart is to be released: the options over what holds now; `None` without options.
pub fn release(options: &ReleaseOptions, now: Option<Release>) -> anyhow::Result<Option<Release>> {
    let ReleaseOptions { values: file, release, namespace, ingress } = options;
    if file.is_none() && release.is_none() && namespace.is_none() && !ingress {
        return Ok(None);
    }
    let mut wanted = now.unwrap_or_default();
    if let Some(file) = file {
        wanted.values = values(file)?;
    }
    if let Some(name) = release {
        wanted.name.clone_from(name);
    }
    if let Some(name) = namespace {
        wanted.namespace.clone_from(name);
    }
    wanted.ingress |= ingress;
    Ok(Some(wanted))
}

/// Uploads a chart, registers its document, and waits for its checks.
pub async fn push(
    context: &Context<'_>,
    file: &Path,
    options: &ChartOptions,
    waiting: &Waiting,
) -> anyhow::Result<ExitCode> {
    let Chart { archive, document } = read(file, options)?;
    let client = context.client().await?;
    let digest = sha256(&archive);
    let id = || uuid::Uuid::now_v7().to_string();
    let upload = UploadChart { owner: context.owner.clone(), sha256: digest, archive };
    if let Err(error) = client.ask(&upload, id(), waiting.limit()).await {
        let refusal = error.into_refusal().context("upload the archive")?;
        let outcome = Outcome { version: document.version, ..Outcome::of(&document.name) }.refused(refusal);
        return Ok(conclude(context.format, "workload", &[outcome]));
    }
    let of = format!("{}@{}", document.name, document.version);
    let outcome = register(context, &client, document, id(), waiting).await?;
    if !waiting.no_wait && context.format == Format::Table {
        let request = GetRequest { owner: context.owner.clone(), id: of };
        let view = answer("get the workload", client.workloads().await?.get_workload(request).await)?;
        if let Some(report) = view.report {
            output::line(steps(&report));
            output::line("");
        }
    }
    Ok(conclude(context.format, "workload", &[outcome]))
}

/// Makes the checks without storing anything.
pub async fn check(context: &Context<'_>, file: &Path, options: &ChartOptions) -> anyhow::Result<ExitCode> {
    let archive = archive(file)?;
    let values = options.values.as_deref().map(values).transpose()?.unwrap_or_default();
    let chart = ChartSpec { ingress_support: options.ingress, values, ..ChartSpec::default() };
    // Name and version are those of the chart: no document exists yet.
    let document = Some(WorkloadDocument { chart: Some(chart), ..WorkloadDocument::default() });
    let client = context.client().await?;
    let request = CheckChartRequest { archive, document };
    let report = answer("check the chart", client.workloads().await?.check_chart(request).await)?;
    let failed = report.steps.iter().any(|step| step.outcome() == CheckOutcome::CheckFailed);
    let shown = show(context, false, async || Ok(Shown { value: to_json(REPORT, &report), text: steps(&report) }));
    shown.await?;
    Ok(ExitCode::from(u8::from(failed)))
}

/// A report for people.
pub fn steps(report: &CheckReport) -> String {
    let mut rows = vec![];
    for step in &report.steps {
        let outcome = match step.outcome() {
            CheckOutcome::CheckPassed => "passed",
            CheckOutcome::CheckFailed => "FAILED",
            _ => "not checked",
        };
        let took = format!("{} ms", step.took_ms);
        let hint = if step.problems.is_empty() { step.hint.clone() } else { String::new() };
        rows.push(vec![step.name.clone(), outcome.into(), took, step.reason.clone(), hint]);
        for problem in &step.problems {
            let reason = match problem.path.as_str() {
                "" => problem.reason.clone(),
                path => format!("{path}: {}", problem.reason),
            };
            rows.push(vec![String::new(), String::new(), String::new(), reason, problem.hint.clone()]);
        }
    }
    let asks = report
        .resources
        .as_ref()
        .map(|r| format!("\nasks for {} mCPU and {}", r.cpu_milli, output::megabytes(r.memory_bytes)));
    let images =
        if report.images.is_empty() { String::new() } else { format!("\nimages: {}", report.images.join(", ")) };
    let named = match report.chart_name.as_str() {
        "" => String::new(),
        name => format!("{name} {}, ", report.chart_version),
    };
    let head = format!("{named}sha256 {}", report.sha256);
    let rows = table(&["check", "outcome", "took", "found", "hint"], rows);
    format!("{head}{}{images}\n{rows}", asks.unwrap_or_default())
}

/// Shows what an instance's cluster receives.
pub async fn manifests(context: &Context<'_>, id: &str) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let id = instance(context, &client, id).await?.instance_id;
    let request = GetRequest { owner: context.owner.clone(), id };
    let reply = answer("render the manifests", client.workloads().await?.manifests(request).await)?;
    match context.format {
        Format::Json => output::line(output::json(&json!({"renderer": reply.renderer, "yaml": reply.yaml}))),
        _ => output::line(reply.yaml.trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}
