//! What differs between two states of a twin: pure, over its JSON, with fields named as in the contract.

use std::collections::BTreeMap;

use mesh_proto::twin::{Difference, Twin};
use prost::Message as _;
use serde_json::Value as Json;

/// What every publication changes and says nothing about the twin.
const ALWAYS: [&str; 3] = ["version", "at", "sample_age_seconds"];
/// Lists whose entries are told apart by what they are, not by where they stand.
const NAMED: [(&str, &[&str]); 2] = [("anomalies", &["episode_id"]), ("links", &["from", "to"])];

/// The fields that differ, by path. A twin that was not there has no fields.
pub(crate) fn diff(before: Option<&Twin>, after: Option<&Twin>) -> Vec<Difference> {
    let (before, after) = (fields(before), fields(after));
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort_unstable();
    paths.dedup();
    let text =
        |fields: &BTreeMap<String, Json>, path: &String| fields.get(path).map(Json::to_string).unwrap_or_default();
    let differ = paths.into_iter().filter(|path| before.get(*path) != after.get(*path));
    differ
        .map(|path| Difference { field: path.clone(), before: text(&before, path), after: text(&after, path) })
        .collect()
}

/// Every field with its path: `phase`, `measured[system.cpu.utilization]`, `links[edge>cloud].latency_ms`.
fn fields(twin: Option<&Twin>) -> BTreeMap<String, Json> {
    let mut found = BTreeMap::new();
    let value = twin.map(|twin| mesh_proto::json::to_snake("continuum.twin.v1.Twin", &twin.encode_to_vec()));
    let Some(Ok(Json::Object(object))) = value else { return found };
    for (name, value) in object {
        let named = NAMED.iter().find(|(list, _)| *list == name).map(|(_, keys)| *keys);
        match (name.as_str(), value) {
            (name, _) if ALWAYS.contains(&name) => {}
            ("labels" | "measured", Json::Object(entries)) => each(&name, entries, &mut found),
            ("traffic", Json::Object(mut parts)) => {
                if let Some(Json::Object(rates)) = parts.remove("rate_by_code") {
                    each("traffic.rate_by_code", rates, &mut found);
                }
                parts.remove("at");
                found.extend(parts.into_iter().map(|(part, value)| (format!("traffic.{part}"), value)));
            }
            (_, Json::Array(entries)) if named.is_some() => {
                let keys = named.unwrap_or_default();
                for entry in entries {
                    let key: Vec<&str> = keys.iter().map(|key| entry[key].as_str().unwrap_or_default()).collect();
                    let at = format!("{name}[{}]", key.join(">"));
                    for (part, value) in entry.as_object().into_iter().flatten() {
                        found.insert(format!("{at}.{part}"), value.clone());
                    }
                }
            }
            (_, value) => drop(found.insert(name, value)),
        }
    }
    found
}

fn each(of: &str, entries: serde_json::Map<String, Json>, found: &mut BTreeMap<String, Json>) {
    found.extend(entries.into_iter().map(|(key, value)| (format!("{of}[{key}]"), value)));
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        Timestamp,
        twin::{TwinAnomaly, TwinLink, TwinStatus, TwinTraffic},
        workload::InstancePhase,
    };
    use proptest::prelude::*;

    use super::*;

    fn shown(before: Option<&Twin>, after: Option<&Twin>) -> Vec<(String, String, String)> {
        diff(before, after).into_iter().map(|d| (d.field, d.before, d.after)).collect()
    }

    #[test]
    fn a_difference_names_its_field_and_both_values() {
        let before = Twin {
            kind: "workload".into(),
            version: 1,
            cpu_percent: 20.5,
            measured: [("system.cpu.utilization".to_owned(), 0.5)].into(),
            links: vec![TwinLink { from: "a".into(), to: "b".into(), latency_ms: Some(1.0), ..Default::default() }],
            ..Twin::default()
        };
        let mut after = Twin { version: 2, sample_age_seconds: 3.0, cpu_percent: 60.0, ..before.clone() };
        after.measured.clear();
        after.links[0].latency_ms = Some(2.5);
        after.anomalies.push(TwinAnomaly { episode_id: "e".into(), ..TwinAnomaly::default() });
        after.set_phase(InstancePhase::Lost);
        let rows = [
            ("anomalies[e].episode_id", "", "\"e\""),
            ("cpu_percent", "20.5", "60.0"),
            ("links[a>b].latency_ms", "1.0", "2.5"),
            ("measured[system.cpu.utilization]", "0.5", ""),
            ("phase", "", "\"LOST\""),
        ];
        let rows = rows.map(|(field, before, after)| (field.to_owned(), before.to_owned(), after.to_owned()));
        assert_eq!(shown(Some(&before), Some(&after)), rows);
        let born = shown(None, Some(&before));
        assert!(born.iter().all(|(_, before, _)| before.is_empty()) && born.iter().any(|(field, ..)| field == "kind"));
        assert!(shown(None, None).is_empty());
    }

    fn twin() -> impl Strategy<Value = Twin> {
        let map = || prop::collection::btree_map("[a-c]", 0.0f64..3.0, 0..3);
        let names = || prop::collection::vec("[a-c]", 0..3);
        (names(), map(), map(), 0u64..3, 0.0f64..3.0, names(), any::<bool>()).prop_map(
            |(instances, measured, rate_by_code, version, cpu_percent, mut episodes, has_traffic)| {
                episodes.sort();
                episodes.dedup();
                let anomaly = |episode_id| TwinAnomaly { episode_id, sentence: "s".into(), ..TwinAnomaly::default() };
                let status = |status: &String| TwinStatus { status: status.clone(), ..TwinStatus::default() };
                Twin {
                    kind: "node".into(),
                    version,
                    at: Some(Timestamp::from_millis(version as i64)),
                    cpu_percent,
                    statuses: instances.iter().map(status).collect(),
                    instances,
                    measured,
                    traffic: has_traffic.then(|| TwinTraffic { rate_by_code, ..TwinTraffic::default() }),
                    anomalies: episodes.into_iter().map(anomaly).collect(),
                    ..Twin::default()
                }
            },
        )
    }

    proptest! {
        #[test]
        fn differences_lead_from_one_state_to_the_other_and_back(
            before in prop::option::of(twin()),
            after in prop::option::of(twin()),
        ) {
            let (before, after) = (before.as_ref(), after.as_ref());
            let found = diff(before, after);
            prop_assert!(found.windows(2).all(|pair| pair[0].field < pair[1].field), "each path once, in order");
            prop_assert!(found.iter().all(|d| d.before != d.after));
            let text = |twin| fields(twin).into_iter().map(|(path, value)| (path, value.to_string()));
            let mut walked: BTreeMap<String, String> = text(before).collect();
            for Difference { field, before, after } in &found {
                prop_assert_eq!(walked.remove(field).unwrap_or_default(), before.clone());
                if !after.is_empty() {
                    walked.insert(field.clone(), after.clone());
                }
            }
            prop_assert_eq!(walked, text(after).collect());
            let back = diff(after, before).into_iter().map(|d| (d.field, d.after, d.before)).collect::<Vec<_>>();
            prop_assert_eq!(back, found.into_iter().map(|d| (d.field, d.before, d.after)).collect::<Vec<_>>());
            prop_assert!(diff(before, before).is_empty());
        }
    }
}
