//! The key files: read at start, or made on the first start.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use mesh_kit::Mesh;

use crate::{backend::Credentials, blob::seal::Keyring, config::Config};

/// Names of the files in the folder of keys.
const MASTERS: &str = "master.keys";
const ACCESS: &str = "access.keys";

/// All secrets of a gateway.
pub struct Keys {
    /// Owner and credentials by access key.
    pub access: BTreeMap<String, (String, Credentials)>,
    /// Master keys.
    pub masters: Keyring,
    /// Credentials of S3 locations by name.
    pub locations: BTreeMap<String, Credentials>,
}

/// Random bytes of the system.
///
/// # Errors
/// When the system has none.
pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("draw random bytes"))?;
    Ok(bytes)
}

/// Reads the keys.
///
/// # Errors
/// When a file cannot be read or is malformed.
pub(crate) fn read(mesh: &Mesh, config: &Config) -> anyhow::Result<Keys> {
    let folder = mesh.keys_dir(&[MASTERS, ACCESS])?;
    let masters = text(config.master_keys_file.as_ref(), folder, MASTERS, || {
        Ok(format!("master-1 {}\n", hex::encode(random::<32>()?)))
    })?;
    let access = text(config.access_keys_file.as_ref(), folder, ACCESS, || {
        Ok(format!("CONTINUUM{} {} local\n", hex::encode(random::<6>()?).to_uppercase(), hex::encode(random::<20>()?)))
    })?;
    let locations = match &config.location_keys_file {
        Some(path) => fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?,
        None => String::new(),
    };
    let masters = Keyring::parse(&masters).context("read the master keys")?;
    let access = lines(&access, "access keys")?
        .into_iter()
        .map(|[access, secret, owner]| match mesh_proto::is_key(&owner) {
            true => Ok((access.clone(), (owner, Credentials { access, secret }))),
            false => bail!("access keys: the owner {owner:?} is not 1 to 64 letters, digits, `_` or `-`"),
        })
        .collect::<anyhow::Result<_>>()?;
    let locations = lines(&locations, "location keys")?
        .into_iter()
        .map(|[name, access, secret]| (name, Credentials { access, secret }))
        .collect();
    Ok(Keys { access, masters, locations })
}

fn lines(text: &str, what: &str) -> anyhow::Result<Vec<[String; 3]>> {
    let mut found = vec![];
    for (index, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#')) {
        let words: Vec<String> = line.split_whitespace().map(Into::into).collect();
        match <[String; 3]>::try_from(words) {
            Ok(three) => found.push(three),
            Err(_) => bail!("{what}: line {} does not have three words", index + 1),
        }
    }
    Ok(found)
}

/// The text of the configured file, or of the one in the folder of keys, which is made if it does not exist. Of several
/// gateways with one folder, one makes it.
fn text(
    given: Option<&PathBuf>,
    folder: Option<&Path>,
    name: &str,
    make: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    let path = match (given, folder) {
        (Some(path), _) => path.clone(),
        (None, Some(folder)) => {
            let path = folder.join(name);
            mesh_kit::make_once(&path, make).with_context(|| format!("make {}", path.display()))?;
            path
        }
        (None, None) => bail!("the file {name} is not configured; set its path, or a data_dir to make it in"),
    };
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}
