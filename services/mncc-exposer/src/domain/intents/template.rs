//! Libraries that are installed as files: keywords and a call with places for attributes.

use std::collections::BTreeMap;

use mesh_proto::{Refusal, Written};
use serde::Deserialize;
use serde_json::Value;

use super::{
    catalogue::{Call, Library, Outcome, Tree},
    document::{Expectation, NetworkIntent, refusal},
};

/// A library as a file describes it. `{name}` in a text is replaced by the attribute, target or context of that name,
/// or by `objectInstance`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Template {
    /// Its name.
    library: String,
    user_label: String,
    verb: String,
    object_types: Vec<String>,
    call: CallTemplate,
    #[serde(default)]
    undo: Option<UndoTemplate>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct CallTemplate {
    executioner: String,
    operation: String,
    target: String,
    #[serde(default)]
    body: Value,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct UndoTemplate {
    operation: String,
    #[serde(default)]
    body: Value,
}

impl Template {
    /// Reads a library file.
    ///
    /// # Errors
    /// When it is not a library; says where.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let hint =
            "a library has: library, userLabel, verb, objectTypes, call {executioner, operation, target, body}, undo";
        let found: Self =
            Written::yaml(text).and_then(Written::read).map_err(|error| refusal(error.to_string(), hint))?;
        if found.library.is_empty() || found.object_types.is_empty() {
            return Err(refusal("the library has no name or takes nothing", hint));
        }
        Ok(found)
    }
}

fn fill(text: &str, values: &BTreeMap<&str, &str>) -> Result<String, Refusal> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else {
            return Err(refusal(format!("{text:?} opens a place and does not close it"), "add `}`"));
        };
        let value =
            values.get(name).ok_or_else(|| refusal(format!("the intent has no {name}"), format!("add {name}")))?;
        filled.push_str(before);
        filled.push_str(value);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn fill_value(value: &Value, values: &BTreeMap<&str, &str>) -> Result<Value, Refusal> {
    Ok(match value {
        Value::String(text) => Value::String(fill(text, values)?),
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| fill_value(item, values)).collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => {
            let entry = |(name, value): (&String, &Value)| Ok((name.clone(), fill_value(value, values)?));
            Value::Object(fields.iter().map(entry).collect::<Result<_, Refusal>>()?)
        }
        other => other.clone(),
    })
}

impl Library for Template {
    fn name(&self) -> &str {
        &self.library
    }

    fn tree(&self) -> Tree {
        let leaves = self.object_types.iter().map(|object_type| (object_type.clone(), self.library.clone())).collect();
        BTreeMap::from([(self.user_label.clone(), BTreeMap::from([(self.verb.clone(), leaves)]))])
    }

    fn translate(&self, intent: &NetworkIntent, expectations: &[&Expectation]) -> Result<Outcome, Refusal> {
        let call = |expectation: &&Expectation| -> Result<Call, Refusal> {
            let maps = [&intent.contexts, &expectation.contexts, &expectation.targets, &expectation.object];
            let mut values: BTreeMap<&str, &str> =
                maps.iter().flat_map(|map| map.iter()).map(|(k, v)| (k.as_str(), v.as_str())).collect();
            values.insert("objectInstance", &expectation.object_instance);
            let undo = match &self.undo {
                Some(undo) => Some((fill(&undo.operation, &values)?, fill_value(&undo.body, &values)?)),
                None => None,
            };
            Ok(Call {
                expectation_id: expectation.id.clone(),
                executioner: self.call.executioner.clone(),
                operation: fill(&self.call.operation, &values)?,
                target: fill(&self.call.target, &values)?,
                body: fill_value(&self.call.body, &values)?,
                undo,
            })
        };
        Ok(Outcome::Calls(expectations.iter().map(call).collect::<Result<_, _>>()?))
    }
}
