//! What people send over HTTP, before it means anything: bodies of JSON or YAML, forms, queries. Each fault names its
//! field and what would be right.

use std::collections::BTreeMap;

use mesh_proto::Written;

use crate::problem::{Fault, Kind, Problem};

/// Bytes of a body at most.
pub const BODY_MAX: usize = 1 << 20;
/// How deep a body may be nested.
const DEPTH_MAX: usize = 48;

/// Reads a body by its content type: JSON unless it says YAML.
///
/// # Errors
/// When the type is another, the text is neither, a name is there twice, or it is nested too deep.
pub fn read(content_type: Option<&str>, body: &[u8]) -> Result<Written, Problem> {
    let essence = content_type.map(|t| t.split(';').next().unwrap_or(t).trim().to_ascii_lowercase());
    let yaml = match essence.as_deref() {
        None | Some("application/json") => false,
        Some("application/yaml" | "application/x-yaml" | "text/yaml") => true,
        Some(other) if other.ends_with("+json") => false,
        Some(other) => {
            let detail = format!("the body is {:?}", other.chars().take(64).collect::<String>());
            return Err(Problem::new(Kind::MediaType, detail, "send application/json or application/yaml"));
        }
    };
    let text = std::str::from_utf8(body)
        .map_err(|error| Problem::malformed(format!("the body is not UTF-8: {error}"), "send UTF-8"))?;
    let value = if yaml {
        Written::yaml(text)
            .map_err(|error| Problem::malformed(format!("the body is not YAML: {error}"), "send one document"))?
    } else {
        Written::json(text.as_bytes())
            .map_err(|error| Problem::malformed(format!("the body is not JSON: {error}"), "correct it there"))?
    };
    if value.depth() > DEPTH_MAX {
        return Err(Problem::malformed(format!("the body is nested deeper than {DEPTH_MAX}"), "send a flatter one"));
    }
    Ok(value)
}

/// Reads a body of a fixed form.
///
/// # Errors
/// When a field is missing, unknown or of another type.
pub fn form<T: serde::de::DeserializeOwned>(value: impl Into<Written>) -> Result<T, Problem> {
    let value = value.into();
    if !value.is_fields() {
        // serde would take a list for the fields in their order.
        return Err(Problem::field("body", "is not an object", "send one; see the schema at /openapi.json"));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, reason) = (error.path().to_string(), error.inner().to_string());
        let mut path = if path == "." { String::new() } else { path };
        // Of a field that is missing or unknown, serde gives the name between backticks.
        let named = reason.split('`').nth(1).filter(|_| reason.contains(" field `"));
        if let Some(name) = named.filter(|name| path.rsplit('.').next() != Some(name)) {
            path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        }
        let path = if path.is_empty() { "body".to_owned() } else { path };
        Problem::faults(vec![Fault { path, reason, hint: "see the schema at /openapi.json".into() }])
    })
}

/// The query of an address, or a form, percent-decoded. Names of lists (`is_list`) may be there several times, and keep
/// their order.
///
/// # Errors
/// When it is not UTF-8, has too many parts, a name that is not among `known`, or one twice that is not a list.
pub fn query(
    text: &str,
    known: &[&str],
    is_list: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, Vec<String>>, Problem> {
    parameters(text, known, |name| known.contains(&name), is_list)
}

/// The same, where a name may lead inside: `a.b` where `a` is among `known`.
///
/// # Errors
/// As [`query`].
pub fn query_below(
    text: &str,
    known: &[&str],
    is_list: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, Vec<String>>, Problem> {
    parameters(text, known, |name| name.split('.').next().is_some_and(|root| known.contains(&root)), is_list)
}

fn parameters(
    text: &str,
    known: &[&str],
    is_known: impl Fn(&str) -> bool,
    is_list: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, Vec<String>>, Problem> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (count, pair) in text.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        if count >= 64 {
            return Err(Problem::malformed("the query has more than 64 parts", "ask for less at once"));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decoded(name)?, decoded(value)?);
        if !is_known(&name) {
            let hint = if known.is_empty() { "leave it out".to_owned() } else { format!("use {}", known.join(", ")) };
            return Err(Problem::field(
                &name.chars().take(64).collect::<String>(),
                "is not a parameter of this request",
                hint,
            ));
        }
        found.entry(name).or_default().push(value);
    }
    match found.iter().find(|(name, values)| values.len() > 1 && !is_list(name)) {
        None => Ok(found),
        Some((name, values)) => {
            Err(Problem::field(name, format!("is there {} times, and is not a list", values.len()), "give it once"))
        }
    }
}

/// One part of a query or form, percent-decoded.
///
/// # Errors
/// When it is not UTF-8 then.
pub fn decoded(text: &str) -> Result<String, Problem> {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| Problem::malformed("a part of the address is not UTF-8", "encode it as UTF-8"))
}

/// A number of a query.
///
/// # Errors
/// When it is not a number, or out of range.
pub fn number(query: &BTreeMap<String, Vec<String>>, name: &str, default: u32, max: u32) -> Result<u32, Problem> {
    match query.get(name).and_then(|values| values.first()).map(|text| text.parse::<u32>()) {
        None => Ok(default),
        Some(Ok(number)) if number <= max => Ok(number),
        Some(_) => Err(Problem::field(name, "is not a number in range", format!("use 0 to {max}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_of_yaml_do_not_grow_without_limit() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(", ")));
        }
        assert_eq!(read(Some("application/yaml"), bomb.as_bytes()).unwrap_err().status(), 400);
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused_with_both_places() {
        let refused = |kind, text: &str| {
            let problem = read(kind, text.as_bytes()).unwrap_err();
            assert_eq!(problem.status(), 400);
            problem.detail
        };
        let detail = refused(None, "{\"cpuMilli\": 10,\n \"cpuMilli\": 4000}");
        assert!(detail.contains("at line 1 column 2 and at line 2 column 2"), "{detail}");
        let detail = refused(Some("application/yaml"), "a: 1\nb: 2\na: 3\n");
        assert!(detail.contains("at line 1 column 1 and at line 3 column 1"), "{detail}");
    }

    #[test]
    fn a_form_takes_text_as_it_is_spelt() {
        #[derive(serde::Deserialize)]
        struct Form {
            name: String,
        }
        for (kind, body, name) in [
            (None, r#"{"name": 1.10}"#, "1.10"),
            (Some("application/yaml"), "name: 010", "010"),
            (Some("text/yaml"), "name: no", "no"),
            (Some("application/x-yaml"), "name: True", "True"),
        ] {
            let read: Form = form(read(kind, body.as_bytes()).unwrap()).unwrap();
            assert_eq!(read.name, name);
        }
    }

    #[test]
    fn a_misspelt_parameter_is_refused() {
        let known = ["user_label", "page_size"];
        let read = query("user_label=a%20b&user_label=c+d&page_size=7", &known, |name| name == "user_label").unwrap();
        assert_eq!(read["user_label"], ["a b", "c d"]);
        assert_eq!(number(&read, "page_size", 1, 10), Ok(7));
        assert_eq!(number(&read, "page_size", 1, 6).unwrap_err().status(), 422);
        let refused = |text: &str| query(text, &known, |_| false).unwrap_err();
        assert_eq!(refused("user_lable=a").faults[0].path, "user_lable");
        assert_eq!(refused("user_label=%ff").status(), 400);
    }

    #[test]
    fn what_is_wrong_with_a_form_is_told_with_its_path() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Inner {
            #[expect(dead_code, reason = "only read")]
            name: String,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Form {
            #[expect(dead_code, reason = "only read")]
            many: Vec<Inner>,
        }
        for (body, path) in [
            (r#"{"many": 7}"#, "many"),
            (r#"{"many": [{"name": "a"}, {"name": {}}]}"#, "many[1].name"),
            (r#"{"many": [{"name": "a", "lable": 1}]}"#, "many[0].lable"),
            (r#"{"many": [{}]}"#, "many[0].name"),
            (r#"{"usege": []}"#, "usege"),
            ("{}", "many"),
            ("[[]]", "body"),
        ] {
            let refused = form::<Form>(read(None, body.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(refused.faults[0].path, path, "{body}: {refused:?}");
        }
    }

    #[test]
    fn a_parameter_that_is_not_a_list_is_refused_when_it_is_there_twice() {
        for (text, path) in [
            ("page_size=7&page_size=8", "page_size"),
            ("page_size=7&page_size=7", "page_size"),
            ("user_label=a&page_size=7&user%5flabel=b", "user_label"),
            ("user_label=&user_label", "user_label"),
        ] {
            let refused = query(text, &["user_label", "page_size"], |_| false).unwrap_err();
            assert_eq!((refused.status(), refused.faults[0].path.as_str()), (422, path), "{text}");
        }
        let read = query_below("a.b=1&a.b=2&c=3", &["a", "c"], |name| name != "c").unwrap();
        assert_eq!(read["a.b"], ["1", "2"]);
    }
}
