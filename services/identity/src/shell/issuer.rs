//! The built-in issuer, for one machine: its keys, its passwords, and the tokens that it signs.
//!
//! Its keys file has lines `sign <PKCS #8 of an Ed25519 key, base64>`, of which the last signs and all are good for
//! checking, and one `pepper <base64>`, without which what the bus stores of a password cannot be guessed at.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use argon2::{
    Algorithm as Kdf, Argon2, Params, Version,
    password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString},
};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey};
use mesh_rest::token::Keys;
use serde_json::{Value as Json, json};

use crate::{
    config::Config,
    domain::{identities::Account, pkce},
};

/// Name of the keys file in the folder of keys.
pub(crate) const KEYS: &str = "issuer.keys";

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("draw random bytes"))?;
    Ok(bytes)
}

/// A secret that nobody guesses: 256 bits, base64url.
pub(crate) fn secret() -> anyhow::Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(random::<32>()?))
}

/// The built-in issuer.
pub(crate) struct Issuer {
    /// What stands in its tokens.
    pub(crate) name: String,
    audience: String,
    token_s: i64,
    signing: EncodingKey,
    key_id: String,
    /// Its public keys, as a JWK set.
    pub(crate) jwks: Json,
    /// The same, ready to check with.
    pub(crate) keys: Keys,
    pepper: Vec<u8>,
    params: Params,
    /// Hash that the password of an unknown account is compared with, so that the check takes as long.
    nobody: String,
}

impl Issuer {
    /// Reads its keys, or makes them. New keys are not made where there are accounts: their passwords could not be
    /// checked with them.
    pub(crate) fn open(config: &Config, keys_dir: Option<&Path>, has_accounts: bool) -> anyhow::Result<Self> {
        let path = match (&config.issuer_keys_file, keys_dir) {
            (Some(path), _) => path.clone(),
            (None, Some(folder)) if has_accounts && !folder.join(KEYS).exists() => bail!(
                "there are accounts on the bus, but no keys to check their passwords with in {}; set issuer_keys_file to \
                 the keys file of the process that made them (up to 0.1 {KEYS} in the data folder of the gateway)",
                folder.display()
            ),
            (None, Some(folder)) => made(folder, KEYS, || {
                let random = aws_lc_rs::rand::SystemRandom::new();
                let key = Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| anyhow::anyhow!("make a key"))?;
                let pepper = STANDARD.encode(self::random::<32>()?);
                Ok(format!("sign {}\npepper {pepper}\n", STANDARD.encode(key.as_ref())))
            })?,
            (None, None) => bail!("there is no place for the issuer's keys: set issuer_keys_file or data_dir"),
        };
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(config, &text).with_context(|| format!("read the keys in {}", path.display()))
    }

    fn parse(config: &Config, text: &str) -> anyhow::Result<Self> {
        let (mut signing, mut public, mut pepper) = (None, vec![], vec![]);
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bytes =
                |text: &str| STANDARD.decode(text.trim()).with_context(|| format!("line {}: base64", number + 1));
            match line.split_once(' ') {
                Some(("sign", key)) => {
                    let document = bytes(key)?;
                    let pair = Ed25519KeyPair::from_pkcs8(&document)
                        .map_err(|_| anyhow::anyhow!("line {}: not PKCS #8 of an Ed25519 key", number + 1))?;
                    let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
                    let id: String = pkce::hash(&x).chars().take(16).collect();
                    public
                        .push(json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": id, "x": x}));
                    signing = Some((EncodingKey::from_ed_der(&document), id));
                }
                Some(("pepper", secret)) => pepper = bytes(secret)?,
                _ => bail!("line {}: expected `sign KEY` or `pepper SECRET`", number + 1),
            }
        }
        let (signing, key_id) = signing.context("the line `sign KEY` is missing")?;
        if pepper.len() < 16 {
            bail!("a line `pepper SECRET` of at least 16 bytes is missing");
        }
        let jwks = json!({"keys": public});
        let keys = Keys::parse(jwks.to_string().as_bytes()).context("read own keys")?;
        let params = Params::new(config.password_memory_kib, config.password_passes, 1, None)
            .map_err(|error| anyhow::anyhow!("password_memory_kib and password_passes: {error}"))?;
        let mut issuer = Self {
            name: config.issuer_name.clone(),
            audience: config.audience.clone(),
            token_s: config.token_s.max(1).into(),
            signing,
            key_id,
            jwks,
            keys,
            pepper,
            params,
            nobody: String::new(),
        };
        issuer.nobody = issuer.hash("nobody")?;
        Ok(issuer)
    }

    fn kdf(&self) -> anyhow::Result<Argon2<'_>> {
        Argon2::new_with_secret(&self.pepper, Kdf::Argon2id, Version::V0x13, self.params.clone())
            .map_err(|error| anyhow::anyhow!("set up argon2id: {error}"))
    }

    /// The hash of a password that is stored. Takes tens of milliseconds: call it on a thread that may block.
    pub(crate) fn hash(&self, password: &str) -> anyhow::Result<String> {
        let salt = SaltString::encode_b64(&random::<16>()?).map_err(|error| anyhow::anyhow!("make a salt: {error}"))?;
        let hash = self.kdf()?.hash_password(password.as_bytes(), &salt);
        Ok(hash.map_err(|error| anyhow::anyhow!("hash a password: {error}"))?.to_string())
    }

    /// Whether it is the account's password. Takes as long for an account that does not exist.
    pub(crate) fn verify(&self, account: Option<&Account>, password: &str) -> bool {
        let kept = account.map_or(&self.nobody, |account| &account.password_hash);
        let Ok(parsed) = PasswordHash::new(kept) else { return false };
        let fits = self.kdf().is_ok_and(|kdf| kdf.verify_password(password.as_bytes(), &parsed).is_ok());
        fits && account.is_some_and(|account| !account.disabled)
    }

    /// Signs claims of any kind.
    pub(crate) fn sign(&self, kind: &str, claims: &Json) -> anyhow::Result<String> {
        let header = json!({"alg": "EdDSA", "typ": kind, "kid": self.key_id});
        let b64 = |value: &Json| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", b64(&header), b64(claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.signing, Algorithm::EdDSA).context("sign a token")?;
        Ok(format!("{message}.{signature}"))
    }

    /// An access token of an account, and its life in seconds.
    pub(crate) fn token(
        &self,
        name: &str,
        account: &Account,
        session: &str,
        now_s: i64,
    ) -> anyhow::Result<(String, i64)> {
        let claims = json!({
            "iss": self.name, "aud": self.audience, "sub": name, "preferred_username": name, "owner": account.owner,
            "roles": account.roles, "sid": session, "iat": now_s, "exp": now_s + self.token_s, "jti": secret()?,
        });
        Ok((self.sign("at+jwt", &claims)?, self.token_s))
    }
}

/// The path of a file in a folder, made with a text if it is not there. Of several that make it at once, one does.
pub(crate) fn made(
    folder: &Path,
    name: &str,
    text: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    mesh_kit::make_once(&path, text).with_context(|| format!("make {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use mesh_rest::token::{Expected, check};

    use super::*;

    fn issuer(folder: &Path) -> Issuer {
        let config = Config { password_memory_kib: 64, password_passes: 1, ..Config::default() };
        Issuer::open(&config, Some(folder), false).unwrap()
    }

    #[test]
    fn its_tokens_hold_under_its_keys_after_a_restart_and_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let first = issuer(folder.path());
        let account = Account { owner: "plant".into(), roles: vec!["owner".into()], ..Account::default() };
        let (token, life) = first.token("ada", &account, "s1", 1_000).unwrap();
        let expected =
            Expected { issuer: "urn:continuum".into(), audience: "continuum".into(), skew_s: 0, life_max_s: 3_600 };
        assert_eq!(life, 300);
        let mut text = fs::read_to_string(folder.path().join("issuer.keys")).unwrap();
        let other = tempfile::tempdir().unwrap();
        drop(issuer(other.path()));
        let next = fs::read_to_string(other.path().join("issuer.keys")).unwrap();
        text.push_str(next.lines().next().unwrap());
        fs::write(folder.path().join("issuer.keys"), text).unwrap();
        let rotated = issuer(folder.path());
        assert_ne!(rotated.key_id, first.key_id);
        let claims = check(&token, &rotated.keys, &expected, 1_300).unwrap();
        assert_eq!((claims.subject.as_str(), claims.all["owner"].as_str()), ("ada", Some("plant")));
        assert!(check(&token, &issuer(other.path()).keys, &expected, 1_300).is_err(), "another issuer's keys");
        assert!(check(&token, &rotated.keys, &expected, 1_301).is_err());
    }

    #[test]
    fn no_new_keys_are_made_where_there_are_accounts() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Issuer::open(&Config::default(), Some(folder.path()), true);
        let refused = open().err().unwrap().to_string();
        assert!(refused.contains("issuer_keys_file"), "{refused}");
        drop(issuer(folder.path()));
        assert!(open().is_ok(), "with the earlier keys it opens");
    }

    #[test]
    fn a_password_is_only_its_own_and_worth_nothing_without_the_pepper() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (here, there) = (issuer(one.path()), issuer(two.path()));
        let account = Account { password_hash: here.hash("correct horse").unwrap(), ..Account::default() };
        assert!(account.password_hash.starts_with("$argon2id$"));
        assert!(here.verify(Some(&account), "correct horse"));
        assert!(!here.verify(Some(&account), "correct hors"));
        assert!(!there.verify(Some(&account), "correct horse"), "the same hash elsewhere");
        assert!(!here.verify(Some(&Account { disabled: true, ..account.clone() }), "correct horse"));
        assert!(!here.verify(None, "nobody") && !here.verify(Some(&Account::default()), ""));
    }
}
