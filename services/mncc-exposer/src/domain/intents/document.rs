//! The intent document (3GPP TS 28.312) as network intents use it.

use std::collections::BTreeMap;

use mesh_proto::{Refusal, Written, WrittenKind};

/// Largest intent, bytes of text.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Expectations in an intent.
const EXPECTATIONS_MAX: usize = 32;
/// Attributes of an expectation.
const ATTRIBUTES_MAX: usize = 64;
/// Characters of an attribute.
const VALUE_CHARS_MAX: usize = 8 * 1024;

/// One thing that is expected of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expectation {
    /// Unique in its intent.
    pub id: String,
    /// `DELIVER`, `CREATE`.
    pub verb: String,
    /// Keyword of the object.
    pub object_type: String,
    /// Name of the object.
    pub object_instance: String,
    /// Object contexts, by attribute.
    pub object: BTreeMap<String, String>,
    /// Targets, by name.
    pub targets: BTreeMap<String, String>,
    /// Expectation contexts, by attribute.
    pub contexts: BTreeMap<String, String>,
}

/// A network intent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkIntent {
    /// Id, if the document has one.
    pub id: String,
    /// First keyword.
    pub user_label: String,
    /// What is expected, at least one thing.
    pub expectations: Vec<Expectation>,
    /// Intent contexts, by attribute: `NEMO_WORKLOAD` for all adaptors.
    pub contexts: BTreeMap<String, String>,
}

impl Expectation {
    /// An attribute of the object that must be there.
    ///
    /// # Errors
    /// If it is absent or empty.
    pub fn object(&self, attribute: &str) -> Result<&str, Refusal> {
        let found = self.object.get(attribute).map(String::as_str).filter(|value| !value.is_empty());
        found.ok_or_else(|| {
            refusal(
                format!("expectation {:?} ({}) has no object context {attribute}", self.id, self.object_type),
                format!("add {{contextAttribute: {attribute}, contextCondition: IS_EQUAL_TO, contextValueRange: …}}"),
            )
        })
    }

    /// A context of the expectation that must be there.
    ///
    /// # Errors
    /// If it is absent or empty.
    pub fn context(&self, attribute: &str) -> Result<&str, Refusal> {
        let found = self.contexts.get(attribute).map(String::as_str).filter(|value| !value.is_empty());
        found.ok_or_else(|| {
            refusal(
                format!("expectation {:?} ({}) has no expectation context {attribute}", self.id, self.object_type),
                format!("add {{contextAttribute: {attribute}, contextCondition: IS_EQUAL_TO, contextValueRange: …}}"),
            )
        })
    }
}

pub(super) fn refusal(reason: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal::invalid(reason, hint)
}

/// Reads one intent, YAML or JSON, with or without `Intent:` around it.
///
/// # Errors
/// If it cannot be read, names what and where.
pub fn parse(text: &str) -> Result<NetworkIntent, Refusal> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(refusal(format!("the intent has {} bytes", text.len()), format!("send at most {TEXT_BYTES_MAX}")));
    }
    let mut value = Written::yaml(text)
        .map_err(|error| refusal(format!("the intent is neither YAML nor JSON: {error}"), "correct it there"))?;
    let inner = value.take(&["Intent", "intent"]).map_err(|error| refusal(error.to_string(), "correct it there"))?;
    let object = inner.as_ref().unwrap_or(&value);
    if !object.is_fields() {
        return Err(refusal("the intent has no fields", "write it as `Intent:` with fields"));
    }
    let mut expectations = vec![];
    for (position, item) in list(object, "intentExpectations")?.iter().enumerate() {
        expectations.push(expectation(item, position + 1)?);
    }
    if expectations.is_empty() {
        return Err(refusal("the intent expects nothing", "add intentExpectations"));
    }
    if expectations.len() > EXPECTATIONS_MAX {
        let reason = format!("the intent has {} expectations", expectations.len());
        return Err(refusal(reason, format!("divide it: at most {EXPECTATIONS_MAX} each")));
    }
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = expectations.iter().find(|e| !seen.insert(e.id.clone())) {
        return Err(refusal(format!("expectationId {:?} is there twice", twice.id), "give each its own"));
    }
    Ok(NetworkIntent {
        id: text_of(object, "id"),
        user_label: text_of(object, "userLabel"),
        contexts: pairs(object, "intentContexts", "contextAttribute", "contextValueRange")?,
        expectations,
    })
}

fn expectation(item: &Written, position: usize) -> Result<Expectation, Refusal> {
    let place = |what: &str| refusal(format!("expectation {position} has no {what}"), format!("add {what}"));
    let fields = Some(item).filter(|item| item.is_fields()).ok_or_else(|| place("fields"))?;
    let object = fields.get("expectationObject").filter(|object| object.is_fields());
    let object = object.ok_or_else(|| place("expectationObject"))?;
    let id = text_of(fields, "expectationId");
    let found = Expectation {
        id: if id.is_empty() { position.to_string() } else { id },
        verb: text_of(fields, "expectationVerb"),
        object_type: text_of(object, "objectType"),
        object_instance: text_of(object, "objectInstance"),
        object: pairs(object, "objectContexts", "contextAttribute", "contextValueRange")?,
        targets: pairs(fields, "expectationTargets", "targetName", "targetValueRange")?,
        contexts: pairs(fields, "expectationContexts", "contextAttribute", "contextValueRange")?,
    };
    for (name, text) in [("expectationVerb", &found.verb), ("objectType", &found.object_type)] {
        if text.is_empty() {
            return Err(place(name));
        }
    }
    Ok(found)
}

fn list<'a>(object: &'a Written, name: &str) -> Result<&'a [Written], Refusal> {
    match object.get(name).map(|value| &value.kind) {
        None | Some(WrittenKind::Null) => Ok(&[]),
        Some(WrittenKind::List(items)) => Ok(items),
        Some(_) => Err(refusal(format!("{name} is not a list"), "write its items with `-`")),
    }
}

fn text_of(object: &Written, name: &str) -> String {
    object.get(name).and_then(Written::text).unwrap_or_default().to_owned()
}

fn pairs(object: &Written, list_name: &str, name: &str, value: &str) -> Result<BTreeMap<String, String>, Refusal> {
    let items = list(object, list_name)?;
    if items.len() > ATTRIBUTES_MAX {
        return Err(refusal(format!("{list_name} has {} items", items.len()), format!("use at most {ATTRIBUTES_MAX}")));
    }
    let mut found = BTreeMap::new();
    for item in items {
        let attribute = text_of(item, name);
        if attribute.is_empty() {
            return Err(refusal(format!("an item of {list_name} has no {name}"), format!("add {name}")));
        }
        let text = item.get(value).and_then(Written::text).map(str::to_owned);
        let text = text.ok_or_else(|| {
            refusal(format!("{attribute} in {list_name} has no {value} of one value"), format!("add {value}"))
        })?;
        if text.chars().count() > VALUE_CHARS_MAX {
            return Err(refusal(
                format!("{attribute} in {list_name} is too long"),
                format!("use at most {VALUE_CHARS_MAX} characters"),
            ));
        }
        if found.insert(attribute.clone(), text).is_some() {
            return Err(refusal(format!("{attribute} is twice in {list_name}"), "keep one"));
        }
    }
    Ok(found)
}

/// A number as a decimal, its fraction behind a point or, as some write it, a comma.
pub(super) fn decimal(text: &str) -> Option<f64> {
    let value: f64 = text.trim().replace(',', ".").parse().ok()?;
    value.is_finite().then_some(value)
}
