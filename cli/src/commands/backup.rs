//! `backup`: a mesh in one encrypted file, and back.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use mesh_backup::{Lock, Manifest, Options, Unlock};
use serde_json::json;

use crate::{
    context::Context,
    output::{line, megabytes, show},
};

/// What to do with backups.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Writes all that the mesh of the data folder keeps into a file, encrypted, while the mesh runs.
    Create {
        /// The file; it must not exist.
        file: PathBuf,
        /// For whom it is encrypted: a recipient of age, `age1…`. May be given several times.
        #[arg(long, value_name = "RECIPIENT", required_unless_present = "passphrase_file")]
        recipient: Vec<String>,
        /// File with a passphrase instead, of 12 characters or more.
        #[arg(long, value_name = "FILE", conflicts_with = "recipient")]
        passphrase_file: Option<PathBuf>,
        /// Writes the keys of the mesh into this file, and not into the other.
        #[arg(long, value_name = "FILE")]
        keys_apart: Option<PathBuf>,
        /// Longest time that the mesh may stand still, milliseconds.
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=2_000))]
        pause_ms: u64,
    },
    /// Reads a backup to its end and compares it with its list of contents; writes nothing.
    Verify {
        /// The file.
        file: PathBuf,
        /// How it is opened.
        #[command(flatten)]
        open: OpenOptions,
    },
    /// Restores a backup into the data folder, which must be empty or not exist. Start it with `continuum up`.
    Restore {
        /// The file.
        file: PathBuf,
        /// How it is opened.
        #[command(flatten)]
        open: OpenOptions,
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
    keys: Option<PathBuf>,
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
}

/// Runs one of them.
///
/// # Errors
/// If it cannot be done; nothing is left half done.
pub fn run(context: &Context<'_>, command: BackupCommand) -> anyhow::Result<ExitCode> {
    let data_dir = context.data_dir;
    match command {
        BackupCommand::Create { file, recipient, passphrase_file, keys_apart, pause_ms } => {
            let lock = passphrase_file.as_deref().map_or_else(|| Lock::recipients(&recipient), Lock::passphrase)?;
            let options = Options { pause_max: Duration::from_millis(pause_ms), keys_apart };
            let made = mesh_backup::create(data_dir, &file, &lock, &options)?;
            let value = serde_json::to_value(&made).context("write the result")?;
            show(context.format, &value, &["file", "files", "MB", "written MB", "pause ms", "pauses"], || {
                vec![vec![
                    file.display().to_string(),
                    made.files.to_string(),
                    megabytes(made.bytes),
                    megabytes(made.written_bytes),
                    format!("{:.0}", made.pause_ms),
                    made.attempts.to_string(),
                ]]
            });
        }
        BackupCommand::Verify { file, open } => {
            let manifest = mesh_backup::verify(&file, open.keys.as_deref(), &open.unlock()?)?;
            print(context, "whole", &file, &manifest);
        }
        BackupCommand::Restore { file, open } => {
            let manifest = mesh_backup::restore(&file, open.keys.as_deref(), &open.unlock()?, data_dir)?;
            print(context, "restored", data_dir, &manifest);
        }
        BackupCommand::Key { file } => {
            let (key, recipient) = mesh_backup::generate();
            let mut options = std::fs::OpenOptions::new();
            let made = options.write(true).create_new(true).mode(0o600).open(&file);
            let mut made = made.with_context(|| format!("make {}", file.display()))?;
            let text = format!("# public key: {recipient}\n{}\n", mesh_backup::text(&key));
            made.write_all(text.as_bytes()).with_context(|| format!("write {}", file.display()))?;
            line(recipient);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(context: &Context<'_>, result: &str, path: &Path, manifest: &Manifest) {
    let files = manifest.entries.iter().filter(|entry| !entry.folder).count();
    let bytes: u64 = manifest.entries.iter().map(|entry| entry.bytes).sum();
    let value = json!({
        "result": result, "path": path, "id": manifest.id, "release": manifest.release, "madeAtS": manifest.made_at_s,
        "files": files, "bytes": bytes,
    });
    show(context.format, &value, &["result", "path", "release", "files", "MB"], || {
        let (release, files) = (manifest.release.clone(), files.to_string());
        vec![vec![result.to_owned(), path.display().to_string(), release, files, megabytes(bytes)]]
    });
}
