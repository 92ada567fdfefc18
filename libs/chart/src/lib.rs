//! What a chart must be: its archive, its `Chart.yaml`, its manifests, images and ingress. Pure: bytes in, findings out.
//!
//! - [`archive`] reads a `.tgz` within bounded memory, and refuses what could leave its folder;
//! - [`structure`] holds the rules of the first check;
//! - [`manifests`] reads what a renderer gave: workloads, images, secrets, what they ask for;
//! - [`quantity`] is what they may ask for;
//! - [`mod@reference`] is the grammar of image references;
//! - [`ingress`] holds the rules of the annotations `nemo.eu/ingress-*`;
//! - [`report`] puts the four checks together and concludes.

pub mod archive;
pub mod ingress;
pub mod manifests;
pub mod quantity;
pub mod reference;
pub mod report;
pub mod structure;
mod yaml;

use mesh_proto::intent::Problem;

/// Bytes of the largest archive. Helm itself installs no release larger than 1 MiB, for it keeps each in one Secret.
pub const ARCHIVE_BYTES_MAX: usize = 3 << 20;
/// Problems that one check names; the rest is counted.
pub const PROBLEMS_MAX: usize = 32;

/// SHA-256 in lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Is this what [`sha256`] writes?
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What is wrong with values that somebody lays over a chart's; nothing when they are a mapping, or empty.
pub fn values_problem(text: &str) -> Option<String> {
    match yaml::document(text) {
        Ok(serde_json::Value::Null | serde_json::Value::Object(_)) => None,
        Ok(_) => Some("they are not a mapping".into()),
        Err(error) => Some(error),
    }
}

fn problem(path: impl Into<String>, reason: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem { path: path.into(), reason: reason.into(), hint: hint.into() }
}

/// The first 96 characters, quoted: what somebody sent is repeated to them, but not without end.
fn quoted(text: &str) -> String {
    let head: String = text.chars().take(96).collect();
    if head.len() < text.len() { format!("{head:?}...") } else { format!("{head:?}") }
}
