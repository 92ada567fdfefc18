//! The authorization code flow with PKCE (RFC 6749, RFC 7636) of the built-in issuer, as far as it is a decision.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The client of the command line and of the browser page.
pub const CLIENT: &str = "continuum";

/// A request to the authorization endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorization {
    /// Must be `code`.
    #[serde(default)]
    pub response_type: String,
    /// Must be [`CLIENT`].
    #[serde(default)]
    pub client_id: String,
    /// Where the code goes: a loopback address (RFC 8252 §7.3).
    #[serde(default)]
    pub redirect_uri: String,
    /// Returned unchanged.
    #[serde(default)]
    pub state: String,
    /// SHA-256 of the verifier, base64url.
    #[serde(default)]
    pub code_challenge: String,
    /// Must be `S256`.
    #[serde(default)]
    pub code_challenge_method: String,
}

/// What a code stands for; it travels signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Name of the session that it opens; by that it can be used once.
    pub session: String,
    /// Account that signed in.
    pub account: String,
    /// Where it was sent.
    pub redirect_uri: String,
    /// What the verifier must hash to.
    pub challenge: String,
    /// When it ends, seconds since 1970.
    pub expires: i64,
}

/// Checks a request to the authorization endpoint. Until it passes, nothing is sent to its redirect address.
///
/// # Errors
/// What is wrong with it.
pub fn check(wanted: &Authorization) -> Result<(), &'static str> {
    if wanted.client_id != CLIENT {
        return Err("client_id is not `continuum`");
    }
    if !is_loopback(&wanted.redirect_uri) {
        return Err(
            "redirect_uri is not http://127.0.0.1:<port>/…, http://[::1]:<port>/… or http://localhost:<port>/…",
        );
    }
    if wanted.response_type != "code" {
        return Err("response_type is not `code`");
    }
    if wanted.code_challenge_method != "S256" || wanted.code_challenge.len() != 43 {
        return Err("PKCE is required: code_challenge_method=S256 and a code_challenge of 43 characters");
    }
    if wanted.state.len() > 512 {
        return Err("state is longer than 512 characters");
    }
    Ok(())
}

fn is_loopback(uri: &str) -> bool {
    let Ok(uri) = uri.parse::<http::Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    let plain = !authority.as_str().contains('@') && uri.to_string().len() <= 512;
    plain && uri.scheme_str() == Some("http") && ["127.0.0.1", "[::1]", "localhost"].contains(&authority.host())
}

/// Checks that a code's grant belongs to the request at the token endpoint.
///
/// # Errors
/// What is wrong.
pub fn redeem(grant: &Grant, redirect_uri: &str, verifier: &str, now_s: i64) -> Result<(), &'static str> {
    if now_s > grant.expires {
        return Err("the code has expired");
    }
    if redirect_uri != grant.redirect_uri {
        return Err("redirect_uri is not the one that the code was sent to");
    }
    let well_formed = (43..=128).contains(&verifier.len())
        && verifier.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
    if !well_formed || hash(verifier) != grant.challenge {
        return Err("code_verifier does not belong to the code");
    }
    Ok(())
}

/// SHA-256, base64url: PKCE's challenge, and how refresh tokens are kept.
pub fn hash(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Authorization {
        Authorization {
            response_type: "code".into(),
            client_id: CLIENT.into(),
            redirect_uri: "http://127.0.0.1:7000/callback".into(),
            state: "s".into(),
            code_challenge: "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM".into(),
            code_challenge_method: "S256".into(),
        }
    }

    #[test]
    fn the_example_of_the_rfc_is_redeemed_once_its_parts_agree() {
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(check(&wanted()), Ok(()));
        assert_eq!(hash(verifier), wanted().code_challenge);
        let grant = Grant {
            session: "x".into(),
            account: "ada".into(),
            redirect_uri: wanted().redirect_uri,
            challenge: wanted().code_challenge,
            expires: 60,
        };
        assert_eq!(redeem(&grant, &grant.redirect_uri, verifier, 60), Ok(()));
        assert!(redeem(&grant, &grant.redirect_uri, verifier, 61).is_err());
        assert!(redeem(&grant, "http://127.0.0.1:7000/other", verifier, 0).is_err());
        assert!(redeem(&grant, &grant.redirect_uri, &grant.challenge, 0).is_err());
        assert!(redeem(&grant, &grant.redirect_uri, "short", 0).is_err());
    }

    #[test]
    fn codes_go_to_this_machine_only() {
        for uri in ["http://localhost:1/", "http://[::1]:1/x", "http://127.0.0.1/"] {
            assert_eq!(check(&Authorization { redirect_uri: uri.into(), ..wanted() }), Ok(()), "{uri}");
        }
        for uri in [
            "https://evil.example/",
            "http://127.0.0.1.evil.example/",
            "http://127.0.0.1@evil.example/",
            "http://evil@127.0.0.1/",
            "//127.0.0.1/",
            "javascript:alert(1)",
            "",
        ] {
            assert!(check(&Authorization { redirect_uri: uri.into(), ..wanted() }).is_err(), "{uri}");
        }
        let plain = Authorization { code_challenge_method: "plain".into(), ..wanted() };
        assert!(check(&plain).is_err() && check(&Authorization { client_id: "x".into(), ..wanted() }).is_err());
    }
}
