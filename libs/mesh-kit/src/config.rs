//! Configuration: one flat struct per service beside the [`Settings`] that all share, read whole before anything starts.
//!
//! Layers, each winning over those before it:
//!
//! 1. the defaults of the structs;
//! 2. a file of flat `key: value` lines, YAML or JSON (`--config FILE`, or `CONTINUUM_CONFIG`);
//! 3. the environment: `CONTINUUM_<KEY>` for shared settings, then `<SERVICE>_<KEY>` for any key of that one service
//!    (`CLUSTER_AGENT_CPU_MILLI`, `VALIDATOR_LOG_LEVEL`);
//! 4. `--set key=value`, as often as needed; of the same key the last counts.
//!
//! A key that both structs have is set in both. Lists are written with commas. An unknown key, or a value that does
//! not fit, stops the process with [`exit::USAGE`](crate::exit::USAGE), its name, and the nearest known one.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, Visitor},
};
use serde_json::Value;

use crate::secret::Secret;

/// Largest configuration file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Prefix of shared settings in the environment.
const SHARED_PREFIX: &str = "CONTINUUM_";

/// Names with the shared prefix that are not settings: which configuration file, which nats-server tests and the
/// command line use, and what the process driver tells the workloads it starts.
const OTHER_NAMES: &[&str] = &["CONFIG", "NATS_SERVER", "INSTANCE", "GENERATION", "REPLICA", "CLUSTER", "AGENT"];

/// What every process of the mesh is told, whichever service it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the bus is: `nats://host:port` or `tls://host:port`, several with commas.
    pub bus_url: String,
    /// File with the NKey seed by which the bus knows this process; none for a bus without accounts.
    pub bus_seed_file: Option<Secret>,
    /// Prefix of the JetStream API as this process sees it.
    pub bus_api_prefix: String,
    /// Longest wait for the bus at start, milliseconds. Later it is waited for without limit.
    pub bus_connect_limit_ms: u64,
    /// Certificate authority, PEM: of the bus, the Zenoh routers, the OTLP collector, and of clients that must
    /// identify themselves.
    pub tls_ca_file: Option<PathBuf>,
    /// Own certificate chain, PEM.
    pub tls_cert_file: Option<PathBuf>,
    /// Key of the own certificate, PEM.
    pub tls_key_file: Option<Secret>,
    /// How gRPC and HTTP are served.
    pub serve_tls: ServeTls,
    /// Where gRPC and HTTP are served, `address:port`; port 0 takes a free one.
    pub listen: String,
    /// Host or address by which others reach this process; the listening address if none.
    pub advertise_host: Option<String>,
    /// Zenoh endpoints to connect to, such as `tcp/router:7447`.
    pub samples_connect: Vec<String>,
    /// Zenoh endpoints to listen on.
    pub samples_listen: Vec<String>,
    /// Part that this process plays in Zenoh.
    pub samples_mode: SamplesMode,
    /// Samples that a subscription holds before it drops the oldest.
    pub samples_buffer_max: usize,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,validator=debug`.
    pub log_level: String,
    /// How log lines are written, on standard error.
    pub log_format: LogFormat,
    /// OpenTelemetry collector, gRPC: `http://host:4317`; traces, metrics and logs go there. None: nothing is sent.
    pub otlp_endpoint: Option<String>,
    /// Share of traces that is sent, 0 to 1; a trace that came in sampled stays so.
    pub otlp_trace_ratio: f64,
    /// How often metrics are sent, milliseconds.
    pub otlp_interval_ms: u64,
    /// Folder for what a process keeps for itself.
    pub data_dir: Option<PathBuf>,
    /// Messages a consumer may be behind before `/readyz` says no.
    pub ready_lag_max: u64,
    /// Longest that a stopping process settles what is in hand, milliseconds.
    pub drain_limit_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bus_url: "nats://127.0.0.1:4222".into(),
            bus_seed_file: None,
            bus_api_prefix: "BUS.API".into(),
            bus_connect_limit_ms: 30_000,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            serve_tls: ServeTls::Off,
            listen: "127.0.0.1:0".into(),
            advertise_host: None,
            samples_connect: vec![],
            samples_listen: vec![],
            samples_mode: SamplesMode::Client,
            samples_buffer_max: 10_000,
            log_level: "info".into(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            otlp_trace_ratio: 1.0,
            otlp_interval_ms: 10_000,
            data_dir: None,
            ready_lag_max: 10_000,
            drain_limit_ms: 10_000,
        }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Part that a process plays in Zenoh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplesMode {
    /// Connects to a router.
    #[default]
    Client,
    /// Connects to others directly.
    Peer,
    /// Others connect to it.
    Router,
}

/// How gRPC and HTTP are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServeTls {
    /// In the clear; for loopback, or behind something that adds TLS.
    #[default]
    Off,
    /// With the own certificate.
    On,
    /// The same, and clients must present one signed by the authority in `tls_ca_file`.
    Mutual,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The struct's default.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// The environment variable of this name.
    Environment(String),
    /// `--set`.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag --set"),
        }
    }
}

/// Configuration that cannot be used. All of these end the process with [`exit::USAGE`](crate::exit::USAGE).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is wrong.
    #[error("{}", .0.render())]
    Usage(#[source] Box<clap::Error>),
    /// No such key.
    #[error("unknown configuration key {key:?} ({origin}){}", near(.nearest))]
    UnknownKey {
        /// What was written.
        key: String,
        /// Where.
        origin: Origin,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// The value does not fit its key.
    #[error("configuration key {key:?} ({origin}): {problem}")]
    Value {
        /// Which key.
        key: String,
        /// Where its value came from.
        origin: Origin,
        /// What is wrong with it.
        problem: String,
    },
    /// The file cannot be read.
    #[error("read configuration file {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a flat mapping in YAML or JSON.
    #[error("configuration file {path}: {problem}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The value is wrong in itself or beside others, as a service found when it started.
    #[error("configuration key {key:?}: {problem}")]
    Rejected {
        /// Which key.
        key: String,
        /// What is wrong with it, and what would do.
        problem: String,
    },
    /// A struct whose default is not a flat mapping: a mistake in the program.
    #[error("configuration struct: {0}")]
    Struct(String),
}

fn near(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("; the nearest known key is {key:?}")).unwrap_or_default()
}

impl Error {
    /// For a service's `start`: this value cannot be used. Ends the process like any other wrong configuration.
    pub fn rejected(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Rejected { key: key.into(), problem: problem.into() }
    }
}

/// One value, with where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Value as printed: a secret is its file, a password in a URL is left out.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Loaded<C> {
    /// What all processes share.
    pub settings: Settings,
    /// The service's own.
    pub config: C,
    /// Every value with its origin, own ones first.
    pub entries: Vec<Entry>,
    /// Was `--print-config` given?
    pub print: bool,
}

impl<C> Loaded<C> {
    /// Every value with its origin, one per line, in columns.
    pub fn table(&self) -> String {
        let width = |column: fn(&Entry) -> &str| self.entries.iter().map(|e| column(e).len()).max().unwrap_or(0);
        let (keys, values) = (width(|e| &e.key), width(|e| &e.value).min(60));
        self.entries.iter().map(|e| format!("{:keys$}  {:values$}  {}\n", e.key, e.value, e.origin)).collect()
    }
}

/// The environment of this process. The only place where it is read; everything else is handed a map.
/// Of a value that is not Unicode, what is not is replaced, so that it fails where it is used.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .collect()
}

/// Reads the whole configuration of a service from its command line (without the program's name) and environment.
pub fn load<C: Serialize + DeserializeOwned + Default>(
    service: &'static str,
    arguments: impl IntoIterator<Item = OsString>,
    environment: &BTreeMap<String, String>,
) -> Result<Loaded<C>, Error> {
    let shared_defaults = fields(&Settings::default())?;
    let own_defaults = fields(&C::default())?;
    let keys = Keys {
        shared: shared_defaults.keys().cloned().collect(),
        all: shared_defaults.keys().chain(own_defaults.keys()).cloned().collect(),
    };
    let own_prefix = format!("{}_", service.to_uppercase().replace('-', "_"));

    let command = command(service, &shared_defaults, &own_defaults, &own_prefix);
    let arguments = std::iter::once(OsString::from(service)).chain(arguments);
    let matches = command.try_get_matches_from(arguments).map_err(|e| Error::Usage(Box::new(e)))?;

    let mut chosen = Chosen::default();
    let named = matches.get_one::<PathBuf>("config").cloned();
    if let Some(path) = named.or_else(|| environment.get("CONTINUUM_CONFIG").filter(|p| !p.is_empty()).map(Into::into))
    {
        for (key, value) in read_file(&path)? {
            let origin = Origin::File(path.clone());
            keys.check(&key, &origin, &keys.all)?;
            if !value.is_null() {
                chosen.insert(key, (Given::Tree(value), origin));
            }
        }
    }
    for (prefix, known) in [(SHARED_PREFIX, &keys.shared), (own_prefix.as_str(), &keys.all)] {
        for (name, value) in environment {
            let Some(rest) = name.strip_prefix(prefix).filter(|rest| !rest.is_empty()) else { continue };
            if is_service_link(rest) || (prefix == SHARED_PREFIX && OTHER_NAMES.contains(&rest)) {
                continue;
            }
            let (key, origin) = (rest.to_lowercase(), Origin::Environment(name.clone()));
            keys.check(&key, &origin, known)?;
            chosen.insert(key, (Given::Text(value.clone()), origin));
        }
    }
    for pair in matches.get_many::<String>("set").into_iter().flatten() {
        let (key, value) = pair.split_once('=').ok_or_else(|| Error::Value {
            key: pair.clone(),
            origin: Origin::Flag,
            problem: "write --set key=value".into(),
        })?;
        keys.check(key, &Origin::Flag, &keys.all)?;
        chosen.insert(key.to_owned(), (Given::Text(value.to_owned()), Origin::Flag));
    }

    let settings: Settings = build(&chosen, &shared_defaults)?;
    check(&settings, &chosen)?;
    let config: C = build(&chosen, &own_defaults)?;
    let own = fields(&config)?.into_iter();
    let shared = fields(&settings)?.into_iter().filter(|(key, _)| !own_defaults.contains_key(key));
    let entries = own.chain(shared).map(|(key, value)| {
        let origin = chosen.get(&key).map_or(Origin::Default, |(_, origin)| origin.clone());
        Entry { value: shown(&key, &value), key, origin }
    });
    Ok(Loaded { entries: entries.collect(), settings, config, print: matches.get_flag("print-config") })
}

/// The `--set` arguments that give another process these values; defaults are left out.
pub fn arguments<C: Serialize + Default>(config: &C) -> Result<Vec<String>, Error> {
    let defaults = fields(&C::default())?;
    let changed = fields(config)?.into_iter().filter(|(key, value)| defaults.get(key) != Some(value));
    Ok(changed.flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={}", text_of(&value))]).collect())
}

/// The key in this list that looks most like what was written, if any does.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Letters mistyped, or words in another order.
    let score = |key| strsim::normalized_damerau_levenshtein(written, key).max(strsim::sorensen_dice(written, key));
    let scored = known.into_iter().map(|key| (score(key), key));
    scored.filter(|(score, _)| *score >= 0.5).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, key)| key)
}

/// What was given, as text or as a value from a file, with its origin.
type Chosen = BTreeMap<String, (Given, Origin)>;

#[derive(Clone, Debug)]
enum Given {
    Text(String),
    Tree(Value),
}

struct Keys {
    shared: BTreeSet<String>,
    all: BTreeSet<String>,
}

impl Keys {
    fn check(&self, key: &str, origin: &Origin, known: &BTreeSet<String>) -> Result<(), Error> {
        if known.contains(key) {
            return Ok(());
        }
        let nearest = nearest(key, self.all.iter().map(String::as_str)).map(str::to_owned);
        Err(Error::UnknownKey { key: key.to_owned(), origin: origin.clone(), nearest })
    }
}

/// Kubernetes and Docker put a variable like `VALIDATOR_SERVICE_HOST` or `VALIDATOR_PORT_7400_TCP` into every
/// container beside a service called `validator`; these are not ours.
fn is_service_link(rest: &str) -> bool {
    rest == "PORT"
        || ["SERVICE_HOST", "SERVICE_PORT"].iter().any(|link| rest.starts_with(link))
        || rest.strip_prefix("PORT_").is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit()))
}

fn fields<C: Serialize>(config: &C) -> Result<serde_json::Map<String, Value>, Error> {
    match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(Value::Null) => Ok(serde_json::Map::new()),
        Ok(other) => Err(Error::Struct(format!("{other} is not a flat mapping"))),
        Err(error) => Err(Error::Struct(error.to_string())),
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, Value>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    let wrong = |problem: String| Error::File { path: path.to_owned(), problem };
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    // JSON is YAML, so one reader takes both. Only true and false are booleans: `no` is a country, `y` a coordinate.
    let options = serde_saphyr::options! { strict_booleans: true };
    match serde_saphyr::from_str_with_options::<Value>(&text, options).map_err(|e| wrong(e.to_string()))? {
        Value::Null => Ok(BTreeMap::new()),
        Value::Object(fields) => Ok(fields.into_iter().collect()),
        _ => Err(wrong("should be flat `key: value` lines".into())),
    }
}

fn check(settings: &Settings, chosen: &Chosen) -> Result<(), Error> {
    let wrong = |key: &str, problem: String| {
        let origin = chosen.get(key).map_or(Origin::Default, |(_, origin)| origin.clone());
        Err(Error::Value { key: key.into(), origin, problem })
    };
    if let Err(error) = settings.listen.parse::<std::net::SocketAddr>() {
        return wrong("listen", format!("{:?}: {error}; write address:port, such as 127.0.0.1:0", settings.listen));
    }
    if !(0.0..=1.0).contains(&settings.otlp_trace_ratio) {
        return wrong("otlp_trace_ratio", format!("{} is not from 0 to 1", settings.otlp_trace_ratio));
    }
    if settings.otlp_interval_ms == 0 {
        return wrong("otlp_interval_ms", "must be more than 0".into());
    }
    if settings.serve_tls != ServeTls::Off && (settings.tls_cert_file.is_none() || settings.tls_key_file.is_none()) {
        return wrong("serve_tls", "needs tls_cert_file and tls_key_file".into());
    }
    if settings.serve_tls == ServeTls::Mutual && settings.tls_ca_file.is_none() {
        return wrong("serve_tls", "mutual needs tls_ca_file".into());
    }
    let mutual = settings.tls_ca_file.is_some() && settings.tls_cert_file.is_some() && settings.tls_key_file.is_some();
    if settings.bus_url.split(',').any(|url| url.trim().starts_with("tls://")) && !mutual {
        return wrong("bus_url", "tls:// needs tls_ca_file, tls_cert_file and tls_key_file".into());
    }
    if settings.samples_connect.iter().chain(&settings.samples_listen).any(|at| at.starts_with("tls/")) && !mutual {
        return wrong("samples_connect", "tls/ needs tls_ca_file, tls_cert_file and tls_key_file".into());
    }
    if settings.tls_cert_file.is_some() != settings.tls_key_file.is_some() {
        return wrong("tls_cert_file", "tls_cert_file and tls_key_file go together".into());
    }
    if let Some(problem) = crate::telemetry::level_problem(&settings.log_level) {
        return wrong("log_level", format!("{:?} {problem}", settings.log_level));
    }
    Ok(())
}

fn command(
    service: &'static str,
    shared: &serde_json::Map<String, Value>,
    own: &serde_json::Map<String, Value>,
    own_prefix: &str,
) -> clap::Command {
    let lines = |fields: &serde_json::Map<String, Value>, prefix: &str| {
        fields
            .iter()
            .map(|(key, value)| format!("  {key} = {}  [{prefix}{}]\n", text_of(value), key.to_uppercase()))
            .collect::<String>()
    };
    let help = format!(
        "Keys of this service, with their defaults and environment variables:\n{}\nKeys that all services share:\n{}",
        lines(own, own_prefix),
        lines(shared, SHARED_PREFIX)
    );
    clap::Command::new(service)
        .version(env!("CARGO_PKG_VERSION"))
        .about("A service of Continuum. Configuration: defaults < file < environment < --set.")
        .after_help(help)
        .arg(
            clap::Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Reads `key: value` lines, YAML or JSON, from FILE [env: CONTINUUM_CONFIG]"),
        )
        .arg(
            clap::Arg::new("set")
                .long("set")
                .value_name("KEY=VALUE")
                .action(clap::ArgAction::Append)
                .help("Sets one key; may be repeated"),
        )
        .arg(
            clap::Arg::new("print-config")
                .long("print-config")
                .action(clap::ArgAction::SetTrue)
                .help("Prints every key with its value and where it came from, and ends"),
        )
}

/// A value as `--set` takes it.
fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text_of).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// A value as it is printed: secrets as their file, URLs without what stands before their `@`.
fn shown(key: &str, value: &Value) -> String {
    let text = text_of(value);
    if key.ends_with("_file") && !text.is_empty() {
        return format!("<file {text}>");
    }
    text.split(',')
        .map(|part| match (part.split_once("://"), part.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
            _ => part.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(",")
}

/// A struct from what was given for its keys; its own `serde(default)` fills in the rest.
fn build<T: DeserializeOwned>(chosen: &Chosen, known: &serde_json::Map<String, Value>) -> Result<T, Error> {
    let given =
        chosen.iter().filter(|(key, _)| known.contains_key(*key)).map(|(k, (given, _))| (k.clone(), given.clone()));
    let layers = Layers { rest: given.collect::<BTreeMap<_, _>>().into_iter(), current: None };
    T::deserialize(layers).map_err(|problem| {
        let key = problem.key.unwrap_or_default();
        let origin = chosen.get(&key).map_or(Origin::Default, |(_, origin)| origin.clone());
        Error::Value { key, origin, problem: problem.text }
    })
}

/// Why a value does not fit, and under which key.
#[derive(Debug)]
struct Problem {
    key: Option<String>,
    text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Problem {}

impl de::Error for Problem {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self { key: None, text: text.to_string() }
    }
}

struct Layers {
    rest: std::collections::btree_map::IntoIter<String, Given>,
    current: Option<(String, Given)>,
}

impl<'de> Deserializer<'de> for Layers {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_map(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_unit()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option newtype_struct seq
        tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Layers {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        self.current = self.rest.next();
        self.current.as_ref().map(|(key, _)| seed.deserialize(key.as_str().into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let Some((key, given)) = self.current.take() else { return Err(de::Error::custom("value before key")) };
        let value = match given {
            Given::Text(text) => seed.deserialize(Text(text)),
            Given::Tree(tree) => seed.deserialize(tree).map_err(de::Error::custom),
        };
        value.map_err(|problem| Problem { key: Some(key), ..problem })
    }
}

/// Text from the environment or a flag, read as whatever its field wants.
struct Text(String);

macro_rules! parsed {
    ($($method:ident $visit:ident $kind:literal),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            match self.0.trim().parse() {
                Ok(value) => visitor.$visit(value),
                Err(error) => Err(de::Error::custom(format!("{:?} is not {}: {error}", self.0, $kind))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Text {
    type Error = Problem;

    parsed! {
        deserialize_bool visit_bool "true or false",
        deserialize_i8 visit_i8 "a whole number", deserialize_i16 visit_i16 "a whole number",
        deserialize_i32 visit_i32 "a whole number", deserialize_i64 visit_i64 "a whole number",
        deserialize_u8 visit_u8 "a whole number", deserialize_u16 visit_u16 "a whole number",
        deserialize_u32 visit_u32 "a whole number", deserialize_u64 visit_u64 "a whole number",
        deserialize_f32 visit_f32 "a number", deserialize_f64 visit_f64 "a number",
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_string(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        if self.0.is_empty() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let items = self.0.split(',').map(str::trim).filter(|item| !item.is_empty());
        visitor.visit_seq(de::value::SeqDeserializer::new(items.map(|item| Text(item.to_owned()))))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let tree: Value = serde_json::from_str(&self.0).map_err(de::Error::custom)?;
        tree.deserialize_map(visitor).map_err(de::Error::custom)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_enum(self.0.into_deserializer())
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple_struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Problem> for Text {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Own {
        cpu_milli_max: u32,
        labels: Vec<String>,
        site: String,
        probe: bool,
        ratio: f64,
        note: Option<String>,
        data_dir: Option<PathBuf>,
    }

    impl Default for Own {
        fn default() -> Self {
            Self {
                cpu_milli_max: 1_000,
                labels: vec![],
                site: "home".into(),
                probe: false,
                ratio: 0.5,
                note: None,
                data_dir: None,
            }
        }
    }

    fn load_own(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Loaded<Own>, Error> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        load("my-agent", arguments.iter().map(OsString::from), &environment)
    }

    /// Arguments, environment, and the key that is named.
    type Case<'a> = (Vec<&'a str>, Vec<(&'a str, &'a str)>, &'a str);

    fn origin(loaded: &Loaded<Own>, key: &str) -> String {
        loaded.entries.iter().find(|e| e.key == key).unwrap().origin.to_string()
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        (folder, path.display().to_string())
    }

    #[test]
    fn each_layer_wins_over_the_one_before_and_every_origin_is_known() {
        let (_folder, path) = file("cpu_milli_max: 1\nsite: a\nprobe: true\nlabels: [no, y]\nlog_level: warn\nnote:\n");
        let loaded = load_own(
            &["--config", &path, "--set", "site=c", "--set", "site=d"],
            &[("MY_AGENT_SITE", "b"), ("MY_AGENT_CPU_MILLI_MAX", "2"), ("CONTINUUM_LOG_LEVEL", "debug"), ("PATH", "/")],
        )
        .unwrap();
        let expected = Own {
            cpu_milli_max: 2,
            labels: vec!["no".into(), "y".into()],
            site: "d".into(),
            probe: true,
            ..Own::default()
        };
        assert_eq!(loaded.config, expected);
        assert_eq!(loaded.settings.log_level, "debug");
        assert_eq!(origin(&loaded, "ratio"), "default");
        assert_eq!(origin(&loaded, "note"), "default");
        assert_eq!(origin(&loaded, "probe"), format!("file {path}"));
        assert_eq!(origin(&loaded, "cpu_milli_max"), "environment MY_AGENT_CPU_MILLI_MAX");
        assert_eq!(origin(&loaded, "site"), "flag --set");
        assert_eq!(origin(&loaded, "log_level"), "environment CONTINUUM_LOG_LEVEL");
        for entry in &loaded.entries {
            let line = loaded.table().lines().find(|l| l.split(' ').next() == Some(&entry.key)).unwrap().to_owned();
            assert!(line.contains(&entry.value) && line.ends_with(&entry.origin.to_string()), "{line}");
        }
    }

    #[test]
    fn a_service_may_override_what_all_share_and_a_key_in_both_is_set_in_both() {
        let loaded = load_own(
            &["--set", "data_dir=/var/lib/x"],
            &[("CONTINUUM_LOG_LEVEL", "warn"), ("MY_AGENT_LOG_LEVEL", "trace"), ("MY_AGENT_LABELS", "a=1, b=2")],
        )
        .unwrap();
        assert_eq!(loaded.settings.log_level, "trace");
        assert_eq!(loaded.config.labels, ["a=1", "b=2"]);
        assert_eq!(loaded.settings.data_dir, Some("/var/lib/x".into()));
        assert_eq!(loaded.config.data_dir, loaded.settings.data_dir);
        assert_eq!(loaded.entries.iter().filter(|e| e.key == "data_dir").count(), 1);
    }

    #[test]
    fn json_is_a_file_format_too_and_the_environment_may_name_the_file() {
        let (_folder, path) = file(r#"{"ratio": 0.25, "serve_tls": "off", "samples_connect": ["tcp/a:1"]}"#);
        let loaded = load_own(&[], &[("CONTINUUM_CONFIG", &path)]).unwrap();
        assert_eq!((loaded.config.ratio, loaded.settings.samples_connect), (0.25, vec!["tcp/a:1".to_owned()]));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_origin_and_the_nearest_known_one() {
        let (_folder, path) = file("cpu_mili_max: 3\n");
        let cases: [Case<'_>; 4] = [
            (vec!["--config", &path], vec![], "cpu_milli_max"),
            (vec![], vec![("MY_AGENT_CPU_MILLI_MAXX", "3")], "cpu_milli_max"),
            (vec!["--set", "cpu_max_milli=3"], vec![], "cpu_milli_max"),
            (vec![], vec![("CONTINUUM_BUS_URI", "nats://x")], "bus_url"),
        ];
        for (arguments, environment, expected) in cases {
            match load_own(&arguments, &environment) {
                Err(Error::UnknownKey { nearest, origin, key }) => {
                    assert_eq!(nearest.as_deref(), Some(expected), "{key}");
                    assert_ne!(origin, Origin::Default);
                }
                other => panic!("{other:?}"),
            }
        }
        // Own keys are not read from the shared prefix, and nothing looks like this one.
        assert!(matches!(load_own(&[], &[("CONTINUUM_SITE", "x")]), Err(Error::UnknownKey { .. })));
        let error = load_own(&["--set", "qqqqqqqqqqqq=1"], &[]).unwrap_err();
        assert!(matches!(&error, Error::UnknownKey { nearest: None, .. }), "{error}");
    }

    #[test]
    fn variables_that_orchestrators_and_tools_set_are_left_alone() {
        let set = [
            ("MY_AGENT_SERVICE_HOST", "10.0.0.1"),
            ("MY_AGENT_SERVICE_PORT_GRPC", "7400"),
            ("MY_AGENT_PORT", "tcp://10.0.0.1:7400"),
            ("MY_AGENT_PORT_7400_TCP_ADDR", "10.0.0.1"),
            ("CONTINUUM_NATS_SERVER", "/usr/bin/nats-server"),
        ];
        assert_eq!(load_own(&[], &set).unwrap().config, Own::default());
    }

    #[test]
    fn a_value_that_does_not_fit_names_its_key_and_origin() {
        let (_folder, path) = file("probe: perhaps\n");
        let cases: [Case<'_>; 11] = [
            (vec!["--config", &path], vec![], "probe"),
            (vec![], vec![("MY_AGENT_CPU_MILLI_MAX", "many")], "cpu_milli_max"),
            (vec!["--set", "cpu_milli_max=-1"], vec![], "cpu_milli_max"),
            (vec!["--set", "listen=nowhere"], vec![], "listen"),
            (vec!["--set", "serve_tls=yes"], vec![], "serve_tls"),
            (vec!["--set", "serve_tls=on"], vec![], "serve_tls"),
            (vec!["--set", "samples_mode=star"], vec![], "samples_mode"),
            (vec!["--set", "bus_url=tls://bus:4222"], vec![], "bus_url"),
            (vec!["--set", "samples_connect=tls/router:7447"], vec![], "samples_connect"),
            (vec!["--set", "otlp_trace_ratio=7"], vec![], "otlp_trace_ratio"),
            (vec!["--set", "log_level=info=info=info"], vec![], "log_level"),
        ];
        for (arguments, environment, expected) in cases {
            match load_own(&arguments, &environment) {
                Err(Error::Value { key, origin, .. }) => {
                    assert_eq!(key, expected);
                    assert_ne!(origin, Origin::Default);
                }
                other => panic!("{arguments:?} {environment:?}: {other:?}"),
            }
        }
        assert!(matches!(load_own(&["--set", "site"], &[]), Err(Error::Value { .. })));
        assert!(matches!(load_own(&["--seet", "site=1"], &[]), Err(Error::Usage(_))));
        assert!(matches!(load_own(&["--config", "/does/not/exist"], &[]), Err(Error::Read { .. })));
        let (_folder, path) = file("- a\n- b\n");
        assert!(matches!(load_own(&["--config", &path], &[]), Err(Error::File { .. })));
        let (_folder, path) = file("site: a\nsite: b\n");
        assert!(matches!(load_own(&["--config", &path], &[]), Err(Error::File { .. })), "a key is written once");
    }

    #[test]
    fn neither_a_secret_nor_a_password_is_printed() {
        let folder = tempfile::tempdir().unwrap();
        let seed = folder.path().join("seed");
        std::fs::write(&seed, "SUAVERYSECRET").unwrap();
        let set = format!("bus_seed_file={}", seed.display());
        let loaded = load_own(&["--set", &set, "--set", "bus_url=nats://me:pw@a:1,nats://b:2"], &[]).unwrap();
        let table = loaded.table();
        assert!(table.contains(&format!("<file {}>", seed.display())), "{table}");
        assert!(table.contains("nats://***@a:1,nats://b:2"), "{table}");
        let all = format!("{table} {loaded:?}");
        assert!(!all.contains("SUAVERYSECRET"));
        assert!(!table.contains("pw"));
        assert_eq!(loaded.settings.bus_seed_file.unwrap().read().unwrap().expose(), "SUAVERYSECRET");
    }

    #[test]
    fn arguments_give_another_process_the_same_configuration() {
        let own =
            Own { labels: vec!["a=1".into(), "b".into()], ratio: 0.125, note: Some("x=y".into()), ..Own::default() };
        let settings = Settings { bus_url: "nats://h:1".into(), log_format: LogFormat::Json, ..Settings::default() };
        let mut given = arguments(&own).unwrap();
        given.extend(arguments(&settings).unwrap());
        let loaded = load_own(&given.iter().map(String::as_str).collect::<Vec<_>>(), &[]).unwrap();
        assert_eq!((loaded.config, loaded.settings), (own, settings));
    }

    #[test]
    fn a_service_without_keys_has_a_configuration_too() {
        #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Nothing {}
        let loaded = load::<Nothing>("validator", [], &BTreeMap::new()).unwrap();
        assert_eq!(loaded.settings, Settings::default());
        let loaded = load::<()>("validator", [], &BTreeMap::new()).unwrap();
        assert_eq!(loaded.settings, Settings::default());
    }
}
