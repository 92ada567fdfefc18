//! Checks bearer tokens (RFC 7515, RFC 7519, RFC 8725).
//!
//! Everything that a token says of itself is untrusted until its signature holds under a key that the issuer published;
//! the algorithm is the key's and never the token's choice, so that neither `none` nor a public key taken for a secret
//! gets through.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::problem::{Kind, Problem};

/// Bytes of a token at most.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Keys that are taken from an issuer at most.
const KEYS_MAX: usize = 64;
/// Algorithms that a provider may sign with. Ed25519 is EdDSA with its one curve here (RFC 9864).
pub const ALGORITHMS: [&str; 4] = ["RS256", "ES256", "EdDSA", "Ed25519"];

/// The algorithm of a name.
fn algorithm_of(name: &str) -> Option<Algorithm> {
    match name {
        "RS256" => Some(Algorithm::RS256),
        "ES256" => Some(Algorithm::ES256),
        "EdDSA" | "Ed25519" => Some(Algorithm::EdDSA),
        _ => None,
    }
}

/// Keys of an issuer, each with the one algorithm it is good for.
#[derive(Clone, Default)]
pub struct Keys {
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|k| (&k.id, k.algorithm))).finish()
    }
}

/// A key that is for signatures we check, as far as it says what it is for: `use`, `key_ops` and `alg` (RFC 7517 §4).
fn usable(published: &Json) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(published.clone()).ok()?;
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        _ => return None,
    };
    let is_for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let operations = jwk.common.key_operations.as_ref();
    let verifies = operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    // As it is written: the library does not know every name.
    let declared = match published.get("alg") {
        None | Some(Json::Null) => true,
        Some(name) => name.as_str().and_then(algorithm_of) == Some(algorithm),
    };
    let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| is_for_signatures && verifies && declared)?;
    Some(Key { id: jwk.common.key_id.clone(), algorithm, key })
}

impl Keys {
    /// Reads a JWK set (RFC 7517). Keys for other uses, other algorithms, or that cannot be read, are left out: an issuer
    /// may publish what we do not know.
    ///
    /// # Errors
    /// When it is not a JWK set at all.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Json>,
        }
        let set: Set = serde_json::from_slice(text)?;
        Ok(Self { keys: set.keys.iter().take(KEYS_MAX).filter_map(usable).collect() })
    }

    /// Has it a key of this id?
    pub fn knows(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// What a token must say.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Issuer, exactly.
    pub issuer: String,
    /// One of its audiences; any if empty.
    pub audience: String,
    /// How far two clocks may be apart, seconds.
    pub skew_s: i64,
    /// Longest life of a token from its issue to its end that is taken, seconds.
    pub life_max_s: i64,
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// Who it is about, unique at its issuer.
    pub subject: String,
    /// When it ends, seconds since 1970.
    pub expires: i64,
    /// All its claims.
    pub all: Json,
}

/// Why a token is refused. The text names what is wrong and never repeats the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not three parts of base64url with JSON in them.
    #[error("the token is not a signed JWT: {0}")]
    Malformed(&'static str),
    /// Larger than any token should be.
    #[error("the token has {0} bytes, more than {TOKEN_BYTES_MAX}")]
    TooLarge(usize),
    /// Not one of [`ALGORITHMS`].
    #[error("the token's algorithm is {0:?}, not one of RS256, ES256, EdDSA, Ed25519")]
    Algorithm(String),
    /// A critical header parameter that we do not understand (RFC 7515 §4.1.11).
    #[error("the token needs header parameters that are not understood (crit)")]
    Critical,
    /// The issuer has published no such key; it may have since.
    #[error("the token is signed with a key that the issuer has not published")]
    UnknownKey(Option<String>),
    /// Forged, or altered.
    #[error("the token's signature does not hold")]
    Signature,
    /// A claim is missing or of the wrong type.
    #[error("the token has no usable claim {0:?}")]
    Claim(&'static str),
    /// From somebody else.
    #[error("the token is of issuer {0:?}, not of the trusted one")]
    Issuer(String),
    /// For somebody else.
    #[error("the token is not meant for this audience")]
    Audience,
    /// Over.
    #[error("the token expired {0} s ago")]
    Expired(i64),
    /// Not yet.
    #[error("the token is valid only in {0} s: the clock of this service or of the issuer is wrong; synchronise them")]
    NotYet(i64),
    /// Valid for longer than we trust any token.
    #[error("the token is valid for {0} s, longer than is accepted")]
    TooLong(i64),
    /// Not an access token (for example an ID token, RFC 9068 §4).
    #[error("the token's type is {0:?}, not an access token")]
    Type(String),
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let hint = "sign in again: `continuum login`, then `continuum token`";
        Self::new(Kind::Unauthenticated, refused.to_string(), hint)
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Json>,
}

/// Checks a token at a time, seconds since 1970.
///
/// # Errors
/// With the first reason found; what needs the key comes before what the token merely says.
pub fn check(token: &str, keys: &Keys, expected: &Expected, now_s: i64) -> Result<Claims, Refused> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refused::TooLarge(token.len()));
    }
    let mut parts = token.split('.');
    let (Some(head), Some(body), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refused::Malformed("it does not have three parts"));
    };
    let header: Header = decode(head).ok_or(Refused::Malformed("its header is not base64url of a JSON object"))?;
    let Some(algorithm) = algorithm_of(&header.alg) else {
        return Err(Refused::Algorithm(header.alg.chars().take(16).collect()));
    };
    if header.crit.is_some() {
        return Err(Refused::Critical);
    }
    let fits =
        |key: &&Key| key.algorithm == algorithm && (header.kid.is_none() || key.id.is_none() || key.id == header.kid);
    let candidates: Vec<&Key> = keys.keys.iter().filter(fits).collect();
    if candidates.is_empty() {
        return Err(Refused::UnknownKey(header.kid));
    }
    let message = &token.as_bytes()[..head.len() + 1 + body.len()];
    let holds = |key: &&Key| jsonwebtoken::crypto::verify(signature, message, &key.key, algorithm).unwrap_or(false);
    if !candidates.iter().any(holds) {
        return Err(Refused::Signature);
    }
    // RFC 9068 has `at+jwt`; many providers write `JWT`, or nothing.
    if let Some(typ) = header.typ.filter(|t| !["jwt", "at+jwt", "application/at+jwt"].contains(&&*t.to_lowercase())) {
        return Err(Refused::Type(typ.chars().take(32).collect()));
    }
    let all: Json = decode(body).ok_or(Refused::Malformed("its claims are not base64url of a JSON object"))?;
    claims(all, expected, now_s)
}

fn claims(all: Json, expected: &Expected, now_s: i64) -> Result<Claims, Refused> {
    let text = |name: &'static str| all[name].as_str().filter(|t| !t.is_empty()).ok_or(Refused::Claim(name));
    let seconds = |name: &'static str| match &all[name] {
        Json::Null => Ok(None),
        // NumericDate may have a fraction (RFC 7519 §2).
        Json::Number(number) => match number.as_f64() {
            Some(at) if at.is_finite() && at.abs() < 1e12 => Ok(Some(at.floor() as i64)),
            _ => Err(Refused::Claim(name)),
        },
        _ => Err(Refused::Claim(name)),
    };
    let issuer = text("iss")?;
    if issuer != expected.issuer {
        return Err(Refused::Issuer(issuer.chars().take(128).collect()));
    }
    let meant = match &all["aud"] {
        Json::String(one) => *one == expected.audience,
        Json::Array(many) => many.iter().any(|one| one.as_str() == Some(&expected.audience)),
        _ => false,
    };
    if !expected.audience.is_empty() && !meant {
        return Err(Refused::Audience);
    }
    let expires = seconds("exp")?.ok_or(Refused::Claim("exp"))?;
    if now_s > expires.saturating_add(expected.skew_s) {
        return Err(Refused::Expired(now_s - expires));
    }
    for name in ["nbf", "iat"] {
        let from = seconds(name)?;
        if let Some(from) = from.filter(|from| now_s < from.saturating_sub(expected.skew_s)) {
            return Err(Refused::NotYet(from - now_s));
        }
    }
    let begins = seconds("iat")?.unwrap_or(now_s);
    if expires - begins > expected.life_max_s {
        return Err(Refused::TooLong(expires - begins));
    }
    // A provider's ID token is for its client and grants nothing here (OpenID Connect Core §2); Keycloak marks it in
    // `typ`.
    if all["typ"] == "ID" || (all["nonce"].is_string() && all["scope"].is_null()) {
        return Err(Refused::Type("ID token".into()));
    }
    Ok(Claims { subject: text("sub")?.to_owned(), expires, all })
}

fn decode<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    let value: Json = serde_json::from_slice(&bytes).ok()?;
    value.is_object().then(|| serde_json::from_value(value).ok()).flatten()
}

/// Texts in a claim at a dotted path, `realm_access.roles`: a list, one text, or words divided by spaces.
pub fn texts(claims: &Json, path: &str) -> Vec<String> {
    match path.split('.').try_fold(claims, |at, name| at.get(name)) {
        Some(Json::Array(many)) => many.iter().filter_map(|one| one.as_str().map(str::to_owned)).take(64).collect(),
        Some(Json::String(words)) => words.split_whitespace().map(str::to_owned).take(64).collect(),
        _ => vec![],
    }
}

impl Refused {
    /// Could the issuer have published a key since that makes it good? Of a key without an id, or with the id of another
    /// before it, only the signature tells that it is new.
    pub fn wants_newer_keys(&self) -> bool {
        matches!(self, Self::UnknownKey(_) | Self::Signature)
    }
}

/// When an issuer's keys are fetched: before they grow old, and for a key that is not known. An id that a fetch did not
/// bring may be published the moment after, so no id is remembered: what bounds the fetches that strangers can cause is the
/// pause between any two.
#[derive(Clone, Debug, Default)]
pub struct Freshness {
    fetched_ms: Option<i64>,
    asked_ms: Option<i64>,
}

/// Keys are fetched again after so long, milliseconds.
pub const FRESH_MS: i64 = 300_000;
/// From the end of a fetch to the next at least so long, milliseconds.
pub const FETCH_PAUSE_MS: i64 = 2_000;

impl Freshness {
    /// Should keys be fetched now? `is_missing` when a token needs a key that is not known.
    pub fn wants_fetch(&mut self, is_missing: bool, now_ms: i64) -> bool {
        let is_paused = self.asked_ms.is_some_and(|at| now_ms - at < FETCH_PAUSE_MS);
        let is_old = self.fetched_ms.is_none_or(|at| now_ms - at >= FRESH_MS);
        let wants = !is_paused && (is_old || is_missing);
        if wants {
            self.asked_ms = Some(now_ms);
        }
        wants
    }

    /// A fetch ended; with keys or without.
    pub fn ended(&mut self, has_keys: bool, now_ms: i64) {
        self.asked_ms = Some(now_ms);
        if has_keys {
            self.fetched_ms = Some(now_ms);
        }
    }

    /// Is what there is too old to be trusted? Keys outlive a provider's absence by an hour and no longer.
    pub fn is_stale(&self, now_ms: i64) -> bool {
        self.fetched_ms.is_none_or(|at| now_ms - at >= 12 * FRESH_MS)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
    use jsonwebtoken::EncodingKey;
    use serde_json::json;

    use super::*;

    pub(crate) const NOW: i64 = 1_800_000_000;

    /// An issuer of the test's own: a key of each algorithm.
    pub(crate) struct Issuer {
        ed: EncodingKey,
        ec: EncodingKey,
        rsa: aws_lc_rs::rsa::KeyPair,
        pub(crate) jwks: Json,
    }

    impl Issuer {
        pub(crate) fn new() -> Self {
            let random = aws_lc_rs::rand::SystemRandom::new();
            let ed_document = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
            let ed_pair = Ed25519KeyPair::from_pkcs8(ed_document.as_ref()).unwrap();
            let ec_document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            let ec_pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec_document.as_ref()).unwrap();
            let rsa_pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
            let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            let point = ec_pair.public_key().as_ref().to_vec();
            let modulus = rsa_pair.public_key().modulus().big_endian_without_leading_zero().to_vec();
            let exponent = rsa_pair.public_key().exponent().big_endian_without_leading_zero().to_vec();
            let jwks = json!({"keys": [
                {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "use": "sig", "x": b64(ed_pair.public_key().as_ref())},
                {"kty": "EC", "crv": "P-256", "kid": "ec", "use": "sig", "alg": "ES256", "x": b64(&point[1..33]), "y": b64(&point[33..])},
                {"kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "n": b64(&modulus), "e": b64(&exponent)},
                {"kty": "EC", "crv": "P-256", "kid": "enc", "use": "enc", "x": b64(&point[1..33]), "y": b64(&point[33..])},
                {"kty": "quantum", "kid": "later"},
            ]});
            Self {
                ed: EncodingKey::from_ed_der(ed_document.as_ref()),
                ec: EncodingKey::from_ec_der(ec_document.as_ref()),
                rsa: rsa_pair,
                jwks,
            }
        }

        pub(crate) fn keys(&self) -> Keys {
            Keys::parse(self.jwks.to_string().as_bytes()).unwrap()
        }

        pub(crate) fn sign(&self, header: &Json, claims: &Json) -> String {
            let b64 = |value: &Json| URL_SAFE_NO_PAD.encode(value.to_string());
            let message = format!("{}.{}", b64(header), b64(claims));
            let (key, algorithm) = match header["alg"].as_str().unwrap() {
                "RS256" => {
                    let mut signature = vec![0; self.rsa.public_modulus_len()];
                    let random = aws_lc_rs::rand::SystemRandom::new();
                    let padding = &aws_lc_rs::signature::RSA_PKCS1_SHA256;
                    self.rsa.sign(padding, &random, message.as_bytes(), &mut signature).unwrap();
                    return format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
                }
                "ES256" => (&self.ec, Algorithm::ES256),
                _ => (&self.ed, Algorithm::EdDSA),
            };
            let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
            format!("{message}.{signature}")
        }
    }

    pub(crate) fn expected() -> Expected {
        Expected { issuer: "https://idp.example".into(), audience: "continuum".into(), skew_s: 30, life_max_s: 86_400 }
    }

    pub(crate) fn good() -> Json {
        json!({"iss": "https://idp.example", "aud": ["continuum", "other"], "sub": "ada", "iat": NOW - 10, "exp": NOW + 300, "roles": ["owner"]})
    }

    fn with(name: &str, value: Json) -> Json {
        let mut claims = good();
        claims[name] = value;
        claims
    }

    #[test]
    fn a_good_token_of_each_algorithm_is_taken() {
        let issuer = Issuer::new();
        assert_eq!(issuer.keys().len(), 3, "keys for encryption and of unknown types are left out");
        for (alg, kid) in [("EdDSA", "ed"), ("ES256", "ec"), ("RS256", "rsa")] {
            for header in [
                json!({"alg": alg, "kid": kid, "typ": "JWT"}),
                json!({"alg": alg}),
                json!({"alg": alg, "typ": "at+jwt"}),
            ] {
                let token = issuer.sign(&header, &good());
                let claims = check(&token, &issuer.keys(), &expected(), NOW).unwrap();
                assert_eq!((claims.subject.as_str(), claims.expires), ("ada", NOW + 300));
            }
        }
    }

    #[test]
    fn a_token_that_chooses_its_own_algorithm_is_refused() {
        let issuer = Issuer::new();
        let b64 = |value: &Json| URL_SAFE_NO_PAD.encode(value.to_string());
        for alg in ["none", "None", "NONE", "nOnE", "", "HS256", "HS512", "RS1", "PS256", "ES384"] {
            let forged = format!("{}.{}.", b64(&json!({"alg": alg, "kid": "rsa"})), b64(&good()));
            assert_eq!(check(&forged, &issuer.keys(), &expected(), NOW), Err(Refused::Algorithm(alg.into())), "{alg}");
        }
        // The public RSA key as HMAC secret: the classic confusion.
        let modulus = issuer.jwks["keys"][2]["n"].as_str().unwrap();
        let message = format!("{}.{}", b64(&json!({"alg": "HS256", "kid": "rsa"})), b64(&good()));
        let key = EncodingKey::from_secret(modulus.as_bytes());
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        let forged = format!("{message}.{signature}");
        assert_eq!(check(&forged, &issuer.keys(), &expected(), NOW), Err(Refused::Algorithm("HS256".into())));
        // Another algorithm's key under a known id.
        let crossed = issuer.sign(&json!({"alg": "EdDSA", "kid": "rsa"}), &good());
        assert_eq!(check(&crossed, &issuer.keys(), &expected(), NOW), Err(Refused::UnknownKey(Some("rsa".into()))));
    }

    #[test]
    fn whatever_is_altered_is_refused() {
        let (issuer, other) = (Issuer::new(), Issuer::new());
        let header = json!({"alg": "ES256", "kid": "ec"});
        let token = issuer.sign(&header, &good());
        for position in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(bytes).unwrap();
            // The last character of a part may hold bits that no byte uses; base64url refuses those.
            assert!(check(&altered, &issuer.keys(), &expected(), NOW).is_err(), "position {position}");
        }
        let forged = other.sign(&header, &good());
        assert_eq!(check(&forged, &issuer.keys(), &expected(), NOW), Err(Refused::Signature));
        assert_eq!(check(&token, &Keys::default(), &expected(), NOW), Err(Refused::UnknownKey(Some("ec".into()))));
        for broken in ["", ".", "..", "a.b", "a.b.c.d", "e30.e30.e30", "!.!.!"] {
            assert!(check(broken, &issuer.keys(), &expected(), NOW).is_err(), "{broken:?}");
        }
        let huge = "a".repeat(TOKEN_BYTES_MAX + 1);
        assert_eq!(check(&huge, &issuer.keys(), &expected(), NOW), Err(Refused::TooLarge(huge.len())));
    }

    #[test]
    fn a_token_counts_only_for_its_audience_of_its_issuer_and_in_its_time() {
        let issuer = Issuer::new();
        let keys = issuer.keys();
        let judge = |claims: &Json| {
            let token = issuer.sign(&json!({"alg": "EdDSA", "kid": "ed"}), claims);
            check(&token, &keys, &expected(), NOW).map(|claims| claims.subject)
        };
        assert_eq!(judge(&with("aud", json!("continuum"))), Ok("ada".into()));
        assert_eq!(judge(&with("aud", json!("continuum-admin"))), Err(Refused::Audience));
        assert_eq!(judge(&with("aud", json!([]))), Err(Refused::Audience));
        assert_eq!(judge(&with("aud", Json::Null)), Err(Refused::Audience));
        let evil = "https://idp.example.evil";
        assert_eq!(judge(&with("iss", json!(evil))), Err(Refused::Issuer(evil.into())));
        assert_eq!(judge(&with("iss", Json::Null)), Err(Refused::Claim("iss")));
        assert_eq!(judge(&with("sub", json!(""))), Err(Refused::Claim("sub")));
        // Both edges of the clock skew.
        assert_eq!(judge(&with("exp", json!(NOW - 30))), Ok("ada".into()));
        assert_eq!(judge(&with("exp", json!(NOW - 31))), Err(Refused::Expired(31)));
        assert_eq!(judge(&with("exp", Json::Null)), Err(Refused::Claim("exp")));
        assert_eq!(judge(&with("exp", json!("tomorrow"))), Err(Refused::Claim("exp")));
        assert_eq!(judge(&with("exp", json!(1e300))), Err(Refused::Claim("exp")));
        assert_eq!(judge(&with("nbf", json!(NOW + 30))), Ok("ada".into()));
        assert_eq!(judge(&with("nbf", json!(NOW + 31))), Err(Refused::NotYet(31)));
        assert_eq!(judge(&with("iat", json!(NOW + 31))), Err(Refused::NotYet(31)));
        assert_eq!(judge(&with("exp", json!(NOW + 90_000))), Err(Refused::TooLong(90_010)));
        assert_eq!(judge(&with("nonce", json!("n"))), Err(Refused::Type("ID token".into())));
        assert_eq!(judge(&with("typ", json!("ID"))), Err(Refused::Type("ID token".into())));
    }

    #[test]
    fn headers_that_must_be_understood_and_other_types_are_refused() {
        let issuer = Issuer::new();
        let judge = |header: Json| check(&issuer.sign(&header, &good()), &issuer.keys(), &expected(), NOW);
        assert_eq!(judge(json!({"alg": "EdDSA", "crit": ["exp"]})), Err(Refused::Critical));
        assert_eq!(judge(json!({"alg": "EdDSA", "typ": "dpop+jwt"})), Err(Refused::Type("dpop+jwt".into())));
        // A key that comes with the token is nobody's.
        let own = Issuer::new();
        let header = json!({"alg": "EdDSA", "kid": "ed", "jwk": own.jwks["keys"][0], "jku": "https://evil/jwks"});
        assert_eq!(check(&own.sign(&header, &good()), &issuer.keys(), &expected(), NOW), Err(Refused::Signature));
    }

    #[test]
    fn a_key_is_for_what_it_says_it_is_for() {
        let issuer = Issuer::new();
        let with = |at: usize, more: Json| {
            let mut key = issuer.jwks["keys"][at].clone();
            key.as_object_mut().unwrap().remove("use");
            key.as_object_mut().unwrap().remove("alg");
            key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Keys::parse(json!({"keys": [key]}).to_string().as_bytes()).unwrap().len() == 1
        };
        for (at, right, wrong) in
            [(0, "EdDSA", "ES256"), (0, "Ed25519", "Ed448"), (1, "ES256", "ES384"), (2, "RS256", "PS256")]
        {
            for (more, taken) in [
                (json!({}), true),
                (json!({"alg": right}), true),
                (json!({"alg": null}), true),
                (json!({"alg": wrong}), false),
                (json!({"alg": "RSA-OAEP"}), false),
                (json!({"alg": "ECDH-ES"}), false),
                (json!({"alg": ""}), false),
                (json!({"alg": 7}), false),
                (json!({"use": "sig"}), true),
                (json!({"use": "enc"}), false),
                (json!({"use": "SIG"}), false),
                (json!({"use": "tls"}), false),
                (json!({"key_ops": ["verify"]}), true),
                (json!({"key_ops": ["sign", "verify"]}), true),
                (json!({"key_ops": ["sign"]}), false),
                (json!({"key_ops": ["encrypt", "wrapKey"]}), false),
                (json!({"key_ops": []}), false),
                (json!({"use": "sig", "key_ops": ["decrypt"]}), false),
                (json!({"use": "enc", "key_ops": ["verify"]}), false),
            ] {
                assert_eq!(with(at, more.clone()), taken, "{at}: {more}");
            }
        }
    }

    #[test]
    fn ed25519_is_taken_under_both_of_its_names() {
        let issuer = Issuer::new();
        for declared in [Json::Null, json!("EdDSA"), json!("Ed25519")] {
            let mut jwks = issuer.jwks.clone();
            jwks["keys"][0]["alg"] = declared;
            let keys = Keys::parse(jwks.to_string().as_bytes()).unwrap();
            for alg in ["EdDSA", "Ed25519"] {
                let token = issuer.sign(&json!({"alg": alg, "kid": "ed"}), &good());
                assert_eq!(check(&token, &keys, &expected(), NOW).map(|claims| claims.subject), Ok("ada".into()));
            }
        }
        let crossed = issuer.sign(&json!({"alg": "Ed25519", "kid": "ec"}), &good());
        assert_eq!(check(&crossed, &issuer.keys(), &expected(), NOW), Err(Refused::UnknownKey(Some("ec".into()))));
    }

    #[test]
    fn a_key_counts_as_soon_as_it_is_published_and_fetches_are_bounded() {
        let (old, new) = (Issuer::new(), Issuer::new());
        // The token comes before its key is published, and again each three seconds.
        for (header, id) in [
            (json!({"alg": "ES256", "kid": "next"}), json!("next")),
            (json!({"alg": "ES256", "kid": "ec"}), json!("ec")),
            (json!({"alg": "ES256"}), Json::Null),
        ] {
            let mut jwks = new.jwks.clone();
            jwks["keys"][1]["kid"] = id;
            let published = Keys::parse(jwks.to_string().as_bytes()).unwrap();
            let (token, mut keys, mut freshness) = (new.sign(&header, &good()), old.keys(), Freshness::default());
            freshness.ended(true, 0);
            let mut taken = None;
            for now_ms in (10_000..100_000).step_by(3_000) {
                let mut judged = check(&token, &keys, &expected(), NOW);
                let missing = judged.as_ref().is_err_and(Refused::wants_newer_keys);
                if missing && freshness.wants_fetch(missing, now_ms) {
                    keys = if now_ms > 10_000 { published.clone() } else { old.keys() };
                    freshness.ended(true, now_ms + 100);
                    judged = check(&token, &keys, &expected(), NOW);
                }
                if judged.is_ok() {
                    taken = Some(now_ms);
                    break;
                }
            }
            assert_eq!(taken, Some(13_000), "{header}: with the first request after it was published");
        }
        let mut freshness = Freshness::default();
        assert!(freshness.wants_fetch(false, 0), "there are none yet");
        freshness.ended(true, 0);
        assert!(!freshness.wants_fetch(false, FETCH_PAUSE_MS), "they are fresh");
        let fetches = (0..60_000).filter(|at| freshness.wants_fetch(true, 70_000 + at)).count();
        assert_eq!(fetches, 30, "however many ask, and for whatever: a fetch every two seconds at most");
        freshness.ended(false, 150_000);
        assert!(
            !freshness.wants_fetch(true, 150_000 + FETCH_PAUSE_MS - 1),
            "a fetch that took long is not repeated at once"
        );
        assert!(freshness.wants_fetch(false, FRESH_MS + 100_000));
        assert!(!freshness.is_stale(FRESH_MS) && freshness.is_stale(12 * FRESH_MS));
    }

    #[test]
    fn roles_are_found_where_providers_put_them() {
        let claims = json!({"roles": ["a", 7, "b"], "realm_access": {"roles": ["c"]}, "scope": "d e"});
        assert_eq!(texts(&claims, "roles"), ["a", "b"]);
        assert_eq!(texts(&claims, "realm_access.roles"), ["c"]);
        assert_eq!(texts(&claims, "scope"), ["d", "e"]);
        assert!(texts(&claims, "nothing.here").is_empty());
    }
}
