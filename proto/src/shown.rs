//! Text that somebody else wrote, made safe to show: what moves a cursor, changes colours or turns the direction of text
//! around is written out, so that a line on a terminal, a log or a page says what it seems to say.

use std::{borrow::Cow, fmt::Write as _};

/// Does a character do something else than to stand where it is?
const fn acts(c: char) -> bool {
    matches!(c,
        // C0, DEL and C1: escape sequences begin with one of these.
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        // Direction of text.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
        // Lines and paragraphs.
        | '\u{2028}' | '\u{2029}'
        // Nothing to see, unlike the joiners that scripts need.
        | '\u{ad}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2065}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}'
    )
}

/// One line, whatever is in the text: what acts is written as `\n`, `\t` or `\u{1b}`.
pub fn line(text: &str) -> Cow<'_, str> {
    written_out(text, acts)
}

/// The same, but lines and tabs stay: for text that is laid out already.
pub fn lines(text: &str) -> Cow<'_, str> {
    written_out(text, |c| acts(c) && !matches!(c, '\n' | '\t'))
}

fn written_out(text: &str, acts: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match acts(c) {
            true if matches!(c, '\n' | '\r' | '\t') => shown.extend(c.escape_default()),
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// JSON text with what acts written as JSON escapes: the same value, in the same layout.
pub fn json(text: &str) -> Cow<'_, str> {
    // A layout has line feeds and blanks only; inside of texts the writer has escaped them.
    let acts = |c: char| acts(c) && c != '\n';
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match acts(c) {
            true => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(shown, "\\u{unit:04x}");
            }),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &[(&str, &str)] = &[
        ("\u{1b}[31mred\u{1b}[0m", "\\u{1b}[31mred\\u{1b}[0m"),
        ("\u{1b}]8;;http://x\u{7}link", "\\u{1b}]8;;http://x\\u{7}link"),
        ("\u{9b}2J", "\\u{9b}2J"),
        ("a\rb\u{8}\u{7f}\0", "a\\rb\\u{8}\\u{7f}\\u{0}"),
        ("exe\u{202e}fdp", "exe\\u{202e}fdp"),
        ("\u{2066}a\u{2069}\u{200f}\u{61c}", "\\u{2066}a\\u{2069}\\u{200f}\\u{61c}"),
        ("a\u{2028}b\u{200b}\u{feff}\u{e0041}", "a\\u{2028}b\\u{200b}\\u{feff}\\u{e0041}"),
    ];

    #[test]
    fn what_acts_is_written_out_and_all_else_stays() {
        for (text, shown) in HOSTILE {
            assert_eq!(line(text), *shown);
            assert_eq!(lines(text), *shown);
        }
        for text in ["plain", "Halle Süd ✓ 日本語 שלום می‌خواهم 👩‍🔧", "a\\u{1b}"] {
            assert_eq!(line(text), text);
            assert!(matches!(lines(text), Cow::Borrowed(_)));
        }
        assert_eq!(line("a\n\tb"), "a\\n\\tb");
        assert_eq!(lines("a\n\tb\u{1b}"), "a\n\tb\\u{1b}");
    }

    #[test]
    fn json_stays_the_same_value() {
        for (text, _) in HOSTILE {
            let value = serde_json::json!({*text: [text, 1, "ü"]});
            for written in [value.to_string(), format!("{value:#}")] {
                let shown = json(&written);
                assert!(!shown.chars().any(|c| acts(c) && c != '\n'), "{shown}");
                assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
            }
        }
    }
}
