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

mod settings;
#[cfg(test)]
mod tests;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
};

use mesh_proto::{Written, WrittenKind};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

pub use self::settings::{LogFormat, SamplesMode, ServeTls, Settings};
use self::values::build;

/// Largest configuration file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Prefix of shared settings in the environment.
const SHARED_PREFIX: &str = "CONTINUUM_";

/// Names with the shared prefix that are not settings: which configuration file, which nats-server tests and the
/// command line use, and what the process driver tells the workloads it starts.
const OTHER_NAMES: &[&str] = &["CONFIG", "NATS_SERVER", "INSTANCE", "GENERATION", "REPLICA", "CLUSTER", "AGENT"];

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
    /// Was `--health` given?
    pub health: bool,
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

/// Does the environment ask for random wording ([`Settings::random_wording`])? For programs that make the settings of
/// their services themselves.
pub fn random_wording() -> bool {
    environment().get("CONTINUUM_RANDOM_WORDING").is_some_and(|value| value == "true")
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
    Ok(Loaded {
        entries: entries.collect(),
        settings,
        config,
        print: matches.get_flag("print-config"),
        health: matches.get_flag("health"),
    })
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
    Tree(Written),
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

fn read_file(path: &Path) -> Result<BTreeMap<String, Written>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    let wrong = |problem: String| Error::File { path: path.to_owned(), problem };
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    // Only true and false are booleans: `no` is a country, `y` a coordinate.
    match Written::yaml(&text).map_err(|e| wrong(e.to_string()))?.kind {
        WrittenKind::Null => Ok(BTreeMap::new()),
        WrittenKind::Fields(fields) => Ok(fields.into_iter().map(|field| (field.name, field.value)).collect()),
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
    for (key, list) in [("samples_connect", &settings.samples_connect), ("samples_listen", &settings.samples_listen)] {
        if let Some(strange) = list.iter().find(|at| !at.starts_with("tcp/") && !at.starts_with("tls/")) {
            return wrong(
                key,
                format!("{strange:?} begins with neither tcp/ nor tls/; write tcp/host:port, divided by commas"),
            );
        }
    }
    if settings.samples_connect.iter().chain(&settings.samples_listen).any(|at| at.starts_with("tls/")) && !mutual {
        return wrong("samples_connect", "tls/ needs tls_ca_file, tls_cert_file and tls_key_file".into());
    }
    if settings.tls_cert_file.is_some() != settings.tls_key_file.is_some() {
        return wrong("tls_cert_file", "tls_cert_file and tls_key_file go together".into());
    }
    if let Some(problem) = level_problem(&settings.log_level) {
        return wrong("log_level", format!("{:?} {problem}", settings.log_level));
    }
    Ok(())
}

/// What is wrong with these log directives, if anything.
fn level_problem(level: &str) -> Option<String> {
    if level.is_empty() {
        return Some("is empty; write a level such as info".into());
    }
    let plain = !level.contains([',', '=']);
    if plain && level.parse::<LevelFilter>().is_err() {
        return Some("is not a level; use off, error, warn, info, debug or trace".into());
    }
    EnvFilter::builder().parse(level).err().map(|error| error.to_string())
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
        .arg(
            clap::Arg::new("health")
                .long("health")
                .action(clap::ArgAction::SetTrue)
                .conflicts_with("print-config")
                .help("Asks the process that has this configuration whether it is ready, prints its answer, and ends: 0 if so"),
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
