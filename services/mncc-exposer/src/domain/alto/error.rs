//! ALTO errors (RFC 7285 §8.5).

use serde_json::{Map, Value, json};

/// ALTO error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The body is not JSON.
    Syntax,
    /// A required field is missing.
    MissingField,
    /// A field has a value of the wrong type.
    InvalidFieldType,
    /// A field has a wrong value.
    InvalidFieldValue,
}

impl Code {
    /// As the protocol names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syntax => "E_SYNTAX",
            Self::MissingField => "E_MISSING_FIELD",
            Self::InvalidFieldType => "E_INVALID_FIELD_TYPE",
            Self::InvalidFieldValue => "E_INVALID_FIELD_VALUE",
        }
    }
}

/// Why a request was not answered. A `value` is only ever told with its `field`.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What is wrong.
    pub code: Code,
    /// Where the JSON could not be read.
    pub syntax: Option<String>,
    /// Full path of the field, its parts divided by `/`.
    pub field: Option<String>,
    /// The wrong value as text.
    pub value: Option<String>,
}

/// Characters of a wrong value that are told back.
const VALUE_CHARS_MAX: usize = 256;

impl Fault {
    /// The body is not JSON.
    pub fn syntax(error: &serde_json::Error) -> Self {
        let syntax = format!("line {}, column {}: {error}", error.line(), error.column());
        Self { code: Code::Syntax, syntax: Some(syntax), field: None, value: None }
    }

    /// The body is JSON whose meaning is not clear: a name is there twice (RFC 8259 §4).
    pub fn unclear(error: &mesh_proto::WrittenError) -> Self {
        Self { code: Code::Syntax, syntax: Some(error.to_string()), field: None, value: None }
    }

    /// A required field is missing.
    pub fn missing(field: impl Into<String>) -> Self {
        Self { code: Code::MissingField, syntax: None, field: Some(field.into()), value: None }
    }

    /// A field has a value of the wrong type.
    pub fn mistyped(field: impl Into<String>) -> Self {
        Self { code: Code::InvalidFieldType, syntax: None, field: Some(field.into()), value: None }
    }

    /// A field, or an element of it, has a wrong value.
    pub fn wrong(field: impl Into<String>, value: &Value) -> Self {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let value = text.chars().take(VALUE_CHARS_MAX).collect();
        Self { code: Code::InvalidFieldValue, syntax: None, field: Some(field.into()), value: Some(value) }
    }

    /// The error resource.
    pub fn body(&self) -> Value {
        let mut meta = Map::from_iter([("code".to_owned(), json!(self.code.name()))]);
        let parts = [("syntax-error", &self.syntax), ("field", &self.field), ("value", &self.value)];
        meta.extend(parts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), json!(text.as_ref()?)))));
        json!({ "meta": meta })
    }
}
