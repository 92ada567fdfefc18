//! Quantities as Kubernetes writes them: `100m`, `0.5`, `64Mi`, `1G`, `12e6`.
//!
//! Exact, in billionths, as Kubernetes keeps them: what is more precise is rounded up, and what is larger than 2^63 - 1 is
//! that.

use serde_json::Value;

/// Billionths of a whole.
const NANO: u128 = 1_000_000_000;
/// The largest quantity.
const MAX: u128 = (i64::MAX as u128) * NANO;
/// Digits that are looked at; more of them make no difference.
const DIGITS_MAX: usize = 36;

/// A quantity that is not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    nanos: u128,
}

impl Quantity {
    /// This number of thousandths.
    pub const fn milli(count: u32) -> Self {
        Self { nanos: count as u128 * NANO / 1_000 }
    }

    /// This number of wholes.
    pub const fn whole(count: u64) -> Self {
        Self { nanos: count as u128 * NANO }
    }

    /// Reads one out of a manifest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(value: &Value) -> Result<Self, String> {
        match value {
            Value::Number(number) => Self::parse(&number.to_string()),
            Value::String(text) => Self::parse(text),
            _ => Err("it is neither a number nor text".into()),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        let (is_negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, unsigned),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit()).unwrap_or(unsigned.len());
        let (whole, rest) = unsigned.split_at(end);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            None => ("", rest),
            Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(format!("{} does not begin with a number", super::quoted(text)));
        }
        let (shift, exponent) =
            scale(suffix).ok_or_else(|| format!("{} has no suffix that Kubernetes knows", super::quoted(text)))?;
        let nanos = value(whole, fraction, shift, exponent);
        if is_negative && nanos > 0 {
            return Err(format!("{} is negative", super::quoted(text)));
        }
        Ok(Self { nanos })
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos) }
    }

    /// This number of times.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { nanos: self.nanos.saturating_mul(count.into()) }
    }

    /// In thousandths, rounded up.
    pub fn in_milli(self) -> u32 {
        u32::try_from(self.nanos.div_ceil(NANO / 1_000)).unwrap_or(u32::MAX)
    }

    /// In wholes, rounded up.
    pub fn in_whole(self) -> u64 {
        u64::try_from(self.nanos.div_ceil(NANO)).unwrap_or(u64::MAX)
    }
}

/// What a suffix multiplies by: a power of two, and one of ten.
fn scale(suffix: &str) -> Option<(u32, i64)> {
    Some(match suffix {
        "" => (0, 0),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let bare = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            let plain = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_digit());
            // A larger exponent than any number of digits makes up for.
            let capped = digits.parse::<i64>().unwrap_or(if digits.starts_with('-') { -100_000 } else { 100_000 });
            (0, plain.then_some(capped.clamp(-100_000, 100_000))?)
        }
    })
}

fn value(whole: &str, fraction: &str, shift: u32, exponent: i64) -> u128 {
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let mut power = exponent + 9 - i64::try_from(fraction.len()).unwrap_or(i64::MAX);
    let (seen, rest) = digits.split_at(digits.len().min(DIGITS_MAX));
    power = power.saturating_add(i64::try_from(rest.len()).unwrap_or(i64::MAX));
    let up = u128::from(rest.bytes().any(|b| b != b'0'));
    let number = seen.parse::<u128>().unwrap_or(u128::MAX).saturating_add(up);
    // So large that only the limit is left of it, or so small that only the rounding is.
    if power > 38 {
        return MAX;
    }
    if power < -76 {
        return 1;
    }
    let factor = 1_u128 << shift;
    let scaled = if power >= 0 {
        number.checked_mul(factor).and_then(|n| n.checked_mul(10_u128.checked_pow(power.unsigned_abs() as u32)?))
    } else {
        // First what divides out, so that it does not overflow.
        let (first, second) = (power.unsigned_abs().min(38) as u32, power.unsigned_abs().saturating_sub(38) as u32);
        let divided = |n: u128| n.div_ceil(10_u128.pow(first)).div_ceil(10_u128.pow(second));
        match number.checked_mul(factor) {
            Some(product) => Some(divided(product)),
            None => number.div_ceil(10_u128.pow(first)).div_ceil(10_u128.pow(second)).checked_mul(factor),
        }
    };
    scaled.map_or(MAX, |nanos| nanos.min(MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quantity_is_its_value_as_kubernetes_reads_it() {
        for (text, nanos) in [
            ("0", 0),
            ("100m", NANO / 10),
            ("1", NANO),
            ("+1", NANO),
            ("0.5", NANO / 2),
            (".5", NANO / 2),
            ("1.", NANO),
            ("64Mi", (64 << 20) * NANO),
            ("1.5Gi", (3 << 29) * NANO),
            ("1Ki", 1_024 * NANO),
            ("1Ti", (1 << 40) * NANO),
            ("1Pi", (1 << 50) * NANO),
            ("1Ei", (1 << 60) * NANO),
            ("1E", 1_000_000_000_000_000_000 * NANO),
            ("1P", 1_000_000_000_000_000 * NANO),
            ("1T", 1_000_000_000_000 * NANO),
            ("1G", 1_000_000_000 * NANO),
            ("1M", 1_000_000 * NANO),
            ("1k", 1_000 * NANO),
            ("5u", 5_000),
            ("5n", 5),
            ("1.5n", 2),
            ("0.1n", 1),
            ("12e6", 12_000_000 * NANO),
            ("12E6", 12_000_000 * NANO),
            ("12e+6", 12_000_000 * NANO),
            ("12e-3", 12_000_000),
            ("128974848", 128_974_848 * NANO),
            ("-0", 0),
            ("9223372036854775807", MAX),
            ("9223372036854775808", MAX),
            ("8Ei", MAX),
            ("1e100", MAX),
            ("1e99999999999999999999", MAX),
            ("1e-99999999999999999999", 1),
            ("0e99999999999999999999", 0),
            ("0.000000000000000000000000000000000000000000001", 1),
            ("00000000000000000000000000000000000000000000000001", NANO),
            ("1.00000000000000000000000000000000000000000000000", NANO),
            ("1.00000000000000000000000000000000000000000000001", NANO + 1),
        ] {
            assert_eq!(Quantity::parse(text).map(|q| q.nanos), Ok(nanos), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_its_text() {
        for text in [
            "", "64mi", "1KB", "1K", "1kb", "1MB", "1gi", "1GiB", "abc", "Mi", "m", ".", "-", "+", "1 Mi", " 1", "1 ",
            "1e", "1e+", "1e1.5", "1_000", "1,5", "0x10", "inf", "nan", "1e5Mi", "1mi", "--1", "+-1", "1m1", "１",
            "1µ", "-1", "-100m", "-1e-30",
        ] {
            let refused = Quantity::parse(text).unwrap_err();
            assert!(refused.contains(&super::super::quoted(text)), "{text}: {refused}");
        }
        for value in [Value::Null, Value::Bool(true), serde_json::json!([1]), serde_json::json!({})] {
            assert!(Quantity::read(&value).is_err(), "{value}");
        }
        assert_eq!(Quantity::read(&serde_json::json!(0.25)), Ok(Quantity::milli(250)));
    }

    #[test]
    fn sums_are_rounded_up_once() {
        let tenth = Quantity::parse("0.1").unwrap();
        assert_eq!(tenth.plus(tenth).plus(tenth).in_milli(), 300, "and do not miss a whole number by a hair");
        assert_eq!((Quantity::parse("1u").unwrap().in_milli(), Quantity::parse("1m").unwrap().in_whole()), (1, 1));
        assert_eq!(Quantity::parse("8Ei").unwrap().times(u64::MAX).in_whole(), u64::MAX);
    }

    proptest! {
        #[test]
        fn no_text_ends_the_process(text in "[-+]{0,1}[0-9.]{0,60}[a-zA-Z]{0,2}[-+0-9]{0,30}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn whole_numbers_keep_their_value(number in 0_u64..=i64::MAX as u64) {
            prop_assert_eq!(Quantity::parse(&number.to_string()).unwrap().in_whole(), number);
        }
    }
}
