//! `login`, `logout`, `token`: a person at the gateway. The session is kept in the data folder, readable by its owner
//! only, and renewed shortly before it ends.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Args;
use http::Method;
use mesh_client::now;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::{
    context::Context,
    http::request,
    output::{Format, line},
};

/// Options of `login`.
#[derive(Debug, Args)]
pub struct LoginOptions {
    /// Account.
    #[arg(default_value = "admin")]
    pub username: String,
    /// File with the password, `-` for standard input. The first account of a mesh on this machine needs none.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Address of the gateway; that of the mesh on this machine when absent.
    #[arg(long, value_name = "URL")]
    pub gateway: Option<String>,
}

/// Seconds before its end at which a token is renewed.
const EARLY_S: i64 = 30;

/// What signing in gave.
#[derive(Serialize, Deserialize)]
pub struct Session {
    /// Address of the gateway.
    pub gateway: String,
    username: String,
    token: String,
    refresh_token: String,
    /// When the token ends, seconds since 1970.
    expires: i64,
}

/// Where the gateway of a mesh on this machine answers.
pub fn gateway_of(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("state/gateway/url");
    let text = fs::read_to_string(&path).with_context(|| {
        format!("find the gateway of {} (start a mesh with `continuum up`, or give --gateway)", data_dir.display())
    })?;
    Ok(text.trim().to_owned())
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("login.json")
}

/// The text of a refusal.
fn detail(answer: &Json) -> String {
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
pub async fn sign_in(data_dir: &Path, gateway: &str, name: &str, password: &str) -> anyhow::Result<Session> {
    let body = json!({"username": name, "password": password}).to_string();
    let url = format!("{gateway}/api/v1/auth/login/");
    let (status, answer) = request(Method::POST, &url, None, "application/json", body).await?;
    if status != 200 {
        bail!("sign in as {name}: {}", detail(&answer));
    }
    keep(data_dir, gateway, &answer)
}

/// Password of the first account of a mesh on this machine.
pub fn first_password(data_dir: &Path) -> anyhow::Result<String> {
    let file = data_dir.join("state/identity/admin.password");
    fs::read_to_string(&file).map(|text| text.trim().to_owned()).with_context(|| format!("read {}", file.display()))
}

/// `login`.
pub async fn login(context: &Context<'_>, options: LoginOptions) -> anyhow::Result<ExitCode> {
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
pub async fn session(data_dir: &Path) -> anyhow::Result<Session> {
    let path = path(data_dir);
    let text =
        fs::read(&path).with_context(|| format!("nobody is signed in ({}); run `continuum login`", path.display()))?;
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
        bail!("the session has ended ({}); run `continuum login`", detail(&answer));
    }
    keep(data_dir, &session.gateway, &answer)
}

/// `token`.
pub async fn print_token(context: &Context<'_>) -> anyhow::Result<ExitCode> {
    line(session(context.data_dir).await?.token);
    Ok(ExitCode::SUCCESS)
}

impl Session {
    /// A token that was good when this was read.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// One request in this session.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Json>) -> anyhow::Result<(u16, Json)> {
        let body = body.map(Json::to_string).unwrap_or_default();
        request(method, &format!("{}{path}", self.gateway), Some(&self.token), "application/json", body).await
    }
}

/// `logout`.
pub async fn logout(context: &Context<'_>) -> anyhow::Result<ExitCode> {
    let session = session(context.data_dir).await?;
    let (status, answer) = session.ask(Method::POST, "/api/v1/auth/logout/", None).await?;
    if status != 204 {
        bail!("sign out: {}", detail(&answer));
    }
    fs::remove_file(path(context.data_dir)).context("forget the session")?;
    line("signed out");
    Ok(ExitCode::SUCCESS)
}
