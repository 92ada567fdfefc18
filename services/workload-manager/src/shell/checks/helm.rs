//! Rendering by the real `helm`, as a process of its own that can do no harm.
//!
//! It gets the files that were checked and not the archive, in a folder of its own; an environment with nothing in it; a
//! limit on time, CPU time, address space and output. `helm template` asks no cluster and, as long as everything that a
//! chart depends on is inside, no network.

#![expect(clippy::disallowed_methods, reason = "helm is looked for on the PATH")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};

use chart::{archive::Files, manifests::RENDERED_BYTES_MAX};

/// Bytes of what it says of an error.
const SAID_BYTES_MAX: usize = 4 << 10;
/// What it may write to of its memory, KiB.
const DATA_KIB: &str = "1048576";
/// Its address space, KiB; a Go program reserves a gigabyte and more that it never uses, and more with each thread.
const SPACE_KIB: &str = "4194304";
/// Sets the limits (time in seconds, data, space), and becomes what follows them.
const LIMITED: &str =
    "ulimit -c 0; ulimit -s 8192; ulimit -t \"$1\"; ulimit -d \"$2\"; ulimit -v \"$3\"; shift 3; exec \"$@\"";
/// Oldest that is used: the flags and limits of helm 3 as they are since then.
const VERSION_MIN: (u64, u64) = (3, 14);
/// How it is got.
pub(crate) const INSTALL: &str =
    "install helm 3.14 or newer (`make servers` builds it), or set `helm` of workload-manager";

/// A `helm` that can be used.
#[derive(Clone, Debug)]
pub(crate) struct Helm {
    path: PathBuf,
    /// Such as `helm v3.22.0`.
    pub(crate) version: String,
}

/// How a chart is rendered.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Name of the release.
    pub(crate) release: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// YAML to lay over the chart's values, in this order.
    pub(crate) values: Vec<String>,
}

/// Why nothing was rendered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no helm, or it cannot be run: that is not the chart's fault.
    #[error("{0}")]
    Away(String),
    /// The chart does not render.
    #[error("{0}")]
    Refused(String),
}

impl Helm {
    /// The one that is named, or the first that is found.
    pub(crate) async fn find(named: &str) -> Result<Self, Error> {
        let mut skipped = vec![];
        for path in candidates(named) {
            match version_of(&path).await {
                Ok(version) if is_new_enough(&version) => return Ok(Self { path, version: format!("helm {version}") }),
                Ok(version) => skipped.push(format!("{} is {version}, not helm 3.14 or newer of 3", path.display())),
                Err(reason) => skipped.push(format!("{}: {reason}", path.display())),
            }
        }
        let skipped = if skipped.is_empty() { String::new() } else { format!(" ({})", skipped.join("; ")) };
        Err(Error::Away(format!("helm is not installed{skipped}")))
    }

    /// Renders a chart: YAML documents.
    pub(crate) async fn template(&self, files: &Files, order: &Order, limit: Duration) -> Result<String, Error> {
        let away = |doing: &str, error: std::io::Error| Error::Away(format!("{doing}: {error}"));
        let folder =
            tempfile::Builder::new().prefix("continuum-chart-").tempdir().map_err(|e| away("make a folder", e))?;
        let root = folder.path().to_owned();
        let (files, values) = (files.clone(), order.values.clone());
        let lay_out = tokio::task::spawn_blocking(move || lay_out(&root, &files, &values)).await;
        let written = lay_out.map_err(|e| Error::Away(format!("lay the chart out: {e}")))?;
        let values = written.map_err(|error| away("lay the chart out", error))?;
        let mut arguments = vec!["template".into(), order.release.clone(), "chart".into()];
        arguments.extend(["--namespace".into(), order.namespace.clone()]);
        values.into_iter().for_each(|name| arguments.extend(["--values".into(), name]));
        let said = run(&self.path, &arguments, folder.path(), limit).await?;
        match said.ok {
            true => Ok(said.stdout),
            false => Err(Error::Refused(tidy(&said.stderr, folder.path()))),
        }
    }
}

struct Said {
    ok: bool,
    stdout: String,
    stderr: String,
}

async fn run(program: &Path, arguments: &[String], folder: &Path, limit: Duration) -> Result<Said, Error> {
    let seconds = limit.as_secs().max(1).to_string();
    let mut command = Command::new("/bin/sh");
    command
        // Stacks of threads are as large as the stack may become, and count: whoever started this may have set no limit.
        // One that cannot be set is stricter already.
        .args(["-c", LIMITED, "sh"])
        .args([seconds.as_str(), DATA_KIB, SPACE_KIB])
        .arg(program)
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        // Nothing of the person or service that runs it: no configuration, plugins, repositories, credentials.
        .env("HOME", folder)
        .env("HELM_PLUGINS", folder.join("none"))
        .env("KUBECONFIG", folder.join("none"))
        .env("GOMAXPROCS", "1")
        .env("GOMEMLIMIT", "512MiB")
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| Error::Away(format!("start {}: {error}", program.display())))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (stdout, stderr) = tokio::join!(head(stdout, RENDERED_BYTES_MAX), head(stderr, SAID_BYTES_MAX));
        // One that writes on and on waits for a reader that has gone: it is killed when it is dropped.
        let status = if stdout.len() > RENDERED_BYTES_MAX { None } else { Some(child.wait().await) };
        (stdout, stderr, status)
    };
    let Ok((stdout, stderr, status)) = tokio::time::timeout(limit, work).await else {
        return Err(Error::Refused(format!("it was not rendered within {} ms", limit.as_millis())));
    };
    let Some(status) = status else {
        return Err(Error::Refused(format!("it renders to more than {RENDERED_BYTES_MAX} bytes")));
    };
    let status = status.map_err(|error| Error::Away(format!("wait for {}: {error}", program.display())))?;
    let stdout = String::from_utf8(stdout).map_err(|_| Error::Refused("what was rendered is not UTF-8".into()))?;
    let mut stderr = String::from_utf8_lossy(&stderr).into_owned();
    if status.code() == Some(127) || status.code() == Some(126) {
        return Err(Error::Away(format!("{} cannot be run: {}", program.display(), stderr.trim())));
    }
    let short = ["out of memory", "cannot allocate memory", "pthread_create failed"];
    if status.code().is_none() || short.iter().any(|text| stderr.contains(text)) {
        stderr = "it takes more time or memory to render than is allowed".into();
    }
    Ok(Said { ok: status.success(), stdout, stderr })
}

/// The first bytes of what comes, and one more if there are more. What follows of errors is read and dropped, so that
/// nobody waits for it.
async fn head(reader: Option<impl AsyncRead + Unpin>, most: usize) -> Vec<u8> {
    let mut bytes = vec![];
    let Some(mut reader) = reader else { return bytes };
    // An error ends it as its end does: the exit status tells.
    let _ = (&mut reader).take(most as u64 + 1).read_to_end(&mut bytes).await;
    if most == SAID_BYTES_MAX {
        bytes.truncate(most);
        let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    }
    bytes
}

/// Writes a chart and values below a folder; gives the names of the values' files. Paths were checked when the archive was
/// read: each lies below its folder, and no two are one.
fn lay_out(root: &Path, files: &Files, values: &[String]) -> std::io::Result<Vec<String>> {
    for (path, content) in &files.files {
        let path = root.join("chart").join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        write_new(&path, content)?;
    }
    let mut names = vec![];
    for (index, text) in values.iter().filter(|text| !text.trim().is_empty()).enumerate() {
        let name = format!("values-{index}.yaml");
        write_new(&root.join(&name), &Bytes::copy_from_slice(text.as_bytes()))?;
        names.push(name);
    }
    Ok(names)
}

/// Never through what is there already.
fn write_new(path: &Path, content: &Bytes) -> std::io::Result<()> {
    use std::io::Write as _;
    fs::File::create_new(path)?.write_all(content)
}

fn candidates(named: &str) -> Vec<PathBuf> {
    if !named.is_empty() {
        return vec![PathBuf::from(named)];
    }
    let program = std::env::current_exe().ok().and_then(|p| p.parent().map(Path::to_path_buf));
    let folders: Vec<PathBuf> = std::env::current_dir().ok().into_iter().chain(program).collect();
    let tools = folders.iter().flat_map(|f| f.ancestors()).map(|f| f.join(".tools/helm"));
    // What the process was started with, not configuration of its own.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("helm")).collect::<Vec<_>>();
    tools.chain(on_path).filter(|path| path.is_file()).collect()
}

async fn version_of(path: &Path) -> Result<String, String> {
    let arguments = ["version", "--template", "{{.Version}}"].map(str::to_owned);
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let said = run(path, &arguments, folder.path(), Duration::from_secs(10)).await.map_err(|e| e.to_string())?;
    let version = said.stdout.trim().to_owned();
    if said.ok && version.len() < 64 && version.starts_with('v') {
        return Ok(version);
    }
    Err(format!("does not tell its version: {}", said.stderr.trim().chars().take(200).collect::<String>()))
}

/// Of helm 3: helm 4 has other flags, and was not tried.
fn is_new_enough(version: &str) -> bool {
    let version = semver::Version::parse(version.trim_start_matches('v'));
    version.is_ok_and(|v| v.major == VERSION_MIN.0 && v.minor >= VERSION_MIN.1)
}

/// What it said, without its own folder and warnings.
fn tidy(said: &str, folder: &Path) -> String {
    let lines = said.lines().filter(|line| !line.starts_with("WARNING:") && !line.trim().is_empty());
    let text = lines.collect::<Vec<_>>().join(" ").replace(&format!("{}/", folder.display()), "");
    let text = text.strip_prefix("Error: ").unwrap_or(&text).replace("Use --debug flag to render out invalid YAML", "");
    if text.trim().is_empty() { "it did not say why".into() } else { text.trim().chars().take(1_000).collect() }
}
