//! Who is it? Bearer tokens of the issuer that is trusted: the built-in one, or any OpenID Connect provider.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_kit::Mesh;
use serde::Deserialize;

use crate::{
    config::Config,
    domain::{
        access::{Caller, ClaimNames},
        problem::{Kind, Problem},
        token::{self, Expected, Freshness, Keys, Refused},
    },
    issuer::Issuer,
};

/// How long an issuer may take to answer.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of its answer at most.
const FETCH_MAX: usize = 256 * 1024;
/// Tokens of other issuers live no longer than this, seconds.
const LIFE_MAX_S: i64 = 24 * 3_600;

/// Checks tokens.
#[derive(Clone)]
pub(crate) struct SignIn {
    inner: Arc<Inner>,
}

struct Inner {
    mesh: Mesh,
    expected: Expected,
    names: ClaimNames,
    /// The built-in issuer; `None` if another is trusted.
    issuer: Option<Issuer>,
    keys: RwLock<Keys>,
    freshness: Mutex<Freshness>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl SignIn {
    /// Sets up; keys of another issuer are fetched with the first token, so that it may start later than we do.
    pub(crate) fn new(mesh: &Mesh, config: &Config) -> anyhow::Result<Self> {
        let issuer = match config.oidc_issuer.is_empty() {
            true => Some(Issuer::open(config, mesh.data_dir())?),
            false => None,
        };
        let names = ClaimNames {
            roles: config.roles_claims.split(',').map(|path| path.trim().to_owned()).collect(),
            owner: config.owner_claim.clone(),
        };
        let expected = Expected {
            issuer: issuer.as_ref().map_or(&config.oidc_issuer, |own| &own.name).clone(),
            audience: config.audience.clone(),
            skew_s: config.skew_s.into(),
            life_max_s: LIFE_MAX_S,
        };
        let tls =
            hyper_rustls::HttpsConnectorBuilder::new().with_native_roots().context("read the system's certificates")?;
        let client = Client::builder(TokioExecutor::new()).build(tls.https_or_http().enable_http1().build());
        let keys = RwLock::new(issuer.as_ref().map(|own| own.keys.clone()).unwrap_or_default());
        let inner = Inner { mesh: mesh.clone(), expected, names, issuer, keys, freshness: Mutex::default(), client };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The built-in issuer, if it is the one.
    pub(crate) fn issuer(&self) -> Option<&Issuer> {
        self.inner.issuer.as_ref()
    }

    /// The issuer that is trusted.
    pub(crate) fn trusted(&self) -> &str {
        &self.inner.expected.issuer
    }

    /// Who sends a request.
    pub(crate) async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else {
            let how = "send `Authorization: Bearer <token>`, once; get a token with `continuum token`";
            return Err(Problem::new(Kind::Unauthenticated, "the request has no bearer token", how));
        };
        let token = value
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()));
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            let how = "send `Authorization: Bearer <token>`";
            return Err(Problem::new(Kind::Unauthenticated, "the authorization is no bearer token", how));
        };
        let now = self.inner.mesh.now();
        let mut judged = self.judge(token);
        if self.inner.issuer.is_none() {
            let missing = match &judged {
                Err(Refused::UnknownKey(id)) => Some(id.clone().unwrap_or_default()),
                _ => None,
            };
            let (fetch, stale) = {
                let mut freshness = self.inner.freshness.lock().unwrap_or_else(PoisonError::into_inner);
                (freshness.wants_fetch(missing.as_deref(), now.as_millis()), freshness.is_stale(now.as_millis()))
            };
            if fetch {
                // Keys that are merely growing old are renewed beside the request, missing ones before it goes on.
                if missing.is_some() || stale {
                    self.fetch().await;
                    judged = self.judge(token);
                } else {
                    let this = self.clone();
                    tokio::spawn(async move { this.fetch().await });
                }
            }
            let freshness = self.inner.freshness.lock().unwrap_or_else(PoisonError::into_inner);
            if freshness.is_stale(now.as_millis()) {
                let detail = format!("the keys of {} cannot be had", self.inner.expected.issuer);
                return Err(Problem::new(Kind::Unavailable, detail, "see the log of the gateway; try again"));
            }
        }
        let claims = judged.map_err(|refused| {
            let how = "sign in again: `continuum login`, then `continuum token`";
            Problem::new(Kind::Unauthenticated, refused.to_string(), how)
        })?;
        Ok(Caller::of(&claims, &self.inner.names))
    }

    fn judge(&self, token: &str) -> Result<token::Claims, Refused> {
        let keys = self.inner.keys.read().unwrap_or_else(PoisonError::into_inner);
        token::check(token, &keys, &self.inner.expected, self.inner.mesh.now().seconds)
    }

    async fn fetch(&self) {
        match self.keys().await {
            Ok(keys) => {
                tracing::info!(issuer = self.inner.expected.issuer, keys = keys.len(), "keys fetched");
                *self.inner.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
                let now_ms = self.inner.mesh.now().as_millis();
                self.inner.freshness.lock().unwrap_or_else(PoisonError::into_inner).fetched(now_ms);
            }
            Err(error) => {
                tracing::warn!(issuer = self.inner.expected.issuer, error = format!("{error:#}"), "keys not fetched")
            }
        }
    }

    /// Discovery (OpenID Connect Discovery 1.0), then the key set that it names.
    async fn keys(&self) -> anyhow::Result<Keys> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
            jwks_uri: String,
        }
        let issuer = &self.inner.expected.issuer;
        let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let discovery: Discovery =
            serde_json::from_slice(&self.get(&address).await?).with_context(|| format!("read {address}"))?;
        // Whoever answers there must call itself what we were told (§4.3).
        anyhow::ensure!(discovery.issuer == *issuer, "{address} is of issuer {:?}", discovery.issuer);
        // Keys must not come over a weaker way than what names them.
        let secure = discovery.jwks_uri.starts_with("https://") || !issuer.starts_with("https://");
        anyhow::ensure!(secure, "the keys of {issuer} are not behind TLS: {}", discovery.jwks_uri);
        let keys = Keys::parse(&self.get(&discovery.jwks_uri).await?)
            .with_context(|| format!("read {}", discovery.jwks_uri))?;
        anyhow::ensure!(!keys.is_empty(), "{} has no key that can be used", discovery.jwks_uri);
        Ok(keys)
    }

    async fn get(&self, address: &str) -> anyhow::Result<Bytes> {
        let request = Request::get(address).header(header::ACCEPT, "application/json").body(Empty::new());
        let answered = async {
            let response = self.inner.client.request(request.context("read the address")?).await.context("ask")?;
            anyhow::ensure!(response.status().is_success(), "status {}", response.status());
            let body = Limited::new(response.into_body(), FETCH_MAX).collect().await;
            Ok(body.map_err(|error| anyhow::anyhow!("read the answer: {error}"))?.to_bytes())
        };
        let answer = tokio::time::timeout(FETCH_LIMIT, answered).await;
        answer
            .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within 5 s")))
            .with_context(|| format!("get {address}"))
    }
}
