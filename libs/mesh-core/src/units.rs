//! Units as the Unified Code for Units of Measure writes them, brought to the base units that series are kept in:
//! seconds, bytes, watts, joules, and 1 for shares. One quotient is understood, as in `KiBy/s`.

/// Longest text of a unit, bytes.
const UNIT_MAX: usize = 32;

/// A unit as it is kept, and what a value is multiplied with to be in it. `None` if the unit is not understood.
pub fn normalise(unit: &str) -> Option<(f64, String)> {
    if unit.len() > UNIT_MAX {
        return None;
    }
    match unit.split_once('/') {
        Some((over, under)) if !under.contains('/') => {
            let ((over, over_base), (under, under_base)) = (one(over)?, one(under)?);
            Some((over / under, format!("{over_base}/{under_base}")))
        }
        Some(_) => None,
        None => one(unit).map(|(factor, base)| (factor, base.to_owned())),
    }
}

/// A unit without a quotient.
fn one(unit: &str) -> Option<(f64, &str)> {
    match unit {
        "" | "1" => return Some((1.0, "1")),
        "%" => return Some((0.01, "1")),
        "min" => return Some((60.0, "s")),
        "h" => return Some((3_600.0, "s")),
        "d" => return Some((86_400.0, "s")),
        "W.h" => return Some((3_600.0, "J")),
        "kW.h" => return Some((3_600_000.0, "J")),
        _ => {}
    }
    if unit.starts_with('{') && unit.ends_with('}') && unit.len() > 2 && !unit[1..unit.len() - 1].contains(['{', '}']) {
        return Some((1.0, unit));
    }
    // What has no prefix: a degree Celsius is no multiple of anything.
    let bases = ["By", "bit", "Cel", "Hz", "Pa", "s", "W", "J", "V", "A", "K", "m", "g", "lm", "lx"];
    if bases.contains(&unit) {
        return Some((1.0, unit));
    }
    // Longest first, so that `Ki` is not read as a `K`.
    let prefixes = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("m", 1e-3),
        ("u", 1e-6),
        ("n", 1e-9),
    ];
    prefixes.into_iter().find_map(|(prefix, factor)| {
        let base = unit.strip_prefix(prefix).filter(|base| *base != "Cel")?;
        bases.contains(&base).then_some((factor, base))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_come_to_their_base() {
        let cases = [
            ("ms", 1e-3, "s"),
            ("s", 1.0, "s"),
            ("min", 60.0, "s"),
            ("KiBy", 1024.0, "By"),
            ("MBy", 1e6, "By"),
            ("%", 0.01, "1"),
            ("", 1.0, "1"),
            ("mW", 1e-3, "W"),
            ("kW.h", 3.6e6, "J"),
            ("KiBy/s", 1024.0, "By/s"),
            ("{request}/min", 1.0 / 60.0, "{request}/s"),
            ("Cel", 1.0, "Cel"),
            ("m", 1.0, "m"),
            ("MHz", 1e6, "Hz"),
        ];
        for (unit, factor, base) in cases {
            assert_eq!(normalise(unit), Some((factor, base.to_owned())), "{unit}");
        }
        for unit in ["parsec", "mCel", "By/s/s", "{", "{}", "{a{b}}", "kk", "ms ", &"m".repeat(40)] {
            assert_eq!(normalise(unit), None, "{unit}");
        }
    }
}
