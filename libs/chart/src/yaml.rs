//! YAML as values. The reader's own budget bounds aliases, depth and nodes.

use serde_json::Value;

/// Bytes of the longest message of the reader that is passed on.
const MESSAGE_MAX: usize = 300;

/// All documents of a text that are not empty.
pub(super) fn documents(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| shortened(&error.to_string()))?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

/// The one document of a text; null when it is empty.
pub(super) fn document(text: &str) -> Result<Value, String> {
    let mut documents = documents(text)?;
    match (documents.pop(), documents.is_empty()) {
        (None, _) => Ok(Value::Null),
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(format!("it holds {} documents, of one that it may", documents.len() + 1)),
    }
}

/// Values as YAML text.
pub(super) fn text(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_default()
}

fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MESSAGE_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
