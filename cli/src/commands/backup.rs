//! `backup`: a mesh in one encrypted file, and back.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use mesh_backup::{Lock, Made, Manifest, Options, Unlock};
use serde_json::json;

use self::place::{Fetched, Place, S3Options};
use crate::{
    context::Context,
    output::{line, megabytes, show},
};

mod place;

/// What to do with backups.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Writes all that the mesh of the data folder keeps into a file, encrypted, while the mesh runs.
    Create {
        /// The file, or `s3://BUCKET/NAME`; it must not exist.
        file: Place,
        /// For whom it is encrypted: a recipient of age, `age1…`. May be given several times.
        #[arg(long, value_name = "RECIPIENT", required_unless_present = "passphrase_file")]
        recipient: Vec<String>,
        /// File with a passphrase instead, of 12 characters or more.
        #[arg(long, value_name = "FILE", conflicts_with = "recipient")]
        passphrase_file: Option<PathBuf>,
        /// Writes the keys of the mesh into this file, and not into the other.
        #[arg(long, value_name = "FILE")]
        keys_apart: Option<Place>,
        /// Longest time that the mesh may stand still, milliseconds.
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=2_000))]
        pause_ms: u64,
        /// The mesh is in volumes of containers, and its nats-server is stopped. Without this a server has to be visible,
        /// and is paused.
        #[arg(long)]
        server_stopped: bool,
        /// The server of `s3://` places.
        #[command(flatten)]
        s3: S3Options,
    },
    /// Reads a backup to its end and compares it with its list of contents; writes nothing.
    Verify {
        /// The file, or `s3://BUCKET/NAME`.
        file: Place,
        /// How it is opened.
        #[command(flatten)]
        open: OpenOptions,
    },
    /// Restores a backup into the data folder, which must have no files or not exist. Start it with `continuum up`.
    Restore {
        /// The file, or `s3://BUCKET/NAME`.
        file: Place,
        /// How it is opened.
        #[command(flatten)]
        open: OpenOptions,
    },
    /// Lets a paused nats-server go on after 3 s: what `create` starts beside itself.
    #[command(hide = true)]
    ContinueLater {
        /// The server.
        pid: i32,
    },
    /// Makes a key: writes it into a file, and prints the recipient that belongs to it.
    Key {
        /// The file; it must not exist.
        file: PathBuf,
    },
}

/// How a backup is opened.
#[derive(Debug, Args)]
pub struct OpenOptions {
    /// File with the key, of `continuum backup key` or `age-keygen`.
    #[arg(long, value_name = "FILE", required_unless_present = "passphrase_file")]
    identity: Option<PathBuf>,
    /// File with the passphrase instead.
    #[arg(long, value_name = "FILE", conflicts_with = "identity")]
    passphrase_file: Option<PathBuf>,
    /// File with the keys of the mesh, if they were written apart.
    #[arg(long, value_name = "FILE")]
    keys: Option<Place>,
    /// The server of `s3://` places.
    #[command(flatten)]
    s3: S3Options,
}

impl OpenOptions {
    fn unlock(&self) -> anyhow::Result<Unlock> {
        let unlock = match (&self.identity, &self.passphrase_file) {
            (Some(file), _) => Unlock::identity(file),
            (None, Some(file)) => Unlock::passphrase(file),
            (None, None) => anyhow::bail!("say how it is opened: --identity or --passphrase-file"),
        };
        Ok(unlock?)
    }

    /// The files of a backup and of its keys, on this machine.
    async fn fetch(&self, file: &Place, data_dir: &Path) -> anyhow::Result<(Fetched, Option<Fetched>)> {
        let run = data_dir.join("run");
        let parent = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = if run.is_dir() { &run } else { parent };
        let data = self.s3.fetch(file, folder).await?;
        let keys = match &self.keys {
            Some(keys) => Some(self.s3.fetch(keys, folder).await?),
            None => None,
        };
        Ok((data, keys))
    }
}

/// Runs one of them.
///
/// # Errors
/// If it cannot be done; nothing is left half done.
pub async fn run(context: &Context<'_>, command: BackupCommand) -> anyhow::Result<ExitCode> {
    let data_dir = context.data_dir;
    match command {
        BackupCommand::Create { file, recipient, passphrase_file, keys_apart, pause_ms, server_stopped, s3 } => {
            let lock = passphrase_file.as_deref().map_or_else(|| Lock::recipients(&recipient), Lock::passphrase)?;
            let program = std::env::current_exe().context("find this program")?;
            let options = Options {
                pause_max: Duration::from_millis(pause_ms),
                keys_apart: None,
                server_stopped,
                helper: vec![program.into(), "backup".into(), "continue-later".into()],
            };
            let made = create(data_dir, &file, keys_apart.as_ref(), &lock, options, &s3).await?;
            let value = serde_json::to_value(&made).context("write the result")?;
            show(context.format, &value, &["file", "files", "MB", "written MB", "pause ms", "pauses"], || {
                vec![vec![
                    file.to_string(),
                    made.files.to_string(),
                    megabytes(made.bytes),
                    megabytes(made.written_bytes),
                    format!("{:.0}", made.pause_ms),
                    made.attempts.to_string(),
                ]]
            });
        }
        BackupCommand::Verify { file, open } => {
            let unlock = open.unlock()?;
            let (data, keys) = open.fetch(&file, data_dir).await?;
            let manifest = mesh_backup::verify(data.path(), keys.as_ref().map(Fetched::path), &unlock)
                .with_context(|| format!("verify {file}"))?;
            print(context, "whole", &file.to_string(), &manifest);
        }
        BackupCommand::Restore { file, open } => {
            let unlock = open.unlock()?;
            mesh_backup::check_empty(data_dir)?;
            let (data, keys) = open.fetch(&file, data_dir).await?;
            let manifest = mesh_backup::restore(data.path(), keys.as_ref().map(Fetched::path), &unlock, data_dir)
                .with_context(|| format!("restore {file}"))?;
            print(context, "restored", &data_dir.display().to_string(), &manifest);
        }
        BackupCommand::ContinueLater { pid } => {
            mesh_backup::continue_later(pid).context("let the nats-server go on")?;
        }
        BackupCommand::Key { file } => {
            let (key, recipient) = mesh_backup::generate();
            let mut options = fs::OpenOptions::new();
            let made = options.write(true).create_new(true).mode(0o600).open(&file);
            let mut made = made.with_context(|| format!("make {}", file.display()))?;
            let text = format!("# public key: {recipient}\n{}\n", mesh_backup::text(&key));
            made.write_all(text.as_bytes()).with_context(|| format!("write {}", file.display()))?;
            line(recipient);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes a backup. What goes to a server is written beside the mesh first, encrypted.
async fn create(
    data_dir: &Path,
    file: &Place,
    keys_apart: Option<&Place>,
    lock: &Lock,
    options: Options,
    s3: &S3Options,
) -> anyhow::Result<Made> {
    mesh_backup::check_mesh(data_dir)?;
    let places = || keys_apart.into_iter().chain([file]);
    for place in places() {
        s3.check_free(place).await?;
    }
    let staging = if places().any(|place| matches!(place, Place::Object { .. })) {
        let run = data_dir.join("run");
        let made = fs::create_dir_all(&run).and_then(|()| tempfile::Builder::new().prefix("backup-").tempdir_in(&run));
        Some(made.with_context(|| format!("make a folder in {}", run.display()))?)
    } else {
        None
    };
    let folder = staging.as_ref().map_or(data_dir, tempfile::TempDir::path);
    let local = |place: &Place, name: &str| match place {
        Place::File(path) => path.clone(),
        Place::Object { .. } => folder.join(name),
    };
    let (to, keys_to) = (local(file, "data.age"), keys_apart.map(|place| local(place, "keys.age")));
    let options = Options { keys_apart: keys_to.clone(), ..options };
    let made = mesh_backup::create(data_dir, &to, lock, &options)?;
    // Of two places, both are written or neither: what is written already goes if the other fails.
    let mut written: Vec<&Place> = places().filter(|place| matches!(place, Place::File(_))).collect();
    for (path, place) in keys_to.iter().chain([&to]).zip(places()) {
        if let Err(error) = s3.store(path, place).await {
            for place in written {
                s3.remove(place).await;
            }
            return Err(error);
        }
        written.push(place);
    }
    Ok(made)
}

fn print(context: &Context<'_>, result: &str, path: &str, manifest: &Manifest) {
    let files = manifest.entries.iter().filter(|entry| !entry.folder).count();
    let bytes: u64 = manifest.entries.iter().map(|entry| entry.bytes).sum();
    let value = json!({
        "result": result, "path": path, "id": manifest.id, "release": manifest.release, "madeAtS": manifest.made_at_s,
        "files": files, "bytes": bytes,
    });
    show(context.format, &value, &["result", "path", "release", "files", "MB"], || {
        let (release, files) = (manifest.release.clone(), files.to_string());
        vec![vec![result.to_owned(), path.to_owned(), release, files, megabytes(bytes)]]
    });
}
