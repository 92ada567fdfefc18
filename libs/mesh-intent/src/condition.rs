//! The conditions of TS 28.312 over one measured number: a bound, and the set of values that meet it.

use mesh_proto::{intent::ExpectationTarget, json};
use serde::{Deserialize, Serialize};

use crate::types::{self, Measure};

/// Numbers that a bound may list.
pub const VALUES_MAX: usize = 32;
/// Equality forgives this share of the bound (and this much around 0): what a decimal number cannot hold.
const EQUAL_SHARE: f64 = 1e-9;

/// How a value is compared (TS 28.312, Condition).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Condition {
    /// `IS_EQUAL_TO`
    Equal,
    /// `IS_LESS_THAN`
    Less,
    /// `IS_GREATER_THAN`
    Greater,
    /// `IS_WITHIN_RANGE`, both ends included
    Within,
    /// `IS_OUTSIDE_RANGE`, neither end included
    Outside,
    /// `IS_ONE_OF`
    OneOf,
    /// `IS_NOT_ONE_OF`
    NotOneOf,
    /// `IS_EQUAL_TO_OR_LESS_THAN`
    LessOrEqual,
    /// `IS_EQUAL_TO_OR_GREATER_THAN`
    GreaterOrEqual,
    /// `IS_ALL_OF`: of one number, equal to each
    AllOf,
}

impl Condition {
    /// Every condition, in the standard's order.
    pub const ALL: [Self; 10] = [
        Self::Equal,
        Self::Less,
        Self::Greater,
        Self::Within,
        Self::Outside,
        Self::OneOf,
        Self::NotOneOf,
        Self::LessOrEqual,
        Self::GreaterOrEqual,
        Self::AllOf,
    ];
    /// Their names, in the same order.
    pub const NAMES: [&'static str; 10] = [
        "IS_EQUAL_TO",
        "IS_LESS_THAN",
        "IS_GREATER_THAN",
        "IS_WITHIN_RANGE",
        "IS_OUTSIDE_RANGE",
        "IS_ONE_OF",
        "IS_NOT_ONE_OF",
        "IS_EQUAL_TO_OR_LESS_THAN",
        "IS_EQUAL_TO_OR_GREATER_THAN",
        "IS_ALL_OF",
    ];

    /// The condition of a name of the standard.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|condition| condition.name() == name)
    }

    /// Its name in the standard.
    pub fn name(self) -> &'static str {
        Self::NAMES[Self::ALL.iter().position(|c| *c == self).unwrap_or_default()]
    }

    /// How many numbers it takes.
    fn takes(self) -> Takes {
        match self {
            Self::Within | Self::Outside => Takes::Two,
            Self::OneOf | Self::NotOneOf | Self::AllOf => Takes::Several,
            _ => Takes::One,
        }
    }

    /// As a person says it, before the bound.
    pub fn words(self) -> &'static str {
        match self {
            Self::Less => "less than",
            Self::Greater => "greater than",
            Self::Equal => "equal to",
            Self::LessOrEqual => "at most",
            Self::GreaterOrEqual => "at least",
            Self::Within => "within",
            Self::Outside => "outside",
            Self::OneOf => "one of",
            Self::NotOneOf => "none of",
            Self::AllOf => "all of",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    One,
    Two,
    Several,
}

/// Why a condition and its value range are no bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundError {
    /// No condition of the standard has this name.
    #[error("the condition is not known")]
    Condition,
    /// There is no value.
    #[error("the target has no bound")]
    Missing,
    /// A value is not a number.
    #[error("{0:?} is not a decimal number")]
    Number(String),
    /// Too few or too many values.
    #[error("{condition} takes {takes}, not {found}")]
    Count {
        /// The condition.
        condition: &'static str,
        /// What it takes.
        takes: &'static str,
        /// How many there are.
        found: usize,
    },
    /// The range ends before it begins.
    #[error("the range begins at {0} and ends at {1}")]
    Order(String, String),
    /// No number meets it.
    #[error("no number meets it")]
    Nothing,
}

/// What a target asks of one measured number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Bound {
    condition: Condition,
    values: Vec<f64>,
    text: String,
}

/// A bound as it was written: what a snapshot holds, so that it gives back the very same numbers.
#[derive(Serialize, Deserialize)]
struct Written {
    condition: Condition,
    text: String,
}

impl TryFrom<Written> for Bound {
    type Error = BoundError;

    fn try_from(written: Written) -> Result<Self, BoundError> {
        Self::parse(written.condition.name(), &written.text)
    }
}

impl From<Bound> for Written {
    fn from(bound: Bound) -> Self {
        Self { condition: bound.condition, text: bound.text }
    }
}

impl Bound {
    /// Reads a target's condition and value range. An availability that is asked for as equal to a figure is at least that
    /// (NEMO D4.3, 4.3.2.1: a cluster at 90 cannot serve 99.9, one at or above it can).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(target: &ExpectationTarget) -> Result<Self, BoundError> {
        let mut bound = Self::parse(&target.target_condition, &target.target_value_range)?;
        let at_least = types::measure_of(&target.target_name) == Some(Measure::AvailabilityPercent);
        if at_least && bound.condition == Condition::Equal {
            bound.condition = Condition::GreaterOrEqual;
        }
        Ok(bound)
    }

    /// Reads a condition and its value range: one number, or a JSON list of numbers.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(condition: &str, text: &str) -> Result<Self, BoundError> {
        let condition = Condition::parse(condition).ok_or(BoundError::Condition)?;
        if text.is_empty() {
            return Err(BoundError::Missing);
        }
        let values = match json::value_of(text) {
            Some(serde_json::Value::Array(items)) if items.len() <= VALUES_MAX => {
                items.into_iter().map(|item| number(&json::text_of(item))).collect::<Result<Vec<_>, _>>()?
            }
            Some(serde_json::Value::Array(items)) => {
                return Err(BoundError::Count {
                    condition: condition.name(),
                    takes: "at most 32 numbers",
                    found: items.len(),
                });
            }
            _ => vec![number(text)?],
        };
        let count = |takes| BoundError::Count { condition: condition.name(), takes, found: values.len() };
        match condition.takes() {
            Takes::One if values.len() != 1 => return Err(count("one number")),
            Takes::Two if values.len() != 2 => return Err(count("two numbers, as [10, 20]")),
            Takes::Two if values[0] > values[1] => {
                return Err(BoundError::Order(values[0].to_string(), values[1].to_string()));
            }
            Takes::Several if values.is_empty() => return Err(count("one number or more, as [10, 20]")),
            _ => {}
        }
        let bound = Self { condition, values, text: text.to_owned() };
        if bound.set().is_empty() { Err(BoundError::Nothing) } else { Ok(bound) }
    }

    /// The condition.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Its numbers: one, the two ends of a range, or a list.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The number, if it has just one.
    pub fn single(&self) -> Option<f64> {
        match self.condition.takes() {
            Takes::One => self.values.first().copied(),
            _ => None,
        }
    }

    /// Does the value meet it? Equality forgives what a decimal number cannot hold.
    pub fn holds(&self, value: f64) -> bool {
        let (first, last) = (self.values.first().copied(), self.values.last().copied());
        let (Some(first), Some(last)) = (first, last) else { return false };
        let mut each = self.values.iter();
        match self.condition {
            Condition::Less => value < first,
            Condition::Greater => value > first,
            Condition::LessOrEqual => value <= first,
            Condition::GreaterOrEqual => value >= first,
            Condition::Equal => equal(value, first),
            Condition::Within => first <= value && value <= last,
            Condition::Outside => value < first || value > last,
            Condition::OneOf => each.any(|one| equal(value, *one)),
            Condition::NotOneOf => !each.any(|one| equal(value, *one)),
            Condition::AllOf => each.all(|one| equal(value, *one)),
        }
    }

    /// The numbers that meet it.
    pub fn set(&self) -> Set {
        let (first, last) = (self.values.first().copied(), self.values.last().copied());
        let (Some(first), Some(last)) = (first, last) else { return Set(vec![]) };
        match self.condition {
            Condition::Less => Set::below(first, false),
            Condition::LessOrEqual => Set::below(first, true),
            Condition::Greater => Set::above(first, false),
            Condition::GreaterOrEqual => Set::above(first, true),
            Condition::Equal => Set::points(&[first]),
            Condition::Within => Set(vec![Interval { from: (first, true), to: (last, true) }]),
            Condition::Outside => Set([Set::below(first, false).0, Set::above(last, false).0].concat()),
            Condition::OneOf => Set::points(&self.values),
            Condition::AllOf => self.values.iter().fold(Set::all(), |set, v| set.and(&Set::points(&[*v]))),
            Condition::NotOneOf => self
                .values
                .iter()
                .fold(Set::all(), |set, v| set.and(&Set([Set::below(*v, false).0, Set::above(*v, false).0].concat()))),
        }
    }

    /// The bound as a person says it, each number with the unit: `less than 20 %`.
    pub fn words(&self, unit: &str) -> String {
        let figures: Vec<String> = self.values.iter().map(|value| figure(*value, unit)).collect();
        let joined = match self.condition.takes() {
            Takes::Two => figures.join(" to "),
            _ => figures.join(", "),
        };
        format!("{} {joined}", self.condition.words())
    }
}

/// A value with its unit, two digits at most behind the point.
pub fn figure(value: f64, unit: &str) -> String {
    let digits = format!("{value:.2}");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    if unit.is_empty() { digits.to_owned() } else { format!("{digits} {unit}") }
}

fn equal(value: f64, bound: f64) -> bool {
    (value - bound).abs() <= EQUAL_SHARE * bound.abs().max(1.0)
}

/// A finite decimal number; `f64` would also read "inf" and "nan".
fn number(text: &str) -> Result<f64, BoundError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    let value = text.parse::<f64>().ok().filter(|value| digits && value.is_finite());
    value.ok_or_else(|| BoundError::Number(text.chars().take(64).collect()))
}

/// An interval of numbers; each end with whether it belongs to it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Interval {
    from: (f64, bool),
    to: (f64, bool),
}

impl Interval {
    fn and(&self, other: &Self) -> Option<Self> {
        let later = |a: (f64, bool), b: (f64, bool)| match a.0.total_cmp(&b.0) {
            std::cmp::Ordering::Equal => (a.0, a.1 && b.1),
            std::cmp::Ordering::Less => b,
            std::cmp::Ordering::Greater => a,
        };
        let earlier = |a: (f64, bool), b: (f64, bool)| match a.0.total_cmp(&b.0) {
            std::cmp::Ordering::Equal => (a.0, a.1 && b.1),
            std::cmp::Ordering::Less => a,
            std::cmp::Ordering::Greater => b,
        };
        let both = Self { from: later(self.from, other.from), to: earlier(self.to, other.to) };
        let some = both.from.0 < both.to.0 || (both.from.0 == both.to.0 && both.from.1 && both.to.1);
        some.then_some(both)
    }

    fn witness(&self) -> f64 {
        match (self.from, self.to) {
            ((from, true), _) if from.is_finite() => from,
            (_, (to, true)) if to.is_finite() => to,
            ((from, _), (to, _)) if from.is_finite() && to.is_finite() => from / 2.0 + to / 2.0,
            ((from, _), _) if from.is_finite() => from + from.abs().max(1.0),
            (_, (to, _)) if to.is_finite() => to - to.abs().max(1.0),
            _ => 0.0,
        }
    }
}

/// A set of numbers: the union of intervals.
#[derive(Clone, Debug, PartialEq)]
pub struct Set(Vec<Interval>);

impl Set {
    /// Every number.
    pub fn all() -> Self {
        Self(vec![Interval { from: (f64::NEG_INFINITY, false), to: (f64::INFINITY, false) }])
    }

    fn below(value: f64, with: bool) -> Self {
        Self(vec![Interval { from: (f64::NEG_INFINITY, false), to: (value, with) }])
    }

    fn above(value: f64, with: bool) -> Self {
        Self(vec![Interval { from: (value, with), to: (f64::INFINITY, false) }])
    }

    fn points(values: &[f64]) -> Self {
        Self(values.iter().map(|value| Interval { from: (*value, true), to: (*value, true) }).collect())
    }

    /// What is in both.
    pub fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().flat_map(|a| other.0.iter().filter_map(|b| a.and(b))).collect())
    }

    /// Is nothing in it?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Some number of it.
    pub fn witness(&self) -> Option<f64> {
        self.0.first().map(Interval::witness)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bound(condition: &str, text: &str) -> Bound {
        Bound::parse(condition, text).unwrap()
    }

    #[test]
    fn every_condition_of_the_standard_is_judged_as_it_is_named() {
        for (condition, text, holds, fails) in [
            ("IS_EQUAL_TO", "20", 20.0, 20.1),
            ("IS_LESS_THAN", "20", 19.9, 20.0),
            ("IS_GREATER_THAN", "20", 20.1, 20.0),
            ("IS_WITHIN_RANGE", "[10, 20]", 20.0, 20.1),
            ("IS_OUTSIDE_RANGE", "[10, 20]", 9.9, 10.0),
            ("IS_ONE_OF", "[10, 20]", 10.0, 15.0),
            ("IS_NOT_ONE_OF", "[10, 20]", 15.0, 20.0),
            ("IS_EQUAL_TO_OR_LESS_THAN", "20", 20.0, 20.1),
            ("IS_EQUAL_TO_OR_GREATER_THAN", "20", 20.0, 19.9),
            ("IS_ALL_OF", "[20, 20.0]", 20.0, 10.0),
        ] {
            let bound = bound(condition, text);
            assert!(bound.holds(holds) && !bound.holds(fails), "{condition}");
            assert_eq!(bound.condition().name(), condition);
        }
    }

    #[test]
    fn what_is_no_bound_says_why() {
        let text = |condition: &str, text: &str| Bound::parse(condition, text).unwrap_err().to_string();
        assert_eq!(text("IS_ABOUT", "1"), "the condition is not known");
        assert_eq!(text("IS_LESS_THAN", ""), "the target has no bound");
        assert_eq!(text("IS_LESS_THAN", "10,0"), "\"10,0\" is not a decimal number");
        assert_eq!(text("IS_LESS_THAN", "inf"), "\"inf\" is not a decimal number");
        assert_eq!(text("IS_LESS_THAN", "[1, 2]"), "IS_LESS_THAN takes one number, not 2");
        assert_eq!(text("IS_WITHIN_RANGE", "5"), "IS_WITHIN_RANGE takes two numbers, as [10, 20], not 1");
        assert_eq!(text("IS_WITHIN_RANGE", "[2, 1]"), "the range begins at 2 and ends at 1");
        assert_eq!(text("IS_ONE_OF", "[]"), "IS_ONE_OF takes one number or more, as [10, 20], not 0");
        assert_eq!(text("IS_ONE_OF", "[1, \"x\"]"), "\"x\" is not a decimal number");
        assert_eq!(text("IS_ALL_OF", "[1, 2]"), "no number meets it");
        let many = format!("[{}]", vec!["1"; 40].join(","));
        assert!(text("IS_ONE_OF", &many).contains("at most 32"));
    }

    #[test]
    fn a_bound_is_said_with_its_unit() {
        assert_eq!(bound("IS_LESS_THAN", "20").words("%"), "less than 20 %");
        assert_eq!(bound("IS_WITHIN_RANGE", "[10, 20.5]").words("MB"), "within 10 MB to 20.5 MB");
        assert_eq!(bound("IS_NOT_ONE_OF", "[1, 2]").words(""), "none of 1, 2");
    }

    fn bounds() -> impl Strategy<Value = Bound> {
        let number = || (-20i32..20).prop_map(|n| f64::from(n) / 2.0);
        (0..Condition::ALL.len(), prop::collection::vec(number(), 1..4)).prop_filter_map(
            "no bound",
            |(c, mut values)| {
                let condition = Condition::ALL[c];
                if matches!(condition, Condition::Within | Condition::Outside) {
                    values.resize(2, 3.0);
                    values.sort_by(f64::total_cmp);
                }
                let one = condition.takes() == Takes::One;
                let text = if one { values[0].to_string() } else { serde_json::to_string(&values).ok()? };
                Bound::parse(condition.name(), &text).ok()
            },
        )
    }

    proptest! {
        /// The set of a bound holds what the bound holds for.
        #[test]
        fn a_set_is_what_its_bound_says(bound in bounds(), n in -45i32..45) {
            let value = f64::from(n) / 4.0;
            let inside = !bound.set().and(&Set::points(&[value])).is_empty();
            prop_assert_eq!(inside, bound.holds(value), "{:?} {}", bound, value);
        }

        /// Two bounds can both be met if and only if there is a witness, and the witness meets both.
        #[test]
        fn a_witness_meets_both(a in bounds(), b in bounds()) {
            let both = a.set().and(&b.set());
            match both.witness() {
                Some(value) => prop_assert!(a.holds(value) && b.holds(value), "{value}"),
                None => for n in -60..60 {
                    let value = f64::from(n) / 4.0;
                    prop_assert!(!(a.holds(value) && b.holds(value)), "{value}");
                },
            }
        }

        /// A snapshot gives back the same bound.
        #[test]
        fn a_bound_survives_a_snapshot(bound in bounds()) {
            let text = serde_json::to_string(&bound).unwrap();
            prop_assert_eq!(serde_json::from_str::<Bound>(&text).unwrap(), bound);
        }
    }
}
