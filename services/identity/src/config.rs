//! Configuration of the identity service.

use std::path::PathBuf;

/// Configuration.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Keys of the issuer; made in the data folder if absent. Processes that share the file accept each other's tokens
    /// and passwords.
    pub issuer_keys_file: Option<PathBuf>,
    /// Name of the issuer; the same as the gateway's `issuer_name`.
    pub issuer_name: String,
    /// Audience that its tokens name; the same as the gateway's `audience`.
    pub audience: String,
    /// Life of an access token, seconds.
    pub token_s: u32,
    /// Life of a session that is not renewed, seconds.
    pub session_s: u32,
    /// Memory of one password check, KiB (argon2id).
    pub password_memory_kib: u32,
    /// Passes of one password check (argon2id).
    pub password_passes: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            issuer_keys_file: None,
            issuer_name: "urn:continuum".into(),
            audience: "continuum".into(),
            token_s: 300,
            session_s: 7 * 24 * 3_600,
            password_memory_kib: 19 * 1024,
            password_passes: 2,
        }
    }
}
