//! A context of the NATS command line for a mesh: with it `nats --context continuum …` is a person of the mesh, with the
//! key, the inbox and the JetStream prefix that a person has. It lies where that program looks for it, one file of JSON
//! per name: `$XDG_CONFIG_HOME/nats/context/<name>.json`, or below `~/.config`.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use mesh_client::{Endpoints, endpoints::Error as NotRunning};
use mesh_kit::{ReadableBy, write_atomic};
use serde_json::{Value as Json, json};

/// The name where none is given.
pub const NAME: &str = "continuum";
/// How the description of a context begins that `up` wrote. Whoever changes it keeps the context.
const OURS: &str = "written by `continuum up` for the mesh in ";

/// Where the NATS command line has its configuration, by its environment; `None` where that names no home.
pub fn config_home(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let given = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    given("XDG_CONFIG_HOME").or_else(|| given("HOME").map(|home| home.join(".config")))
}

/// Writes the context for a running mesh. One that somebody else wrote, or that belongs to another mesh that runs, stays.
///
/// # Errors
/// When the name cannot be one, the context is not `up`'s to change, or the file cannot be written.
pub fn write(config_home: &Path, name: &str, data_dir: &Path, endpoints: &Endpoints) -> anyhow::Result<PathBuf> {
    if name.contains("..") || name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        bail!("{name:?} cannot be the name of a context of nats: use letters, digits, `_` and `-`");
    }
    let path = config_home.join("nats/context").join(format!("{name}.json"));
    let data_dir = fs::canonicalize(data_dir).with_context(|| format!("find {}", data_dir.display()))?;
    match fs::read(&path) {
        Ok(text) => check(&text, &path, &data_dir)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    }
    let seed = fs::canonicalize(&endpoints.person_seed_file)
        .with_context(|| format!("find {}", endpoints.person_seed_file.display()))?;
    let context = json!({
        "description": format!("{OURS}{}", data_dir.display()),
        "url": endpoints.nats,
        "nkey": seed,
        "inbox_prefix": "_INBOX_person",
        "jetstream_api_prefix": mesh_proto::rights::API_PREFIX,
    });
    write_atomic(&path, format!("{context:#}\n").as_bytes(), ReadableBy::Owner)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// May what is there be replaced?
fn check(text: &[u8], path: &Path, data_dir: &Path) -> anyhow::Result<()> {
    let known: Option<Json> = serde_json::from_slice(text).ok();
    let description = known.as_ref().and_then(|context| context["description"].as_str());
    let Some(of) = description.and_then(|text| text.strip_prefix(OURS)) else {
        bail!("{} is not of `continuum up` and stays; name another context with --nats-context", path.display());
    };
    if Path::new(of) != data_dir
        && !matches!(Endpoints::read(Path::new(of)), Err(NotRunning::Absent { .. } | NotRunning::Ended { .. }))
    {
        bail!("{} is of the mesh in {of}, which runs; name another context with --nats-context", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(folder: &Path) -> Endpoints {
        fs::create_dir_all(folder.join("keys")).unwrap();
        fs::write(folder.join("keys/person.nk"), "SU…").unwrap();
        let endpoints = Endpoints {
            pid: std::process::id(),
            started_ticks: mesh_client::endpoints::started_ticks(std::process::id()).unwrap(),
            mode: "one process".into(),
            nats: "nats://127.0.0.1:4222".into(),
            person_seed_file: folder.join("keys/person.nk"),
            websocket: String::new(),
            dashboard_seed_file: folder.join("keys/dashboard.nk"),
            zenoh: String::new(),
            clusters: vec![],
        };
        fs::write(Endpoints::path(folder), serde_json::to_vec(&endpoints).unwrap()).unwrap();
        endpoints
    }

    #[test]
    fn a_context_has_all_that_a_person_needs_and_is_written_again() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("mesh");
        let endpoints = mesh(&data);
        let path = write(home.path(), NAME, &data, &endpoints).unwrap();
        assert_eq!(path, home.path().join("nats/context/continuum.json"));
        let context: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(context["url"], "nats://127.0.0.1:4222");
        assert!(context["nkey"].as_str().unwrap().starts_with('/'));
        assert_eq!(
            (&context["inbox_prefix"], &context["jetstream_api_prefix"]),
            (&json!("_INBOX_person"), &json!("BUS.API"))
        );
        let moved = Endpoints { nats: "nats://127.0.0.1:4223".into(), ..endpoints };
        write(home.path(), NAME, &data, &moved).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("4223"));
    }

    #[test]
    fn what_is_somebody_elses_stays() {
        let home = tempfile::tempdir().unwrap();
        let (first, second) = (home.path().join("first"), home.path().join("second"));
        let (one, other) = (mesh(&first), mesh(&second));
        let path = write(home.path(), NAME, &first, &one).unwrap();
        let refused = write(home.path(), NAME, &second, &other).unwrap_err().to_string();
        assert!(refused.contains("first, which runs") && refused.contains("--nats-context"), "{refused}");
        assert!(write(home.path(), "other", &second, &other).is_ok());
        // Once it has ended, its context is another's.
        fs::remove_file(Endpoints::path(&first)).unwrap();
        assert!(write(home.path(), NAME, &second, &other).is_ok());
        for own in [r#"{"description": "mine", "url": "nats://far"}"#, "{}", "not JSON", ""] {
            fs::write(&path, own).unwrap();
            let refused = write(home.path(), NAME, &second, &other).unwrap_err().to_string();
            assert!(refused.contains("stays"), "{refused}");
            assert_eq!(fs::read_to_string(&path).unwrap(), own);
        }
        for name in ["../x", "a/b", "a\\b", "a\nb"] {
            assert!(write(home.path(), name, &second, &other).is_err(), "{name}");
        }
    }

    #[test]
    fn the_home_is_found_as_nats_finds_it() {
        let of = |pairs: &'static [(&str, &str)]| {
            config_home(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        assert_eq!(of(&[("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")]), Some("/x".into()));
        assert_eq!(of(&[("XDG_CONFIG_HOME", ""), ("HOME", "/h")]), Some("/h/.config".into()));
        assert_eq!(of(&[]), None);
    }
}
