//! `login`, `logout`, `token`: a person at the gateway. What was got is kept in the data folder, readable by its owner
//! only, and renewed when it is nearly over.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{client::legacy::Client as Http, rt::TokioExecutor};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::Context;
use crate::{
    args::LoginOptions,
    client::now,
    output::{Format, line},
};

/// Bytes of an answer at most.
const ANSWER_MAX: usize = 16 << 20;
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(35);
/// A token is renewed so many seconds before it ends.
const EARLY_S: i64 = 30;

/// What signing in gave.
#[derive(Serialize, Deserialize)]
pub(crate) struct Session {
    /// Address of the gateway.
    pub(crate) gateway: String,
    username: String,
    token: String,
    refresh_token: String,
    /// When the token ends, seconds since 1970.
    expires: i64,
}

/// Where the gateway of a mesh on this machine answers.
pub(crate) fn gateway_of(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("state/gateway/url");
    let text = fs::read_to_string(&path).with_context(|| {
        format!("find the gateway of {} (start a mesh with `continuum up`, or say --gateway)", data_dir.display())
    })?;
    Ok(text.trim().to_owned())
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("login.json")
}

/// One request over HTTP; status and body.
pub(crate) async fn request(
    method: Method,
    url: &str,
    token: Option<&str>,
    kind: &str,
    body: String,
) -> anyhow::Result<(u16, Json)> {
    let mut request = Request::builder().method(method).uri(url);
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::new(bytes::Bytes::from(body))).with_context(|| format!("read address {url}"))?;
    let asked = async {
        let client = Http::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.with_context(|| format!("ask {url}"))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("read the answer of {url}: {error}"))?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or(Json::Null)))
    };
    tokio::time::timeout(ANSWER_LIMIT, asked).await.with_context(|| format!("{url} does not answer"))?
}

/// What a refusal says.
fn said(answer: &Json) -> String {
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    match (text("detail"), text("hint")) {
        (detail, hint) if !detail.is_empty() => format!("{detail}; {hint}"),
        _ => answer.to_string(),
    }
}

fn keep(data_dir: &Path, gateway: &str, answer: &Json) -> anyhow::Result<Session> {
    let text = |name: &str| {
        answer[name].as_str().map(str::to_owned).with_context(|| format!("the gateway's answer has no {name}"))
    };
    let session = Session {
        gateway: gateway.to_owned(),
        username: text("username")?,
        token: text("token")?,
        refresh_token: text("refresh_token")?,
        expires: now().seconds + answer["expires_in"].as_i64().unwrap_or_default(),
    };
    fs::create_dir_all(data_dir).with_context(|| format!("make {}", data_dir.display()))?;
    let staged = data_dir.join(format!("login.{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(serde_json::to_string_pretty(&session)?.as_bytes())?;
    fs::rename(&staged, path(data_dir)).context("keep the session")?;
    Ok(session)
}

/// Signs in.
pub(crate) async fn sign_in(data_dir: &Path, gateway: &str, name: &str, password: &str) -> anyhow::Result<Session> {
    let body = json!({"username": name, "password": password}).to_string();
    let url = format!("{gateway}/api/v1/auth/login/");
    let (status, answer) = request(Method::POST, &url, None, "application/json", body).await?;
    if status != 200 {
        bail!("sign in as {name}: {}", said(&answer));
    }
    keep(data_dir, gateway, &answer)
}

/// Password of the first account of a mesh on this machine.
pub(crate) fn first_password(data_dir: &Path) -> anyhow::Result<String> {
    let file = data_dir.join("state/gateway/admin.password");
    fs::read_to_string(&file).map(|text| text.trim().to_owned()).with_context(|| format!("read {}", file.display()))
}

/// `login`.
pub(crate) async fn login(context: &Context<'_>, options: LoginOptions) -> anyhow::Result<ExitCode> {
    let gateway = match &options.gateway {
        Some(gateway) => gateway.trim_end_matches('/').to_owned(),
        None => gateway_of(context.data_dir)?,
    };
    let password = match &options.password_file {
        Some(file) if file == Path::new("-") => {
            let mut text = String::new();
            std::io::stdin().take(4_096).read_to_string(&mut text).context("read the password")?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        Some(file) => {
            let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None if options.username == "admin" && options.gateway.is_none() => first_password(context.data_dir)?,
        None => bail!("give the password of {}: --password-file FILE, or `-` for standard input", options.username),
    };
    let session = sign_in(context.data_dir, &gateway, &options.username, &password).await?;
    match context.format {
        Format::Table => line(format!("signed in as {} at {}", session.username, session.gateway)),
        _ => line(json!({"username": session.username, "gateway": session.gateway}).to_string()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The session, its token renewed if it is nearly over.
pub(crate) async fn session(data_dir: &Path) -> anyhow::Result<Session> {
    let path = path(data_dir);
    let text =
        fs::read(&path).with_context(|| format!("nobody is signed in ({}); say `continuum login`", path.display()))?;
    let session: Session = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
    if now().seconds + EARLY_S < session.expires {
        return Ok(session);
    }
    // One at a time: a refresh token that is shown twice ends the session.
    let lock = fs::File::create(data_dir.join("login.lock")).context("make the lock of the session")?;
    tokio::task::block_in_place(|| lock.lock()).context("lock the session")?;
    let session: Session =
        serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("read {}", path.display()))?;
    if now().seconds + EARLY_S < session.expires {
        return Ok(session);
    }
    let body = format!("grant_type=refresh_token&client_id=continuum&refresh_token={}", session.refresh_token);
    let url = format!("{}/oauth/token", session.gateway);
    let (status, answer) = request(Method::POST, &url, None, "application/x-www-form-urlencoded", body).await?;
    if status != 200 {
        bail!("the session is over ({}); say `continuum login`", said(&answer));
    }
    keep(data_dir, &session.gateway, &answer)
}

/// `token`.
pub(crate) async fn print_token(context: &Context<'_>) -> anyhow::Result<ExitCode> {
    line(session(context.data_dir).await?.token);
    Ok(ExitCode::SUCCESS)
}

impl Session {
    /// A token that was good when this was read.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// One request in this session.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<&Json>) -> anyhow::Result<(u16, Json)> {
        let body = body.map(Json::to_string).unwrap_or_default();
        request(method, &format!("{}{path}", self.gateway), Some(&self.token), "application/json", body).await
    }
}

/// `logout`.
pub(crate) async fn logout(context: &Context<'_>) -> anyhow::Result<ExitCode> {
    let session = session(context.data_dir).await?;
    let (status, answer) = session.ask(Method::POST, "/api/v1/auth/logout/", None).await?;
    if status != 204 {
        bail!("sign out: {}", said(&answer));
    }
    fs::remove_file(path(context.data_dir)).context("forget the session")?;
    line("signed out");
    Ok(ExitCode::SUCCESS)
}
