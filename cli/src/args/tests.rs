use super::*;
use crate::commands::intent::{IntentCommand, Until};

fn parse(line: &str) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_has_no_contradiction() {
    <Arguments as clap::CommandFactory>::command().debug_assert();
}

#[test]
fn a_submission_waits_for_acceptance_by_default() {
    let file = |line: &str| match parse(line).unwrap().command {
        Command::Intent(IntentCommand::Submit(file)) => file,
        other => panic!("{other:?}"),
    };
    assert_eq!(file("continuum intent submit a.yaml").wait, Until::Accepted);
    let fulfilled = file("continuum intent submit a.yaml --wait fulfilled --timeout 5");
    assert_eq!((fulfilled.wait, fulfilled.waiting.limit().as_secs()), (Until::Fulfilled, 5));
    assert!(file("continuum intent submit a.yaml --no-wait").waiting.no_wait);
    assert!(parse("continuum intent submit a.yaml --no-wait --wait fulfilled").is_err());
}

#[test]
fn the_format_may_stand_anywhere() {
    for line in ["continuum -o json cluster list", "continuum cluster list -o json"] {
        assert_eq!(parse(line).unwrap().output, Format::Json);
    }
    assert!(parse("continuum cluster list -o xml").is_err());
}

#[test]
fn an_invalid_time_and_an_unknown_kind_are_refused() {
    assert!(parse("continuum twin get a --at 2026-11-22T05:00:00Z").is_ok());
    let refused = parse("continuum twin get a --at 2026-11-22T05:00:00+0530").unwrap_err().to_string();
    assert!(refused.contains("2027-01-31T12:00:00+05:30"), "{refused}");
    assert!(parse("continuum twin get a --at yesterday").is_err());
    assert!(parse("continuum twin list --kind planet").is_err());
}

#[test]
fn every_documented_subcommand_exists() {
    for line in [
        "up --processes",
        "down",
        "status --watch",
        "doctor",
        "cluster list --watch",
        "cluster get a",
        "workload push f",
        "workload list",
        "workload get a",
        "workload logs a --follow",
        "workload run a@1 --wait",
        "workload stop a",
        "intent list --state DEGRADED",
        "intent get a -w",
        "intent watch a",
        "intent update f",
        "intent suspend a",
        "intent resume a",
        "intent terminate a --no-wait",
        "intent check f",
        "why a --chain",
        "twin get a",
        "twin list",
        "telemetry query --metric system.cpu.* --kind node --from -1h --step 5m --function p95 --last",
        "telemetry watch --metric a --label b=c --count 3",
        "telemetry inventory --cluster edge",
        "telemetry set edge fast --kind node --probe cpu --interval 250ms",
        "telemetry set edge calm --adaptive 100ms,10s,2 --retain 1h",
        "telemetry unset edge fast",
        "top --once",
        "twin list --kind network",
        "twin at a 2026-11-22T05:00:00Z --kind workload",
        "twin history a --limit 3",
        "twin diff a 2026-11-22T05:00:00Z 2026-11-22T06:00:00Z",
        "twin diff a 2026-11-22T05:00:00Z",
        "twin watch",
        "twin watch a --kind node",
        "anomaly list --open --instance a",
        "anomaly get a",
        "anomaly watch",
        "anomaly explain a",
        "remedy list -w",
        "remedy policy f --dry-run false",
        "tap intent.> --filter a=b --json-lines --count 3",
        "dead list",
        "dead show 1",
        "dead replay 1",
        "completions bash",
        "man",
        "man folder",
    ] {
        assert!(parse(&format!("continuum {line}")).is_ok(), "{line}");
    }
}

#[test]
fn demo_and_bench_pass_every_argument_on() {
    let passed = |line: &str| match parse(line).unwrap().command {
        Command::Demo { arguments } | Command::Bench { arguments } => {
            arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(passed("continuum demo"), Vec::<String>::new());
    assert_eq!(passed("continuum demo --examples here"), ["--examples", "here"]);
    assert_eq!(passed("continuum bench --help"), ["--help"]);
    assert_eq!(passed("continuum bench intents --full -o json"), ["intents", "--full", "-o", "json"]);
}

#[test]
fn no_command_line_makes_the_reader_panic() {
    let good = [
        "continuum intent submit a.yaml --id b --wait fulfilled --timeout 5",
        "continuum -o json account top-up local 1.50",
        "continuum tap intent.> --filter owner=local --count 3",
        "continuum twin get a --at 2026-11-22T05:00:00Z --kind workload",
        "continuum twin diff a 2026-11-22T05:00:00Z 2026-11-22T06:00:00Z --kind node",
        "continuum learn train --episodes 100 --seed 7",
    ];
    let mut made = fuzzing::Made::new(1, good.map(|line| line.as_bytes().to_vec()).into());
    let (mut read, mut refused) = (0, 0);
    for _ in 0..3_000 {
        match parse(&String::from_utf8_lossy(&made.input())) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(read > 0 && refused > 0, "{read} {refused}");
}
