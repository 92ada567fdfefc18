//! Sessions: signing in with name and password, refresh tokens that are good once, and the authorization code flow with
//! PKCE for a browser on the same machine.

use std::collections::BTreeMap;

use axum::{body::Body, response::Response};
use http::{HeaderMap, Request, StatusCode, header};
use mesh_proto::{
    AnyEvent as _, Timestamp, derived_id,
    identity::{CloseSession, OpenSession, RenewSession, SessionOpened, SessionRenewed},
};
use mesh_rest::{
    access::Action,
    body,
    http::{empty, json, read, refuse, unavailable, with},
    limits::Rate,
    problem::{Kind, Problem},
    token::{Expected, check},
};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::{
    api::uncached,
    domain::{
        accounts::Accounts,
        identities::{Account, SESSION},
        pkce::{self, CLIENT, Grant},
    },
    shell::{COMMAND_LIMIT, Identity, issuer, page::page},
};

/// Passwords that may be tried for one account: too few to guess one.
const TRIES: Rate = Rate { per_second: 1, burst: 10 };
/// Requests at the token endpoint.
const TOKENS: Rate = Rate { per_second: 200, burst: 400 };
/// Life of an authorization code, seconds.
const CODE_S: i64 = 60;
/// Longest password, bytes.
pub(crate) const PASSWORD_MAX: usize = 256;
/// Audience of authorization codes.
const CODE_AUDIENCE: &str = "urn:continuum:code";
/// Parameters of the authorization endpoint.
const AUTHORIZE: [&str; 7] =
    ["response_type", "client_id", "redirect_uri", "state", "code_challenge", "code_challenge_method", "scope"];
/// Fields of the forms that the OAuth endpoints read.
const FIELDS: [&str; 13] = [
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

/// No parameter may be there twice (RFC 6749 §3.1, §3.2).
const NO_LIST: fn(&str) -> bool = |_| false;

type Form = BTreeMap<String, Vec<String>>;

/// Name and password (AuthToken).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    username: String,
    password: String,
}

/// The value of a field; empty if it is absent.
fn value(form: &Form, name: &str) -> String {
    form.get(name).and_then(|values| values.first()).cloned().unwrap_or_default()
}

async fn form(headers: &HeaderMap, body: Body) -> Result<Form, Problem> {
    let bytes = read(headers, body).await?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Problem::malformed("the form is not UTF-8", "send UTF-8"))?;
    body::query(text, &FIELDS, NO_LIST)
}

impl Identity {
    /// Checks a password.
    async fn authenticate(&self, name: &str, password: String) -> Result<Account, Problem> {
        let wrong = || Problem::new(Kind::Unauthenticated, "name or password is wrong", "try again");
        if !mesh_proto::is_key(name) || password.len() > PASSWORD_MAX {
            return Err(wrong());
        }
        self.limit(&format!("login {name}"), TRIES)?;
        if !self.inner.accounts.read(Accounts::any) {
            return Err(unavailable("no account is known here yet"));
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
        let signed = self.inner.issuer.token(name, account, session, self.inner.mesh.now().seconds);
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
            client_id: CLIENT.into(),
            token_hash: pkce::hash(&secret),
            expires: Some(self.session_ends()),
        };
        let id = derived_id(&["open", &session, &command.token_hash]);
        self.inner.answers.ask(&command, &id, COMMAND_LIMIT).await?;
        self.tokens(name, account, &session, &secret)
    }

    /// Signs in with name and password.
    pub(crate) async fn login(&self, request: Request<Body>) -> Result<Response, Problem> {
        let (parts, body) = request.into_parts();
        let login: Login = body::form(self.json(&parts.headers, body).await?)?;
        let account = self.authenticate(&login.username, login.password).await?;
        let session = uuid::Uuid::new_v4().to_string();
        let tokens = self.open(&login.username, &account, session).await?;
        Ok(uncached(json(StatusCode::OK, &tokens)))
    }

    /// Ends the session of the caller's token.
    pub(crate) async fn logout(&self, request: Request<Body>) -> Result<Response, Problem> {
        let caller = self.permitted(request.headers(), Action::OwnSession)?;
        if mesh_proto::is_key(&caller.session) {
            let command = CloseSession { realm: SESSION.into(), name: caller.session };
            let id = uuid::Uuid::now_v7().to_string();
            match self.inner.answers.ask(&command, &id, COMMAND_LIMIT).await {
                Ok(_) => {}
                // Closed before, which is what the caller wants.
                Err(problem) if problem.refusal.is_some() => {}
                Err(problem) => return Err(problem),
            }
        }
        Ok(empty(StatusCode::NO_CONTENT))
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
        let answer = match self.inner.answers.ask(&command, &id, COMMAND_LIMIT).await {
            Ok((answer, _)) => answer,
            Err(problem) if problem.refusal.is_some() => return Err("invalid_grant"),
            Err(_) => return Err(unavailable),
        };
        // Any other answer closed the session.
        if !matches!(answer.event::<SessionRenewed>(), Ok(Some(_))) {
            return Err("invalid_grant");
        }
        // The account is in the fact that opened the session.
        let about = SessionOpened { realm: SESSION.into(), name: session.into(), ..SessionOpened::default() };
        let subject = about.subject().map_err(|_| "invalid_grant")?;
        let opened = self.inner.mesh.bus().log("IDENTITY").last(&subject).await.map_err(|_| unavailable)?;
        let opened = opened.and_then(|stored| stored.event::<SessionOpened>().ok().flatten());
        let name = opened.ok_or("invalid_grant")?.account;
        let account = self.account(&name).filter(|account| !account.disabled).ok_or("invalid_grant")?;
        self.tokens(&name, &account, session, &next).map_err(|_| unavailable)
    }

    /// The token endpoint (RFC 6749 §3.2): codes and refresh tokens.
    pub(crate) async fn token_endpoint(&self, request: Request<Body>) -> Response {
        let (parts, body) = request.into_parts();
        let form = match form(&parts.headers, body).await {
            Ok(form) => form,
            Err(problem) => return refuse(&problem, "/oauth/token"),
        };
        if let Err(problem) = self.limit("token endpoint", TOKENS) {
            return refuse(&problem, "/oauth/token");
        }
        let value = |name: &str| value(&form, name);
        let granted = match value("grant_type").as_str() {
            "refresh_token" => self.renew(&value("refresh_token")).await,
            "authorization_code" => self.redeem(&value("code"), &value("redirect_uri"), &value("code_verifier")).await,
            _ => Err("unsupported_grant_type"),
        };
        match granted {
            Ok(tokens) => uncached(json(StatusCode::OK, &tokens)),
            Err(error) => uncached(json(StatusCode::BAD_REQUEST, &json!({"error": error}))),
        }
    }

    async fn redeem(&self, code: &str, redirect_uri: &str, verifier: &str) -> Result<Json, &'static str> {
        let issuer = &self.inner.issuer;
        let now_s = self.inner.mesh.now().seconds;
        let expected =
            Expected { issuer: issuer.name.clone(), audience: CODE_AUDIENCE.into(), skew_s: 0, life_max_s: CODE_S + 1 };
        let claims = check(code, &issuer.keys, &expected, now_s).map_err(|_| "invalid_grant")?;
        let grant: Grant = serde_json::from_value(claims.all["grant"].clone()).map_err(|_| "invalid_grant")?;
        pkce::redeem(&grant, redirect_uri, verifier, now_s).map_err(|_| "invalid_grant")?;
        let account = self.account(&grant.account).filter(|account| !account.disabled).ok_or("invalid_grant")?;
        let session = grant.session.clone();
        match self.open(&grant.account, &account, grant.session).await {
            Ok(tokens) => Ok(tokens),
            Err(problem) if problem.refusal.is_some() => {
                // The code was used twice: the tokens that it gave lose their session (RFC 6749 §4.1.2).
                let command = CloseSession { realm: SESSION.into(), name: session };
                let id = uuid::Uuid::now_v7().to_string();
                let _closed_before = self.inner.answers.ask(&command, &id, COMMAND_LIMIT).await;
                Err("invalid_grant")
            }
            Err(_) => Err("temporarily_unavailable"),
        }
    }

    /// The authorization endpoint: a form for name and password, and the way back with a code.
    pub(crate) async fn authorize(&self, request: Request<Body>) -> Response {
        let (parts, body) = request.into_parts();
        let form = if parts.method == http::Method::POST {
            form(&parts.headers, body).await
        } else {
            body::query(parts.uri.query().unwrap_or_default(), &AUTHORIZE, NO_LIST)
        };
        let form = match form {
            Ok(form) => form,
            Err(problem) => return refuse(&problem, "/oauth/authorize"),
        };
        let value = |name: &str| value(&form, name);
        let wanted = pkce::Authorization {
            response_type: value("response_type"),
            client_id: value("client_id"),
            redirect_uri: value("redirect_uri"),
            state: value("state"),
            code_challenge: value("code_challenge"),
            code_challenge_method: value("code_challenge_method"),
        };
        if let Err(wrong) = pkce::check(&wanted) {
            let problem = Problem::malformed(wrong, "use the authorization code flow with PKCE");
            return refuse(&problem, "/oauth/authorize");
        }
        if parts.method != http::Method::POST {
            return page(StatusCode::OK, &wanted, "");
        }
        match self.authenticate(&value("username"), value("password")).await {
            Ok(_) => {}
            Err(problem) if problem.kind == Kind::Unauthenticated => {
                return page(StatusCode::UNAUTHORIZED, &wanted, "Name or password is wrong.");
            }
            Err(problem) => return refuse(&problem, "/oauth/authorize"),
        }
        match self.code(&wanted, &value("username")) {
            Ok(code) => {
                let encode = |text: &str| {
                    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
                };
                let mark = if wanted.redirect_uri.contains('?') { '&' } else { '?' };
                let to = format!("{}{mark}code={}&state={}", wanted.redirect_uri, encode(&code), encode(&wanted.state));
                uncached(with(empty(StatusCode::SEE_OTHER), header::LOCATION, &to))
            }
            Err(error) => refuse(&self.internal(&error), "/oauth/authorize"),
        }
    }

    /// An authorization code: a signed grant.
    fn code(&self, wanted: &pkce::Authorization, account: &str) -> anyhow::Result<String> {
        let issuer = &self.inner.issuer;
        let now_s = self.inner.mesh.now().seconds;
        let grant = Grant {
            session: uuid::Uuid::new_v4().to_string(),
            account: account.into(),
            redirect_uri: wanted.redirect_uri.clone(),
            challenge: wanted.code_challenge.clone(),
            expires: now_s + CODE_S,
        };
        let claims = json!({"iss": issuer.name, "aud": CODE_AUDIENCE, "sub": account, "iat": now_s,
            "exp": now_s + CODE_S, "grant": grant});
        issuer.sign("JWT", &claims)
    }
}
