//! Who sends a request: bearer tokens of the trusted issuer, which is the identity service or an OpenID Connect provider.
//! Either publishes the keys that its tokens are checked with.

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
use mesh_kit::{Condition, Mesh};
use mesh_rest::{
    access::{Caller, ClaimNames},
    http::bearer,
    problem::{Kind, Problem},
    token::{self, Expected, Freshness, Keys, Refused},
};
use serde::Deserialize;

use crate::{config::Config, shell::inside};

/// The service that signs the tokens of the built-in issuer.
pub(crate) const IDENTITY: &str = "identity";

/// How long an issuer may take to answer.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// First wait before the keys are asked for again at start; each next is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(250);
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
    /// Whether the built-in issuer is trusted, and not an OpenID Connect provider.
    built_in: bool,
    keys: RwLock<Keys>,
    freshness: Mutex<Freshness>,
    /// Held while keys are fetched: requests that need them wait for the one fetch.
    fetching: tokio::sync::Mutex<()>,
    /// Asks the identity service of this mesh, or the provider.
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl SignIn {
    /// Sets up. Keys are fetched with the first token, so the issuer may start later than this process.
    pub(crate) fn new(mesh: &Mesh, config: &Config) -> anyhow::Result<Self> {
        let built_in = config.oidc_issuer.is_empty();
        let names = ClaimNames {
            roles: config.roles_claims.split(',').map(|path| path.trim().to_owned()).collect(),
            owner: config.owner_claim.clone(),
        };
        let expected = Expected {
            issuer: if built_in { config.issuer_name.clone() } else { config.oidc_issuer.clone() },
            audience: config.audience.clone(),
            skew_s: config.skew_s.into(),
            life_max_s: LIFE_MAX_S,
        };
        let connector = if built_in {
            let mut connector = HttpConnector::new();
            connector.enforce_http(false);
            inside::connector(mesh.settings(), connector)?
        } else {
            let tls = hyper_rustls::HttpsConnectorBuilder::new().with_native_roots();
            tls.context("read the system's certificates")?.https_or_http().enable_http1().build()
        };
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let inner = Inner {
            mesh: mesh.clone(),
            expected,
            names,
            built_in,
            keys: RwLock::default(),
            freshness: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
            client,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether the built-in issuer is the trusted one.
    pub(crate) fn is_built_in(&self) -> bool {
        self.inner.built_in
    }

    /// Name of the trusted issuer.
    pub(crate) fn trusted(&self) -> &str {
        &self.inner.expected.issuer
    }

    /// Who sends a request.
    pub(crate) async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let token = bearer(headers)?;
        let mut judged = self.judge(token);
        let is_missing =
            |judged: &Result<token::Claims, Refused>| judged.as_ref().is_err_and(Refused::wants_newer_keys);
        if is_missing(&judged) || self.is_stale() {
            let _one_at_a_time = self.inner.fetching.lock().await;
            judged = self.judge(token);
            if (is_missing(&judged) || self.is_stale()) && self.wants_fetch(is_missing(&judged)) {
                self.fetch().await;
                judged = self.judge(token);
            }
        } else if self.wants_fetch(false) {
            // Keys that only grow old are renewed beside the request.
            let this = self.clone();
            tokio::spawn(async move { this.fetch().await });
        }
        if self.is_stale() {
            let detail = format!("the keys of {} could not be fetched", self.inner.expected.issuer);
            return Err(Problem::new(Kind::Unavailable, detail, "see the log of the gateway; try again"));
        }
        Ok(Caller::of(&judged?, &self.inner.names))
    }

    /// Fetches the keys of the identity service until it has them: without them no token can be checked, and the gateway
    /// is not ready.
    pub(crate) async fn first_keys(self, ready: Condition) -> anyhow::Result<()> {
        let mut wait = FIRST_RETRY;
        while self.is_built_in() && self.is_stale() {
            let fetching = self.inner.fetching.lock().await;
            self.fetch().await;
            drop(fetching);
            if self.is_stale() {
                ready.unmet("the identity service does not answer; see `continuum status`");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(FETCH_LIMIT);
            }
        }
        ready.met();
        Ok(())
    }

    fn is_stale(&self) -> bool {
        let now_ms = self.inner.mesh.now().as_millis();
        self.inner.freshness.lock().unwrap_or_else(PoisonError::into_inner).is_stale(now_ms)
    }

    fn wants_fetch(&self, is_missing: bool) -> bool {
        let now_ms = self.inner.mesh.now().as_millis();
        self.inner.freshness.lock().unwrap_or_else(PoisonError::into_inner).wants_fetch(is_missing, now_ms)
    }

    fn judge(&self, token: &str) -> Result<token::Claims, Refused> {
        let keys = self.inner.keys.read().unwrap_or_else(PoisonError::into_inner);
        token::check(token, &keys, &self.inner.expected, self.inner.mesh.now().seconds)
    }

    async fn fetch(&self) {
        let keys = if self.inner.built_in { self.own_keys().await } else { self.provider_keys().await };
        let has_keys = keys.is_ok();
        match keys {
            Ok(keys) => {
                tracing::info!(issuer = self.inner.expected.issuer, keys = keys.len(), "keys fetched");
                *self.inner.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
            }
            Err(error) => {
                tracing::warn!(issuer = self.inner.expected.issuer, error = format!("{error:#}"), "keys not fetched")
            }
        }
        let now_ms = self.inner.mesh.now().as_millis();
        self.inner.freshness.lock().unwrap_or_else(PoisonError::into_inner).ended(has_keys, now_ms);
    }

    /// The key set of the identity service, wherever it runs now.
    async fn own_keys(&self) -> anyhow::Result<Keys> {
        let found = mesh_client::endpoint(self.inner.mesh.bus(), IDENTITY).await?;
        let endpoint = found.context("the identity service has not announced an address; see `continuum status`")?;
        self.key_set(&format!("{endpoint}/oauth/jwks")).await
    }

    /// The key set that the provider's discovery document names (OpenID Connect Discovery 1.0).
    async fn provider_keys(&self) -> anyhow::Result<Keys> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
            jwks_uri: String,
        }
        let issuer = &self.inner.expected.issuer;
        let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let discovery: Discovery =
            serde_json::from_slice(&self.get(&address).await?).with_context(|| format!("read {address}"))?;
        // The document must name the issuer that is configured (§4.3).
        anyhow::ensure!(discovery.issuer == *issuer, "{address} names another issuer, {:?}", discovery.issuer);
        // Keys must not come over a weaker connection than the document that names them.
        let secure = discovery.jwks_uri.starts_with("https://") || !issuer.starts_with("https://");
        anyhow::ensure!(secure, "the keys of {issuer} are not behind TLS: {}", discovery.jwks_uri);
        self.key_set(&discovery.jwks_uri).await
    }

    async fn key_set(&self, address: &str) -> anyhow::Result<Keys> {
        let keys = Keys::parse(&self.get(address).await?).with_context(|| format!("read {address}"))?;
        anyhow::ensure!(!keys.is_empty(), "{address} has no key that can be used");
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
