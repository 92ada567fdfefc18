//! Every MUST of RFC 7285 that concerns a server, each test named after its section.

use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn node(cluster: &str, site: &str, address: &str, prefixes: &[&str]) -> Node {
    Node {
        cluster_id: cluster.into(),
        site: site.into(),
        address: address.parse().ok(),
        prefixes: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
    }
}

fn link(from: &str, to: &str, latency_ms: f64) -> Link {
    Link {
        from: from.into(),
        to: to.into(),
        up: true,
        latency_ms,
        jitter_ms: latency_ms / 10.0,
        throughput_mbps: Some(8_000.0 / latency_ms),
        energy_watts: Some(1.0),
        ..Default::default()
    }
}

fn three() -> Maps {
    let nodes = [
        node("cloud-1", "cloud", "192.0.2.1", &["192.0.2.0/24", "2001:db8:1::/48"]),
        node("edge-1", "edge", "198.51.100.1", &["198.51.100.0/25"]),
        node("device-1", "device", "198.51.100.129", &[]),
    ];
    let links = [
        link("cloud-1", "edge-1", 10.0),
        link("edge-1", "cloud-1", 12.0),
        link("edge-1", "device-1", 2.0),
        link("device-1", "edge-1", 2.0),
        Link { loss_percent: 50.0, ..link("cloud-1", "device-1", 20.0) },
        Link { up: false, loss_percent: 100.0, failures: 3, ..link("device-1", "cloud-1", 0.0) },
    ];
    Maps::new(&nodes, &links)
}

fn get(path: &str) -> Response {
    answer(&three(), &Request { method: "GET", path, ..Default::default() })
}

fn got(path: &str) -> Value {
    let response = get(path);
    assert_eq!(response.status, 200, "{path}: {}", response.body);
    serde_json::from_str(&response.body).unwrap()
}

fn post(path: &str, content_type: &str, body: &str) -> Response {
    let client: IpAddr = "198.51.100.9".parse().unwrap();
    let request = Request {
        method: "POST",
        path,
        content_type: Some(content_type),
        body: body.as_bytes(),
        client: Some(client),
        accept: None,
    };
    answer(&three(), &request)
}

const NETWORK_FILTER: &str = "application/alto-networkmapfilter+json";
const COST_FILTER: &str = "application/alto-costmapfilter+json";
const PROP: &str = "application/alto-endpointpropparams+json";
const COST: &str = "application/alto-endpointcostparams+json";

fn networks(body: &Value) -> Value {
    parsed(post("/alto/networkmap", NETWORK_FILTER, &body.to_string()))
}

fn costs(body: &Value) -> Value {
    parsed(post("/alto/costmap/filtered", COST_FILTER, &body.to_string()))
}

fn endpoint_costs(body: &Value) -> Value {
    parsed(post("/alto/endpointcost", COST, &body.to_string()))
}

fn properties(body: &Value) -> Value {
    parsed(post("/alto/endpointprop", PROP, &body.to_string()))
}

fn parsed(response: Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.body);
    serde_json::from_str(&response.body).unwrap()
}

fn fault(path: &str, content_type: &str, body: &str) -> Value {
    let response = post(path, content_type, body);
    assert_eq!((response.status, response.content_type), (400, "application/alto-error+json"), "{}", response.body);
    let body: Value = serde_json::from_str(&response.body).unwrap();
    body["meta"].clone()
}

fn numerical(metric: &str) -> Value {
    json!({"cost-mode": "numerical", "cost-metric": metric})
}

fn directory() -> Value {
    got("/alto/directory")
}

fn resources() -> Vec<(String, Value)> {
    directory()["resources"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[test]
fn s6_1_and_11_2_3_5_no_two_cost_maps_have_the_same_type_and_map() {
    let mut seen = std::collections::BTreeSet::new();
    for (id, entry) in resources() {
        if entry["media-type"] == "application/alto-costmap+json" && entry.get("accepts").is_none() {
            let pair = format!("{} {}", entry["capabilities"]["cost-type-names"], entry["uses"]);
            assert!(seen.insert(pair), "{id}");
        }
    }
    assert!(seen.len() >= 2);
}

#[test]
fn s6_1_1_1_and_11_2_3_routingcost_is_offered_as_a_cost_map() {
    let map = got("/alto/costmap/numerical/routingcost");
    assert_eq!(map["cost-map"]["cloud"]["edge"], 10_000.0);
    assert_eq!(map["cost-map"]["cloud"]["device"], 40_000.0, "half is lost, so a packet takes twice as long");
}

#[test]
fn s6_1_2_both_modes_are_supported_and_ordinal_values_are_ranks() {
    let numbers = got("/alto/costmap/numerical/delay-ow")["cost-map"].clone();
    let ranks = got("/alto/costmap/ordinal/delay-ow")["cost-map"].clone();
    let pairs = |map: &Value| -> Vec<(f64, String)> {
        let rows = map.as_object().unwrap().iter();
        rows.flat_map(|(from, row)| {
            row.as_object().unwrap().iter().map(move |(to, v)| (v.as_f64().unwrap(), format!("{from} {to}")))
        })
        .collect()
    };
    let (numbers, ranks) = (pairs(&numbers), pairs(&ranks));
    for (a, b) in numbers.iter().zip(&ranks) {
        for (c, d) in numbers.iter().zip(&ranks) {
            assert_eq!(a.0.partial_cmp(&c.0), b.0.partial_cmp(&d.0), "{a:?} {c:?}");
        }
        assert!(b.0 >= 1.0 && b.0.fract() == 0.0);
    }
    let throughput = got("/alto/costmap/ordinal/tput")["cost-map"].clone();
    assert!(
        throughput["edge"]["device"].as_u64() < throughput["edge"]["cloud"].as_u64(),
        "more throughput is preferred"
    );
}

#[test]
fn s6_3_the_tag_changes_with_the_content_and_only_then() {
    let nodes = vec![node("a", "a", "192.0.2.1", &[]), node("b", "b", "192.0.2.2", &[])];
    let map = Maps::new(&nodes, &[]);
    assert_eq!(map.tag(), Maps::new(&nodes, &[link("a", "b", 1.0)]).tag(), "costs do not change the network map");
    let mut other = nodes.clone();
    other[0].prefixes = vec!["10.0.0.0/8".parse().unwrap()];
    assert_ne!(map.tag(), Maps::new(&other, &[]).tag());
    assert_ne!(map.tag(), Maps::new(&nodes[..1], &[]).tag());
}

#[test]
fn s7_1_1_and_11_4_1_4_the_pid_property_is_offered_for_every_network_map() {
    let entries = resources();
    let maps: Vec<&String> = entries
        .iter()
        .filter(|(_, e)| e["media-type"] == "application/alto-networkmap+json" && e.get("accepts").is_none())
        .map(|(id, _)| id)
        .collect();
    let offered = &entries.iter().find(|(id, _)| id == "endpoint-property").unwrap().1["capabilities"]["prop-types"];
    assert!(!maps.is_empty());
    for map in maps {
        assert!(offered.as_array().unwrap().contains(&json!(format!("{map}.pid"))), "{map}");
    }
}

#[test]
fn s8_3_the_type_of_every_response_is_told() {
    for (_, entry) in resources() {
        if entry.get("accepts").is_none() {
            let path = format!("/alto/{}", entry["uri"].as_str().unwrap());
            assert_eq!(get(&path).content_type, entry["media-type"]);
        }
    }
    assert_eq!(get("/alto/directory").content_type, "application/alto-directory+json");
}

#[test]
fn s8_3_7_unknown_fields_are_ignored() {
    let body = json!({"pids": ["edge"], "later": {"deep": [1]}});
    assert_eq!(networks(&body)["network-map"].as_object().unwrap().len(), 1);
    let described =
        json!({"cost-type": {"cost-mode": "numerical", "cost-metric": "routingcost", "description": "x", "y": 1}});
    assert!(costs(&described)["cost-map"]["cloud"]["edge"].is_number());
}

#[test]
fn s8_5_errors_have_a_code_and_a_proper_http_status() {
    let syntax = fault("/alto/networkmap", NETWORK_FILTER, "{\"pids\": [");
    assert_eq!(syntax["code"], "E_SYNTAX");
    assert!(syntax["syntax-error"].as_str().unwrap().starts_with("line 1, column"));
    let twice = fault("/alto/networkmap", NETWORK_FILTER, "{\"pids\": [], \"pids\": [\"a\"]}");
    assert_eq!(twice["code"], "E_SYNTAX");
    assert!(twice["syntax-error"].as_str().unwrap().contains("at line 1 column 2 and at line 1 column 14"), "{twice}");
    assert_eq!(fault("/alto/networkmap", NETWORK_FILTER, "{}"), json!({"code": "E_MISSING_FIELD", "field": "pids"}));
    let mistyped = fault("/alto/networkmap", NETWORK_FILTER, r#"{"pids": "edge"}"#);
    assert_eq!(mistyped, json!({"code": "E_INVALID_FIELD_TYPE", "field": "pids"}));
    assert_eq!(fault("/alto/networkmap", NETWORK_FILTER, "[1]"), json!({"code": "E_INVALID_FIELD_TYPE"}));
    let missing = fault("/alto/costmap/filtered", COST_FILTER, r#"{"cost-type": {"cost-mode": "numerical"}}"#);
    assert_eq!(missing, json!({"code": "E_MISSING_FIELD", "field": "cost-type/cost-metric"}));
    assert_eq!(get("/alto/nothing").status, 404);
    assert_eq!(get("/other").status, 404);
    assert_eq!(get("/alto/costmap/filtered").status, 405);
    assert_eq!(get("/alto/costmap/filtered").allow, Some("POST"));
    assert_eq!(post("/alto/networkmap", "application/json", "{}").status, 415);
    let refuses = Request { method: "GET", path: "/alto/networkmap", accept: Some("text/html"), ..Default::default() };
    assert_eq!(answer(&three(), &refuses).status, 406);
    let zero = "application/alto-networkmap+json;q=0, text/html";
    assert_eq!(answer(&three(), &Request { accept: Some(zero), ..refuses }).status, 406);
    let large = vec![b' '; BODY_BYTES_MAX + 1];
    let large = Request {
        method: "POST",
        path: "/alto/networkmap",
        content_type: Some(NETWORK_FILTER),
        body: &large,
        ..Default::default()
    };
    assert_eq!(answer(&three(), &large).status, 413);
}

#[test]
fn the_most_specific_range_of_accept_counts() {
    let own = "application/alto-networkmap+json";
    let maps = three();
    for (accept, status) in [
        ("", 200),
        (" , ,", 200),
        ("*/*", 200),
        ("application/*", 200),
        ("*/*;q=0", 406),
        (&format!("{own};q=0, */*"), 406),
        (&format!("*/*, {own};q=0"), 406),
        (&format!("{own};q=0, application/*;q=1, */*"), 406),
        (&format!("{own}, application/*;q=0, */*;q=0"), 200),
        ("application/*;q=0, */*", 406),
        ("application/*, */*;q=0", 200),
        (&format!("{own};q=0.001"), 200),
        (&format!("{own}; Q=0.000"), 406),
        (&format!("{own};q = 0"), 406),
        (&format!("{};q=0, */*", own.to_uppercase()), 406),
        (&format!("{own};version=\"1,2;q=0\""), 200),
        (&format!("{own};version=1;q=0, {own}"), 200),
        (&format!("text/html;title=\"a\\\", */*\", {own};q=0"), 406),
        (&format!("text/html, {own};q=0.5;q=0"), 200),
        ("text/*, image/png", 406),
        ("*", 406),
        ("application/json", 406),
    ] {
        let request = Request { method: "GET", path: "/alto/networkmap", accept: Some(accept), ..Default::default() };
        assert_eq!(answer(&maps, &request).status, status, "{accept}");
    }
}

#[test]
fn s8_5_2_a_value_comes_only_with_its_field_and_is_always_text() {
    let number = fault("/alto/networkmap", NETWORK_FILTER, r#"{"pids": [7]}"#);
    assert_eq!(number, json!({"code": "E_INVALID_FIELD_VALUE", "field": "pids", "value": "7"}));
    let mode = fault(
        "/alto/costmap/filtered",
        COST_FILTER,
        r#"{"cost-type": {"cost-mode": "foo", "cost-metric": "routingcost"}}"#,
    );
    assert_eq!(mode, json!({"code": "E_INVALID_FIELD_VALUE", "field": "cost-type/cost-mode", "value": "foo"}));
    let address = fault(
        "/alto/endpointcost",
        COST,
        &json!({"cost-type": numerical("routingcost"), "endpoints": {"srcs": ["ipv4:300.1.1.1"]}}).to_string(),
    );
    assert_eq!(address, json!({"code": "E_INVALID_FIELD_VALUE", "field": "endpoints/srcs", "value": "ipv4:300.1.1.1"}));
}

#[test]
fn s8_5_2_of_several_errors_exactly_one_is_told() {
    let meta = fault(
        "/alto/endpointcost",
        COST,
        r#"{"cost-type": {"cost-mode": 1, "cost-metric": "foo"}, "endpoints": 7, "constraints": "x"}"#,
    );
    assert!(meta["code"].is_string() && !meta["field"].is_array(), "{meta}");
}

#[test]
fn s9_2_a_directory_is_there_by_get() {
    assert_eq!(get(ROOT).status, 200);
}

#[test]
fn s9_2_2_the_root_directory_names_its_default_network_map() {
    let directory = directory();
    let default = directory["meta"]["default-alto-network-map"].as_str().unwrap();
    assert_eq!(directory["resources"][default]["media-type"], "application/alto-networkmap+json");
}

#[test]
fn s9_2_2_every_entry_works_and_get_and_post_are_two_entries() {
    let mut methods: std::collections::BTreeMap<String, Vec<&str>> = std::collections::BTreeMap::new();
    for (id, entry) in resources() {
        let path = format!("/alto/{}", entry["uri"].as_str().unwrap());
        match entry.get("accepts").and_then(Value::as_str) {
            None => {
                assert_eq!(get(&path).status, 200, "{id}");
                methods.entry(path).or_default().push("GET");
            }
            Some(accepts) => {
                assert_eq!(post(&path, accepts, "{").status, 400, "{id} takes POST");
                methods.entry(path).or_default().push("POST");
            }
        }
        for used in entry["uses"].as_array().into_iter().flatten() {
            assert!(directory()["resources"].get(used.as_str().unwrap()).is_some(), "{id} uses {used}");
        }
    }
    assert_eq!(methods["/alto/networkmap"].len(), 2);
    assert!(methods.values().all(|m| m.len() == 1 || m.iter().filter(|x| **x == "GET").count() == 1));
}

#[test]
fn s10_1_pid_names_fit_their_grammar() {
    let map = got("/alto/networkmap");
    let legal = |c: char| c.is_ascii_alphanumeric() || "-:@_".contains(c);
    for pid in map["network-map"].as_object().unwrap().keys() {
        assert!((1..=64).contains(&pid.len()) && pid.chars().all(legal), "{pid}");
    }
}

#[test]
fn s10_3_tags_fit_their_grammar() {
    let tag = got("/alto/networkmap")["meta"]["vtag"]["tag"].as_str().unwrap().to_owned();
    assert!((1..=64).contains(&tag.len()) && tag.bytes().all(|b| (0x21..=0x7e).contains(&b)), "{tag}");
}

#[test]
fn s10_5_to_10_6_cost_modes_and_metrics_fit_their_grammar() {
    let registered = ["routingcost", "delay-ow", "delay-rt", "delay-variation", "lossrate", "tput"];
    for (_, cost_type) in directory()["meta"]["cost-types"].as_object().unwrap() {
        let metric = cost_type["cost-metric"].as_str().unwrap();
        assert!(["numerical", "ordinal"].contains(&cost_type["cost-mode"].as_str().unwrap()));
        assert!(
            metric.len() <= 32 && metric.chars().all(|c| c.is_ascii_alphanumeric() || "-:_".contains(c)),
            "{metric}"
        );
        assert!(
            registered.contains(&metric) || metric.strip_prefix("priv:").is_some_and(|rest| !rest.is_empty()),
            "{metric}"
        );
        assert!(cost_type["description"].is_string(), "a description is text (§10.7)");
    }
}

#[test]
fn s10_8_property_names_fit_their_grammar() {
    for (_, entry) in resources() {
        for property in entry["capabilities"]["prop-types"].as_array().into_iter().flatten() {
            let property = property.as_str().unwrap();
            let global = match property.split_once('.') {
                Some((resource, name)) => {
                    assert!(directory()["resources"].get(resource).is_some(), "{property}");
                    assert_eq!(name, "pid");
                    name
                }
                None => property,
            };
            assert!(global.len() <= 32 && global.chars().all(|c| c.is_ascii_alphanumeric() || "-:_".contains(c)));
            assert!(global == "pid" || global.strip_prefix("priv:").is_some_and(|rest| !rest.is_empty()));
        }
    }
}

#[test]
fn s11_2_1_6_the_network_map_has_its_vtag_and_every_pid() {
    let map = got("/alto/networkmap");
    assert_eq!(map["meta"]["vtag"]["resource-id"], "network-map");
    let pids: Vec<&String> = map["network-map"].as_object().unwrap().keys().collect();
    assert_eq!(pids, ["cloud", "device", "edge", "other:any"]);
}

#[test]
fn s11_2_2_the_longest_prefix_decides() {
    let nodes = [node("a", "wide", "10.9.9.9", &["10.0.0.0/8"]), node("b", "narrow", "10.1.2.3", &["10.1.0.0/16"])];
    let maps = Maps::new(&nodes, &[]);
    let pid = |text: &str| maps.pid_of(text.parse().unwrap()).cloned().unwrap_or_default();
    assert_eq!(
        (pid("10.1.9.9").as_str(), pid("10.2.0.1").as_str(), pid("11.0.0.1").as_str()),
        ("narrow", "wide", DEFAULT_PID)
    );
}

#[test]
fn s11_2_2_no_prefix_is_in_two_pids() {
    let nodes = [node("a", "first", "127.0.0.1", &["10.0.0.0/8"]), node("b", "second", "127.0.0.1", &["10.0.0.7/8"])];
    let maps = Maps::new(&nodes, &[]);
    assert_eq!(maps.contested.len(), 2);
    assert_eq!(maps.pid_of("127.0.0.1".parse().unwrap()).unwrap(), "first");
    assert_eq!(maps.pids().count(), 3, "a site without addresses is a PID all the same");
}

#[test]
fn s11_2_3_4_a_cost_map_names_a_single_cost_type_of_the_directory() {
    let types = directory()["meta"]["cost-types"].clone();
    for (id, entry) in resources() {
        let names = entry["capabilities"]["cost-type-names"].as_array().cloned().unwrap_or_default();
        if entry["media-type"] == "application/alto-costmap+json" && entry.get("accepts").is_none() {
            assert_eq!(names.len(), 1, "{id}");
        }
        for name in names {
            assert!(types.get(name.as_str().unwrap()).is_some(), "{id}: {name}");
        }
    }
}

#[test]
fn s11_2_3_6_a_cost_map_has_its_vtag_cost_type_and_every_pair() {
    let tag = got("/alto/networkmap")["meta"]["vtag"].clone();
    let map = got("/alto/costmap/numerical/lossrate");
    assert_eq!(map["meta"]["dependent-vtags"], json!([tag]));
    assert_eq!(map["meta"]["cost-type"], numerical("lossrate"));
    assert_eq!(map["cost-map"]["device"]["cloud"], 100.0, "a link that is down has a loss");
    let delays = got("/alto/costmap/numerical/delay-ow");
    assert_eq!(delays["cost-map"]["device"].get("cloud"), None, "and no delay");
    let pairs: usize = map["cost-map"].as_object().unwrap().values().map(|row| row.as_object().unwrap().len()).sum();
    assert_eq!(pairs, 9);
}

#[test]
fn s11_3_1_3_an_empty_list_is_all_and_repeats_count_once() {
    let full = got("/alto/networkmap")["network-map"].clone();
    assert_eq!(networks(&json!({"pids": []}))["network-map"], full);
    assert_eq!(networks(&json!({"pids": [], "address-types": []}))["network-map"], full);
    let twice = networks(&json!({"pids": ["edge", "edge"], "address-types": ["ipv4", "ipv4"]}));
    assert_eq!(twice["network-map"], json!({"edge": {"ipv4": ["198.51.100.0/25", "198.51.100.1/32"]}}));
}

#[test]
fn s11_3_1_6_only_known_names_asked_for_and_the_vtag_of_the_full_map() {
    let map = networks(&json!({"pids": ["cloud", "nowhere"], "address-types": ["ipv6", "ipv9"]}));
    assert_eq!(map["network-map"], json!({"cloud": {"ipv6": ["2001:db8:1::/48"]}}));
    assert_eq!(map["meta"]["vtag"], got("/alto/networkmap")["meta"]["vtag"]);
    assert_eq!(networks(&json!({"pids": ["nowhere"]}))["network-map"], json!({}));
}

#[test]
fn s11_3_2_3_cost_types_must_be_offered_and_absent_or_empty_lists_are_all() {
    let meta = fault("/alto/costmap/filtered", COST_FILTER, &json!({"cost-type": numerical("hopcount")}).to_string());
    assert_eq!((&meta["field"], &meta["value"]), (&json!("cost-type/cost-metric"), &json!("hopcount")));
    let full = got("/alto/costmap/numerical/routingcost")["cost-map"].clone();
    assert_eq!(costs(&json!({"cost-type": numerical("routingcost")}))["cost-map"], full);
    assert_eq!(
        costs(&json!({"cost-type": numerical("routingcost"), "pids": {"srcs": [], "dsts": []}}))["cost-map"],
        full
    );
    let missing = fault(
        "/alto/costmap/filtered",
        COST_FILTER,
        &json!({"cost-type": numerical("routingcost"), "pids": {"srcs": []}}).to_string(),
    );
    assert_eq!(missing, json!({"code": "E_MISSING_FIELD", "field": "pids/dsts"}));
}

#[test]
fn s11_3_2_3_constraints_are_operator_and_number() {
    for bad in ["gt", "gt 1 2", "above 3", "lt x", "lt NaN", ""] {
        let body = json!({"cost-type": numerical("routingcost"), "constraints": [bad]});
        let meta = fault("/alto/costmap/filtered", COST_FILTER, &body.to_string());
        assert_eq!((&meta["field"], &meta["value"]), (&json!("constraints"), &json!(bad)));
    }
}

#[test]
fn s11_3_2_4_constraints_are_a_capability_that_is_told() {
    for (id, entry) in resources() {
        if ["filtered-cost-map", "endpoint-cost"].contains(&id.as_str()) {
            assert_eq!(entry["capabilities"]["cost-constraints"], true);
        }
    }
}

#[test]
fn s11_3_2_6_only_pairs_that_were_asked_for_and_meet_every_constraint() {
    let body = json!({"cost-type": numerical("delay-ow"), "constraints": ["ge 2000", "lt 12000"], "pids": {"srcs": ["edge", "cloud", "nowhere", "edge"], "dsts": []}});
    assert_eq!(costs(&body)["cost-map"], json!({"cloud": {"edge": 10_000.0}, "edge": {"device": 2_000.0}}));
    let equal = json!({"cost-type": numerical("delay-ow"), "constraints": ["eq 12000"]});
    assert_eq!(costs(&equal)["cost-map"], json!({"edge": {"cloud": 12_000.0}}));
}

#[test]
fn s11_4_1_3_properties_must_be_offered_and_repeats_count_once() {
    let unknown = json!({"properties": ["priv:unknown"], "endpoints": ["ipv4:192.0.2.1"]});
    let meta = fault("/alto/endpointprop", PROP, &unknown.to_string());
    assert_eq!(
        (&meta["code"], &meta["field"], &meta["value"]),
        (&json!("E_INVALID_FIELD_VALUE"), &json!("properties"), &json!("priv:unknown"))
    );
    let twice = json!({"properties": ["network-map.pid", "network-map.pid"], "endpoints": ["ipv4:192.0.2.1", "ipv4:192.0.2.1"]});
    let found = properties(&twice);
    assert_eq!(found["endpoint-properties"], json!({"ipv4:192.0.2.1": {"network-map.pid": "cloud"}}));
    assert_eq!(found["meta"]["dependent-vtags"].as_array().unwrap().len(), 1);
    for (body, field) in [
        (json!({"properties": [], "endpoints": ["ipv4:1.1.1.1"]}), "properties"),
        (json!({"properties": ["network-map.pid"], "endpoints": []}), "endpoints"),
    ] {
        assert_eq!(fault("/alto/endpointprop", PROP, &body.to_string())["field"], field);
    }
}

#[test]
fn s11_4_1_6_vtags_are_given_and_undefined_values_omitted() {
    let body = json!({"properties": ["network-map.pid", "priv:continuum-cluster"], "endpoints": ["ipv4:192.0.2.1", "ipv6:2001:db8:1::9"]});
    let found = properties(&body);
    let vtag = got("/alto/networkmap")["meta"]["vtag"].clone();
    assert_eq!(found["meta"]["dependent-vtags"], json!([vtag]));
    let data = &found["endpoint-properties"];
    assert_eq!(data["ipv4:192.0.2.1"], json!({"network-map.pid": "cloud", "priv:continuum-cluster": "cloud-1"}));
    assert_eq!(data["ipv6:2001:db8:1::9"], json!({"network-map.pid": "cloud"}));
    let none = properties(&json!({"properties": ["priv:continuum-cluster"], "endpoints": ["ipv4:192.0.2.1"]}));
    assert_eq!(none["meta"]["dependent-vtags"], json!([]));
}

#[test]
fn s11_5_1_3_an_empty_list_is_the_client_and_repeats_count_once() {
    let from_client = json!({"cost-type": numerical("delay-ow"), "endpoints": {"dsts": ["ipv4:198.51.100.129", "ipv4:198.51.100.129"]}});
    let found = endpoint_costs(&from_client);
    assert_eq!(found["endpoint-cost-map"], json!({"ipv4:198.51.100.9": {"ipv4:198.51.100.129": 2_000.0}}));
    let to_client = json!({"cost-type": numerical("delay-ow"), "endpoints": {"srcs": ["ipv4:192.0.2.77"], "dsts": []}});
    assert_eq!(
        endpoint_costs(&to_client)["endpoint-cost-map"],
        json!({"ipv4:192.0.2.77": {"ipv4:198.51.100.9": 10_000.0}})
    );
    let meta = fault(
        "/alto/endpointcost",
        COST,
        &json!({"cost-type": numerical("delay-ow"), "endpoints": {"srcs": []}}).to_string(),
    );
    assert_eq!((&meta["code"], &meta["field"]), (&json!("E_INVALID_FIELD_VALUE"), &json!("endpoints")));
    let offered = fault(
        "/alto/endpointcost",
        COST,
        &json!({"cost-type": numerical("airmiles"), "endpoints": {"srcs": ["ipv4:1.1.1.1"]}}).to_string(),
    );
    assert_eq!(offered["value"], "airmiles");
}

#[test]
fn s11_5_1_5_the_endpoint_cost_resource_uses_no_map() {
    let entry = resources().into_iter().find(|(id, _)| id == "endpoint-cost").unwrap().1;
    assert_eq!(entry.get("uses"), None);
}

#[test]
fn s11_5_1_6_an_endpoint_cost_response_has_its_cost_type() {
    let body = json!({"cost-type": {"cost-mode": "ordinal", "cost-metric": "routingcost", "description": "ignored"}, "endpoints": {"srcs": ["ipv4:192.0.2.1"], "dsts": ["ipv4:198.51.100.1", "ipv4:198.51.100.129", "ipv4:203.0.113.1"]}});
    let found = endpoint_costs(&body);
    assert_eq!(found["meta"], json!({"cost-type": {"cost-mode": "ordinal", "cost-metric": "routingcost"}}));
    assert_eq!(
        found["endpoint-cost-map"],
        json!({"ipv4:192.0.2.1": {"ipv4:198.51.100.1": 1, "ipv4:198.51.100.129": 2}})
    );
}

#[test]
fn the_modelled_energy_is_said_to_be_modelled() {
    let types = directory()["meta"]["cost-types"].clone();
    let energy =
        types.as_object().unwrap().values().find(|t| t["cost-metric"].as_str().unwrap().contains("energy")).unwrap();
    assert!(energy["description"].as_str().unwrap().contains("not metered"));
}

proptest! {
    #[test]
    fn s11_2_2_every_address_has_exactly_one_pid(bits: u128, sites in prop::collection::vec((0u8..4, any::<u32>(), 0u8..=32), 0..12)) {
        let nodes: Vec<Node> = sites.iter().enumerate().map(|(n, (site, address, length))| {
            let prefix = format!("{}/{length}", std::net::Ipv4Addr::from_bits(*address));
            node(&format!("c{n}"), &format!("s{site}"), &std::net::Ipv4Addr::from_bits(*address).to_string(), &[&prefix])
        }).collect();
        let maps = Maps::new(&nodes, &[]);
        prop_assert!(maps.pid_of(IpAddr::V6(bits.into())).is_some());
        prop_assert!(maps.pid_of(IpAddr::V4((bits as u32).into())).is_some());
        let map = maps.network_map(|_| true, |_| true);
        let prefixes: Vec<&Value> = map.as_object().unwrap().values().flat_map(|g| g.as_object().unwrap().values()).flat_map(|l| l.as_array().unwrap()).collect();
        let distinct: std::collections::BTreeSet<String> = prefixes.iter().map(|p| p.to_string()).collect();
        prop_assert_eq!(distinct.len(), prefixes.len());
    }

    #[test]
    fn no_request_makes_the_server_panic_or_answer_with_anything_but_a_status(
        path in prop::sample::select(vec!["/alto/networkmap", "/alto/costmap/filtered", "/alto/endpointprop", "/alto/endpointcost"]),
        kind in prop::sample::select(vec![NETWORK_FILTER, COST_FILTER, PROP, COST]),
        body in "[\\[\\]{}:,\"a-z0-9. -]{0,200}",
    ) {
        let response = post(path, kind, &body);
        prop_assert!([200, 400, 415].contains(&response.status));
        let parsed: Result<Value, _> = serde_json::from_str(&response.body);
        prop_assert!(response.status == 415 || parsed.is_ok());
    }
}
