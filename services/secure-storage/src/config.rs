//! The configuration of the gateway.

use std::path::PathBuf;

/// Configuration.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address of S3 and the storage policy API; port 0 for a free one.
    pub s3_listen: String,
    /// Access keys, a line each: `<access key> <secret key> <owner>`. Made in the data folder if unset.
    pub access_keys_file: Option<PathBuf>,
    /// Master keys, a line each: `<name> <64 hexadecimal digits>`, the last for new objects. Made if unset.
    pub master_keys_file: Option<PathBuf>,
    /// Keys for S3 locations, a line each: `<name> <access key> <secret key>`.
    pub location_keys_file: Option<PathBuf>,
    /// Owner whose storage policies, with their locations, the buckets of every owner may use who has none of that name;
    /// empty for nobody.
    pub shared_owner: String,
    /// Where policies rest for those who ask, as a URL, if not where the mesh keeps its documents (`documents_url`).
    pub documents: String,
    /// Folder of the `dir:` locations; in the data folder if unset.
    pub locations_dir: Option<PathBuf>,
    /// Plain bytes per extent, a file per fragment.
    pub extent_bytes: u32,
    /// Plain bytes per piece, the smallest unit that is read.
    pub piece_bytes: u32,
    /// Plain bytes of objects kept in memory, beside `memory_bytes`; an object of more than an eighth of it is not kept.
    pub cache_bytes: u64,
    /// Bytes of bodies, answers and the work on them in memory at once, of all requests together; beyond, requests wait in
    /// the order in which they came. With the default a gateway holds at most 256 MiB.
    pub memory_bytes: u64,
    /// A client that has to send or to take moves at least 64 KiB, or all that is left, in this time of waiting for it;
    /// otherwise it is cut off. Milliseconds.
    pub client_wait_ms: u64,
    /// A location must read or write a fragment within this time, milliseconds.
    pub location_limit_ms: u32,
    /// A read that gets no answer for this long asks one more location, milliseconds.
    pub hedge_ms: u32,
    /// Objects in the listings at most; beyond, puts of new keys are refused.
    pub objects_max: u64,
    /// The fragments of a replaced object stay this long for those who still read them, milliseconds.
    pub linger_ms: u64,
    /// A scrub with repair removes fragments that belong to nothing and are older than this, milliseconds. A put may
    /// take half as long.
    pub orphan_ms: u64,
    /// Another gateway takes over a scrub whose claim was not renewed for this long, milliseconds.
    pub scrub_claim_ms: u64,
    /// Time between measurements of the locations, milliseconds; 0 to measure none.
    pub probe_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            s3_listen: "127.0.0.1:0".into(),
            access_keys_file: None,
            master_keys_file: None,
            location_keys_file: None,
            shared_owner: "local".into(),
            documents: String::new(),
            locations_dir: None,
            extent_bytes: 8 << 20,
            piece_bytes: 256 << 10,
            cache_bytes: 32 << 20,
            memory_bytes: 128 << 20,
            client_wait_ms: 60_000,
            location_limit_ms: 10_000,
            hedge_ms: 500,
            objects_max: 10_000_000,
            linger_ms: 30_000,
            orphan_ms: 24 * 3_600_000,
            scrub_claim_ms: 600_000,
            probe_ms: 60_000,
        }
    }
}
