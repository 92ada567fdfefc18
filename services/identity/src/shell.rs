//! What requests share: the issuer, the view of accounts, limits, and who the caller is.

pub(crate) mod accounts;
pub(crate) mod issuer;
pub(crate) mod page;
pub(crate) mod sessions;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::Body;
use http::{HeaderMap, header};
use mesh_kit::{Mesh, View};
use mesh_proto::Written;
use mesh_rest::{
    access::{Action, Caller, ClaimNames},
    ask::Answers,
    body,
    http::{bearer, read},
    limits::{Buckets, Rate},
    problem::{Kind, Problem},
    token::{Expected, check},
};
use tokio::sync::Semaphore;

use crate::{
    config::Config,
    domain::{accounts::Accounts, identities::Account},
    shell::issuer::Issuer,
};

/// How long a command may wait for its answer.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(15);
/// How far the clocks of two processes that share keys may be apart, seconds.
const SKEW_S: i64 = 30;

/// Everything that requests share.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) mesh: Mesh,
    pub(crate) config: Config,
    pub(crate) issuer: Issuer,
    pub(crate) accounts: View<Accounts>,
    pub(crate) answers: Answers,
    pub(crate) buckets: Mutex<Buckets>,
    pub(crate) checks: Arc<Semaphore>,
}

impl Identity {
    fn internal(&self, error: &anyhow::Error) -> Problem {
        tracing::error!(error = format!("{error:#}"), "sign-in failed");
        Problem::new(Kind::Internal, "signing in failed", "see the log of the identity service")
    }

    fn account(&self, name: &str) -> Option<Account> {
        self.inner.accounts.read(|view| view.accounts.get(name).cloned())
    }

    /// Checks a password, on a thread of its own.
    async fn verify(&self, account: Option<Account>, password: String) -> bool {
        let permit = self.inner.checks.clone().acquire_owned().await;
        let identity = self.clone();
        let fits = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            identity.inner.issuer.verify(account.as_ref(), &password)
        });
        fits.await.unwrap_or(false)
    }

    /// Counts one request against a limit.
    fn limit(&self, who: &str, rate: Rate) -> Result<(), Problem> {
        let now_ms = self.inner.mesh.now().as_millis();
        let mut buckets = self.inner.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.take(who, rate, now_ms).map_err(Problem::too_many)
    }

    /// Who sends a request, if the token is good and its roles permit the action.
    pub(crate) fn permitted(&self, headers: &HeaderMap, action: Action) -> Result<Caller, Problem> {
        let issuer = &self.inner.issuer;
        let expected = Expected {
            issuer: issuer.name.clone(),
            audience: self.inner.config.audience.clone(),
            skew_s: SKEW_S,
            life_max_s: i64::from(self.inner.config.token_s) + SKEW_S,
        };
        let claims = check(bearer(headers)?, &issuer.keys, &expected, self.inner.mesh.now().seconds)?;
        let names = ClaimNames { roles: vec!["roles".into()], owner: "owner".into() };
        let caller = Caller::of(&claims, &names);
        caller.permits(action)?;
        Ok(caller)
    }

    /// The body of a request.
    async fn json(&self, headers: &HeaderMap, sent: Body) -> Result<Written, Problem> {
        let kind = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("unreadable"));
        body::read(kind, &read(headers, sent).await?)
    }
}
