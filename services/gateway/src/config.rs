//! Configuration of the gateway.

/// Configuration.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where REST and TMF921 are answered; port 0 for any. The address is written to `url` in the data folder.
    pub rest_listen: String,
    /// OpenID Connect provider whose tokens are accepted, `https://…`, exactly as its discovery document names it. If empty,
    /// the tokens of the identity service are.
    pub oidc_issuer: String,
    /// Audience that tokens must name.
    pub audience: String,
    /// Dotted paths to lists of roles in its tokens, separated by commas.
    pub roles_claims: String,
    /// Claim that names whose objects a caller works on.
    pub owner_claim: String,
    /// How far the clocks of issuer and gateway may be apart, seconds.
    pub skew_s: u32,
    /// Name of the built-in issuer; the same as the identity service's `issuer_name`.
    pub issuer_name: String,
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
    /// Origins of pages that may read answers in a browser, divided by commas, `https://boards.example`; none if empty.
    pub cors_origins: String,
    /// Series on the page for Prometheus at most; what is beyond is left out and counted.
    pub metrics_series_max: u32,
    /// Intents on the page for Prometheus at most, the first by owner and id; 0 for none.
    pub metrics_intents_max: u32,
    /// Receiver of Prometheus' remote write (1.0) that gets the newest value of each series, for example
    /// `http://127.0.0.1:9090/api/v1/write`; none if empty.
    pub remote_write_url: String,
    /// How often it gets them, milliseconds.
    pub remote_write_interval_ms: u32,
    /// Bytes of requests, compressed, that wait for a receiver that does not take them; the oldest give way.
    pub remote_write_queue_bytes: u32,
    /// Longest that an exposed workload may take to begin its answer, milliseconds.
    pub upstream_limit_ms: u32,
    /// Between two readings of what goes through to exposed workloads, milliseconds.
    pub traffic_ms: u32,
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
            issuer_name: "urn:continuum".into(),
            rate_per_s: 200,
            rate_burst: 400,
            request_limit_ms: 30_000,
            verdict_limit_ms: 5_000,
            connections_max: 4_096,
            watches_max: 256,
            cors_origins: String::new(),
            metrics_series_max: 10_000,
            metrics_intents_max: 1_000,
            remote_write_url: String::new(),
            remote_write_interval_ms: 15_000,
            remote_write_queue_bytes: 32 << 20,
            upstream_limit_ms: 30_000,
            traffic_ms: 5_000,
        }
    }
}
