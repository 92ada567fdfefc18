//! Files that people write: YAML or JSON, several documents divided by `---`, 3GPP camelCase or snake_case.

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, anyhow, bail};
use mesh_proto::json;
use serde_json::Value as Json;

/// Bytes of a file that are read at most.
const SIZE_MAX: u64 = 4 * 1024 * 1024;

/// Reads a file as text; `-` is standard input.
fn text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let name = path.display();
    let source: Box<dyn std::io::Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).with_context(|| format!("open {name}"))?)
    };
    source.take(SIZE_MAX + 1).read_to_string(&mut text).with_context(|| format!("read {name} as UTF-8 text"))?;
    if text.len() as u64 > SIZE_MAX {
        bail!("{name} is larger than {} MiB; split it", SIZE_MAX / 1024 / 1024);
    }
    Ok(text)
}

/// Reads all documents of a file, each as the text that it is; `-` is standard input.
pub fn texts(path: &Path) -> anyhow::Result<Vec<String>> {
    let documents = split(&text(path)?);
    if documents.is_empty() {
        bail!("{} holds no document", path.display());
    }
    Ok(documents)
}

/// The documents of a text, divided by lines of `---`; empty ones are left out.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let empty = |text: &String| text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    documents.retain(|text| !empty(text));
    documents
}

/// Reads all documents of a file; `-` is standard input.
pub fn read(path: &Path) -> anyhow::Result<Vec<Json>> {
    let name = path.display();
    let text = text(path)?;
    let documents: Vec<Json> =
        serde_saphyr::from_multiple(&text).map_err(|error| anyhow!("{name} is neither YAML nor JSON: {error}"))?;
    let documents: Vec<Json> = documents.into_iter().filter(|d| !d.is_null()).collect();
    if documents.is_empty() {
        bail!("{name} holds no document");
    }
    if let Some(other) = documents.iter().find(|d| !d.is_object()) {
        bail!("{name} holds {other} where a document with fields should be");
    }
    Ok(documents)
}

/// An intent with the id and owner that its file gives it, if any.
pub struct IntentDocument {
    /// Id, if given.
    pub id: Option<String>,
    /// Owner, if given.
    pub owner: Option<String>,
    /// Protobuf bytes of `continuum.intent.v1.Intent`.
    pub body: Vec<u8>,
}

/// Reads an intent: bare, or wrapped as `intent:` with `id` (or `intentId`) and `owner` beside it or inside it.
pub fn intent(mut document: Json) -> anyhow::Result<IntentDocument> {
    let mut id = take(&mut document, &["id", "intentId", "intent_id"]);
    let mut owner = take(&mut document, &["owner"]);
    let mut inner = match document.as_object_mut().and_then(|o| o.remove("intent").or_else(|| o.remove("Intent"))) {
        Some(inner) => inner,
        None => document,
    };
    id = id.or_else(|| take(&mut inner, &["id", "intentId", "intent_id"]));
    owner = owner.or_else(|| take(&mut inner, &["owner"]));
    let body = json::value_to_protobuf("continuum.intent.v1.Intent", inner).map_err(|error| anyhow!("{error}"))?;
    Ok(IntentDocument { id, owner, body })
}

fn take(document: &mut Json, names: &[&str]) -> Option<String> {
    let object = document.as_object_mut()?;
    names.iter().find_map(|name| object.remove(*name)).map(|value| match value {
        Json::String(text) => text,
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn documents_are_divided_by_lines_of_dashes_and_empty_ones_left_out() {
        assert_eq!(split("a: 1\n---\n# nothing\n---  \nb: ---\n"), ["a: 1\n", "b: ---\n"]);
        assert!(split("\n# nothing\n---\n").is_empty());
    }

    #[test]
    fn both_spellings_give_the_same_intent() {
        let camel = serde_json::json!({"id": "a", "userLabel": "DeliverComputingWorkload", "observationPeriod": 2});
        let snake = serde_json::json!({"intent": {"id": "a", "user_label": "DeliverComputingWorkload", "observation_period": 2}});
        let (camel, snake) = (intent(camel).unwrap(), intent(snake).unwrap());
        assert_eq!((camel.id, camel.body.clone()), (snake.id, snake.body));
        let read = mesh_proto::intent::Intent::decode(camel.body.as_slice()).unwrap();
        assert_eq!(read.observation_period, 2);
    }

    #[test]
    fn an_unknown_field_is_refused_with_the_nearest_known() {
        let error = intent(serde_json::json!({"userLable": "x"})).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("userLabel"), "{error}");
    }
}
