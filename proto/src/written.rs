//! What people write: JSON or YAML, each value with its place and each scalar as it is spelt.
//!
//! Whether `1.10` is a number or a version is known only once it is known what stands there, so both are kept: a field
//! that is a number takes the value, a field that is text takes the spelling. Booleans and numbers are those of YAML 1.2's
//! core schema: `no`, `on`, `0b11` and `1_000` are texts. A name that is there twice is refused, with both places.

use std::{borrow::Cow, collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Number, Value as Json};
use serde_saphyr::{
    Spanned,
    options::{DuplicateKeyPolicy, NonFiniteFloatPolicy},
};

/// Why a text could not be read; says where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    fn of_yaml(error: &impl ToString) -> Self {
        // The reader adds a picture of the place below the first line.
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        Self(line.strip_prefix("error: ").unwrap_or(line).chars().take(MESSAGE_MAX).collect())
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(text.to_string())
    }
}

/// Characters of the longest message of a reader that is passed on.
const MESSAGE_MAX: usize = 300;
/// How deep JSON may be nested; the reader of YAML stops at 64.
const DEPTH_MAX: usize = 128;

/// Where something stands, from 1; both 0 if it was not read from a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Character of the line.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str("an unknown place"),
            _ => write!(f, "line {} column {}", self.line, self.column),
        }
    }
}

/// One value that somebody wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Where it starts.
    pub place: Place,
    /// What it is.
    pub kind: Kind,
}

/// What somebody wrote: scalars with their spelling.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Nothing.
    Null,
    /// True or false, and how it is spelt.
    Bool(bool, String),
    /// A number, and how it is spelt.
    Number(Number, String),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Written>),
    /// Names with values, in the order in which they are written; no name is there twice.
    Fields(Vec<Field>),
}

/// A named value.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Where the name starts.
    pub place: Place,
    /// Its value.
    pub value: Written,
}

impl Written {
    /// Reads JSON (RFC 8259); a byte order mark before it is skipped.
    ///
    /// # Errors
    /// When it is not JSON, or a name is there twice in one object.
    pub fn json(text: &[u8]) -> Result<Self, Error> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        // serde_json says whether it is JSON. What follows only finds where its parts stand.
        serde_json::from_slice::<de::IgnoredAny>(text).map_err(|error| Error(error.to_string()))?;
        let text = std::str::from_utf8(text).map_err(|error| Error(format!("it is not UTF-8: {error}")))?;
        Scan { text, at: 0, line: 1, mark: 0, column: 1 }.value(0)
    }

    /// Reads one document of YAML 1.2; nothing at all is null.
    ///
    /// # Errors
    /// When it is not YAML, holds several documents, or a name is there twice in one mapping.
    pub fn yaml(text: &str) -> Result<Self, Error> {
        let mut documents = Self::documents(text)?;
        match (documents.pop(), documents.len()) {
            (None, _) => Ok(Self { place: Place::default(), kind: Kind::Null }),
            (Some(only), 0) => Ok(only),
            (Some(second), more) => {
                Err(Error(format!("it holds {} documents (the last at {}); give one", more + 1, second.place)))
            }
        }
    }

    /// Reads JSON, or all documents of YAML 1.2 that are not empty.
    ///
    /// # Errors
    /// When it is neither, or a name is there twice in one mapping.
    pub fn documents(text: &str) -> Result<Vec<Self>, Error> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        // Nearly all JSON is YAML; what is JSON is read as such, with its escapes.
        let starts = text.trim_start().starts_with(['{', '[']);
        if starts && serde_json::from_str::<de::IgnoredAny>(text).is_ok() {
            return Ok(vec![Self::json(text.as_bytes())?]);
        }
        let options = serde_saphyr::options! {
            strict_booleans: true,
            underscored_numbers_as_strings: true,
            // Found below, with both places.
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
            non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        };
        let read: Vec<Spanned<Node>> =
            serde_saphyr::from_multiple_with_options(text, options).map_err(|error| Error::of_yaml(&error))?;
        let read = read.into_iter().filter(|document| !matches!(document.value, Node::Null));
        read.map(|document| settle(document, text)).collect()
    }

    /// How deep lists and mappings are nested in it: 0 for a scalar.
    pub fn depth(&self) -> usize {
        match &self.kind {
            Kind::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Kind::Fields(fields) => 1 + fields.iter().map(|field| field.value.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// Is it a mapping?
    pub const fn is_fields(&self) -> bool {
        matches!(self.kind, Kind::Fields(_))
    }

    /// Is it nothing?
    pub const fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    /// The value of a name of a mapping.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Fields(fields) => fields.iter().find(|field| field.name == name).map(|field| &field.value),
            _ => None,
        }
    }

    /// The names of a mapping.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let fields = match &self.kind {
            Kind::Fields(fields) => fields.as_slice(),
            _ => &[],
        };
        fields.iter().map(|field| field.name.as_str())
    }

    /// Takes the value out of a mapping that stands under one of these spellings of a name.
    ///
    /// # Errors
    /// When it is there under two.
    pub fn take(&mut self, spellings: &[&str]) -> Result<Option<Self>, Error> {
        let Kind::Fields(fields) = &mut self.kind else { return Ok(None) };
        let mut taken: Option<Field> = None;
        while let Some(at) = fields.iter().position(|field| spellings.contains(&field.name.as_str())) {
            let found = fields.remove(at);
            if let Some(first) = &taken {
                return Err(Error(same(first, &found)));
            }
            taken = Some(found);
        }
        Ok(taken.map(|field| field.value))
    }

    /// A scalar as it is spelt; `None` for nothing, a list and a mapping.
    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) | Kind::Bool(_, text) | Kind::Number(_, text) => Some(text),
            Kind::Null | Kind::List(_) | Kind::Fields(_) => None,
        }
    }

    /// As a value of JSON: numbers by value, whatever their spelling.
    pub fn into_json(self) -> Json {
        match self.kind {
            Kind::Null => Json::Null,
            Kind::Bool(truth, _) => Json::Bool(truth),
            Kind::Number(number, _) => Json::Number(number),
            Kind::Text(text) => Json::String(text),
            Kind::List(items) => items.into_iter().map(Self::into_json).collect(),
            Kind::Fields(fields) => {
                Json::Object(fields.into_iter().map(|field| (field.name, field.value.into_json())).collect())
            }
        }
    }

    /// The same, if every reader of JSON finds in it what was written: for lists and objects that are a person's own, where
    /// nobody knows what is meant as text.
    ///
    /// # Errors
    /// Names the first number that JSON spells differently or whose readers round, as they do whole numbers beyond 64 bits.
    pub fn into_exact_json(self) -> Result<Json, Error> {
        Ok(match self.kind {
            Kind::Number(number, text) => {
                if serde_json::from_str::<Json>(&text).is_err() {
                    let why = format!("put it in quotes, or write {number}");
                    return Err(Error(format!("{text} at {} is text or a number: {why}", self.place)));
                }
                if decimal(&text) != decimal(&number.to_string()) {
                    let shown: String = text.chars().take(64).collect();
                    let why = format!("would be rounded to {number}: put it in quotes, or write that");
                    return Err(Error(format!("{shown} at {} {why}", self.place)));
                }
                Json::Number(number)
            }
            Kind::List(items) => items.into_iter().map(Self::into_exact_json).collect::<Result<_, _>>()?,
            Kind::Fields(fields) => {
                let entry = |field: Field| Ok((field.name, field.value.into_exact_json()?));
                Json::Object(fields.into_iter().map(entry).collect::<Result<_, Error>>()?)
            }
            _ => self.into_json(),
        })
    }

    /// As JSON, but what JSON would spell differently becomes a text: for documents whose scalars are all texts.
    pub fn into_spelt_json(self) -> Json {
        match self.kind {
            Kind::Bool(truth, text) if truth.to_string() != text => Json::String(text),
            Kind::Number(number, text) if number.to_string() != text => Json::String(text),
            Kind::List(items) => items.into_iter().map(Self::into_spelt_json).collect(),
            Kind::Fields(fields) => {
                Json::Object(fields.into_iter().map(|field| (field.name, field.value.into_spelt_json())).collect())
            }
            _ => self.into_json(),
        }
    }

    /// Reads it as a type: a text takes numbers and truth values as they are spelt.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn read<T: DeserializeOwned>(self) -> Result<T, Error> {
        T::deserialize(self)
    }
}

/// A number of JSON as its digits and the power of ten behind them, so that spellings of one value are alike; `None` if its
/// exponent is beyond all that is counted.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{}{fraction}", whole.trim_start_matches('-'));
    let plain = digits.trim_matches('0');
    if plain.is_empty() {
        return Some((false, String::new(), 0));
    }
    let behind = digits.len() - digits.trim_end_matches('0').len();
    let power = exponent.parse::<i64>().ok()?.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    Some((whole.starts_with('-'), plain.to_owned(), power.checked_add(i64::try_from(behind).ok()?)?))
}

/// Says that two fields of an object are one.
pub(crate) fn same(first: &Field, second: &Field) -> String {
    let at = |field: &Field| match field.place.line {
        0 => field.name.clone(),
        _ => format!("{} ({})", field.name, field.place),
    };
    format!("{} and {} are the same field; give one", at(first), at(second))
}

impl From<Json> for Written {
    fn from(value: Json) -> Self {
        let kind = match value {
            Json::Null => Kind::Null,
            Json::Bool(truth) => Kind::Bool(truth, truth.to_string()),
            Json::Number(number) => {
                let text = number.to_string();
                Kind::Number(number, text)
            }
            Json::String(text) => Kind::Text(text),
            Json::Array(items) => Kind::List(items.into_iter().map(Self::from).collect()),
            Json::Object(fields) => {
                let field = |(name, value)| Field { name, place: Place::default(), value: Self::from(value) };
                Kind::Fields(fields.into_iter().map(field).collect())
            }
        };
        Self { place: Place::default(), kind }
    }
}

/// Refuses a name that is there twice.
fn unique(fields: Vec<Field>) -> Result<Vec<Field>, Error> {
    let mut seen: HashMap<&str, Place> = HashMap::with_capacity(fields.len());
    for field in &fields {
        if let Some(first) = seen.insert(&field.name, field.place) {
            let name: String = field.name.chars().take(64).collect();
            return Err(Error(format!("{name:?} is there twice, at {first} and at {}; leave one out", field.place)));
        }
    }
    Ok(fields)
}

/// Finds the parts of a text that is known to be JSON.
struct Scan<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    /// Up to where characters are counted, and the column there: each is counted once, however long a line is.
    mark: usize,
    column: usize,
}

impl Scan<'_> {
    /// Skips blanks, and gives the character that follows.
    fn next(&mut self) -> u8 {
        while let Some(byte) = self.text.as_bytes().get(self.at) {
            match byte {
                b'\n' => (self.line, self.mark, self.column) = (self.line + 1, self.at + 1, 1),
                b' ' | b'\t' | b'\r' => {}
                other => return *other,
            }
            self.at += 1;
        }
        b'\0'
    }

    fn place(&mut self) -> Place {
        self.column += self.text.get(self.mark..self.at).map_or(0, |before| before.chars().count());
        self.mark = self.at;
        Place { line: self.line, column: self.column }
    }

    fn value(&mut self, depth: usize) -> Result<Written, Error> {
        let (first, place) = (self.next(), self.place());
        if depth > DEPTH_MAX {
            return Err(Error(format!("it is nested deeper than {DEPTH_MAX} at {place}")));
        }
        let kind = match first {
            b'{' => {
                let mut fields = vec![];
                self.at += 1;
                loop {
                    match self.next() {
                        b'"' => {
                            let (place, name) = (self.place(), self.string()?);
                            self.next();
                            // Its colon.
                            self.at += 1;
                            fields.push(Field { name, place, value: self.value(depth + 1)? });
                        }
                        b',' => self.at += 1,
                        _ => break,
                    }
                }
                self.at += 1;
                Kind::Fields(unique(fields)?)
            }
            b'[' => {
                let mut items = vec![];
                self.at += 1;
                loop {
                    match self.next() {
                        b',' => self.at += 1,
                        b']' | b'\0' => break,
                        _ => items.push(self.value(depth + 1)?),
                    }
                }
                self.at += 1;
                Kind::List(items)
            }
            b'"' => Kind::Text(self.string()?),
            _ => {
                let rest = self.text.get(self.at..).unwrap_or_default();
                let end = rest.find([',', ']', '}', ' ', '\t', '\r', '\n']).unwrap_or(rest.len());
                let word = rest.get(..end).unwrap_or_default();
                self.at += end.max(1);
                match word {
                    "null" => Kind::Null,
                    "true" | "false" => Kind::Bool(word == "true", word.to_owned()),
                    number => plain(number, place)?,
                }
            }
        };
        Ok(Written { place, kind })
    }

    /// The text at a quote, decoded.
    fn string(&mut self) -> Result<String, Error> {
        let (start, bytes) = (self.at, self.text.as_bytes());
        self.at += 1;
        while let Some(byte) = bytes.get(self.at) {
            self.at += if *byte == b'\\' { 2 } else { 1 };
            if *byte == b'"' {
                break;
            }
        }
        let quoted = self.text.get(start..self.at).unwrap_or_default();
        serde_json::from_str(quoted).map_err(|error| Error(error.to_string()))
    }
}

fn out_of_range(number: &str, place: Place) -> Error {
    let shown: String = number.chars().take(64).collect();
    Error(format!("{shown} at {place} is out of range for a number; if it is text, put it in quotes"))
}

/// A value of YAML as the reader takes it.
enum Node {
    Null,
    /// A boolean or number: how it would be spelt in JSON. How it is spelt is found in the text.
    Plain(String),
    Text(String),
    List(Vec<Spanned<Node>>),
    Fields(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;

        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_bool<E>(self, truth: bool) -> Result<Node, E> {
                Ok(Node::Plain(truth.to_string()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
                Ok(Node::Plain(number.to_string()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
                Ok(Node::Plain(number.to_string()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
                Ok(Node::Plain(Json::from(number).to_string()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Node, E> {
                Ok(Node::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut read = vec![];
                while let Some(item) = items.next_element()? {
                    read.push(item);
                }
                Ok(Node::List(read))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
                let mut read = vec![];
                while let Some(field) = fields.next_entry()? {
                    read.push(field);
                }
                Ok(Node::Fields(read))
            }
        }

        deserializer.deserialize_any(NodeVisitor)
    }
}

fn settle(node: Spanned<Node>, text: &str) -> Result<Written, Error> {
    let place = |at: &serde_saphyr::Location| Place { line: at.line() as usize, column: at.column() as usize };
    let at = place(&node.referenced);
    let kind = match node.value {
        Node::Null => Kind::Null,
        // Infinite, or beyond what a number can be: the reader spells them its own way.
        Node::Text(value) if matches!(value.as_str(), ".inf" | "-.inf" | ".nan") => match spelt(&node.defined, text) {
            Some(spelling) => plain(spelling, at)?,
            None => Kind::Text(value),
        },
        Node::Text(value) => Kind::Text(value),
        Node::List(items) => Kind::List(items.into_iter().map(|item| settle(item, text)).collect::<Result<_, _>>()?),
        Node::Fields(fields) => {
            let field = |(name, value): (Spanned<String>, _)| {
                let place = place(&name.referenced);
                Ok(Field { name: name.value, place, value: settle(value, text)? })
            };
            Kind::Fields(unique(fields.into_iter().map(field).collect::<Result<_, Error>>()?)?)
        }
        Node::Plain(value) => match spelt(&node.defined, text) {
            Some(spelling) => plain(spelling, at)?,
            None => plain(&value, at)?,
        },
    };
    Ok(Written { place: at, kind })
}

/// How a plain scalar is spelt; `None` if it has quotes or a tag of its own.
fn spelt<'a>(at: &serde_saphyr::Location, text: &'a str) -> Option<&'a str> {
    let (start, length) = (at.span().byte_offset()?, at.span().byte_len()?);
    let spelling = text.get(start as usize..(start + length) as usize)?.trim();
    (!spelling.is_empty() && !spelling.starts_with(['"', '\'', '!', '&', '|', '>'])).then_some(spelling)
}

/// A plain scalar by YAML 1.2's core schema.
fn plain(spelling: &str, place: Place) -> Result<Kind, Error> {
    let number = |number: Option<Number>| match number {
        Some(number) => Ok(Kind::Number(number, spelling.to_owned())),
        None => Err(out_of_range(spelling, place)),
    };
    let (sign, digits) = match spelling.strip_prefix(['-', '+']) {
        Some(rest) if spelling.starts_with('-') => ("-", rest),
        Some(rest) => ("", rest),
        None => ("", spelling),
    };
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok().map(Number::from);
    let all = |text: &str, of: fn(&char) -> bool| !text.is_empty() && text.chars().all(|c| of(&c));
    match spelling {
        "true" | "True" | "TRUE" => return Ok(Kind::Bool(true, spelling.to_owned())),
        "false" | "False" | "FALSE" => return Ok(Kind::Bool(false, spelling.to_owned())),
        _ => {}
    }
    if let Some(digits) = spelling.strip_prefix("0x").filter(|rest| all(rest, char::is_ascii_hexdigit)) {
        return number(radix(digits, 16));
    }
    if let Some(digits) = spelling.strip_prefix("0o").filter(|rest| all(rest, |c| matches!(c, '0'..='7'))) {
        return number(radix(digits, 8));
    }
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (digits, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let is_number = is(whole)
        && is(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| !exponent.is_empty() && is(exponent));
    if !is_number {
        return Ok(Kind::Text(spelling.to_owned()));
    }
    if exponent.is_none() && !mantissa.contains('.') {
        let trimmed = whole.trim_start_matches('0');
        let digits = if trimmed.is_empty() { "0" } else { trimmed };
        return number(serde_json::from_str(&format!("{sign}{digits}")).ok());
    }
    let value: Option<f64> = spelling.parse().ok().filter(|value: &f64| value.is_finite());
    number(value.and_then(Number::from_f64))
}

impl IntoDeserializer<'_, Error> for Written {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Written {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let place = self.place;
        let read = match self.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(truth, _) => visitor.visit_bool(truth),
            Kind::Number(number, _) => number.deserialize_any(visitor).map_err(de::Error::custom),
            Kind::Text(text) => visitor.visit_string(text),
            Kind::List(items) => visitor.visit_seq(de::value::SeqDeserializer::new(items.into_iter())),
            Kind::Fields(fields) => visitor.visit_map(Fields { rest: fields.into_iter(), value: None }),
        };
        // The innermost says where.
        read.map_err(|error| match error.0.contains(" at line ") || place.line == 0 {
            true => error,
            false => Error(format!("{} at {place}", error.0)),
        })
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.kind {
            Kind::Bool(_, text) | Kind::Number(_, text) => visitor.visit_string(text),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_string(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.kind {
            Kind::Bool(_, text) | Kind::Number(_, text) | Kind::Text(text) => {
                visitor.visit_enum(text.into_deserializer())
            }
            _ => self.into_json().deserialize_enum(name, variants, visitor).map_err(de::Error::custom),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple tuple_struct
        map struct identifier ignored_any
    }
}

struct Fields {
    rest: std::vec::IntoIter<Field>,
    value: Option<Written>,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(field) = self.rest.next() else { return Ok(None) };
        self.value = Some(field.value);
        seed.deserialize(Cow::<'_, str>::Owned(field.name).into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        match self.value.take() {
            Some(value) => seed.deserialize(value),
            None => Err(de::Error::custom("a value before its name")),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spelling(text: &str) -> (Json, Option<String>) {
        let read = Written::yaml(&format!("a: {text}\n")).unwrap();
        let value = read.get("a").unwrap().clone();
        (value.clone().into_json(), value.text().map(str::to_owned))
    }

    #[test]
    fn a_scalar_keeps_its_spelling_and_has_yaml_1_2s_value() {
        let number = |text: &str, value: Json| assert_eq!(spelling(text), (value, Some(text.to_owned())), "{text}");
        for (text, value) in [
            ("1.10", json!(1.1)),
            ("010", json!(10)),
            ("-007", json!(-7)),
            ("+12", json!(12)),
            ("1e3", json!(1000.0)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            (".5", json!(0.5)),
            ("5.", json!(5.0)),
            ("0", json!(0)),
            ("-0", json!(-0.0)),
            ("18446744073709551615", json!(u64::MAX)),
            ("true", json!(true)),
            ("False", json!(false)),
            ("TRUE", json!(true)),
        ] {
            number(text, value);
        }
        for text in [
            "yes",
            "No",
            "on",
            "OFF",
            "y",
            "n",
            "1_000",
            "0b11",
            "0X1F",
            "0O17",
            "1.2.3",
            "12:30:45",
            "2026-01-01",
            ".inf",
            "-.Inf",
            ".nan",
            "1e",
            "e3",
            "+",
            ".",
            "0x",
            "0xfg",
            "NaN",
            "infinity",
            "~x",
            "5 GB",
            "tRue",
        ] {
            assert_eq!(spelling(text), (json!(text), Some(text.to_owned())), "{text}");
        }
        for text in ["null", "~", "Null", "NULL", ""] {
            assert_eq!(spelling(text), (Json::Null, None), "{text}");
        }
        assert_eq!(spelling("!!str 010"), (json!("010"), Some("010".into())));
        assert_eq!(spelling("'1.10'"), (json!("1.10"), Some("1.10".into())));
        assert_eq!(spelling("!!int \"31\""), (json!(31), Some("31".into())));
        assert_eq!(spelling("&anchor 1.10 # a comment"), (json!(1.1), Some("1.10".into())));
    }

    #[test]
    fn what_is_behind_an_alias_or_a_merge_keeps_its_spelling() {
        let text =
            "base: &base {version: 1.10, name: no}\r\nüß: &v 0x10\nuse: *base\nmore:\n  <<: *base\n  count: *v\n";
        let read = Written::yaml(text).unwrap();
        for part in ["use", "more"] {
            assert_eq!(read.get(part).unwrap().get("version").unwrap().text(), Some("1.10"), "{part}");
            assert_eq!(read.get(part).unwrap().get("name").unwrap().text(), Some("no"), "{part}");
        }
        assert_eq!(read.get("more").unwrap().get("count").unwrap().text(), Some("0x10"));
        // What a mapping says itself goes before what it merges: that is not twice.
        assert_eq!(Written::yaml("a: &a {x: 1}\nb:\n  <<: *a\n  x: 2\n").unwrap().into_json()["b"], json!({"x": 2}));
        let several = "a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\n";
        assert_eq!(Written::yaml(several).unwrap().into_json()["c"], json!({"x": 1, "y": 1, "z": 3}));
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused_with_both_places() {
        let yaml = |text: &str| Written::yaml(text).unwrap_err().to_string();
        let json = |text: &str| Written::json(text.as_bytes()).unwrap_err().to_string();
        let text = yaml("process:\n  cpuMilli: 10\n  memoryMb: 1\n  cpuMilli: 4000\n");
        assert_eq!(text, "\"cpuMilli\" is there twice, at line 2 column 3 and at line 4 column 3; leave one out");
        let text = json("{\"a\": [{\"b\": 1,\n \"ü\": 2, \"b\": 1}]}");
        assert_eq!(text, "\"b\" is there twice, at line 1 column 9 and at line 2 column 10; leave one out");
        // However it is spelt.
        assert!(json(r#"{"a": 1, "\u0061": 2}"#).contains("twice"));
        assert!(yaml("a: 1\n\"a\": 2\n").contains("twice"));
        assert!(yaml("1.10: a\n1.10: b\n").contains("twice"));
        assert!(yaml("{a: 1, a: 2}").contains("twice"));
        assert!(yaml("---\na: 1\n---\nb: 1\nb: 2\n").contains("line 5"));
    }

    #[test]
    fn json_is_read_by_its_own_rules() {
        for text in [
            r#" {"a": [1, -2.50, 1e3, true, null, "x\"\\\u00fc\ud83d\ude00"], "b": {}, "c": []} "#,
            "\n\t[\r\n1\t,[ ] ,{\"a\" :\n{ } } ]\n",
            "\"\"",
            "0",
            "true",
        ] {
            let value: Json = serde_json::from_str(text).unwrap();
            assert_eq!(Written::json(text.as_bytes()).unwrap().into_json(), value, "{text}");
            if text.trim().starts_with(['{', '[']) {
                assert_eq!(Written::documents(text).unwrap()[0].clone().into_json(), value, "{text}");
            }
        }
        assert_eq!(Written::json(b"\xef\xbb\xbf{}").unwrap().into_json(), json!({}));
        assert_eq!(Written::json(b"[1.10]").unwrap().into_json(), json!([1.1]));
        // The nearest number to what is written, and not one beside it.
        assert_eq!(Written::json(b"[1000.1844674407372]").unwrap().into_json(), json!([1_000.184_467_440_737_2]));
        for text in ["", "{", "{a: 1}", "[1,]", "{} {}", "[01]", "1e999", "[1e999]", "\u{1}", "'a'"] {
            assert!(Written::json(text.as_bytes()).is_err(), "{text}");
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Written::json(deep.as_bytes()).is_err());
        assert!(Written::yaml(&deep).is_err());
    }

    #[test]
    fn a_long_line_is_read_in_one_go() {
        // Were each place counted from the start of its line, this would take minutes.
        let text = format!("[{}7]", "\"ü\", ".repeat(200_000));
        let Kind::List(items) = Written::json(text.as_bytes()).unwrap().kind else { panic!("a list") };
        assert_eq!(items.last().unwrap().place, Place { line: 1, column: 1_000_002 });
    }

    #[test]
    fn what_is_no_finite_number_is_refused_with_its_place() {
        let error = Written::yaml("a:\n  - 1e999\n").unwrap_err().to_string();
        assert!(error.contains("line 2 column 5") && error.contains("put it in quotes"), "{error}");
        let error = Written::json(b"{\"a\": 1e999}").unwrap_err().to_string();
        assert!(error.contains("line 1 column 7") && error.contains("put it in quotes"), "{error}");
        // What fits no number is text as it stands.
        assert_eq!(spelling("0xFFFFFFFFFFFFFFFFFF").0, json!("0xFFFFFFFFFFFFFFFFFF"));
        assert_eq!(spelling("'.inf'").0, json!(".inf"));
    }

    #[test]
    fn several_documents_are_told_apart() {
        let read = Written::documents("---\na: 1\n---\n# nothing\n---\nb: no\n...\n").unwrap();
        assert_eq!(
            read.iter().cloned().map(Written::into_json).collect::<Vec<_>>(),
            [json!({"a": 1}), json!({"b": "no"})]
        );
        assert_eq!(read[1].place, Place { line: 6, column: 1 });
        assert!(Written::yaml("a: 1\n---\nb: 1\n").unwrap_err().to_string().contains("2 documents"));
        assert_eq!(Written::yaml("").unwrap().into_json(), Json::Null);
    }

    #[test]
    fn a_type_takes_scalars_as_they_are_spelt_where_it_has_text() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Form {
            name: String,
            count: u32,
            ratio: f64,
            on: bool,
            kind: Option<Shape>,
            any: Json,
        }
        #[derive(Debug, PartialEq, Deserialize)]
        enum Shape {
            Round,
        }
        let text = "name: 1.10\ncount: 0x10\nratio: 1.50\non: true\nkind: Round\nany: {a: [no, 1]}\n";
        let form: Form = Written::yaml(text).unwrap().read().unwrap();
        let any = json!({"a": ["no", 1]});
        let right = Form { name: "1.10".into(), count: 16, ratio: 1.5, on: true, kind: Some(Shape::Round), any };
        assert_eq!(form, right);
        let error = Written::yaml(&text.replace("0x10", "-1")).unwrap().read::<Form>().unwrap_err().to_string();
        assert!(error.contains("line 2 column 8"), "{error}");
    }

    #[test]
    fn a_spelling_that_json_does_not_keep_can_be_kept_as_text() {
        let read = Written::yaml("[1.10, 1.1, 010, 7, True, true, no, {a: 1e3}]").unwrap();
        let right = json!(["1.10", 1.1, "010", 7, "True", true, "no", {"a": "1e3"}]);
        assert_eq!(read.into_spelt_json(), right);
    }

    #[test]
    fn a_field_is_taken_once_whatever_its_spelling() {
        let mut read = Written::yaml("id: 010\nrest: 1\n").unwrap();
        assert_eq!(read.take(&["id", "intentId"]).unwrap().unwrap().text(), Some("010"));
        assert_eq!(read.take(&["id", "intentId"]), Ok(None));
        let mut both = Written::yaml("id: a\nintentId: b\n").unwrap();
        let error = both.take(&["id", "intentId"]).unwrap_err().to_string();
        assert_eq!(error, "id (line 1 column 1) and intentId (line 2 column 1) are the same field; give one");
    }

    #[test]
    fn a_number_that_would_be_rounded_is_refused_with_its_place() {
        let exact = |text: &str| Written::json(text.as_bytes()).unwrap().into_exact_json();
        for text in
            ["1.10", "1e3", "-0.0", "18446744073709551615", "-9223372036854775808", "[1e-7, 0.1, 120e-2]", "1E+2"]
        {
            assert_eq!(
                exact(text).map_err(|error| error.to_string()),
                Ok(serde_json::from_str(text).unwrap()),
                "{text}"
            );
        }
        for text in [
            "18446744073709551616",
            "-9223372036854775809",
            "100000000000000000000000000001",
            "0.1234567890123456789012345",
            "1e-400",
            "9007199254740993.0",
        ] {
            let error = exact(&format!("{{\"a\":\n [{text}]}}")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text} at line 2 column 3 would be rounded")), "{error}");
        }
        let yaml = Written::yaml("a: [010]").unwrap().into_exact_json().unwrap_err().to_string();
        assert!(yaml.contains("put it in quotes"), "{yaml}");
        // A power of ten is as exact as it is spelt.
        assert_eq!(exact("1e30").unwrap().as_f64(), Some(1e30));
    }
}
