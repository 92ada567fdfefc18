//! A struct read from what was given for its keys: trees from a file, texts from the environment and flags.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, Visitor},
};
use serde_json::Value;

use super::{Chosen, Error, Given, Origin};

/// A struct from what was given for its keys; its own `serde(default)` fills in the rest.
pub(super) fn build<T: DeserializeOwned>(chosen: &Chosen, known: &serde_json::Map<String, Value>) -> Result<T, Error> {
    let given =
        chosen.iter().filter(|(key, _)| known.contains_key(*key)).map(|(k, (given, _))| (k.clone(), given.clone()));
    let layers = Layers { rest: given.collect::<BTreeMap<_, _>>().into_iter(), current: None };
    T::deserialize(layers).map_err(|problem| {
        let key = problem.key.unwrap_or_default();
        let origin = chosen.get(&key).map_or(Origin::Default, |(_, origin)| origin.clone());
        Error::Value { key, origin, problem: problem.text }
    })
}

/// Why a value does not fit, and under which key.
#[derive(Debug)]
struct Problem {
    key: Option<String>,
    text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Problem {}

impl de::Error for Problem {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self { key: None, text: text.to_string() }
    }
}

struct Layers {
    rest: std::collections::btree_map::IntoIter<String, Given>,
    current: Option<(String, Given)>,
}

impl<'de> Deserializer<'de> for Layers {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_map(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_unit()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option newtype_struct seq
        tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Layers {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        self.current = self.rest.next();
        self.current.as_ref().map(|(key, _)| seed.deserialize(key.as_str().into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let Some((key, given)) = self.current.take() else { return Err(de::Error::custom("value before key")) };
        let value = match given {
            Given::Text(text) => seed.deserialize(Text(text)),
            Given::Tree(tree) => seed.deserialize(tree).map_err(de::Error::custom),
        };
        value.map_err(|problem| Problem { key: Some(key), ..problem })
    }
}

/// Text from the environment or a flag, read as whatever its field wants.
struct Text(String);

macro_rules! parsed {
    ($($method:ident $visit:ident $kind:literal),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            match self.0.trim().parse() {
                Ok(value) => visitor.$visit(value),
                Err(error) => Err(de::Error::custom(format!("{:?} is not {}: {error}", self.0, $kind))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Text {
    type Error = Problem;

    parsed! {
        deserialize_bool visit_bool "true or false",
        deserialize_i8 visit_i8 "a whole number", deserialize_i16 visit_i16 "a whole number",
        deserialize_i32 visit_i32 "a whole number", deserialize_i64 visit_i64 "a whole number",
        deserialize_u8 visit_u8 "a whole number", deserialize_u16 visit_u16 "a whole number",
        deserialize_u32 visit_u32 "a whole number", deserialize_u64 visit_u64 "a whole number",
        deserialize_f32 visit_f32 "a number", deserialize_f64 visit_f64 "a number",
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_string(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        if self.0.is_empty() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let items = self.0.split(',').map(str::trim).filter(|item| !item.is_empty());
        visitor.visit_seq(de::value::SeqDeserializer::new(items.map(|item| Text(item.to_owned()))))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let tree: Value = serde_json::from_str(&self.0).map_err(de::Error::custom)?;
        tree.deserialize_map(visitor).map_err(de::Error::custom)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_enum(self.0.into_deserializer())
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple_struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Problem> for Text {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
