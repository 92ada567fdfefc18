//! Signing in at the built-in issuer: name and password, sessions whose refresh tokens are good once, PKCE for the
//! browser, accounts.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use axum::{body::Body, response::Response};
use http::{Request, StatusCode, header};
use mesh_kit::Condition;
use mesh_proto::{
    Timestamp, derived_id,
    identity::{AccountDefined, CloseSession, DefineAccount, OpenSession, RemoveAccount, RenewSession, SessionRenewed},
};
use serde_json::{Value as Json, json};

use crate::{
    accounts::Accounts,
    domain::{
        access::{Caller, MATRIX, ROLES, Reach},
        forms::{self, AccountInput, Login},
        identity::{ACCOUNT, Account, SESSION},
        limits::Rate,
        pkce::{self, Grant},
        problem::{Kind, Problem},
        token::{Expected, check},
    },
    gateway::{self, Asked, Gateway},
    issuer::{self, Issuer},
};

/// How often one account may be tried: a password is not guessed at this pace.
const TRIES: Rate = Rate { per_second: 1, burst: 10 };
/// Life of an authorization code, seconds.
const CODE_S: i64 = 60;
/// Longest password, bytes.
const PASSWORD_MAX: usize = 256;
/// Name of the first account of a mesh.
const FIRST: &str = "admin";
/// Between two tries to make the first account.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How long who changed an account waits until it is seen here.
const CAUGHT_UP: Duration = Duration::from_secs(2);

impl Gateway {
    pub(crate) fn issuer(&self) -> Result<&Issuer, Problem> {
        self.inner.signin.issuer().ok_or_else(|| {
            let detail = format!("people sign in at {}", self.inner.signin.trusted());
            Problem::new(Kind::Conflict, detail, "get a token there")
        })
    }

    fn internal(&self, error: &anyhow::Error) -> Problem {
        tracing::error!(error = format!("{error:#}"), "sign-in failed");
        Problem::new(Kind::Internal, "signing in failed", "see the log of the gateway")
    }

    fn account(&self, name: &str) -> Option<Account> {
        self.inner.accounts.read(|view| view.accounts.get(name).cloned())
    }

    /// Waits until the view of accounts shows something.
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

    /// Is it the account's password? Checked where that holds nobody up.
    async fn verify(&self, account: Option<Account>, password: String) -> bool {
        let permit = self.inner.checks.clone().acquire_owned().await;
        let gateway = self.clone();
        let fits = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            gateway.inner.signin.issuer().is_some_and(|issuer| issuer.verify(account.as_ref(), &password))
        });
        fits.await.unwrap_or(false)
    }

    /// Checks a password.
    async fn authenticate(&self, name: &str, password: String) -> Result<Account, Problem> {
        let wrong = || Problem::new(Kind::Unauthenticated, "name or password is wrong", "try again");
        self.issuer()?;
        if !mesh_proto::is_key(name) || password.len() > PASSWORD_MAX {
            return Err(wrong());
        }
        self.limit(&format!("login {name}"), TRIES)?;
        if !self.inner.accounts.read(Accounts::any) {
            return Err(gateway::unavailable("no account is known here yet"));
        }
        let account = self.account(name);
        if !self.verify(account.clone(), password).await {
            return Err(wrong());
        }
        account.ok_or_else(wrong)
    }

    fn session_ends(&self) -> Timestamp {
        self.inner.mesh.now().plus_millis(i64::from(self.inner.config.session_s) * 1_000)
    }

    fn tokens(&self, name: &str, account: &Account, session: &str, secret: &str) -> Result<Json, Problem> {
        let signed = self.issuer()?.token(name, account, session, self.inner.mesh.now().seconds);
        let (token, life_s) = signed.map_err(|error| self.internal(&error))?;
        Ok(json!({
            "username": name, "token": token, "access_token": token, "refresh_token": format!("{session}.{secret}"),
            "token_type": "Bearer", "expires_in": life_s,
        }))
    }

    async fn open(&self, name: &str, account: &Account, session: String) -> Result<Json, Problem> {
        let secret = issuer::secret().map_err(|error| self.internal(&error))?;
        let command = OpenSession {
            realm: SESSION.into(),
            name: session.clone(),
            account: name.into(),
            client_id: pkce::CLIENT.into(),
            token_hash: pkce::hash(&secret),
            expires: Some(self.session_ends()),
        };
        let id = derived_id(&["open", &session, &command.token_hash]);
        self.inner.answers.ask(&command, &id, self.limit_of_commands()).await?;
        self.tokens(name, account, &session, &secret)
    }

    /// Signs in with name and password.
    pub(crate) async fn login(&self, asked: &mut Asked) -> Result<Response, Problem> {
        let login: Login = forms::form(asked.json())?;
        let account = self.authenticate(&login.username, login.password).await?;
        let session = uuid::Uuid::new_v4().to_string();
        let tokens = self.open(&login.username, &account, session).await?;
        Ok(uncached(gateway::json(StatusCode::OK, &tokens)))
    }

    /// Ends the session of the caller's token.
    pub(crate) async fn logout(&self, asked: &Asked) -> Result<Response, Problem> {
        if mesh_proto::is_key(&asked.caller.session) && self.inner.signin.issuer().is_some() {
            let command = CloseSession { realm: SESSION.into(), name: asked.caller.session.clone() };
            let id = uuid::Uuid::now_v7().to_string();
            match self.inner.answers.ask(&command, &id, self.limit_of_commands()).await {
                // Closed before: that is what was wanted.
                Ok(_) | Err(Problem { kind: Kind::Conflict, .. }) => {}
                Err(problem) => return Err(problem),
            }
        }
        Ok(gateway::empty(StatusCode::NO_CONTENT))
    }

    /// Exchanges a refresh token for the next, and an access token.
    async fn renew(&self, presented: &str) -> Result<Json, &'static str> {
        let unavailable = "temporarily_unavailable";
        let (session, secret) = presented.split_once('.').ok_or("invalid_grant")?;
        if !mesh_proto::is_key(session) || secret.len() > 128 {
            return Err("invalid_grant");
        }
        let next = issuer::secret().map_err(|_| unavailable)?;
        let command = RenewSession {
            realm: SESSION.into(),
            name: session.into(),
            presented_hash: pkce::hash(secret),
            next_hash: pkce::hash(&next),
            expires: Some(self.session_ends()),
        };
        let id = derived_id(&["renew", session, &command.next_hash]);
        let answer = match self.inner.answers.ask(&command, &id, self.limit_of_commands()).await {
            Ok((answer, _)) => answer,
            Err(problem) if problem.kind == Kind::Conflict => return Err("invalid_grant"),
            Err(_) => return Err(unavailable),
        };
        // Otherwise the session was closed over it.
        if !matches!(answer.event::<SessionRenewed>(), Ok(Some(_))) {
            return Err("invalid_grant");
        }
        // The account is in the fact that opened the session.
        let subject = format!("identity.session_opened.v1.{SESSION}.{session}");
        let opened = self.inner.mesh.bus().log("IDENTITY").last(&subject).await.map_err(|_| unavailable)?;
        let opened = opened.and_then(|stored| stored.event::<mesh_proto::identity::SessionOpened>().ok().flatten());
        let name = opened.ok_or("invalid_grant")?.account;
        let account = self.account(&name).filter(|account| !account.disabled).ok_or("invalid_grant")?;
        self.tokens(&name, &account, session, &next).map_err(|_| unavailable)
    }

    /// The token endpoint (RFC 6749 §3.2): codes and refresh tokens.
    pub(crate) async fn token_endpoint(&self, request: Request<Body>) -> Response {
        let (parts, body) = request.into_parts();
        let form = match self.form(&parts.headers, body).await {
            Ok(form) => form,
            Err(problem) => return gateway::refuse(&problem, "/oauth/token"),
        };
        if let Err(problem) = self.limit("token endpoint", Rate { per_second: 200, burst: 400 }) {
            return gateway::refuse(&problem, "/oauth/token");
        }
        let value = |name: &str| form.get(name).and_then(|values| values.last()).cloned().unwrap_or_default();
        let granted = match (self.inner.signin.issuer(), value("grant_type").as_str()) {
            (None, _) => Err("unauthorized_client"),
            (_, "refresh_token") => self.renew(&value("refresh_token")).await,
            (_, "authorization_code") => {
                self.redeem(&value("code"), &value("redirect_uri"), &value("code_verifier")).await
            }
            _ => Err("unsupported_grant_type"),
        };
        match granted {
            Ok(tokens) => uncached(gateway::json(StatusCode::OK, &tokens)),
            Err(error) => uncached(gateway::json(StatusCode::BAD_REQUEST, &json!({"error": error}))),
        }
    }

    async fn form(
        &self,
        headers: &http::HeaderMap,
        body: Body,
    ) -> Result<std::collections::BTreeMap<String, Vec<String>>, Problem> {
        let bytes = gateway::read(headers, body).await?;
        let text =
            std::str::from_utf8(&bytes).map_err(|_| Problem::malformed("the form is not UTF-8", "send UTF-8"))?;
        let known = [
            "grant_type",
            "refresh_token",
            "code",
            "redirect_uri",
            "code_verifier",
            "client_id",
            "scope",
            "username",
            "password",
            "response_type",
            "state",
            "code_challenge",
            "code_challenge_method",
        ];
        forms::query(text, &known)
    }

    async fn redeem(&self, code: &str, redirect_uri: &str, verifier: &str) -> Result<Json, &'static str> {
        let issuer = self.inner.signin.issuer().ok_or("unauthorized_client")?;
        let now_s = self.inner.mesh.now().seconds;
        let expected = Expected {
            issuer: issuer.name.clone(),
            audience: "urn:continuum:code".into(),
            skew_s: 0,
            life_max_s: CODE_S + 1,
        };
        let claims = check(code, &issuer.keys, &expected, now_s).map_err(|_| "invalid_grant")?;
        let grant: Grant = serde_json::from_value(claims.all["grant"].clone()).map_err(|_| "invalid_grant")?;
        pkce::redeem(&grant, redirect_uri, verifier, now_s).map_err(|_| "invalid_grant")?;
        let account = self.account(&grant.account).filter(|account| !account.disabled).ok_or("invalid_grant")?;
        let session = grant.session.clone();
        match self.open(&grant.account, &account, grant.session).await {
            Ok(tokens) => Ok(tokens),
            Err(problem) if problem.kind == Kind::Conflict => {
                // Used twice: whoever has tokens by it loses them (RFC 6749 §4.1.2).
                let command = CloseSession { realm: SESSION.into(), name: session };
                let id = uuid::Uuid::now_v7().to_string();
                let _closed_before = self.inner.answers.ask(&command, &id, self.limit_of_commands()).await;
                Err("invalid_grant")
            }
            Err(_) => Err("temporarily_unavailable"),
        }
    }

    /// The authorization endpoint: a form for name and password, and the way back with a code.
    pub(crate) async fn authorize(&self, request: Request<Body>) -> Response {
        let (parts, body) = request.into_parts();
        let form = if parts.method == http::Method::POST {
            self.form(&parts.headers, body).await
        } else {
            forms::query(
                parts.uri.query().unwrap_or_default(),
                &[
                    "response_type",
                    "client_id",
                    "redirect_uri",
                    "state",
                    "code_challenge",
                    "code_challenge_method",
                    "scope",
                ],
            )
        };
        let form = match form {
            Ok(form) => form,
            Err(problem) => return gateway::refuse(&problem, "/oauth/authorize"),
        };
        let value = |name: &str| form.get(name).and_then(|values| values.last()).cloned().unwrap_or_default();
        let asked = pkce::Asked {
            response_type: value("response_type"),
            client_id: value("client_id"),
            redirect_uri: value("redirect_uri"),
            state: value("state"),
            code_challenge: value("code_challenge"),
            code_challenge_method: value("code_challenge_method"),
        };
        if let Err(wrong) = pkce::check(&asked) {
            let problem = Problem::malformed(wrong, "use the authorization code flow with PKCE");
            return gateway::refuse(&problem, "/oauth/authorize");
        }
        if parts.method != http::Method::POST {
            return page(StatusCode::OK, &asked, "");
        }
        match self.authenticate(&value("username"), value("password")).await {
            Ok(_) => {}
            Err(problem) if problem.kind == Kind::Unauthenticated => {
                return page(StatusCode::UNAUTHORIZED, &asked, "Name or password is wrong.");
            }
            Err(problem) => return gateway::refuse(&problem, "/oauth/authorize"),
        }
        match self.code(&asked, &value("username")) {
            Ok(code) => {
                let encode = |text: &str| {
                    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
                };
                let mark = if asked.redirect_uri.contains('?') { '&' } else { '?' };
                let to = format!("{}{mark}code={}&state={}", asked.redirect_uri, encode(&code), encode(&asked.state));
                uncached(gateway::with(gateway::empty(StatusCode::SEE_OTHER), header::LOCATION, &to))
            }
            Err(error) => gateway::refuse(&self.internal(&error), "/oauth/authorize"),
        }
    }

    fn code(&self, asked: &pkce::Asked, account: &str) -> anyhow::Result<String> {
        let issuer = self.inner.signin.issuer().ok_or_else(|| anyhow::anyhow!("there is no built-in issuer"))?;
        let now_s = self.inner.mesh.now().seconds;
        let grant = Grant {
            session: uuid::Uuid::new_v4().to_string(),
            account: account.into(),
            redirect_uri: asked.redirect_uri.clone(),
            challenge: asked.code_challenge.clone(),
            expires: now_s + CODE_S,
        };
        let claims = json!({"iss": issuer.name, "aud": "urn:continuum:code", "sub": account, "iat": now_s,
            "exp": now_s + CODE_S, "grant": grant});
        issuer.sign("JWT", &claims)
    }

    /// Discovery of the built-in issuer (RFC 8414).
    pub(crate) fn discovery(&self, base: &str) -> Json {
        json!({
            "issuer": self.inner.signin.trusted(),
            "authorization_endpoint": format!("{base}/oauth/authorize"),
            "token_endpoint": format!("{base}/oauth/token"),
            "jwks_uri": format!("{base}/oauth/jwks"),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
        })
    }

    /// Who the caller is, and what it may do.
    pub(crate) fn whoami(&self, caller: &Caller) -> Response {
        let roles: Vec<&str> =
            ROLES.iter().filter(|(role, _)| caller.roles.contains(role)).map(|(_, name)| *name).collect();
        let permissions: serde_json::Map<String, Json> = MATRIX
            .iter()
            .map(|(action, _)| {
                let reach = match caller.reach(*action) {
                    Reach::Nothing => "nothing",
                    Reach::Own => "own",
                    Reach::All => "all",
                };
                (format!("{action:?}"), json!(reach))
            })
            .collect();
        let shown = json!({"subject": caller.subject, "name": caller.name, "owner": caller.owner, "roles": roles,
            "permissions": permissions});
        gateway::json(StatusCode::OK, &shown)
    }

    /// Lists accounts, without what is kept of their passwords.
    pub(crate) fn list_accounts(&self) -> Response {
        let all = self
            .inner
            .accounts
            .read(|view| view.accounts.iter().map(|(name, account)| shown(name, account)).collect::<Vec<_>>());
        gateway::json(StatusCode::OK, &Json::Array(all))
    }

    /// Makes or changes an account.
    pub(crate) async fn put_account(&self, asked: &mut Asked) -> Result<Response, Problem> {
        self.issuer()?;
        let input: AccountInput = forms::form(asked.json())?;
        if !mesh_proto::is_key(&input.username) {
            return Err(Problem::field("username", "is no name", "use 1 to 64 letters, digits, `_` and `-`"));
        }
        let roles: Vec<&str> = ROLES.iter().map(|(_, name)| *name).collect();
        if let Some(role) = input.roles.iter().find(|role| !roles.contains(&role.as_str())) {
            let shown: String = role.chars().take(64).collect();
            return Err(Problem::field("roles", format!("{shown:?} is none"), format!("use {}", roles.join(", "))));
        }
        let hash = match &input.password {
            None if self.account(&input.username).is_none() => {
                return Err(Problem::field("password", "is missing", "a new account needs one"));
            }
            None => String::new(),
            Some(password) if !(8..=PASSWORD_MAX).contains(&password.len()) => {
                return Err(Problem::field("password", "has not 8 to 256 bytes", "choose another"));
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
        // So that the account can sign in here at once; else it can a little later.
        let shows = |view: &Accounts| view.accounts.get(&input.username) == Some(&account);
        let _late = tokio::time::timeout(CAUGHT_UP, self.accounts_show(shows)).await;
        Ok(gateway::json(StatusCode::OK, &shown(&input.username, &account)))
    }

    async fn hash(&self, password: String) -> Result<String, Problem> {
        let permit = self.inner.checks.clone().acquire_owned().await;
        let gateway = self.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            gateway.inner.signin.issuer().map(|issuer| issuer.hash(&password))
        });
        match hashed.await {
            Ok(Some(Ok(hash))) => Ok(hash),
            Ok(Some(Err(error))) => Err(self.internal(&error)),
            _ => Err(Problem::new(Kind::Internal, "the password was not hashed", "try again")),
        }
    }

    async fn define_account(&self, command: &DefineAccount, id: &str) -> Result<Account, Problem> {
        let (answer, _) = self.inner.answers.ask(command, id, self.limit_of_commands()).await?;
        let defined = answer.event::<AccountDefined>().ok().flatten();
        let defined = defined.ok_or_else(|| Problem::new(Kind::Internal, "the answer cannot be read", "try again"))?;
        Ok(Account::from(&defined))
    }

    /// Removes an account.
    pub(crate) async fn delete_account(&self, asked: &Asked) -> Result<Response, Problem> {
        self.issuer()?;
        let name = asked.id(0);
        if self.account(&name).is_none() {
            return Err(Problem::not_found(format!("account {name}")));
        }
        if name == asked.caller.subject {
            return Err(Problem::new(Kind::Conflict, "this account is your own", "let another administrator do it"));
        }
        let command = RemoveAccount { realm: ACCOUNT.into(), name };
        let id = uuid::Uuid::now_v7().to_string();
        self.inner.answers.ask(&command, &id, self.limit_of_commands()).await?;
        Ok(gateway::empty(StatusCode::NO_CONTENT))
    }

    /// Sees to it that somebody can sign in: makes the first account if there was none when this gateway started. Met
    /// once it knows an account, its own or another's; who is served before is not told that a good password is wrong.
    pub(crate) async fn first_account(self, none_yet: bool, known: Condition) -> anyhow::Result<()> {
        let stopping = self.inner.mesh.stopping();
        let ready = async {
            if none_yet {
                match self.inner.mesh.data_dir() {
                    Some(folder) => self.make_first(folder, &known).await?,
                    None => known.unmet("there is no account yet, and no data_dir for the first one's password"),
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

    /// Makes the first account of a mesh, `admin`, whose password is in a file of the data folder; the file is removed
    /// if another's password holds.
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
        // One command, however often it is sent.
        let id = uuid::Uuid::now_v7().to_string();
        loop {
            match self.define_account(&command, &id).await {
                Ok(_) => {
                    tracing::info!(password = %path.display(), "first account made: admin");
                    return Ok(());
                }
                Err(Problem { kind: Kind::Conflict, .. }) => break,
                Err(problem) => {
                    tracing::warn!(problem = problem.detail, "first account not made yet");
                    known.unmet(format!("the first account is not made: {}", problem.detail));
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
        // There is one already. Mostly another gateway's, whose password holds; but it may be that of the file: this
        // gateway asked for it before it was killed, or another did that has the same folder.
        let subject = format!("identity.account_defined.v1.{ACCOUNT}.{FIRST}");
        let stored = self.inner.mesh.bus().log("IDENTITY").last(&subject).await.context("read the first account")?;
        let defined = stored.and_then(|stored| stored.event::<AccountDefined>().ok().flatten());
        let account = defined.map(|fact| Account { disabled: false, ..Account::from(&fact) });
        if !self.verify(account, password).await {
            tracing::info!("first account was made elsewhere: its password is there");
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

fn shown(name: &str, account: &Account) -> Json {
    json!({"username": name, "roles": account.roles, "owner": account.owner, "disabled": account.disabled})
}

fn uncached(response: Response) -> Response {
    gateway::with(response, header::CACHE_CONTROL, "no-store")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// The page on which people sign in. It runs no script, and no other page can hold it.
fn page(status: StatusCode, asked: &pkce::Asked, message: &str) -> Response {
    let fields = [
        ("response_type", &asked.response_type),
        ("client_id", &asked.client_id),
        ("redirect_uri", &asked.redirect_uri),
        ("state", &asked.state),
        ("code_challenge", &asked.code_challenge),
        ("code_challenge_method", &asked.code_challenge_method),
    ];
    let hidden: String = fields
        .iter()
        .map(|(name, value)| format!("<input type=\"hidden\" name=\"{name}\" value=\"{}\">", escaped(value)))
        .collect();
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Sign in to Continuum</title>\
         <h1>Sign in to Continuum</h1><p role=\"alert\">{}</p><form method=\"post\" action=\"/oauth/authorize\">{hidden}\
         <p><label>Name <input name=\"username\" autocomplete=\"username\" required autofocus></label></p>\
         <p><label>Password <input name=\"password\" type=\"password\" autocomplete=\"current-password\" required></label></p>\
         <p><button>Sign in</button></p></form></html>",
        escaped(message)
    );
    let mut response = Response::new(Body::from(html));
    *response.status_mut() = status;
    let response = gateway::with(response, header::CONTENT_TYPE, "text/html; charset=utf-8");
    let response =
        gateway::with(response, header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    uncached(response)
}
