//! HTTP Digest authentication (RFC 7616, SHA-256), which RFC 7285 §8.3.5 asks for where clients are to be authenticated.
//!
//! The server keeps nothing: a nonce is a time and a digest of it under a secret of the process, good for five minutes. A
//! request that is overheard can be repeated for so long; it can only read what it read before.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// Realm of the server.
pub const REALM: &str = "alto";
/// How long a nonce is good, seconds.
const NONCE_S: i64 = 300;
/// Longest header that is read.
const HEADER_BYTES_MAX: usize = 4_096;

fn hex(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// Who may ask: digests of `user:realm:password`, by user.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Users(BTreeMap<String, String>);

impl Users {
    /// Reads lines of `user:realm:digest`, the digest SHA-256 in hexadecimal; empty lines and `#` are left out.
    ///
    /// # Errors
    /// The number of the first invalid line.
    pub fn parse(text: &str) -> Result<Self, usize> {
        let mut users = BTreeMap::new();
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut parts = line.split(':');
            let (Some(user), Some(realm), Some(digest), None) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                return Err(number + 1);
            };
            let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
            if user.is_empty() || realm != REALM || !is_digest {
                return Err(number + 1);
            }
            users.insert(user.to_owned(), digest.to_ascii_lowercase());
        }
        Ok(Self(users))
    }
}

fn nonce(secret: &str, at_s: i64) -> String {
    format!("{at_s:x}-{}", hex(&format!("{at_s}:{secret}")))
}

/// The header that asks a client to authenticate itself.
pub fn challenge(secret: &str, now_s: i64, stale: bool) -> String {
    let stale = if stale { ", stale=true" } else { "" };
    format!("Digest realm=\"{REALM}\", qop=\"auth\", algorithm=SHA-256, nonce=\"{}\"{stale}", nonce(secret, now_s))
}

/// Is this the authorization of a known user for this request? If not: was only its nonce too old?
///
/// # Errors
/// `true` if only the nonce was too old.
pub fn check(
    users: &Users,
    secret: &str,
    now_s: i64,
    method: &str,
    uri: &str,
    header: Option<&str>,
) -> Result<(), bool> {
    let fields = header.filter(|h| h.len() <= HEADER_BYTES_MAX).and_then(fields).ok_or(false)?;
    let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let given = field("nonce");
    let at_s = given.split_once('-').and_then(|(at, _)| i64::from_str_radix(at, 16).ok()).ok_or(false)?;
    let known = users.0.get(field("username")).ok_or(false)?;
    let right = field("realm") == REALM
        && field("qop") == "auth"
        && field("algorithm").eq_ignore_ascii_case("SHA-256")
        && field("uri") == uri
        && !field("cnonce").is_empty()
        && same(given, &nonce(secret, at_s));
    let request = hex(&format!("{method}:{uri}"));
    let expected = hex(&format!("{known}:{given}:{}:{}:auth:{request}", field("nc"), field("cnonce")));
    if !right || !same(field("response"), &expected) {
        return Err(false);
    }
    if (0..=NONCE_S).contains(&now_s.saturating_sub(at_s)) { Ok(()) } else { Err(true) }
}

/// Compares without telling by its time where two texts differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (x, y)| all | (x ^ y)) == 0
}

/// The fields of a `Digest` header; quoted values may hold escaped characters.
fn fields(header: &str) -> Option<BTreeMap<String, String>> {
    let (scheme, mut rest) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("Digest") {
        return None;
    }
    let mut found = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([' ', ',', '\t']);
        if rest.is_empty() {
            return Some(found);
        }
        let (name, after) = rest.split_once('=')?;
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut escaped = false;
            let end = quoted.char_indices().find(|(_, c)| {
                let ends = *c == '"' && !escaped;
                if !ends && (escaped || *c != '\\') {
                    value.push(*c);
                }
                escaped = *c == '\\' && !escaped;
                ends
            });
            rest = quoted.get(end?.0 + 1..)?;
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value.push_str(after.get(..end)?.trim());
            rest = after.get(end..)?;
        }
        if found.insert(name.trim().to_ascii_lowercase(), value).is_some() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const URI: &str = "/alto/directory";

    fn users() -> Users {
        Users::parse(&format!("# readers\nmufasa:alto:{}\n", hex("mufasa:alto:circle"))).unwrap()
    }

    fn authorization(challenge: &str, password: &str, method: &str) -> String {
        let nonce = fields(challenge).unwrap()["nonce"].clone();
        let own = hex(&format!("mufasa:{REALM}:{password}"));
        let request = hex(&format!("{method}:{URI}"));
        let response = hex(&format!("{own}:{nonce}:00000001:c0:auth:{request}"));
        format!(
            "Digest username=\"mufasa\", realm=\"{REALM}\", uri=\"{URI}\", algorithm=SHA-256, nonce=\"{nonce}\", \
             nc=00000001, cnonce=\"c0\", qop=auth, response=\"{response}\""
        )
    }

    #[test]
    fn s8_3_5_http_digest_lets_a_known_user_in_and_nobody_else() {
        let asked = challenge("secret", 1_000, false);
        let good = authorization(&asked, "circle", "GET");
        let check = |now, method, header: Option<&str>| check(&users(), "secret", now, method, URI, header);
        assert_eq!(check(1_001, "GET", Some(&good)), Ok(()));
        assert_eq!(check(1_001, "GET", None), Err(false));
        assert_eq!(check(1_001, "POST", Some(&good)), Err(false), "an authorization is for one method");
        assert_eq!(check(1_001, "GET", Some(&authorization(&asked, "square", "GET"))), Err(false));
        assert_eq!(check(1_001, "GET", Some(&good.replace("mufasa", "scar"))), Err(false));
        assert_eq!(check(2_000, "GET", Some(&good)), Err(true), "the nonce is too old, nothing else is wrong");
        let forged = authorization(&challenge("other secret", 1_000, false), "circle", "GET");
        assert_eq!(check(1_001, "GET", Some(&forged)), Err(false));
        assert!(challenge("s", 1, true).ends_with("stale=true"));
    }

    #[test]
    fn a_users_file_names_its_first_wrong_line() {
        assert_eq!(Users::parse("\n# x\nmufasa:alto:12"), Err(3));
        assert_eq!(Users::parse(&format!("a:other:{}", hex("x"))), Err(1));
        assert_eq!(Users::parse(""), Ok(Users::default()));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(header in "(Digest )?.{0,200}") {
            prop_assert!(check(&users(), "s", 1, "GET", URI, Some(&header)).is_err());
        }
    }
}
