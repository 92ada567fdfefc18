//! The bus as an administrator sees it: made and kept as the contract says.
//!
//! - [`provision()`]: streams, durables and buckets, created and updated by an identity of its own.
//! - [`render()`]: `nats.conf` and the keys: accounts, exact imports and exports, exact permissions.
//! - [`mark_folder`]: which release wrote the data; a later one's is refused.
//! - [`samples_access`]: access control of the Zenoh router.
//! - [`Server`]: a nats-server of one's own, found on this machine, started, restarted and stopped.
//! - Never: is linked into a service, which so has no code that could create or change a stream.

#![allow(clippy::disallowed_methods, reason = "servers are looked for, started, watched and measured")]

mod access;
mod account;
mod disk;
mod find;
mod port;
mod provision;
mod release;
mod render;
mod server;

pub use access::samples_access;
pub use account::{KeyFolder, identities};
pub use disk::{disk_room_bytes, free_disk_bytes};
pub use find::{Found, Search, VERSION_MIN, find_server};
pub use provision::{ProvisionError, ProvisionOptions, Report, probe, provision};
pub use release::{Mark, ReleaseError, check_folder, mark_folder};
pub use render::{BUCKET_MAX_BYTES, Cluster, Files, PAYLOAD_MAX_BYTES, RenderOptions, Rendered, bytes_wanted, render};
pub use server::{Server, ServerError, ServerOptions};

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn no_service_links_this_crate() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let services = fs::read_dir(root.join("services")).unwrap().map(|entry| entry.unwrap().path());
        let libraries = ["proto", "libs/mesh-bus", "libs/mesh-store", "libs/mesh-kit"].map(|folder| root.join(folder));
        let mut read = 0;
        for manifest in services.chain(libraries).map(|folder| folder.join("Cargo.toml")) {
            let Ok(text) = fs::read_to_string(&manifest) else { continue };
            let linked = text.split("[dev-dependencies]").next().unwrap();
            assert!(!linked.contains("mesh-admin") && !linked.contains("mesh-test"), "{}", manifest.display());
            read += 1;
        }
        assert!(read > 13, "{read} manifests");
    }
}
