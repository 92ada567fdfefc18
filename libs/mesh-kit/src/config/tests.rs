use serde::Deserialize;

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
    let cases: [Case<'_>; 12] = [
        (vec!["--config", &path], vec![], "probe"),
        (vec![], vec![("MY_AGENT_CPU_MILLI_MAX", "many")], "cpu_milli_max"),
        (vec!["--set", "cpu_milli_max=-1"], vec![], "cpu_milli_max"),
        (vec!["--set", "listen=nowhere"], vec![], "listen"),
        (vec!["--set", "serve_tls=yes"], vec![], "serve_tls"),
        (vec!["--set", "serve_tls=on"], vec![], "serve_tls"),
        (vec!["--set", "samples_mode=star"], vec![], "samples_mode"),
        (vec!["--set", "bus_url=tls://bus:4222"], vec![], "bus_url"),
        (vec!["--set", "samples_connect=tls/router:7447"], vec![], "samples_connect"),
        (vec![], vec![("CONTINUUM_SAMPLES_CONNECT", "[\"tcp/router:7447\"]")], "samples_connect"),
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
    let loaded = load_own(&["--set", &set, "--set", "bus_url=nats://me:PASSWORD@a:1,nats://b:2"], &[]).unwrap();
    let table = loaded.table();
    assert!(table.contains(&format!("<file {}>", seed.display())), "{table}");
    assert!(table.contains("nats://***@a:1,nats://b:2"), "{table}");
    let all = format!("{table} {loaded:?}");
    assert!(!all.contains("SUAVERYSECRET"));
    assert!(!table.contains("PASSWORD"));
    assert_eq!(loaded.settings.bus_seed_file.unwrap().read().unwrap().expose(), "SUAVERYSECRET");
}

#[test]
fn arguments_give_another_process_the_same_configuration() {
    let own = Own { labels: vec!["a=1".into(), "b".into()], ratio: 0.125, note: Some("x=y".into()), ..Own::default() };
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

#[test]
fn log_levels_are_checked() {
    for good in ["info", "off", "info,validator=debug", "validator=trace"] {
        assert_eq!(level_problem(good), None, "{good}");
    }
    for bad in ["", "loud", "info=info=info"] {
        assert!(level_problem(bad).is_some(), "{bad}");
    }
}
