//! What the gateway can be told.

use std::path::PathBuf;

/// Configuration.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where S3 and the storage policy API are answered; port 0 for any.
    pub s3_listen: String,
    /// Access keys, a line each: `<access key> <secret key> <owner>`. Made in the data folder when not given.
    pub access_keys_file: Option<PathBuf>,
    /// Master keys, a line each: `<name> <64 hexadecimal digits>`, the last for new objects. Made when not given.
    pub master_keys_file: Option<PathBuf>,
    /// Keys for S3 locations, a line each: `<name> <access key> <secret key>`.
    pub location_keys_file: Option<PathBuf>,
    /// Folder below which `dir:` locations are; in the data folder when not given.
    pub locations_dir: Option<PathBuf>,
    /// Plain bytes per extent, a file per fragment.
    pub extent_bytes: u32,
    /// Plain bytes per piece, the least that is read.
    pub piece_bytes: u32,
    /// Plain bytes of objects kept in memory.
    pub cache_bytes: u64,
    /// How long a location may take for one fragment, milliseconds.
    pub location_limit_ms: u32,
    /// After so many milliseconds of silence a read asks one more location.
    pub hedge_ms: u32,
    /// Extents in memory at once, over all requests.
    pub extents_max: u32,
    /// Objects that the gateway lists at most; puts of new ones are refused beyond.
    pub objects_max: u64,
    /// Fragments of replaced objects stay so long for those who still read them, milliseconds.
    pub linger_ms: u64,
    /// A fragment that belongs to nothing is removed by a scrub when it is older, milliseconds. A put may take half
    /// as long.
    pub orphan_ms: u64,
    /// A scrub whose gateway said nothing for so long is taken over, milliseconds.
    pub scrub_claim_ms: u64,
    /// Between measurements of the locations, milliseconds; 0 for none.
    pub probe_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            s3_listen: "127.0.0.1:0".into(),
            access_keys_file: None,
            master_keys_file: None,
            location_keys_file: None,
            locations_dir: None,
            extent_bytes: 8 << 20,
            piece_bytes: 256 << 10,
            cache_bytes: 64 << 20,
            location_limit_ms: 10_000,
            hedge_ms: 500,
            extents_max: 16,
            objects_max: 10_000_000,
            linger_ms: 30_000,
            orphan_ms: 24 * 3_600_000,
            scrub_claim_ms: 600_000,
            probe_ms: 60_000,
        }
    }
}
