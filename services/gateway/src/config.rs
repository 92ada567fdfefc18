//! What the gateway is told.

use std::path::PathBuf;

/// Configuration.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the REST faces are answered; port 0 for any. The address is written to `url` in the data folder.
    pub rest_listen: String,
    /// Issuer whose tokens are taken, `https://…`, exactly as its discovery document has it; the built-in one when empty.
    pub oidc_issuer: String,
    /// Audience that its tokens must name.
    pub audience: String,
    /// Dotted paths to lists of roles in its tokens, divided by commas.
    pub roles_claims: String,
    /// Claim that names whose objects a caller works on.
    pub owner_claim: String,
    /// How far the clocks of issuer and gateway may be apart, seconds.
    pub skew_s: u32,
    /// Keys of the built-in issuer; made in the data folder when not given. Gateways that share it take each other's
    /// tokens.
    pub issuer_keys_file: Option<PathBuf>,
    /// Name of the built-in issuer; gateways that share its keys share this.
    pub issuer_name: String,
    /// Life of an access token of the built-in issuer, seconds.
    pub token_s: u32,
    /// Life of a session that is not renewed, seconds.
    pub session_s: u32,
    /// Memory of one password check, KiB (argon2id).
    pub password_memory_kib: u32,
    /// Passes of one password check (argon2id).
    pub password_passes: u32,
    /// Requests of one caller each second, on average; 0 for no limit.
    pub rate_per_s: u32,
    /// Requests of one caller at once.
    pub rate_burst: u32,
    /// Longest that a request may take, milliseconds.
    pub request_limit_ms: u32,
    /// How long a submission waits for its verdict before it is answered without, milliseconds.
    pub verdict_limit_ms: u32,
    /// Connections at once.
    pub connections_max: u32,
    /// Watches (server-sent events) at once.
    pub watches_max: u32,
    /// Longest that an exposed workload may take to begin its answer, milliseconds.
    pub upstream_limit_ms: u32,
    /// Hosts, `host` or `host:port`, divided by commas, that callbacks of subscriptions may have though their addresses
    /// are private; public ones may be anywhere.
    pub callbacks_private: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rest_listen: "127.0.0.1:0".into(),
            oidc_issuer: String::new(),
            audience: "continuum".into(),
            roles_claims: "roles,realm_access.roles,groups".into(),
            owner_claim: "owner".into(),
            skew_s: 30,
            issuer_keys_file: None,
            issuer_name: "urn:continuum".into(),
            token_s: 300,
            session_s: 7 * 24 * 3_600,
            password_memory_kib: 19 * 1024,
            password_passes: 2,
            rate_per_s: 200,
            rate_burst: 400,
            request_limit_ms: 30_000,
            verdict_limit_ms: 5_000,
            connections_max: 4_096,
            watches_max: 256,
            upstream_limit_ms: 30_000,
            callbacks_private: String::new(),
        }
    }
}
