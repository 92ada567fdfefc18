//! Files that people write: YAML or JSON, several documents divided by `---`, 3GPP camelCase or snake_case.

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, anyhow, bail};
use mesh_proto::{Written, json};

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
pub fn read(path: &Path) -> anyhow::Result<Vec<Written>> {
    let name = path.display();
    let documents =
        Written::documents(&text(path)?).map_err(|error| anyhow!("{name} is neither YAML nor JSON: {error}"))?;
    if documents.is_empty() {
        bail!("{name} holds no document");
    }
    if let Some(other) = documents.iter().find(|d| !d.is_fields()) {
        bail!("{name} holds no fields at {}, where a document with fields should be", other.place);
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
pub fn intent(mut document: Written) -> anyhow::Result<IntentDocument> {
    let outer = (take(&mut document, IDS)?, take(&mut document, &["owner"])?);
    let Some(mut inner) = document.take(INTENT)? else {
        return Ok(IntentDocument { id: outer.0, owner: outer.1, body: body(&document)? });
    };
    if let Some(name) = document.names().next() {
        bail!("{name} stands beside the intent, where only its id and owner do; write it into the intent");
    }
    let id = either("id", outer.0, take(&mut inner, IDS)?)?;
    let owner = either("owner", outer.1, take(&mut inner, &["owner"])?)?;
    Ok(IntentDocument { id, owner, body: body(&inner)? })
}

/// How a document may spell an intent's id, and the intent itself.
const IDS: &[&str] = &["id", "intentId", "intent_id"];
const INTENT: &[&str] = &["intent", "Intent"];

fn body(intent: &Written) -> anyhow::Result<Vec<u8>> {
    json::written_to_protobuf("continuum.intent.v1.Intent", intent).map_err(|error| anyhow!("{error}"))
}

/// The id that an intent's document gives it, or its wrapper; `None` if neither does.
pub fn id_of(document: &Written) -> Option<String> {
    let inner = INTENT.iter().find_map(|name| document.get(name));
    let places = [Some(document), inner].into_iter().flatten();
    places.flat_map(|place| IDS.iter().filter_map(|name| place.get(name)?.text())).map(str::to_owned).next()
}

/// Takes the scalar under one of these spellings of a name out of a document, as it is spelt.
fn take(document: &mut Written, names: &[&str]) -> anyhow::Result<Option<String>> {
    let Some(found) = document.take(names)?.filter(|found| !found.is_null()) else { return Ok(None) };
    match found.text() {
        Some(text) => Ok(Some(text.to_owned())),
        None => bail!("{} at {} is not a text; write one", names.first().unwrap_or(&"a field"), found.place),
    }
}

/// What is given outside of the intent or in it: two that differ cannot both be meant.
fn either(what: &str, outer: Option<String>, inner: Option<String>) -> anyhow::Result<Option<String>> {
    match (&outer, &inner) {
        (Some(one), Some(other)) if one != other => {
            bail!("the {what} beside the intent is {one:?} and the one in it {other:?}; give one")
        }
        _ => Ok(outer.or(inner)),
    }
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
        let (camel, snake) = (intent(camel.into()).unwrap(), intent(snake.into()).unwrap());
        assert_eq!((camel.id, camel.body.clone()), (snake.id, snake.body));
        let read = mesh_proto::intent::Intent::decode(camel.body.as_slice()).unwrap();
        assert_eq!(read.observation_period, 2);
    }

    #[test]
    fn an_unknown_field_is_refused_with_the_nearest_known() {
        let error = intent(serde_json::json!({"userLable": "x"}).into()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("userLabel"), "{error}");
    }

    #[test]
    fn a_files_texts_are_as_they_are_spelt() {
        let written = Written::yaml("id: 010\nowner: no\nintent: {userLabel: on}\n").unwrap();
        assert_eq!(id_of(&written).as_deref(), Some("010"));
        let read = intent(written).unwrap();
        assert_eq!((read.id.as_deref(), read.owner.as_deref()), (Some("010"), Some("no")));
        let intent = mesh_proto::intent::Intent::decode(read.body.as_slice()).unwrap();
        assert_eq!(intent.user_label, "on");
    }

    #[test]
    fn what_is_given_twice_is_refused_with_both_places() {
        let refused = |text: &str| {
            let documents = Written::documents(text).map_err(anyhow::Error::from);
            documents.and_then(|mut all| intent(all.remove(0))).map(|_| ()).unwrap_err().to_string()
        };
        assert!(
            refused("userLabel: a\nuser_label: b\n").contains("userLabel (line 1 column 1) and user_label (line 2")
        );
        assert!(refused("userLabel: a\nuserLabel: b\n").contains("at line 1 column 1 and at line 2 column 1"));
        assert!(refused("id: a\nintentId: b\nuserLabel: c\n").contains("id (line 1 column 1) and intentId (line 2"));
        assert!(refused("intent: {}\nIntent: {}\n").contains("are the same field"));
        assert!(refused("id: a\nintent: {id: b}\n").contains("give one"));
        assert!(refused("intent: {}\nuserLabel: b\n").contains("userLabel stands beside the intent"));
        assert!(refused("id: [a]\nuserLabel: b\n").contains("id at line 1 column 5 is not a text"));
    }

    #[test]
    fn no_file_makes_its_reader_panic() {
        let good = [
            "id: a\nintent: {userLabel: b}\n---\nowner: c\nuser_label: d\n",
            "{\"intentId\": 1, \"userLabel\": \"e\"}",
        ];
        let mut made = fuzzing::Made::new(1, good.map(|text| text.as_bytes().to_vec()).into());
        let (mut read, mut refused) = (0, 0);
        for _ in 0..5_000 {
            let text = String::from_utf8_lossy(&made.input()).into_owned();
            let _ = split(&text);
            for document in Written::documents(&text).unwrap_or_default() {
                let _ = id_of(&document);
                match intent(document) {
                    Ok(_) => read += 1,
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(read > 0 && refused > 0, "{read} {refused}");
    }
}
