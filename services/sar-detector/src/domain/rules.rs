//! Point rules: an expression over an instance's measurements that holds for a time is an anomaly, until another
//! expression (by default the contrary) has held for a time.
//!
//! ```text
//! saturated: cpu_percent > 95 for 30s clear cpu_percent < 85 for 10s
//! leaking:   rate(memory_mb, 60s) > 0.5 and mean(cpu_percent, 10s) < 90 for 20s
//! ```
//!
//! Operators by rising strength: `or`, `and`, `not`, `< <= > >= == !=`, `+ -`, `* /`, `-`; parentheses; decimal
//! numbers; [`FIELDS`]; and `mean`, `min`, `max`, `rate` (change per second) of a field over a time of at most ten
//! minutes. Durations are whole numbers with `ms`, `s` or `m`. What cannot be told yet (a window that no two samples
//! fill by half, a division by zero) neither holds nor fails: a rule then stays as it is.

use std::collections::VecDeque;

/// What rules can speak of, in the order of [`Row::values`]; per cent of the cluster, thousandths of a core, megabytes
/// (10^6 bytes), bytes per second, counts.
pub const FIELDS: [&str; 8] = [
    "cpu_percent",
    "cpu_milli",
    "memory_mb",
    "io_read_rate",
    "io_write_rate",
    "restarts",
    "replicas_running",
    "interval_seconds",
];

/// Bytes of a rule's text.
pub const TEXT_MAX: usize = 1_000;
/// Rules together.
pub const RULES_MAX: usize = 32;
/// Parts of an expression inside each other.
const DEPTH_MAX: usize = 32;
/// Longest duration, milliseconds.
const DURATION_MAX_MS: i64 = 600_000;

/// One sample as rules see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// In the order of [`FIELDS`].
    pub values: [f64; FIELDS.len()],
}

/// Why a text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {problem}; {hint}")]
pub struct Error {
    /// Position in characters, from 1.
    pub at: usize,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub hint: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Mean,
    Min,
    Max,
    Rate,
}

#[derive(Clone, Debug, PartialEq)]
enum Number {
    Constant(f64),
    Field(usize),
    Window(Over, usize, i64),
    Negated(Box<Number>),
    Sum(Box<Number>, Box<Number>),
    Difference(Box<Number>, Box<Number>),
    Product(Box<Number>, Box<Number>),
    Quotient(Box<Number>, Box<Number>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

#[derive(Clone, Debug, PartialEq)]
enum Truth {
    Compared(Number, Is, Number),
    Not(Box<Truth>),
    And(Box<Truth>, Box<Truth>),
    Or(Box<Truth>, Box<Truth>),
}

/// One comparison that speaks for a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// Field of its left side; empty if there is none.
    pub field: &'static str,
    /// Value of its left side.
    pub value: f64,
    /// Value of its right side.
    pub bound: f64,
    /// Is the left side above?
    pub above: bool,
}

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name: letters, digits, `_` and `-`.
    pub name: String,
    /// As it was written.
    pub text: String,
    when: Truth,
    for_ms: i64,
    clear: Truth,
    clear_for_ms: i64,
}

/// Where a rule is for one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Is it an anomaly?
    pub fired: bool,
    /// Since when what would change that holds, milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Samples since then.
    pub samples: u32,
}

/// What a sample changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// It is an anomaly now, and these comparisons say so.
    Fired(Vec<Evidence>),
    /// It is no longer one.
    Cleared,
}

/// Reads rules, one a line or divided by `;`. Empty lines and lines that begin with `#` are left out.
///
/// # Errors
/// With the name or number of the rule, what is wrong and where, and what would be right.
pub fn read(text: &str) -> Result<Vec<Rule>, String> {
    let mut rules: Vec<Rule> = vec![];
    let lines = text.split(['\n', ';']).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for (number, line) in lines.enumerate() {
        let rule = Rule::parse(line).map_err(|error| {
            let head: String = line.chars().take(40).collect();
            format!("rule {} ({head:?}): {error}", number + 1)
        })?;
        if rules.iter().any(|known| known.name == rule.name) {
            return Err(format!("rule {} is there twice; give one another name", rule.name));
        }
        if rules.len() == RULES_MAX {
            return Err(format!("there are more than {RULES_MAX} rules; leave some out"));
        }
        rules.push(rule);
    }
    Ok(rules)
}

impl Rule {
    /// Reads one rule.
    ///
    /// # Errors
    /// What is wrong, where, and what would be right.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > TEXT_MAX {
            let problem = format!("the rule has {} bytes", text.len());
            return Err(Error { at: 1, problem, hint: format!("use at most {TEXT_MAX}, or divide it into two") });
        }
        let mut parser = Parser { tokens: scan(text)?, next: 0, end: text.chars().count() + 1, depth: 0 };
        let name = match parser.take() {
            Some(Token::Word(name)) if name.len() <= 64 => name,
            _ => return Err(parser.back("a rule begins with its name", "write `name: expression for 10s`")),
        };
        if parser.take() != Some(Token::Sign(":")) {
            return Err(parser.back("`:` is missing after the name", "write `name: expression for 10s`"));
        }
        let when = parser.truth()?;
        let for_ms = parser.held()?;
        let (clear, clear_for_ms) = if parser.word("clear") {
            (parser.truth()?, parser.held()?)
        } else {
            (Truth::Not(Box::new(when.clone())), for_ms)
        };
        if parser.peek().is_some() {
            return Err(
                parser.here("the rule goes on after its end", "end it here, or begin the next one on a new line")
            );
        }
        Ok(Self { name, text: text.to_owned(), when, for_ms, clear, clear_for_ms })
    }

    /// Takes in the newest sample: the last of the rows.
    pub fn step(&self, standing: &mut Standing, rows: &VecDeque<Row>) -> Option<Turn> {
        let now = rows.back()?.at_ms;
        let (turning, hold_ms) =
            if standing.fired { (&self.clear, self.clear_for_ms) } else { (&self.when, self.for_ms) };
        match turning.holds(rows)? {
            false => (standing.since_ms, standing.samples) = (None, 0),
            true => {
                let since = *standing.since_ms.get_or_insert(now);
                standing.samples = standing.samples.saturating_add(1);
                if now - since >= hold_ms {
                    let turn = if standing.fired { Turn::Cleared } else { Turn::Fired(self.evidence(rows)) };
                    if standing.fired {
                        (standing.since_ms, standing.samples) = (None, 0);
                    }
                    standing.fired = !standing.fired;
                    return Some(turn);
                }
            }
        }
        None
    }

    /// How far back it looks, milliseconds.
    pub fn span_ms(&self) -> i64 {
        self.when.span_ms().max(self.clear.span_ms())
    }

    fn evidence(&self, rows: &VecDeque<Row>) -> Vec<Evidence> {
        let mut found = vec![];
        self.when.speak(rows, true, &mut found);
        found
    }
}

impl Truth {
    fn span_ms(&self) -> i64 {
        match self {
            Self::Compared(a, _, b) => a.span_ms().max(b.span_ms()),
            Self::Not(a) => a.span_ms(),
            Self::And(a, b) | Self::Or(a, b) => a.span_ms().max(b.span_ms()),
        }
    }

    fn holds(&self, rows: &VecDeque<Row>) -> Option<bool> {
        Some(match self {
            Self::Compared(a, is, b) => {
                let (a, b) = (a.value(rows)?, b.value(rows)?);
                match is {
                    Is::Less => a < b,
                    Is::LessOrEqual => a <= b,
                    Is::Greater => a > b,
                    Is::GreaterOrEqual => a >= b,
                    Is::Equal => a == b,
                    Is::NotEqual => a != b,
                }
            }
            Self::Not(a) => !a.holds(rows)?,
            // One side can be enough.
            Self::And(a, b) => match (a.holds(rows), b.holds(rows)) {
                (Some(false), _) | (_, Some(false)) => false,
                (a, b) => a? && b?,
            },
            Self::Or(a, b) => match (a.holds(rows), b.holds(rows)) {
                (Some(true), _) | (_, Some(true)) => true,
                (a, b) => a? || b?,
            },
        })
    }

    /// The comparisons that make it hold (or fail, inside a `not`).
    fn speak(&self, rows: &VecDeque<Row>, wanted: bool, found: &mut Vec<Evidence>) {
        match self {
            Self::Compared(a, _, b) => {
                if let (Some(wanted_is), Some(value), Some(bound)) = (self.holds(rows), a.value(rows), b.value(rows))
                    && wanted_is == wanted
                {
                    let field = a.field().or_else(|| b.field()).map_or("", |f| FIELDS[f]);
                    found.push(Evidence { field, value, bound, above: value > bound });
                }
            }
            Self::Not(a) => a.speak(rows, !wanted, found),
            Self::And(a, b) | Self::Or(a, b) => {
                a.speak(rows, wanted, found);
                b.speak(rows, wanted, found);
            }
        }
    }
}

impl Number {
    fn value(&self, rows: &VecDeque<Row>) -> Option<f64> {
        let value = match self {
            Self::Constant(value) => *value,
            Self::Field(field) => rows.back()?.values[*field],
            Self::Window(over, field, span_ms) => windowed(rows, *over, *field, *span_ms)?,
            Self::Negated(a) => -a.value(rows)?,
            Self::Sum(a, b) => a.value(rows)? + b.value(rows)?,
            Self::Difference(a, b) => a.value(rows)? - b.value(rows)?,
            Self::Product(a, b) => a.value(rows)? * b.value(rows)?,
            Self::Quotient(a, b) => a.value(rows)? / b.value(rows)?,
        };
        value.is_finite().then_some(value)
    }

    fn span_ms(&self) -> i64 {
        match self {
            Self::Constant(_) | Self::Field(_) => 0,
            Self::Window(_, _, span_ms) => *span_ms,
            Self::Negated(a) => a.span_ms(),
            Self::Sum(a, b) | Self::Difference(a, b) | Self::Product(a, b) | Self::Quotient(a, b) => {
                a.span_ms().max(b.span_ms())
            }
        }
    }

    /// The first field that it speaks of.
    fn field(&self) -> Option<usize> {
        match self {
            Self::Constant(_) => None,
            Self::Field(field) | Self::Window(_, field, _) => Some(*field),
            Self::Negated(a) => a.field(),
            Self::Sum(a, b) | Self::Difference(a, b) | Self::Product(a, b) | Self::Quotient(a, b) => {
                a.field().or_else(|| b.field())
            }
        }
    }
}

/// A value over the last `span_ms`; none unless its samples span at least half of that.
fn windowed(rows: &VecDeque<Row>, over: Over, field: usize, span_ms: i64) -> Option<f64> {
    let newest = rows.back()?;
    let inside = || rows.iter().rev().take_while(|row| newest.at_ms - row.at_ms <= span_ms);
    let oldest = inside().last()?;
    let spans_ms = newest.at_ms - oldest.at_ms;
    if spans_ms <= 0 || spans_ms < span_ms / 2 {
        return None;
    }
    let values = inside().map(|row| row.values[field]);
    Some(match over {
        Over::Mean => values.clone().sum::<f64>() / values.count() as f64,
        Over::Min => values.fold(f64::INFINITY, f64::min),
        Over::Max => values.fold(f64::NEG_INFINITY, f64::max),
        Over::Rate => (newest.values[field] - oldest.values[field]) * 1e3 / spans_ms as f64,
    })
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Number(f64),
    Duration(i64),
    Sign(&'static str),
}

const SIGNS: [&str; 15] = ["<=", ">=", "==", "!=", "<", ">", "+", "-", "*", "/", "(", ")", ",", ":", "="];

fn scan(text: &str) -> Result<Vec<(usize, Token)>, Error> {
    let letters: Vec<char> = text.chars().collect();
    let mut tokens: Vec<(usize, Token)> = vec![];
    let mut at = 0;
    while let Some(&letter) = letters.get(at) {
        let start = at;
        if letter.is_whitespace() {
            at += 1;
            continue;
        }
        let run = |from: usize, fits: &dyn Fn(char) -> bool| {
            letters[from..].iter().take_while(|c| fits(**c)).collect::<String>()
        };
        if letter.is_ascii_digit() {
            let digits = run(at, &|c| c.is_ascii_digit() || c == '.');
            at += digits.len();
            let unit = run(at, &|c| c.is_ascii_alphabetic());
            at += unit.len();
            let wrong = |problem: String| Error {
                at: start + 1,
                problem,
                hint: "use a number such as 0.5, or a whole duration such as 500ms, 10s or 5m".into(),
            };
            let token = if unit.is_empty() {
                Token::Number(digits.parse().map_err(|_| wrong(format!("{digits} is not a number")))?)
            } else {
                let scale = match unit.as_str() {
                    "ms" => 1,
                    "s" => 1_000,
                    "m" => 60_000,
                    _ => return Err(wrong(format!("{unit:?} is not a unit of time"))),
                };
                let millis = digits.parse::<i64>().ok().and_then(|n| n.checked_mul(scale));
                match millis.filter(|ms| *ms <= DURATION_MAX_MS) {
                    Some(millis) => Token::Duration(millis),
                    None => {
                        return Err(wrong(format!("{digits}{unit} is not a whole duration of at most ten minutes")));
                    }
                }
            };
            tokens.push((start + 1, token));
        } else if letter.is_ascii_alphabetic() || letter == '_' {
            // A dash belongs to a word only in the name before the colon: elsewhere it is a minus.
            let named = tokens.is_empty();
            let word = run(at, &|c| c.is_ascii_alphanumeric() || c == '_' || named && c == '-');
            at += word.len();
            tokens.push((start + 1, Token::Word(word)));
        } else {
            let rest: String = letters[at..].iter().take(2).collect();
            let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) else {
                let problem = format!("{letter:?} means nothing here");
                return Err(Error { at: start + 1, problem, hint: "leave it out".into() });
            };
            at += sign.len();
            tokens.push((start + 1, Token::Sign(sign)));
        }
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    /// Position after the last character.
    end: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, token)| token)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.next += usize::from(token.is_some());
        token
    }

    fn word(&mut self, word: &str) -> bool {
        let is = matches!(self.peek(), Some(Token::Word(found)) if found == word);
        self.next += usize::from(is);
        is
    }

    fn sign(&mut self, signs: &[&'static str]) -> Option<&'static str> {
        let Some(Token::Sign(found)) = self.peek() else { return None };
        let found = signs.iter().copied().find(|sign| sign == found)?;
        self.next += 1;
        Some(found)
    }

    fn here(&self, problem: impl Into<String>, hint: impl Into<String>) -> Error {
        let at = self.tokens.get(self.next).map_or(self.end, |(at, _)| *at);
        Error { at, problem: problem.into(), hint: hint.into() }
    }

    /// An error at what was taken last.
    fn back(&mut self, problem: impl Into<String>, hint: impl Into<String>) -> Error {
        self.next = self.next.saturating_sub(1);
        self.here(problem, hint)
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.depth == DEPTH_MAX {
            return Err(self.here("the expression is nested too deeply", format!("use at most {DEPTH_MAX} levels")));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn held(&mut self) -> Result<i64, Error> {
        if !self.word("for") {
            return Err(self.here("`for` is missing", "say how long it must hold, such as `for 10s` or `for 0s`"));
        }
        match self.take() {
            Some(Token::Duration(millis)) => Ok(millis),
            _ => Err(self.back("a duration is missing", "write it as 500ms, 10s or 5m")),
        }
    }

    fn truth(&mut self) -> Result<Truth, Error> {
        let mut truth = self.both()?;
        let mut parts = 0;
        while self.word("or") {
            truth = Truth::Or(Box::new(truth), Box::new(self.part(&mut parts, Self::both)?));
        }
        Ok(truth)
    }

    fn both(&mut self) -> Result<Truth, Error> {
        let mut truth = self.contrary()?;
        let mut parts = 0;
        while self.word("and") {
            truth = Truth::And(Box::new(truth), Box::new(self.part(&mut parts, Self::contrary)?));
        }
        Ok(truth)
    }

    /// Another part of a chain, whose tree is as deep as the chain is long.
    fn part<T>(&mut self, parts: &mut usize, parse: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        *parts += 1;
        if *parts > DEPTH_MAX {
            return Err(self.here("the expression has too many parts", format!("chain at most {DEPTH_MAX}")));
        }
        parse(self)
    }

    fn contrary(&mut self) -> Result<Truth, Error> {
        if self.word("not") {
            return Ok(Truth::Not(Box::new(self.deeper(Self::contrary)?)));
        }
        // A parenthesis may open a truth or a number: tried as the one, then as the other.
        let start = self.next;
        if self.sign(&["("]).is_some() {
            let inner = self.deeper(Self::truth);
            if let Ok(truth) = inner
                && self.sign(&[")"]).is_some()
                && !matches!(self.peek(), Some(Token::Sign("+" | "-" | "*" | "/")))
            {
                return Ok(truth);
            }
            self.next = start;
        }
        let left = self.sum()?;
        let Some(sign) = self.sign(&["<=", ">=", "==", "!=", "<", ">"]) else {
            return Err(self.here("a comparison is missing", "compare with <, <=, >, >=, == or !="));
        };
        let is = match sign {
            "<" => Is::Less,
            "<=" => Is::LessOrEqual,
            ">" => Is::Greater,
            ">=" => Is::GreaterOrEqual,
            "==" => Is::Equal,
            _ => Is::NotEqual,
        };
        Ok(Truth::Compared(left, is, self.sum()?))
    }

    fn sum(&mut self) -> Result<Number, Error> {
        let mut number = self.product()?;
        let mut parts = 0;
        while let Some(sign) = self.sign(&["+", "-"]) {
            let right = Box::new(self.part(&mut parts, Self::product)?);
            let left = Box::new(number);
            number = if sign == "+" { Number::Sum(left, right) } else { Number::Difference(left, right) };
        }
        Ok(number)
    }

    fn product(&mut self) -> Result<Number, Error> {
        let mut number = self.factor()?;
        let mut parts = 0;
        while let Some(sign) = self.sign(&["*", "/"]) {
            let right = Box::new(self.part(&mut parts, Self::factor)?);
            let left = Box::new(number);
            number = if sign == "*" { Number::Product(left, right) } else { Number::Quotient(left, right) };
        }
        Ok(number)
    }

    fn factor(&mut self) -> Result<Number, Error> {
        const WANTED: &str = "a number, a field or a function is missing";
        match self.take() {
            Some(Token::Sign("-")) => Ok(Number::Negated(Box::new(self.deeper(Self::factor)?))),
            Some(Token::Sign("(")) => {
                let number = self.deeper(Self::sum)?;
                match self.sign(&[")"]) {
                    Some(_) => Ok(number),
                    None => Err(self.here("`)` is missing", "close the parenthesis")),
                }
            }
            Some(Token::Number(value)) => Ok(Number::Constant(value)),
            Some(Token::Word(word)) => {
                let over = match word.as_str() {
                    "mean" => Some(Over::Mean),
                    "min" => Some(Over::Min),
                    "max" => Some(Over::Max),
                    "rate" => Some(Over::Rate),
                    _ => None,
                };
                match over {
                    Some(over) => self.window(over, &word),
                    None => match field(&word) {
                        Some(field) => Ok(Number::Field(field)),
                        None => Err(self.unknown(&word)),
                    },
                }
            }
            Some(_) => Err(self.back(WANTED, fields())),
            None => Err(self.here(WANTED, fields())),
        }
    }

    fn window(&mut self, over: Over, word: &str) -> Result<Number, Error> {
        let hint = format!("write {word}(memory_mb, 30s)");
        if self.sign(&["("]).is_none() {
            return Err(self.here(format!("{word} is a function"), hint));
        }
        let field = match self.take() {
            Some(Token::Word(name)) => match field(&name) {
                Some(field) => field,
                None => return Err(self.unknown(&name)),
            },
            _ => return Err(self.back(format!("{word} is of a field"), hint)),
        };
        let comma = self.sign(&[","]).is_some();
        match self.take() {
            Some(Token::Duration(millis)) if comma && millis > 0 && self.sign(&[")"]).is_some() => {
                Ok(Number::Window(over, field, millis))
            }
            _ => Err(self.back(format!("{word} is over a time"), hint)),
        }
    }

    fn unknown(&mut self, word: &str) -> Error {
        let head: String = word.chars().take(40).collect();
        self.back(format!("there is no field {head:?}"), fields())
    }
}

fn field(name: &str) -> Option<usize> {
    FIELDS.iter().position(|known| *known == name)
}

fn fields() -> String {
    format!("fields are {}; functions are mean, min, max, rate", FIELDS.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(at_s: f64, cpu_percent: f64, memory_mb: f64) -> Row {
        Row {
            at_ms: (at_s * 1e3) as i64,
            values: [cpu_percent, 10.0 * cpu_percent, memory_mb, 0.0, 0.0, 0.0, 1.0, 1.0],
        }
    }

    /// When a rule turned, in seconds, given CPU (per cent) second by second.
    fn turns(rule: &str, cpu: &[f64]) -> Vec<(usize, bool)> {
        let rule = Rule::parse(rule).unwrap();
        let (mut standing, mut rows, mut turns) = (Standing::default(), VecDeque::new(), vec![]);
        for (second, cpu) in cpu.iter().enumerate() {
            rows.push_back(row(second as f64, *cpu, 20.0 + second as f64));
            if let Some(turn) = rule.step(&mut standing, &rows) {
                turns.push((second, matches!(turn, Turn::Fired(_))));
            }
        }
        turns
    }

    #[test]
    fn a_rule_fires_exactly_beyond_its_limit() {
        assert_eq!(turns("hot: cpu_percent > 70 for 0s", &[70.0, 70.001, 70.0]), [(1, true), (2, false)]);
        assert_eq!(turns("hot: cpu_percent >= 70 for 0s", &[69.999, 70.0]), [(1, true)]);
    }

    #[test]
    fn a_rule_holds_its_time_and_clears_only_beyond_its_hysteresis() {
        let rule = "hot: cpu_percent > 70 for 2s clear cpu_percent < 50 for 3s";
        let cpu = [90., 90., 10., 90., 90., 90., 60., 60., 60., 60., 40., 40., 60., 40., 40., 40., 40.];
        assert_eq!(turns(rule, &cpu), [(5, true), (16, false)]);
    }

    #[test]
    fn windows_wait_until_they_are_half_full_and_then_tell() {
        assert_eq!(turns("leak: rate(memory_mb, 10s) > 0.99 for 0s", &[0.0; 12]), [(5, true)]);
        assert_eq!(turns("up: mean(cpu_percent, 4s) > 50 for 0s", &[0., 0., 0., 100., 100., 100.]), [(5, true)]);
    }

    #[test]
    fn expressions_bind_as_arithmetic_does() {
        for (rule, holds) in [
            ("a: 1 + 2 * 3 == 7 for 0s", true),
            ("a: (1 + 2) * 3 == 9 for 0s", true),
            ("a: ((cpu_percent)) + 1 == 2 for 0s", true),
            ("a: -cpu_percent < 0 and not cpu_percent > 5 for 0s", true),
            ("a: cpu_percent > 5 or (memory_mb > 1 and cpu_milli == 10) for 0s", true),
            ("a: not (cpu_percent == 1 or 1 == 2) for 0s", false),
            ("a: 7 - 2 - 1 == 4 and 8 / 2 / 2 == 2 for 0s", true),
            ("a: cpu_percent / io_read_rate > 0 for 0s", false),
            ("a: cpu_percent / io_read_rate > 0 or cpu_percent == 1 for 0s", true),
        ] {
            assert_eq!(turns(rule, &[1.0]).first() == Some(&(0, true)), holds, "{rule}");
        }
    }

    #[test]
    fn evidence_names_the_comparisons_that_hold() {
        let rule = Rule::parse("a: cpu_percent > 70 and memory_mb < 10 or cpu_percent > 60 for 0s").unwrap();
        let rows = VecDeque::from([row(0.0, 80.0, 20.0)]);
        let Some(Turn::Fired(evidence)) = rule.step(&mut Standing::default(), &rows) else { panic!("it fires") };
        let told: Vec<_> = evidence.iter().map(|e| (e.field, e.value, e.bound, e.above)).collect();
        assert_eq!(told, [("cpu_percent", 80.0, 70.0, true), ("cpu_percent", 80.0, 60.0, true)]);
    }

    #[test]
    fn what_is_no_rule_is_refused_with_place_and_hint() {
        for (text, at, named) in [
            ("", 1, "name"),
            ("hot cpu_percent > 1 for 1s", 5, "`:`"),
            ("hot: cpu_percent > 1", 21, "`for`"),
            ("hot: cpu > 1 for 1s", 6, "no field \"cpu\""),
            ("hot: cpu_percent for 1s", 18, "comparison"),
            ("hot: cpu_percent > 1 for 1h", 26, "unit"),
            ("hot: cpu_percent > 1 for 11m", 26, "ten minutes"),
            ("hot: cpu_percent > 1 for 1s more", 29, "goes on"),
            ("hot: rate(cpu_percent) > 1 for 1s", 22, "over a time"),
            ("hot: cpu_percent > § for 1s", 20, "means nothing"),
            ("hot: 1.2.3 > 1 for 1s", 6, "not a number"),
            ("hot: (cpu_percent > 1 for 1s", 19, "`)`"),
        ] {
            let error = Rule::parse(text).unwrap_err();
            assert!(error.at == at && error.to_string().contains(named), "{text}: {error}");
        }
        let deep = format!("a: {}1{} > 0 for 1s", "(".repeat(100), ")".repeat(100));
        assert!(Rule::parse(&deep).unwrap_err().to_string().contains("nested"));
        let long = format!("a: {}1 > 0 for 1s", "1+".repeat(100));
        assert!(Rule::parse(&long).unwrap_err().to_string().contains("too many parts"));
        assert!(Rule::parse(&"x".repeat(2_000)).is_err());
        assert!(read("a: 1 > 0 for 1s; a: 1 > 0 for 1s").unwrap_err().contains("twice"));
        assert!(read("# none\n\nb: 1 > for 1s").unwrap_err().contains("rule 1"));
    }
}
