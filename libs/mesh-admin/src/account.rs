//! The identities of the mesh: an NKey per service, one for people, one for the provisioner, and the files that hold
//! their seeds.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use mesh_bus::Seed;
use mesh_kit::{ReadableBy, write_atomic};
use mesh_proto::{Contract, rights};

/// Every identity of the mesh: the provisioner, the services, their joint one, people, dashboards.
pub fn identities(contract: &Contract) -> impl Iterator<Item = &str> {
    let services = contract.services.iter().map(|s| s.name.as_str());
    [rights::PROVISIONER].into_iter().chain(services).chain([rights::JOINT, rights::PERSON, rights::DASHBOARD])
}

/// Where the seeds of the identities are kept.
#[derive(Clone, Debug)]
pub struct KeyFolder {
    folder: PathBuf,
    apart: bool,
}

impl KeyFolder {
    /// All in one folder, as `<identity>.nk`.
    pub fn together(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), apart: false }
    }

    /// Each in a folder of its own, as `<identity>/<identity>.nk`: that folder alone is given to who has the identity.
    pub fn apart(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), apart: true }
    }

    /// The file of an identity's seed.
    pub fn path(&self, identity: &str) -> PathBuf {
        let folder = if self.apart { self.folder.join(identity) } else { self.folder.clone() };
        folder.join(format!("{identity}.nk"))
    }

    /// The seeds that are there; those missing are left out.
    ///
    /// # Errors
    /// A file that cannot be read, or of kind `InvalidData` one that holds no seed; it is named.
    pub fn read(&self, contract: &Contract) -> io::Result<BTreeMap<String, Seed>> {
        let mut seeds = BTreeMap::new();
        for identity in identities(contract) {
            let path = self.path(identity);
            match fs::read_to_string(&path) {
                Ok(text) => {
                    let seed = Seed::parse(&text)
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display())))?;
                    seeds.insert(identity.to_owned(), seed);
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
            }
        }
        Ok(seeds)
    }

    /// Writes the seeds, each readable by its owner alone, and returns their files.
    ///
    /// # Errors
    /// A file that cannot be written; it is named.
    pub fn write(&self, seeds: &BTreeMap<String, Seed>) -> io::Result<BTreeMap<String, PathBuf>> {
        let mut files = BTreeMap::new();
        for (identity, seed) in seeds {
            let path = self.path(identity);
            write_atomic(&path, seed.expose().as_bytes(), ReadableBy::Owner)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
            files.insert(identity.clone(), path);
        }
        Ok(files)
    }

    /// Removes the seeds that are there.
    ///
    /// # Errors
    /// A file that cannot be removed; it is named.
    pub fn remove(&self, contract: &Contract) -> io::Result<()> {
        for path in identities(contract).map(|identity| self.path(identity)) {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(io::Error::new(e.kind(), format!("{}: {e}", path.display())));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
