//! Workload documents: submitted, judged, and never changed again.

use std::collections::BTreeMap;

use mesh_kit::Key;
use mesh_proto::{
    Refusal, Timestamp,
    deciders::workloads::Fact,
    intent::Problem,
    validation, wire,
    workload::{
        RegisterWorkload, WorkloadDocument, WorkloadRegistered, WorkloadRejected, WorkloadSubmitted, WorkloadUnchanged,
    },
};
use prost::Message as _;
use serde::{Deserialize, Serialize};

/// Bytes of the largest document.
pub const DOCUMENT_MAX_BYTES: usize = 64 * 1024;
/// Versions of one name.
pub const VERSIONS_MAX: usize = 1_000;

/// The versions of one document name.
pub(super) type Versions = BTreeMap<String, Version>;

/// One version of a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Version {
    submitted: WorkloadSubmitted,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Verdict {
    Awaited,
    Accepted,
    Rejected,
}

/// `name@version` in its two parts.
pub(super) fn split(workload: &str) -> Option<(&str, &str)> {
    workload.split_once('@')
}

/// Problems in one line.
pub(super) fn listed(problems: &[Problem]) -> String {
    let texts: Vec<String> = problems.iter().map(|p| format!("{}: {} ({})", p.path, p.reason, p.cure)).collect();
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
        return Err(Refusal::new("the command holds no document", "put the workload document under `document`"));
    };
    if super::is_uuid(name) {
        return Err(Refusal::new(format!("{name} is a UUID; UUIDs name instances"), "give the document another name"));
    }
    if document.name != name {
        let reason = format!("the document is named {:?}, the command is about {name}", head(&document.name));
        return Err(Refusal::new(reason, format!("send it for its own name, or name the document {name}")));
    }
    if bytes.len() > DOCUMENT_MAX_BYTES {
        let reason = format!("the document has {} bytes; at most {DOCUMENT_MAX_BYTES} are allowed", bytes.len());
        return Err(Refusal::new(reason, "move data out of it, for example into a file that the process reads"));
    }
    let (owner, name, version) = (key.token(0).to_owned(), name.to_owned(), document.version.clone());
    let command_id = command_id.to_owned();
    match versions.get(&version) {
        None if versions.len() >= VERSIONS_MAX => {
            let reason = format!("{name} has {VERSIONS_MAX} versions already");
            return Err(Refusal::new(reason, "go on under another name"));
        }
        // A rejected version never ran anywhere: it may be corrected, and the same again is told again why not.
        None | Some(Version { verdict: Verdict::Rejected, .. }) => {}
        Some(known) if same(&known.submitted.document, &bytes) => {
            return Ok(WorkloadUnchanged { owner, name, version, command_id }.into());
        }
        Some(_) => {
            let reason = format!("{name}@{version} exists with other content, and a document never changes");
            return Err(Refusal::new(reason, "push the new content under a new version"));
        }
    }
    Ok(WorkloadSubmitted { owner, name, version, document: bytes, command_id }.into())
}

/// Acts on the verdict that a submitted version waits for.
pub(super) fn accepted(versions: &Versions, m: &validation::WorkloadAccepted) -> Vec<Fact> {
    let Some(submitted) = awaiting(versions, &m.version) else { return vec![] };
    let WorkloadSubmitted { owner, name, version, document, .. } = submitted.clone();
    vec![WorkloadRegistered { owner, name, version, document }.into()]
}

/// Acts on the verdict that a submitted version waits for.
pub(super) fn rejected(versions: &Versions, m: &validation::WorkloadRejected) -> Vec<Fact> {
    let Some(submitted) = awaiting(versions, &m.version) else { return vec![] };
    let WorkloadSubmitted { owner, name, version, .. } = submitted.clone();
    vec![WorkloadRejected { owner, name, version, problems: m.problems.clone() }.into()]
}

fn awaiting<'a>(versions: &'a Versions, version: &str) -> Option<&'a WorkloadSubmitted> {
    versions.get(version).filter(|v| v.verdict == Verdict::Awaited).map(|v| &v.submitted)
}

/// The versions after a fact about one of them.
pub(super) fn evolve(versions: &mut Versions, fact: &Fact, _at: Timestamp) {
    let mut judge = |version: &str, verdict| {
        if let Some(known) = versions.get_mut(version) {
            debug_assert!(known.verdict == Verdict::Awaited, "a document is judged once");
            known.verdict = verdict;
        }
    };
    match fact {
        Fact::WorkloadRegistered(m) => judge(&m.version, Verdict::Accepted),
        Fact::WorkloadRejected(m) => judge(&m.version, Verdict::Rejected),
        Fact::WorkloadSubmitted(m) => {
            let mut submitted = m.clone();
            submitted.command_id.clear();
            versions.insert(m.version.clone(), Version { submitted, verdict: Verdict::Awaited });
        }
        _ => {}
    }
}

/// The first 64 characters: what somebody sent is repeated to them, but not without end.
pub(super) fn head(text: &str) -> String {
    text.chars().take(64).collect()
}
