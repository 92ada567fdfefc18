//! Workload documents: submitted, judged, and never changed again.
//!
//! A process' document is registered once the validator accepts it. A chart's needs an archive as well: named in the
//! document or attached to it, before or after the verdict. Then its checks are awaited, and their report decides.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use mesh_core::Key;
use mesh_proto::{
    Refusal, Timestamp,
    deciders::workloads::Fact,
    intent::Problem,
    validation, wire,
    workload::{
        AttachChart, ChartAttached, ChartSpec, CheckReport, DropWorkload, RegisterWorkload, ReportChecks, Resources,
        WorkloadChecked, WorkloadDocument, WorkloadDropped, WorkloadOnboarding, WorkloadRegistered, WorkloadRejected,
        WorkloadSubmitted, WorkloadUnchanged,
    },
};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use chart::{is_sha256, report};

/// Bytes of the largest document.
pub const DOCUMENT_MAX_BYTES: usize = 64 * 1024;
/// Versions of one name.
pub const VERSIONS_MAX: usize = 1_000;
/// The kind of documents whose archive is checked.
pub const CHART: &str = "chart";

/// The versions of one document name.
pub(super) type Versions = BTreeMap<String, Version>;

/// One version of a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Version {
    submitted: WorkloadSubmitted,
    verdict: Verdict,
    /// Digest of a chart's archive; empty while it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    sha256: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Verdict {
    /// The validator's.
    Awaited,
    /// A chart is well formed; its archive or, once it has one, its checks are awaited.
    Onboarding,
    Accepted,
    Rejected,
}

/// `name@version` in its two parts.
pub(super) fn split(workload: &str) -> Option<(&str, &str)> {
    workload.split_once('@')
}

/// Problems in one line.
pub(super) fn listed(problems: &[Problem]) -> String {
    let texts: Vec<String> = problems.iter().map(|p| format!("{}: {} ({})", p.path, p.reason, p.hint)).collect();
    texts.join("; ")
}

/// Do two documents say the same? Bytes may differ in the order of a map; fields that nobody here knows must not.
fn same(a: &[u8], b: &[u8]) -> bool {
    let plain = |bytes: &[u8]| WorkloadDocument::decode(bytes).ok().filter(|d| d.encoded_len() == bytes.len());
    a == b || plain(a).is_some_and(|known| plain(b) == Some(known))
}

/// Answers `RegisterWorkload`.
pub(super) fn register(
    key: &Key,
    versions: &Versions,
    m: &RegisterWorkload,
    command_id: &str,
    body: &[u8],
) -> Result<Fact, Refusal> {
    let name = key.token(1);
    let (Some(document), Some(bytes)) = (&m.document, wire::field(body, 3)) else {
        return Err(Refusal::invalid("the command holds no document", "put the workload document under `document`"));
    };
    if super::is_uuid(name) {
        return Err(Refusal::invalid(
            format!("{name} is a UUID; UUIDs name instances"),
            "give the document another name",
        ));
    }
    if document.name != name {
        let reason = format!("the document is named {:?}, the command is about {name}", head(&document.name));
        return Err(Refusal::invalid(reason, format!("send it for its own name, or name the document {name}")));
    }
    if bytes.len() > DOCUMENT_MAX_BYTES {
        let reason = format!("the document has {} bytes; at most {DOCUMENT_MAX_BYTES} are allowed", bytes.len());
        return Err(Refusal::too_large(reason, "move data out of it, for example into a file that the process reads"));
    }
    let (owner, name, version) = (key.token(0).to_owned(), name.to_owned(), document.version.clone());
    let command_id = command_id.to_owned();
    match versions.get(&version) {
        None if versions.len() >= VERSIONS_MAX => {
            let reason = format!("{name} has {VERSIONS_MAX} versions already");
            return Err(Refusal::exhausted(reason, "go on under another name"));
        }
        // A rejected version never ran anywhere: it may be corrected, and the same again is told again why not.
        None | Some(Version { verdict: Verdict::Rejected, .. }) => {}
        Some(known) if same(&known.submitted.document, &bytes) => {
            return Ok(WorkloadUnchanged { owner, name, version, command_id }.into());
        }
        Some(_) => {
            let reason = format!("{name}@{version} exists with other content, and a document never changes");
            return Err(Refusal::exists(reason, "push the new content under a new version"));
        }
    }
    Ok(WorkloadSubmitted { owner, name, version, document: bytes, command_id }.into())
}

/// Acts on the verdict that a submitted version waits for.
pub(super) fn accepted(versions: &Versions, m: &validation::WorkloadAccepted) -> Vec<Fact> {
    let Some(known) = awaiting(versions, &m.version) else { return vec![] };
    let WorkloadSubmitted { owner, name, version, document, .. } = known.submitted.clone();
    if is_chart(&document) {
        return vec![WorkloadOnboarding { owner, name, version, sha256: known.sha256.clone(), document }.into()];
    }
    vec![WorkloadRegistered { owner, name, version, document }.into()]
}

/// Acts on the verdict that a submitted version waits for.
pub(super) fn rejected(versions: &Versions, m: &validation::WorkloadRejected) -> Vec<Fact> {
    let Some(known) = awaiting(versions, &m.version) else { return vec![] };
    let WorkloadSubmitted { owner, name, version, .. } = known.submitted.clone();
    vec![WorkloadRejected { owner, name, version, problems: m.problems.clone() }.into()]
}

fn awaiting<'a>(versions: &'a Versions, version: &str) -> Option<&'a Version> {
    versions.get(version).filter(|v| v.verdict == Verdict::Awaited)
}

/// Answers `AttachChart`.
pub(super) fn attach(key: &Key, versions: &Versions, m: &AttachChart, command_id: &str) -> Result<Vec<Fact>, Refusal> {
    let known = found(key, versions, &m.version)?;
    let of = format!("{}@{}", key.token(1), head(&m.version));
    if !is_sha256(&m.sha256) {
        let reason = format!("{:?} is not a SHA-256", head(&m.sha256));
        return Err(Refusal::invalid(reason, "give 64 lower-case hexadecimal digits, those of the uploaded archive"));
    }
    if !is_chart(&known.submitted.document) {
        return Err(Refusal::state(format!("{of} is not a chart"), "push a document of kind chart"));
    }
    let (owner, name, version) = (key.token(0).to_owned(), key.token(1).to_owned(), m.version.clone());
    let (sha256, command_id) = (m.sha256.clone(), command_id.to_owned());
    if known.verdict == Verdict::Rejected {
        return Err(Refusal::state(format!("{of} was rejected"), "push its document again, and then its archive"));
    }
    if known.sha256 == m.sha256 {
        return Ok(vec![WorkloadUnchanged { owner, name, version, command_id }.into()]);
    }
    if !known.sha256.is_empty() {
        let reason = format!("{of} has another archive, and a document never changes");
        return Err(Refusal::exists(reason, "push the new archive under a new version"));
    }
    let attached = ChartAttached {
        owner: owner.clone(),
        name: name.clone(),
        version: version.clone(),
        sha256: sha256.clone(),
        command_id,
    };
    let mut facts = vec![attached.into()];
    if known.verdict == Verdict::Onboarding {
        let document = known.submitted.document.clone();
        facts.push(WorkloadOnboarding { owner, name, version, sha256, document }.into());
    }
    Ok(facts)
}

/// Answers `DropWorkload`.
pub(super) fn drop_version(
    key: &Key,
    versions: &Versions,
    m: &DropWorkload,
    command_id: &str,
) -> Result<Fact, Refusal> {
    let known = found(key, versions, &m.version)?;
    let of = format!("{}@{}", key.token(1), head(&m.version));
    let (reason, hint) = match known.verdict {
        Verdict::Rejected => return Ok(dropped(key, m, command_id)),
        Verdict::Onboarding if known.sha256.is_empty() => return Ok(dropped(key, m, command_id)),
        Verdict::Accepted => ("is registered, and a registered document never changes", "push a new version beside it"),
        // What is said of it may be on its way: it would be taken for a word on what comes under the same version.
        Verdict::Awaited => ("awaits its validation", "try again once it has its verdict"),
        Verdict::Onboarding => ("is being checked", "try again once it is checked"),
    };
    Err(Refusal::state(format!("{of} {reason}"), hint))
}

fn dropped(key: &Key, m: &DropWorkload, command_id: &str) -> Fact {
    let (owner, name) = (key.token(0).to_owned(), key.token(1).to_owned());
    WorkloadDropped { owner, name, version: m.version.clone(), command_id: command_id.to_owned() }.into()
}

/// Acts on the report of the checks that a chart waits for.
pub(super) fn checked(versions: &Versions, m: &ReportChecks) -> Vec<Fact> {
    let Some(report) = &m.report else { return vec![] };
    let awaited = |v: &&Version| v.verdict == Verdict::Onboarding && !v.sha256.is_empty() && v.sha256 == report.sha256;
    let Some(known) = versions.get(&m.version).filter(awaited) else { return vec![] };
    let WorkloadSubmitted { owner, name, version, document, .. } = known.submitted.clone();
    let told = WorkloadChecked {
        owner: owner.clone(),
        name: name.clone(),
        version: version.clone(),
        report: Some(report.clone()),
    };
    let problems = report::objections(report);
    let verdict = match problems.is_empty() {
        true => WorkloadRegistered { owner, name, version, document: completed(&document, report) }.into(),
        false => WorkloadRejected { owner, name, version, problems }.into(),
    };
    vec![told.into(), verdict]
}

/// The document with what its checks found out: which archive it means, and what it asks for if it does not say.
///
/// Appended rather than rewritten: protobuf merges a message that comes again into the first, and fields that nobody
/// here knows stay as they came in.
fn completed(document: &Bytes, report: &CheckReport) -> Bytes {
    let known = WorkloadDocument::decode(document.clone()).unwrap_or_default();
    let resources = report.resources.filter(|r| known.resources.is_none() && *r != Resources::default());
    let chart = ChartSpec { sha256: report.sha256.clone(), ..Default::default() };
    let more = WorkloadDocument { chart: Some(chart), resources, ..Default::default() };
    let mut bytes = BytesMut::from(&document[..]);
    bytes.extend_from_slice(&more.encode_to_vec());
    bytes.freeze()
}

fn is_chart(document: &Bytes) -> bool {
    WorkloadDocument::decode(document.clone()).is_ok_and(|d| d.kind == CHART)
}

fn found<'a>(key: &Key, versions: &'a Versions, version: &str) -> Result<&'a Version, Refusal> {
    versions.get(version).ok_or_else(|| {
        let reason = format!("there is no workload document {}@{}", key.token(1), head(version));
        let known: Vec<&str> = versions.keys().take(5).map(String::as_str).collect();
        let hint = match known.is_empty() {
            true => "push it first".to_owned(),
            false => format!("push it first; its versions are {}", known.join(", ")),
        };
        Refusal::not_found(reason, hint)
    })
}

/// The versions after a fact about one of them.
pub(super) fn evolve(versions: &mut Versions, fact: &Fact, _at: Timestamp) {
    let mut judge = |version: &str, verdict| {
        if let Some(known) = versions.get_mut(version) {
            let judged = matches!(known.verdict, Verdict::Accepted | Verdict::Rejected);
            debug_assert!(!judged, "a document is judged once");
            known.verdict = verdict;
        }
    };
    match fact {
        Fact::WorkloadRegistered(m) => judge(&m.version, Verdict::Accepted),
        Fact::WorkloadRejected(m) => judge(&m.version, Verdict::Rejected),
        Fact::WorkloadSubmitted(m) => {
            let mut submitted = m.clone();
            submitted.command_id.clear();
            let chart = WorkloadDocument::decode(m.document.clone()).unwrap_or_default().chart;
            let sha256 = chart.unwrap_or_default().sha256;
            versions.insert(m.version.clone(), Version { submitted, verdict: Verdict::Awaited, sha256 });
        }
        Fact::WorkloadOnboarding(m) => judge(&m.version, Verdict::Onboarding),
        Fact::ChartAttached(m) => {
            if let Some(known) = versions.get_mut(&m.version) {
                known.sha256.clone_from(&m.sha256);
            }
        }
        Fact::WorkloadDropped(m) => drop(versions.remove(&m.version)),
        _ => {}
    }
}

/// The first 64 characters: what somebody sent is repeated to them, but not without end.
pub(super) fn head(text: &str) -> String {
    text.chars().take(64).collect()
}
