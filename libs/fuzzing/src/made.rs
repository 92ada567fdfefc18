//! Seeded input: what is good, cut, joined, repeated, and with bytes and words put in that parsers treat specially.

/// Words that mean something to one parser or another.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ": ",
    ",",
    "\"",
    "'",
    "\\",
    "\\u0000",
    "\\ud800",
    "\n",
    "\r\n",
    "\t",
    " ",
    "---\n",
    "...\n",
    "- ",
    "? ",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "!!int ",
    "| ",
    "> ",
    "#",
    "%YAML 1.1\n",
    "null",
    "~",
    "true",
    "yes",
    "no",
    "010",
    "0x1F",
    "1e999",
    "-0",
    "1_000",
    ".inf",
    ".nan",
    "1.10",
    "18446744073709551616",
    "2027-01-31T12:00:00Z",
    "+05:30",
    "+0530",
    ":60Z",
    "T24:00:00Z",
    "\u{feff}",
    "\u{202e}",
    "\u{1b}[2J",
    "\0",
    "é",
    "𝄞",
    "..",
    "../",
    "/",
    "//",
    "@",
    "sha256:",
    "latest",
    "apiVersion: v1\nkind: Pod\n",
    "metadata",
    "name",
    "id",
    "intent",
    "owner",
    "IS_LESS_THAN",
    "[1,2]",
    "{\"a\":1}",
];

/// Bytes of the longest input.
const LENGTH_MAX: usize = 4_096;

/// A source of input with a seed, so that what failed is found again.
pub struct Made {
    state: u64,
    good: Vec<Vec<u8>>,
}

impl Made {
    /// Input made of these good ones.
    pub fn new(seed: u64, good: Vec<Vec<u8>>) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, good }
    }

    /// The next one.
    pub fn input(&mut self) -> Vec<u8> {
        let mut input = match self.below(8) {
            0 => self.noise(),
            1 => self.words(),
            _ => self.one(),
        };
        for _ in 0..self.below(6) {
            self.change(&mut input);
        }
        input.truncate(LENGTH_MAX);
        input
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.random() % limit.max(1) as u64) as usize
    }

    fn noise(&mut self) -> Vec<u8> {
        (0..self.below(64)).map(|_| self.random() as u8).collect()
    }

    fn words(&mut self) -> Vec<u8> {
        (0..self.below(24)).flat_map(|_| self.word()).collect()
    }

    fn word(&mut self) -> Vec<u8> {
        let at = self.below(WORDS.len());
        WORDS.get(at).copied().unwrap_or_default().as_bytes().to_vec()
    }

    fn one(&mut self) -> Vec<u8> {
        let at = self.below(self.good.len());
        self.good.get(at).cloned().unwrap_or_default()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let end = (at + self.below(16)).min(input.len());
        match self.below(8) {
            0 => {
                let word = self.word();
                input.splice(at..at, word);
            }
            1 => {
                let word = self.word();
                input.splice(at..end, word);
            }
            2 => {
                input.splice(at..end, []);
            }
            3 => input.truncate(at),
            4 => {
                let part = input.get(at..end).unwrap_or_default().repeat(self.below(8));
                input.splice(at..at, part);
            }
            5 => {
                let other = self.one();
                let from = self.below(other.len());
                input.truncate(at);
                input.extend(other.get(from..).unwrap_or_default());
            }
            6 => {
                let byte = self.random() as u8;
                if let Some(slot) = input.get_mut(at) {
                    *slot = byte;
                }
            }
            _ => {
                let bit = 1 << self.below(8);
                if let Some(slot) = input.get_mut(at) {
                    *slot ^= bit;
                }
            }
        }
    }
}
