//! `nats.conf` and the keys, from the contract: accounts, exact imports and exports, exact permissions.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
};

use mesh_bus::{Seed, SeedError, Tls};
use mesh_kit::{ReadableBy, write_atomic};
use mesh_proto::{
    Contract,
    rights::{self, BUS_ACCOUNT, DASHBOARD, DASHBOARD_ACCOUNT, PEOPLE_ACCOUNT, Rights},
};

use crate::account::{KeyFolder, identities};

/// How a nats-server is to run.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// Address for clients, `host:port`; port -1 lets the server choose a free one.
    pub listen: String,
    /// Address of the server's own HTTP monitoring, if wanted.
    pub http_listen: Option<String>,
    /// Address for dashboards over WebSocket, `host:port`, if wanted; port -1 lets the server choose a free one. By TLS if
    /// `tls` is set: with the server's certificate, and without one of the client, because browsers have none.
    pub websocket_listen: Option<String>,
    /// Folder where streams rest.
    pub store_dir: PathBuf,
    /// Folder where the server writes the ports it chose, if wanted.
    pub ports_dir: Option<PathBuf>,
    /// Bytes of disk that all streams of this server may use together; what the contract asks for when absent.
    /// With less, provisioning scales every stream's limit down alike; also when this is less than it was before.
    pub disk_bytes: Option<u64>,
    /// Is a write on disk before it is acknowledged? What is decided relies on it.
    pub sync_always: bool,
    /// Its certificate, and the authority that signs its clients': they must show one of it.
    pub tls: Option<Tls>,
    /// The cluster it is part of, if any.
    pub cluster: Option<Cluster>,
    /// Keys from before; identities without one get a new one.
    pub keys: BTreeMap<String, Seed>,
    /// May one program run all services? It signs in once, with an identity that has the rights of each. Not where every
    /// service is a process of its own.
    pub joint: bool,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:4222".to_owned(),
            http_listen: None,
            websocket_listen: None,
            store_dir: PathBuf::from("jetstream"),
            ports_dir: None,
            disk_bytes: None,
            sync_always: true,
            tls: None,
            cluster: None,
            keys: BTreeMap::new(),
            joint: true,
        }
    }
}

/// A server's place in a cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Name of the cluster, the same on every server.
    pub name: String,
    /// Name of this server, unique in the cluster.
    pub server_name: String,
    /// Address for the other servers, `host:port`.
    pub listen: String,
    /// The other servers, as `nats-route://host:port`.
    pub routes: Vec<String>,
    /// How many servers it has.
    pub servers: u32,
}

/// A rendered configuration.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// Text of `nats.conf`. Holds no secret.
    pub nats_conf: String,
    /// Seed of every identity.
    pub keys: BTreeMap<String, Seed>,
}

/// Where a rendered configuration was written.
#[derive(Clone, Debug)]
pub struct Files {
    /// The configuration.
    pub nats_conf: PathBuf,
    /// Seed file of every identity.
    pub keys: BTreeMap<String, PathBuf>,
}

/// Largest message, in bytes; the client refuses a larger one before it is sent.
pub const PAYLOAD_MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Size limit of a key-value bucket, in bytes.
pub const BUCKET_MAX_BYTES: i64 = 1024 * 1024 * 1024;

/// Added to the limit of the streams' account, so that the server itself never enforces it: each stream has its own limit.
pub(crate) const LIMIT_BASE_BYTES: u64 = 1 << 50;

/// Part of a server's disk that is kept for streams outside the contract, such as the probe's scratch stream.
pub(crate) const RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// Bytes that a server needs to be allowed so that every stream and bucket of the contract gets its full limit, one
/// replica of each.
pub fn bytes_wanted(contract: &Contract) -> u64 {
    let streams: i64 = contract.streams.iter().map(|s| s.max_bytes).sum();
    let buckets = contract.services.iter().flat_map(rights::buckets).count() as i64 * BUCKET_MAX_BYTES;
    (streams + buckets).unsigned_abs() + RESERVE_BYTES
}

/// Renders the configuration of one server.
pub fn render(contract: &Contract, options: &RenderOptions) -> Result<Rendered, SeedError> {
    let mut keys = BTreeMap::new();
    for identity in identities(contract).filter(|identity| options.joint || *identity != rights::JOINT) {
        let seed = options.keys.get(identity).cloned().map_or_else(Seed::generate, Ok)?;
        keys.insert(identity.to_owned(), seed);
    }
    let everyone = rights::all(contract);
    let mut text =
        String::from("# Written by `continuum provision render` from the contract; changes are overwritten.\n");
    server(&mut text, options);
    text.push_str("accounts {\n");
    bus_account(&mut text, contract, options, &everyone, &keys);
    for rights in everyone.iter().filter(|rights| rights.account != BUS_ACCOUNT) {
        account(&mut text, rights, &everyone, &keys);
    }
    text.push_str("}\n");
    Ok(Rendered { nats_conf: text, keys })
}

fn server(text: &mut String, options: &RenderOptions) {
    line(text, 0, format_args!("listen: {}", quote(&options.listen)));
    if let Some(http) = &options.http_listen {
        line(text, 0, format_args!("http: {}", quote(http)));
    }
    if let Some(dir) = &options.ports_dir {
        line(text, 0, format_args!("ports_file_dir: {}", quote_path(dir)));
    }
    line(text, 0, format_args!("max_payload: {PAYLOAD_MAX_BYTES}"));
    if let Some(websocket) = &options.websocket_listen {
        text.push_str("websocket {\n");
        line(text, 1, format_args!("listen: {}", quote(websocket)));
        match &options.tls {
            Some(tls) => {
                text.push_str("  tls {\n");
                for (name, path) in [("cert_file", &tls.cert), ("key_file", &tls.key)] {
                    line(text, 2, format_args!("{name}: {}", quote_path(path)));
                }
                line(text, 1, format_args!("}}"));
            }
            None => line(text, 1, format_args!("no_tls: true")),
        }
        text.push_str("}\n");
    }
    // A client that reads too slowly is cut off and reconnects, rather than holding memory without limit.
    line(text, 0, format_args!("max_pending: {}", 64 * 1024 * 1024));
    text.push_str("jetstream {\n");
    line(text, 1, format_args!("store_dir: {}", quote_path(&options.store_dir)));
    line(text, 1, format_args!("max_file_store: {}", 4 * LIMIT_BASE_BYTES));
    line(text, 1, format_args!("max_memory_store: {}", 64 * 1024 * 1024));
    if options.sync_always {
        line(text, 1, format_args!("sync_interval: always"));
    }
    text.push_str("}\n");
    if let Some(tls) = &options.tls {
        text.push_str("tls ");
        tls_block(text, tls);
    }
    if let Some(cluster) = &options.cluster {
        line(text, 0, format_args!("server_name: {}", quote(&cluster.server_name)));
        text.push_str("cluster {\n");
        line(text, 1, format_args!("name: {}", quote(&cluster.name)));
        line(text, 1, format_args!("listen: {}", quote(&cluster.listen)));
        let routes = cluster.routes.iter().map(|r| quote(r)).collect::<Vec<_>>().join(", ");
        line(text, 1, format_args!("routes: [{routes}]"));
        if let Some(tls) = &options.tls {
            text.push_str("  tls ");
            tls_block(text, tls);
        }
        text.push_str("}\n");
    }
}

fn tls_block(text: &mut String, tls: &Tls) {
    text.push_str("{\n");
    for (name, path) in [("ca_file", &tls.ca), ("cert_file", &tls.cert), ("key_file", &tls.key)] {
        line(text, 1, format_args!("{name}: {}", quote_path(path)));
    }
    line(text, 1, format_args!("verify: true"));
    text.push_str("}\n");
}

fn disk_bytes(contract: &Contract, options: &RenderOptions) -> u64 {
    options.disk_bytes.unwrap_or_else(|| bytes_wanted(contract))
}

/// The account of the streams: who may ask what of it, and who may hear what.
fn bus_account(
    text: &mut String,
    contract: &Contract,
    options: &RenderOptions,
    everyone: &[Rights],
    keys: &BTreeMap<String, Seed>,
) {
    let mut requests: BTreeMap<(&str, bool), BTreeSet<&str>> = BTreeMap::new();
    let mut live: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for rights in everyone {
        for request in &rights.requests {
            requests.entry((&request.subject, request.many)).or_default().insert(&rights.account);
        }
        for subject in &rights.live {
            live.entry(subject).or_default().insert(&rights.account);
        }
    }
    line(text, 1, format_args!("{BUS_ACCOUNT} {{"));
    let servers = u64::from(options.cluster.as_ref().map_or(1, |c| c.servers.max(1)));
    let budget = disk_bytes(contract, options).saturating_mul(servers);
    line(
        text,
        2,
        format_args!("# {budget} bytes that provisioning shares out among the streams, and a base that no disk has:"),
    );
    line(
        text,
        2,
        format_args!(
            "# below what streams already reserve, the server would refuse every change, even to reserve less."
        ),
    );
    line(text, 2, format_args!("jetstream: {{max_file: {}}}", budget.saturating_add(LIMIT_BASE_BYTES)));
    line(text, 2, format_args!("users: ["));
    if let Some(seed) = keys.get(rights::PROVISIONER) {
        line(text, 3, format_args!("{{nkey: {}, allowed_connection_types: [\"STANDARD\"]}}", seed.public_key()));
    }
    let own = || everyone.iter().filter(|rights| rights.account == BUS_ACCOUNT);
    for rights in own() {
        user(text, 3, rights, keys);
    }
    line(text, 2, format_args!("]"));
    line(text, 2, format_args!("exports: ["));
    for rights in own() {
        exports_to_people(text, rights);
    }
    for ((subject, many), accounts) in requests {
        let many = match (many, subject.contains(".DIRECT.GET.")) {
            (false, _) => "",
            // The server cannot know which answer to a read is the last, and remembers where to send more: not for long.
            (true, true) => ", response_type: stream, response_threshold: \"10s\"",
            // A pull is answered for as long as it waits.
            (true, false) => ", response_type: stream",
        };
        line(text, 3, format_args!("{{service: {}{many}, accounts: [{}]}}", quote(subject), join(accounts)));
    }
    for (subject, accounts) in live {
        line(text, 3, format_args!("{{stream: {}, accounts: [{}]}}", quote(subject), join(accounts)));
    }
    line(text, 2, format_args!("]"));
    line(text, 1, format_args!("}}"));
}

/// An account of one identity.
fn account(text: &mut String, rights: &Rights, everyone: &[Rights], keys: &BTreeMap<String, Seed>) {
    line(text, 1, format_args!("{} {{", rights.account));
    line(text, 2, format_args!("users: ["));
    user(text, 3, rights, keys);
    line(text, 2, format_args!("]"));
    line(text, 2, format_args!("imports: ["));
    for request in &rights.requests {
        let to =
            if request.local == request.subject { String::new() } else { format!(", to: {}", quote(&request.local)) };
        line(
            text,
            3,
            format_args!("{{service: {{account: {BUS_ACCOUNT}, subject: {}}}{to}}}", quote(&request.subject)),
        );
    }
    for subject in &rights.live {
        line(text, 3, format_args!("{{stream: {{account: {BUS_ACCOUNT}, subject: {}}}}}", quote(subject)));
    }
    if [PEOPLE_ACCOUNT, DASHBOARD_ACCOUNT].contains(&rights.account.as_str()) {
        for other in everyone {
            if other.answers && rights.account == PEOPLE_ACCOUNT {
                line(text, 3, format_args!("{{service: {{account: {}, subject: \"$SRV.>\"}}}}", other.account));
            }
            for subject in &other.announces {
                line(text, 3, format_args!("{{stream: {{account: {}, subject: {}}}}}", other.account, quote(subject)));
            }
        }
    }
    line(text, 2, format_args!("]"));
    if rights.answers || !rights.announces.is_empty() {
        line(text, 2, format_args!("exports: ["));
        exports_to_people(text, rights);
        line(text, 2, format_args!("]"));
    }
    line(text, 1, format_args!("}}"));
}

/// The user of an identity, with its permissions.
fn user(text: &mut String, depth: usize, rights: &Rights, keys: &BTreeMap<String, Seed>) {
    let Some(seed) = keys.get(&rights.identity) else { return };
    // WebSocket asks for no certificate of the client: who needs one must not come that way.
    let ways = if rights.identity == DASHBOARD { "\"STANDARD\", \"WEBSOCKET\"" } else { "\"STANDARD\"" };
    line(
        text,
        depth,
        format_args!("{{nkey: {}, allowed_connection_types: [{ways}], permissions: {{", seed.public_key()),
    );
    if rights.publish.is_empty() {
        // Without any subject that is allowed, the server would allow all.
        line(text, depth + 1, format_args!("publish: {{deny: [\">\"]}}"));
    } else {
        line(text, depth + 1, format_args!("publish: {{allow: [{}]}}", quote_all(&rights.publish)));
    }
    line(text, depth + 1, format_args!("subscribe: {{allow: [{}]}}", quote_all(&rights.subscribe)));
    line(text, depth, format_args!("}}}}"));
}

/// What people may ask of an identity's account, and hear from it; dashboards hear it too.
fn exports_to_people(text: &mut String, rights: &Rights) {
    if rights.answers {
        line(
            text,
            3,
            format_args!(
                "{{service: \"$SRV.>\", response_type: stream, response_threshold: \"10s\", accounts: [{PEOPLE_ACCOUNT}]}}"
            ),
        );
    }
    for subject in &rights.announces {
        let who = format!("{PEOPLE_ACCOUNT}, {DASHBOARD_ACCOUNT}");
        line(text, 3, format_args!("{{stream: {}, accounts: [{who}]}}", quote(subject)));
    }
}

impl Rendered {
    /// Writes `nats.conf` and `keys/<identity>.nk` into a folder, readable by its owner alone.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<Files> {
        self.write_with_keys(folder, &KeyFolder::together(folder.join("keys")))
    }

    /// Writes `nats.conf` into a folder, and the keys where they are kept; each readable by its owner alone.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_with_keys(&self, folder: &Path, keys: &KeyFolder) -> io::Result<Files> {
        let nats_conf = folder.join("nats.conf");
        write_atomic(&nats_conf, self.nats_conf.as_bytes(), ReadableBy::Owner)?;
        Ok(Files { nats_conf, keys: keys.write(&self.keys)? })
    }
}

fn line(text: &mut String, depth: usize, content: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:1$}{content}", "", depth * 2);
}

/// A quoted string of the server's configuration language.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn quote_path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

fn quote_all(subjects: &BTreeSet<String>) -> String {
    subjects.iter().map(|s| quote(s)).collect::<Vec<_>>().join(", ")
}

fn join(accounts: BTreeSet<&str>) -> String {
    accounts.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn rendering_again_with_the_same_keys_changes_nothing() {
        let contract = mesh_proto::contract();
        let first = render(contract, &RenderOptions::default()).unwrap();
        let again = render(contract, &RenderOptions { keys: first.keys.clone(), ..Default::default() }).unwrap();
        assert_eq!(first.nats_conf, again.nats_conf);
        // A key for each service, for all of them together, for the provisioner, for people, and for dashboards.
        assert_eq!(first.keys.len(), contract.services.len() + 4);
    }

    #[test]
    fn the_configuration_holds_no_seed() {
        let rendered = render(mesh_proto::contract(), &RenderOptions::default()).unwrap();
        for seed in rendered.keys.values() {
            assert!(rendered.nats_conf.contains(seed.public_key()));
            assert!(!rendered.nats_conf.contains(seed.expose()));
        }
    }

    #[test]
    fn written_keys_are_read_back_and_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let contract = mesh_proto::contract();
        let rendered = render(contract, &RenderOptions::default()).unwrap();
        for keys in [KeyFolder::together(folder.path().join("keys")), KeyFolder::apart(folder.path())] {
            let files = rendered.write_with_keys(folder.path(), &keys).unwrap();
            assert_eq!(keys.read(contract).unwrap(), rendered.keys);
            for path in files.keys.values().chain([&files.nats_conf]) {
                assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
            }
            keys.remove(contract).unwrap();
            assert_eq!(keys.read(contract).unwrap(), BTreeMap::new());
        }
    }

    #[test]
    fn without_a_joint_program_nobody_has_the_rights_of_all() {
        let options = RenderOptions { joint: false, ..RenderOptions::default() };
        let rendered = render(mesh_proto::contract(), &options).unwrap();
        assert!(!rendered.keys.contains_key(rights::JOINT));
        assert_eq!(rendered.keys.len(), mesh_proto::contract().services.len() + 3);
    }

    #[test]
    fn keys_apart_share_no_folder() {
        let keys = KeyFolder::apart("/keys");
        let folders: BTreeSet<PathBuf> = identities(mesh_proto::contract())
            .filter_map(|identity| keys.path(identity).parent().map(Path::to_owned))
            .collect();
        assert_eq!(folders.len(), identities(mesh_proto::contract()).count());
    }
}
