//! Accounts: listed, defined and removed by administrators; the first one made so that somebody can sign in.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use axum::{body::Body, response::Response};
use http::{Request, StatusCode};
use mesh_kit::Condition;
use mesh_proto::{
    AnyEvent as _,
    identity::{AccountDefined, DefineAccount, RemoveAccount},
};
use mesh_rest::{
    access::{Action, ROLES},
    body,
    http::{empty, json},
    problem::{Kind, Problem},
};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::{
    domain::{
        accounts::Accounts,
        identities::{ACCOUNT, Account},
    },
    shell::{COMMAND_LIMIT, Identity, issuer, sessions::PASSWORD_MAX},
};

/// Name of the first account of a mesh.
const FIRST: &str = "admin";
/// Shortest password, bytes.
const PASSWORD_MIN: usize = 8;
/// Between two tries to make the first account.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How long a change of an account waits until this process sees it.
const CAUGHT_UP: Duration = Duration::from_secs(2);

/// An account to be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountInput {
    /// Its name.
    username: String,
    /// Its password; may be absent when the account exists.
    #[serde(default)]
    password: Option<String>,
    /// Its roles.
    #[serde(default)]
    roles: Vec<String>,
    /// Whose objects it works on; its own name if empty.
    #[serde(default)]
    owner: String,
    /// It cannot sign in.
    #[serde(default)]
    disabled: bool,
}

fn rendered(name: &str, account: &Account) -> Json {
    json!({"username": name, "roles": account.roles, "owner": account.owner, "disabled": account.disabled})
}

impl Identity {
    /// Waits until the view of accounts is as wanted.
    async fn accounts_show(&self, shows: impl Fn(&Accounts) -> bool) -> anyhow::Result<()> {
        let mut changes = self.inner.accounts.changes();
        loop {
            changes.borrow_and_update();
            if self.inner.accounts.read(&shows) {
                return Ok(());
            }
            changes.changed().await.context("follow accounts")?;
        }
    }

    /// Lists accounts, without their password hashes.
    pub(crate) fn list_accounts(&self) -> Response {
        let all = self
            .inner
            .accounts
            .read(|view| view.accounts.iter().map(|(name, account)| rendered(name, account)).collect::<Vec<_>>());
        json(StatusCode::OK, &Json::Array(all))
    }

    /// Makes or changes an account.
    pub(crate) async fn put_account(&self, request: Request<Body>) -> Result<Response, Problem> {
        self.permitted(request.headers(), Action::WriteAccounts)?;
        let (parts, body) = request.into_parts();
        let input: AccountInput = body::form(self.json(&parts.headers, body).await?)?;
        if !mesh_proto::is_key(&input.username) {
            return Err(Problem::field("username", "is not a valid name", "use 1 to 64 letters, digits, `_` and `-`"));
        }
        let roles: Vec<&str> = ROLES.iter().map(|(_, name)| *name).collect();
        if let Some(role) = input.roles.iter().find(|role| !roles.contains(&role.as_str())) {
            let shown: String = role.chars().take(64).collect();
            return Err(Problem::field(
                "roles",
                format!("{shown:?} is not a role"),
                format!("use {}", roles.join(", ")),
            ));
        }
        let hash = match &input.password {
            None if self.account(&input.username).is_none() => {
                return Err(Problem::field("password", "is missing", "a new account needs one"));
            }
            None => String::new(),
            Some(password) if !(PASSWORD_MIN..=PASSWORD_MAX).contains(&password.len()) => {
                return Err(Problem::field("password", "is shorter than 8 or longer than 256 bytes", "choose another"));
            }
            Some(password) => self.hash(password.clone()).await?,
        };
        let command = DefineAccount {
            realm: ACCOUNT.into(),
            name: input.username.clone(),
            password_hash: hash,
            roles: input.roles,
            owner: input.owner,
            disabled: input.disabled,
            only_new: false,
        };
        let id = uuid::Uuid::now_v7().to_string();
        let account = self.define_account(&command, &id).await?;
        // The account can sign in here at once if this process sees it in time, otherwise a little later.
        let shows = |view: &Accounts| view.accounts.get(&input.username) == Some(&account);
        let _late = tokio::time::timeout(CAUGHT_UP, self.accounts_show(shows)).await;
        Ok(json(StatusCode::OK, &rendered(&input.username, &account)))
    }

    async fn hash(&self, password: String) -> Result<String, Problem> {
        let permit = self.inner.checks.clone().acquire_owned().await;
        let identity = self.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            identity.inner.issuer.hash(&password)
        });
        match hashed.await {
            Ok(Ok(hash)) => Ok(hash),
            Ok(Err(error)) => Err(self.internal(&error)),
            Err(_) => Err(Problem::new(Kind::Internal, "the password was not hashed", "try again")),
        }
    }

    async fn define_account(&self, command: &DefineAccount, id: &str) -> Result<Account, Problem> {
        let (answer, _) = self.inner.answers.ask(command, id, COMMAND_LIMIT).await?;
        let defined = answer.event::<AccountDefined>().ok().flatten();
        let defined = defined.ok_or_else(|| Problem::new(Kind::Internal, "the answer cannot be read", "try again"))?;
        Ok(Account::from(&defined))
    }

    /// Removes an account.
    pub(crate) async fn delete_account(&self, request: Request<Body>) -> Result<Response, Problem> {
        let caller = self.permitted(request.headers(), Action::WriteAccounts)?;
        let name = request.uri().path().trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        if self.account(&name).is_none() {
            return Err(Problem::not_found(format!("account {name}")));
        }
        if name == caller.subject {
            return Err(Problem::new(
                Kind::Conflict,
                "this account is your own",
                "let another administrator remove it",
            ));
        }
        let command = RemoveAccount { realm: ACCOUNT.into(), name };
        let id = uuid::Uuid::now_v7().to_string();
        self.inner.answers.ask(&command, &id, COMMAND_LIMIT).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// Makes the first account if there was none when this process started. The condition is met once the process knows
    /// an account, its own or another's: until then a sign-in is answered with 503, and not that its password is wrong.
    pub(crate) async fn first_account(self, none_yet: bool, known: Condition) -> anyhow::Result<()> {
        let stopping = self.inner.mesh.stopping();
        let ready = async {
            if none_yet {
                match self.inner.mesh.data_dir() {
                    Some(folder) => self.make_first(folder, &known).await?,
                    None => known.unmet("there is no account yet, and no data_dir to keep the first password in"),
                }
            }
            self.accounts_show(Accounts::any).await
        };
        tokio::select! {
            ready = ready => ready?,
            () = stopping.cancelled() => return Ok(()),
        }
        known.met();
        Ok(())
    }

    /// Makes the first account of a mesh, `admin`, with the password in a file of the data folder. The file is removed if
    /// the account has another password.
    async fn make_first(&self, folder: &Path, known: &Condition) -> anyhow::Result<()> {
        known.unmet("there is no account yet");
        let path = issuer::made(folder, "admin.password", issuer::secret)?;
        let password = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let password = password.trim().to_owned();
        let hash = self.hash(password.clone()).await.map_err(|problem| anyhow::anyhow!("{problem}"))?;
        let command = DefineAccount {
            realm: ACCOUNT.into(),
            name: FIRST.into(),
            password_hash: hash,
            roles: vec!["administrator".into()],
            owner: "local".into(),
            disabled: false,
            only_new: true,
        };
        // One id: the command takes effect once, even if it is sent several times.
        let id = uuid::Uuid::now_v7().to_string();
        loop {
            match self.define_account(&command, &id).await {
                Ok(_) => {
                    tracing::info!(password = %path.display(), "first account made: admin");
                    return Ok(());
                }
                Err(problem) if problem.refusal.is_some() => break,
                Err(problem) => {
                    tracing::warn!(problem = problem.detail, "first account not made yet");
                    known.unmet(format!("the first account could not be made: {}", problem.detail));
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
        // The account exists. Usually another process made it, with a password of its own; but its password may be the
        // one in the file, if this process sent the command before it was killed, or another that has the same folder.
        let about = AccountDefined { realm: ACCOUNT.into(), name: FIRST.into(), ..AccountDefined::default() };
        let subject = about.subject().context("name the first account")?;
        let stored = self.inner.mesh.bus().log("IDENTITY").last(&subject).await.context("read the first account")?;
        let defined = stored.and_then(|stored| stored.event::<AccountDefined>().ok().flatten());
        let account = defined.map(|fact| Account { disabled: false, ..Account::from(&fact) });
        if !self.verify(account, password).await {
            tracing::info!("another process made the first account and has its password");
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
