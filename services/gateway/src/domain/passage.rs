//! What may reach a workload: which path, and which headers. It is told who asks by headers, and is exposed below a path;
//! whatever a client spells, and however its reader reads that, neither may become another.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_rest::problem::{Kind, Problem};

/// Headers about one connection and not the next (RFC 9110 §7.6.1, RFC 9113 §8.2.2).
const HOP: [&str; 9] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Headers that say who asks, whence or for what, with nothing but their letters and digits: only the gateway says that.
const OURS: [&str; 8] = [
    "forwarded",
    "pathinfo",
    // CGI makes `HTTP_PROXY` of it, which programs take for their own setting.
    "proxy",
    "remoteuser",
    "scriptname",
    "xoriginaluri",
    "xoriginalurl",
    "xrewriteurl",
];

/// How often a path is decoded to see what it may become.
const DECODED_MAX: usize = 8;

/// Does somebody read this header as one that only the gateway sets? CGI and WSGI read `X_Forwarded.User` as
/// `X-Forwarded-User`, so only letters and digits count.
pub fn is_ours(name: &str) -> bool {
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect();
    plain.starts_with("xforwarded") || OURS.contains(&plain.as_str())
}

/// Removes what only the gateway says.
pub fn disown(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name.as_str())).cloned().collect();
    for name in named {
        headers.remove(name);
    }
}

/// Removes what is about one connection: the known headers, and those that `Connection` names.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = listed(headers, http::header::CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect();
    // gRPC has to announce that it accepts trailers.
    let trailers = listed(headers, http::header::TE).any(|one| one.eq_ignore_ascii_case("trailers"));
    for name in named {
        headers.remove(name);
    }
    for name in HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Members of a header that is a list.
fn listed(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Cow<'_, str>> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|one| String::from_utf8_lossy(one.trim_ascii()))
}

/// Protocols that a client wants to speak instead and that may be carried. Not those that are HTTP again: what is asked
/// inside them would pass with the client's own headers, unseen.
pub fn upgrades(headers: &HeaderMap) -> Vec<String> {
    if !listed(headers, http::header::CONNECTION).any(|one| one.eq_ignore_ascii_case("upgrade")) {
        return vec![];
    }
    let is_http = |one: &str| {
        let name = one.split('/').next().unwrap_or(one).trim();
        ["http", "h2", "h2c", "h3", "tls"].iter().any(|known| name.eq_ignore_ascii_case(known))
    };
    listed(headers, http::header::UPGRADE).filter(|one| !one.is_empty() && !is_http(one)).map(Cow::into_owned).collect()
}

/// The headers that tell a workload who asks.
///
/// # Errors
/// When a name cannot be told as it is: a workload would take it for another's, or for nobody's.
pub fn stamps(told: &[(&'static str, &str)]) -> Result<HeaderMap, Problem> {
    let mut headers = HeaderMap::with_capacity(told.len());
    for (name, text) in told {
        let exact = text.trim() == *text && !text.is_empty();
        let value = HeaderValue::from_bytes(text.as_bytes()).ok().filter(|_| exact).ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            let hint = "sign in under a subject without control characters, and without spaces around it";
            Problem::new(Kind::Forbidden, format!("{shown:?} cannot be told to a workload ({name})"), hint)
        })?;
        headers.insert(*name, value);
    }
    Ok(headers)
}

/// The path that a workload is asked for: `rest`, as the client asked for it, below its `expose.path`. Dot segments are
/// resolved here and once (RFC 3986 §5.2.4).
///
/// # Errors
/// When it leads out of the exposed path, or would for a reader that decodes it further.
pub fn path(below: &str, rest: &str) -> Result<String, Problem> {
    let out = || {
        let hint = "ask for a path without `..`, in any spelling";
        Problem::malformed("the path leads out of what this workload exposes", hint)
    };
    let mut kept: Vec<&str> = vec![];
    let mut segments = rest.trim_start_matches('/').split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment.to_ascii_lowercase().replace("%2e", ".").as_str() {
            "." => {}
            ".." => {
                kept.pop().ok_or_else(out)?;
            }
            _ => {
                kept.push(segment);
                continue;
            }
        }
        if is_last {
            kept.push("");
        }
    }
    let resolved = kept.join("/");
    // Two slashes at the front could be read as the name of a host.
    let resolved = resolved.trim_start_matches('/');
    let mut text = resolved.as_bytes().to_vec();
    for _ in 0..DECODED_MAX {
        if climbs(&text) {
            return Err(out());
        }
        let next: Vec<u8> = percent_encoding::percent_decode(&wide(&text)).collect();
        if next == text {
            return Ok(format!("{}/{resolved}", below.trim_end_matches('/')));
        }
        text = next;
    }
    Err(Problem::malformed("the path is encoded many times over", "encode it once"))
}

/// With `%u002e`, which some decoders read, as the byte that it means, if that is ASCII.
fn wide(text: &[u8]) -> Vec<u8> {
    let mut read = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let digits = match text.get(at..at + 6) {
            Some([b'%', b'u' | b'U', digits @ ..]) => std::str::from_utf8(digits).ok(),
            _ => None,
        };
        match digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32) {
            Some(letter) => {
                read.extend(letter.to_string().into_bytes());
                at += 6;
            }
            None => {
                read.push(*byte);
                at += 1;
            }
        }
    }
    read
}

/// Has it a dot segment for some reader: one that takes `\` or a look-alike for `/`, accepts overlong UTF-8, cuts off
/// parameters (`..;x`), a query or what follows a NUL, or trims spaces?
fn climbs(text: &[u8]) -> bool {
    let text = plain(text);
    text.split('/').any(|segment| {
        let named = segment.split(|c: char| matches!(c, ';' | '?' | '#') || c.is_control()).next().unwrap_or_default();
        let dots = named.trim();
        dots.len() >= 2 && dots.bytes().all(|byte| byte == b'.')
    })
}

/// With every look-alike of `.` and `/` as what it looks like.
fn plain(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        // Overlong forms of ASCII in two, three or four bytes.
        let (ascii, length) = match &text[at..] {
            [0xc0 | 0xc1, low, ..] => (Some(((byte & 1) << 6) | (low & 0x3f)), 2),
            [0xe0, 0x80 | 0x81, low, ..] => (Some(((text[at + 1] & 1) << 6) | (low & 0x3f)), 3),
            [0xf0, 0x80, 0x80 | 0x81, low, ..] => (Some(((text[at + 2] & 1) << 6) | (low & 0x3f)), 4),
            _ => (None, 1),
        };
        bytes.push(ascii.unwrap_or(*byte));
        at += length;
    }
    let mut read = String::with_capacity(bytes.len());
    for letter in String::from_utf8_lossy(&bytes).chars() {
        match letter {
            '\\' | '\u{2044}' | '\u{2215}' | '\u{2216}' | '\u{29f5}' | '\u{29f8}' | '\u{29f9}' | '\u{fe68}'
            | '\u{ff0f}' | '\u{ff3c}' => read.push('/'),
            '\u{2024}' | '\u{3002}' | '\u{fe52}' | '\u{ff0e}' | '\u{ff61}' => read.push('.'),
            '\u{2025}' | '\u{fe30}' => read.push_str(".."),
            other => read.push(other),
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_is_resolved_once_and_keeps_its_spelling() {
        for (asked, seen) in [
            ("/", "/app/"),
            ("/a%20b", "/app/a%20b"),
            ("/a/./b/../c", "/app/a/c"),
            ("/a/%2E%2e/c", "/app/c"),
            ("/a/..", "/app/"),
            ("/a/b/.", "/app/a/b/"),
            ("/a%2fb/c%5Cd", "/app/a%2fb/c%5Cd"),
            ("//host/x", "/app/host/x"),
            ("/a/..//host/x", "/app/host/x"),
            ("/a//b", "/app/a//b"),
            ("/100%25/x%ff", "/app/100%25/x%ff"),
            ("/a..b/.hidden/main...next/..x", "/app/a..b/.hidden/main...next/..x"),
            ("/%E2%80%A6", "/app/%E2%80%A6"),
        ] {
            assert_eq!(path("/app/", asked).as_deref(), Ok(seen), "{asked}");
        }
        assert_eq!(path("", "/x").as_deref(), Ok("/x"));
        assert_eq!(path("", "//host/x").as_deref(), Ok("/host/x"), "no reader takes it for a host");
    }

    #[test]
    fn no_spelling_of_a_path_leads_out() {
        let slashes =
            ["/", "%2f", "%2F", "\\", "%5c", "%252f", "%c0%af", "%e0%80%af", "%u002f", "%ef%bc%8f", "%e2%88%95"];
        let dots = [
            "..",
            "%2e%2e",
            ".%2E",
            "%2e.",
            "%252e%252e",
            "%25252e.",
            "%c0%ae%c0%ae",
            "%f0%80%80%ae.",
            "%u002e%u002e",
            "%ef%bc%8e%ef%bc%8e",
            "%e2%80%a5",
            "..;",
            "..;a=b",
            "..%00",
            "..%20",
            "..%09",
            "..%3fx",
            "..%23x",
            "...",
            "%20..",
        ];
        let mut tried = 0;
        for slash in slashes {
            for dots in dots {
                for asked in [
                    format!("/{dots}{slash}secret"),
                    format!("/x{slash}{dots}{slash}{dots}{slash}secret"),
                    format!("/{dots}{slash}{dots}{slash}{dots}"),
                    format!("//{dots}{slash}"),
                ] {
                    let refused = path("/app", &asked);
                    assert_eq!(refused.as_ref().map_err(Problem::status), Err(400), "{asked}: {refused:?}");
                    tried += 1;
                }
            }
        }
        println!("{tried} spellings, none leads out");
        assert!(path("/app", &format!("/%{}2e", "25".repeat(9))).is_err(), "encoded more often than is looked at");
    }

    #[test]
    fn no_spelling_of_a_header_stands_beside_ours() {
        for ours in [
            "x-forwarded-user",
            "X_FORWARDED_USER",
            "x_forwarded-user",
            "x.forwarded.user",
            "x-forwarded-user_",
            "xForwardedUser",
            "x-forwarded-groups",
            "forwarded",
            "Forwarded_",
            "proxy",
            "remote_user",
            "script_name",
            "x-original-url",
        ] {
            assert!(is_ours(ours), "{ours}");
        }
        for theirs in ["cookie", "x-request-id", "x_forward", "proxy-hint", "forwarded-by-me", "x-user", "user"] {
            assert!(!is_ours(theirs), "{theirs}");
        }
    }

    #[test]
    fn what_is_about_one_connection_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret ,\t,"),
            ("connection", "\u{ff}, cookie"),
            ("x-secret", "1"),
            ("cookie", "1"),
            ("keep-alive", "1"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAM"),
            ("accept", "x"),
        ] {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        strip(&mut headers);
        let left: std::collections::BTreeSet<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["accept", "te"].into());
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn a_protocol_that_is_http_again_is_not_carried() {
        let of = |upgrade: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("connection", HeaderValue::from_static("keep-alive, Upgrade"));
            headers.insert("upgrade", HeaderValue::from_str(upgrade).unwrap());
            upgrades(&headers)
        };
        for http in ["h2c", "H2C", "TLS/1.0", "HTTP/2.0", "h2c, tls/1.2", "", "h2", " , "] {
            assert!(of(http).is_empty(), "{http}");
        }
        assert_eq!(of("h2c, websocket"), ["websocket"]);
        assert!(
            upgrades(&HeaderMap::from_iter([(http::header::UPGRADE, HeaderValue::from_static("websocket"))]))
                .is_empty()
        );
    }

    #[test]
    fn a_name_is_told_as_it_is_or_nothing_is_asked() {
        let told = stamps(&[("x-forwarded-user", "Zoë")]).unwrap();
        assert_eq!(told["x-forwarded-user"].as_bytes(), "Zoë".as_bytes());
        for wrong in ["", " root", "root ", "ro\not", "ro\rot", "root\t", "root\u{0}"] {
            assert_eq!(stamps(&[("x-forwarded-user", wrong)]).unwrap_err().status(), 403, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_asked_stays_below_for_a_reader_that_decodes(rest in "(/|%2f|\\\\|\\.|%2e|%25|a|;|%c0%ae|%5c){0,24}") {
            if let Ok(seen) = path("/app", &format!("/{rest}")) {
                let mut text = seen.clone().into_bytes();
                for _ in 0..12 {
                    let read = String::from_utf8_lossy(&text).replace('\\', "/");
                    prop_assert!(read.starts_with("/app/"), "{}", seen);
                    prop_assert!(!read.split('/').any(|segment| segment == ".."), "{}", seen);
                    text = percent_encoding::percent_decode(&text).collect();
                }
            }
        }
    }
}
