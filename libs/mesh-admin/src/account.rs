//! The identities of the mesh: an NKey per service, one for people, one for the provisioner, and the files that hold
//! their seeds.

use std::{collections::BTreeMap, fs, io, path::Path};

use mesh_bus::Seed;
use mesh_proto::{Contract, rights};

/// Every identity of the mesh: the provisioner, the services, their joint one, people, dashboards.
pub fn identities(contract: &Contract) -> impl Iterator<Item = &str> {
    let services = contract.services.iter().map(|s| s.name.as_str());
    [rights::PROVISIONER].into_iter().chain(services).chain([rights::JOINT, rights::PERSON, rights::DASHBOARD])
}

/// Reads the seeds kept in a folder as `<identity>.nk`; those missing are left out.
/// An unreadable file is an error of kind `InvalidData` that names it.
pub fn read_seeds(contract: &Contract, folder: &Path) -> io::Result<BTreeMap<String, Seed>> {
    let mut seeds = BTreeMap::new();
    for identity in identities(contract) {
        let path = folder.join(format!("{identity}.nk"));
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

/// Writes a file that its owner alone may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let staged = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&staged, path)
}
