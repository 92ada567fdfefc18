//! The documents beside the code.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test is told by the environment to write what it compares with")]

use cluster_agent::domain::measure::catalog;

#[test]
fn the_table_of_metrics_in_the_documents_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let begin = text.find("| probe |").unwrap();
    let end = text[begin..].find("\n\n").map_or(text.len(), |end| begin + end + 1);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{}{}{}", &text[..begin], catalog::table(), &text[end..])).unwrap();
        return;
    }
    assert!(text[begin..end] == catalog::table(), "UPDATE_DOCS=1 cargo test -p cluster-agent --test catalog writes it");
}
