//! What questions have in common: whose things are meant, which page of a list, and what a key looks like.

use mesh_proto::{KEY_FORMAT, is_key, query::ListRequest};

use super::Error;

/// Whose things are meant when a question names no owner.
pub const OWNER_DEFAULT: &str = "local";

/// The owner that a question means.
pub fn owner(asked: &str) -> &str {
    if asked.is_empty() { OWNER_DEFAULT } else { asked }
}

/// Refuses a text that is not a key; `what` names it.
///
/// # Errors
/// Invalid argument, with the format of keys.
pub fn check_key(what: &str, text: &str) -> Result<(), Error> {
    if is_key(text) {
        return Ok(());
    }
    Err(Error::invalid(format!("{what} {:?} is not a key", head(text)), format!("use {KEY_FORMAT}")))
}

/// Refuses what a list is not narrowed by: the lists of all areas share their question, and none drops a part of it.
///
/// # Errors
/// Invalid argument, with the first of its members that is given and not among `taken`.
pub fn narrowed_by(request: &ListRequest, taken: &[&str]) -> Result<(), Error> {
    let ListRequest { owner, page_size: _, page_token: _, state, states, user_label, object_instance, count } = request;
    let given = [
        ("owner", !owner.is_empty()),
        ("state", !state.is_empty()),
        ("states", !states.is_empty()),
        ("user_label", !user_label.is_empty()),
        ("object_instance", !object_instance.is_empty()),
        ("count", *count),
    ];
    match given.iter().find(|(name, is_given)| *is_given && !taken.contains(name)) {
        None => Ok(()),
        Some((name, _)) => Err(Error::invalid(format!("this list does not know {name}"), "leave it out")),
    }
}

/// Entries of a list when the question does not say how many.
pub const SIZE_DEFAULT: usize = 100;
/// Entries of the longest list.
pub const SIZE_MAX: usize = 1_000;

/// Entries of a list, from how many were asked for: 100 for 0, and never more than 1,000.
pub fn size(asked: u32) -> usize {
    match usize::try_from(asked).unwrap_or(SIZE_MAX) {
        0 => SIZE_DEFAULT,
        asked => asked.min(SIZE_MAX),
    }
}

/// Characters of the longest page token.
const TOKEN_MAX: usize = 512;

/// Which page of a list is wanted. Lists are in the order of a key, and a page token is the key of the last entry of the
/// page before: so pages stay whole while entries come and go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    size: usize,
    after: String,
}

impl Page {
    /// From a question's `page_size` and `page_token`.
    ///
    /// # Errors
    /// Invalid argument, for a token that no page ended with.
    pub fn new(page_size: u32, page_token: &str) -> Result<Self, Error> {
        let page = Self { size: size(page_size), after: page_token.to_owned() };
        let fits = page_token.len() <= TOKEN_MAX && page_token.bytes().all(|b| b.is_ascii_graphic());
        if fits { Ok(page) } else { Err(page.invalid()) }
    }

    /// Entries that it holds at most.
    pub fn size(&self) -> usize {
        self.size
    }

    /// It begins after the entry of this key; empty for the first page.
    pub fn after(&self) -> &str {
        &self.after
    }

    /// The token is not one that a page of this list ended with.
    pub fn invalid(&self) -> Error {
        let what = format!("{:?} is not a page token", head(&self.after));
        Error::invalid(what, "give the next_page_token of the page before, or nothing for the first page")
    }

    /// The page, from the entries that come after its [`after`](Self::after), in order, and the token of the next one;
    /// empty at the end.
    pub fn fill<T>(&self, later: impl IntoIterator<Item = T>, key: impl FnOnce(&T) -> String) -> (Vec<T>, String) {
        let mut later = later.into_iter();
        let entries: Vec<T> = later.by_ref().take(self.size).collect();
        let next = match (later.next(), entries.last()) {
            (Some(_), Some(last)) => key(last),
            _ => String::new(),
        };
        (entries, next)
    }
}

/// As much of a text as an error repeats.
fn head(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_together_are_the_whole_list() {
        let all: Vec<String> = (0..7).map(|n| format!("n{n}")).collect();
        for size in 1..9 {
            let (mut found, mut token, mut pages) = (vec![], String::new(), 0);
            loop {
                let page = Page::new(size, &token).unwrap();
                let later = all.iter().filter(|id| id.as_str() > page.after());
                let (entries, next) = page.fill(later, |id| (*id).clone());
                found.extend(entries.into_iter().cloned());
                (token, pages) = (next, pages + 1);
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!((found.as_slice(), pages), (all.as_slice(), all.len().div_ceil(size as usize)));
        }
    }

    #[test]
    fn a_page_has_100_entries_unless_asked_and_1000_at_most() {
        assert_eq!([0, 7, 1_000, u32::MAX].map(size), [100, 7, 1_000, 1_000]);
    }

    #[test]
    fn a_token_that_no_page_ends_with_is_refused() {
        for token in ["a b", "ä", "\n", &"x".repeat(513)] {
            let text = Page::new(0, token).unwrap_err().to_string();
            assert!(text.contains("next_page_token"), "{text}");
        }
    }

    #[test]
    fn a_key_is_checked_with_one_message() {
        check_key("owner", "local").unwrap();
        let text = check_key("owner", "a b").unwrap_err().to_string();
        assert_eq!(text, "owner \"a b\" is not a key; use 1 to 64 letters, digits, `_` and `-`");
        assert_eq!((owner(""), owner("me")), ("local", "me"));
    }

    #[test]
    fn a_list_refuses_what_it_is_not_narrowed_by() {
        let request = ListRequest { user_label: "a".into(), state: "b".into(), ..ListRequest::default() };
        assert!(narrowed_by(&request, &["state", "user_label"]).is_ok());
        assert!(matches!(narrowed_by(&request, &["state"]), Err(Error::InvalidArgument { .. })));
        assert!(narrowed_by(&ListRequest { page_size: 7, ..ListRequest::default() }, &[]).is_ok());
    }
}
