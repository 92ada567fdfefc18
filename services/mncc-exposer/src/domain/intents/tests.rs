//! The acceptance tests of network intents (A7 to A10), and that nothing hostile gets through.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const L2VPN: &str = include_str!("../../../../../examples/network/l2vpn.yaml");
const L2SM: &str = include_str!("../../../../../examples/network/l2sm.yaml");
const SEGMENT: &str = include_str!("../../../../../examples/network/segment.yaml");

fn plan(text: &str) -> Plan {
    standard().plan(&parse(text).unwrap()).unwrap()
}

fn refused(text: &str) -> String {
    match parse(text).and_then(|intent| standard().plan(&intent)) {
        Err(refusal) => refusal.to_string(),
        Ok(plan) => panic!("{plan:?}"),
    }
}

#[test]
fn a7_the_l2vpn_intent_is_classified_twice_and_translated_field_by_field() {
    let plan = plan(L2VPN);
    assert_eq!(plan.keywords, [["cloud_continuum", "DELIVER", "L2VPN"], ["cloud_continuum", "DELIVER", "L2VPN_TFS"]]);
    assert_eq!(plan.libraries, ["l2vpn", "tfs_controller"]);
    let adaptors: Vec<&str> = plan.calls.iter().map(|(_, call)| call.executioner.as_str()).collect();
    assert_eq!(adaptors, ["sys_out", "tfs_controller"], "several adaptors for one translation");
    let expected: Value = json!({"services": [{
        "service_id": {"context_id": {"context_uuid": {"uuid": "admin"}}, "service_uuid": {"uuid": "l2vpn_tfs_1"}},
        "service_type": 2,
        "service_status": {"service_status": 1},
        "service_endpoint_ids": [
            {"device_id": {"device_uuid": {"uuid": "3.3.3.3"}}, "endpoint_uuid": {"uuid": "0/0/1-GigabitEthernet0/0/0/1"}},
            {"device_id": {"device_uuid": {"uuid": "5.5.5.5"}}, "endpoint_uuid": {"uuid": "0/0/1-GigabitEthernet0/0/0/1"}}],
        "service_constraints": [
            {"custom": {"constraint_type": "bandwidth[gbps]", "constraint_value": "10.0"}},
            {"custom": {"constraint_type": "latency[ms]", "constraint_value": "15.2"}}],
        "service_config": {"config_rules": [
            {"action": 1, "custom": {"resource_key": "/settings", "resource_value": {}}},
            {"action": 1, "custom": {"resource_key": "/device[3.3.3.3]/endpoint[0/0/1-GigabitEthernet0/0/0/1]/settings",
                "resource_value": {"sub_interface_index": 0, "ni_name": "ninametfssssss", "vlan_id": 999,
                    "circuit_id": "999", "remote_router": "5.5.5.5"}}},
            {"action": 1, "custom": {"resource_key": "/device[5.5.5.5]/endpoint[0/0/1-GigabitEthernet0/0/0/1]/settings",
                "resource_value": {"sub_interface_index": 0, "ni_name": "ninametfssssss", "vlan_id": 999,
                    "circuit_id": "999", "remote_router": "3.3.3.3"}}}]}}]});
    assert_eq!(plan.calls[1].1.body, expected);
    assert!(plan.calls[1].1.target.contains("192.168.165.10"));
}

#[test]
fn a8_the_l2sm_intent_becomes_a_cluster_and_a_network() {
    let plan = plan(L2SM);
    let first = ["cloud_continuum", "DELIVER", "K8S_L2_NETWORK", "DELIVER", "K8S_CLUSTER_CONFIG"];
    let second = ["cloud_continuum", "DELIVER", "L2SM_NETWORK", "DELIVER", "L2SM_NEW_CLUSTER"];
    assert_eq!(plan.keywords, [first, second]);
    assert_eq!(plan.libraries, ["nemo", "l2sm"]);
    let [(_, add), (_, create)] = plan.calls.as_slice() else { panic!("{plan:?}") };
    assert_eq!((add.operation.as_str(), add.expectation_id.as_str()), ("AddCluster", "2"));
    assert_eq!(add.body["overlay"], "spain-network");
    assert_eq!(add.body["cluster"]["apiEndpoint"], "https://172.18.0.3:6443");
    assert_eq!((create.operation.as_str(), create.expectation_id.as_str()), ("CreateNetwork", "1"));
    assert_eq!(
        create.body,
        json!({"name": "spain-network", "provider": {"name": "uc3m", "domain": "172.18.0.2"}, "clusters": ["kind-worker-cluster-1"]})
    );
    assert_eq!(create.undo.as_ref().unwrap().0, "DeleteNetwork");
}

#[test]
fn a9_documents_are_independent_and_unmatched_types_make_no_call() {
    let wrong = L2VPN.replace("'L2VPN'", "'L3VPN'");
    let found = refused(&wrong);
    assert!(found.contains("L3VPN") && found.contains("cloud_continuum / DELIVER / L2VPN"), "{found}");
    assert_eq!(plan(L2SM).calls.len(), 2);
    let half = L2SM.replace("K8S_CLUSTER_CONFIG", "K8S_CLUSTER");
    assert!(refused(&half).contains("K8S_CLUSTER"), "one unmatched expectation stops the whole intent");
}

#[test]
fn keywords_match_exactly_and_an_underscore_is_another_keyword() {
    assert_eq!(plan(&L2VPN.replace("'L2VPN'", "'L2_VPN'")).libraries, ["l2vpn", "tfs_controller"]);
    assert!(refused(&L2VPN.replace("'DELIVER'", "'CREATE'")).contains("CREATE / L2VPN"));
    assert!(refused(&L2VPN.replace("'cloud_continuum'", "'Cloud_continuum'")).contains("Cloud_continuum"));
    assert!(
        refused(&L2VPN.replace("'L2VPN'", "'5G_NETWORK_SLICE'")).contains("5G_SLICE_FLOW"),
        "its library is not installed"
    );
}

#[test]
fn a10_a_library_is_installed_as_a_file_without_touching_the_core() {
    let file = "
library: slice_http
userLabel: cloud_continuum
verb: DELIVER
objectTypes: [SLICE_SERVICE_SDP]
call:
  executioner: http
  operation: POST
  target: '{url}/slices'
  body: {name: '{objectInstance}', node: '{node-id}', delay: '{one-way-delay-maximum}'}
undo:
  operation: DELETE
";
    let intent = parse(
        "
userLabel: cloud_continuum
intentExpectations:
  - expectationId: a
    expectationVerb: DELIVER
    expectationObject:
      objectType: SLICE_SERVICE_SDP
      objectInstance: s1
      objectContexts: [{contextAttribute: node-id, contextValueRange: n7}]
    expectationTargets: [{targetName: one-way-delay-maximum, targetValueRange: 10}]
    expectationContexts: [{contextAttribute: url, contextValueRange: 'http://h'}]
",
    )
    .unwrap();
    let mut catalogue = standard();
    assert!(catalogue.plan(&intent).is_err());
    catalogue.install(Box::new(Template::parse(file).unwrap()));
    let plan = catalogue.plan(&intent).unwrap();
    let call = &plan.calls[0].1;
    assert_eq!(
        (call.executioner.as_str(), call.operation.as_str(), call.target.as_str()),
        ("http", "POST", "http://h/slices")
    );
    assert_eq!(call.body, json!({"name": "s1", "node": "n7", "delay": "10"}));
    assert_eq!(call.undo, Some(("DELETE".into(), Value::Null)));
    for bad in ["", "library: x", &format!("{file}extra: 1"), &file.replace("[SLICE_SERVICE_SDP]", "[]")] {
        assert!(Template::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn rewrites_that_go_round_are_found() {
    struct Circle;
    impl Library for Circle {
        fn name(&self) -> &str {
            "circle"
        }
        fn tree(&self) -> Tree {
            super::catalogue::tree("x", "DELIVER", &[("A", "circle")])
        }
        fn translate(&self, _: &NetworkIntent, all: &[&Expectation]) -> Result<Outcome, mesh_proto::Refusal> {
            Ok(Outcome::Rewritten(all.iter().map(|e| (*e).clone()).collect()))
        }
    }
    let mut catalogue = Catalogue::default();
    catalogue.install(Box::new(Circle));
    let intent =
        parse("{userLabel: x, intentExpectations: [{expectationVerb: DELIVER, expectationObject: {objectType: A}}]}")
            .unwrap();
    assert!(catalogue.plan(&intent).unwrap_err().reason.contains("circle"));
}

#[test]
fn a_segment_needs_two_nodes_endpoints_and_addresses_of_one_subnet() {
    let plan = plan(SEGMENT);
    let segment: Segment = serde_json::from_value(plan.calls[0].1.body.clone()).unwrap();
    assert_eq!((segment.vni, segment.address(1)), (4097, Some(("10.9.0.2".parse().unwrap(), 24))));
    for (from, to) in [
        ("4097", "0"),
        ("4097", "16777216"),
        ("'cloud'", "'edge'"),
        ("10.9.0.2/24", "10.9.0.1/24"),
        ("10.9.0.2/24", "10.9.1.2/24"),
        ("10.9.0.2/24", "x"),
        ("'sensor'", "'../etc'"),
    ] {
        refused(&SEGMENT.replace(from, to));
    }
}

#[test]
fn missing_and_wrong_attributes_are_named() {
    for (from, to, named) in [
        ("'vlanId'", "'vlan'", "vlanId"),
        ("'999'", "'4095'", "4095"),
        ("'10,0'", "'fast'", "bandwidth"),
        ("15.2", "-1", "latency"),
        ("'niName'", "'ni'", "niName"),
        ("contextAttribute: 'url'", "contextAttribute: 'uri'", "url"),
        ("objectInstance: 'l2vpn_tfs_1'", "objectInstance: ''", "objectInstance"),
    ] {
        let found = refused(&L2VPN.replace(from, to));
        assert!(found.contains(named), "{from}: {found}");
    }
    assert!(refused(&L2SM.replace("https://172", "http://172")).contains("https"));
    assert!(refused(&L2SM.replace("'a.secret.token'", "''")).contains("bearer_token"));
    plan(&L2SM.replace("'bearer_token'", "'beare_token'"));
    plan(&L2SM.replace("172.18.0.2'", "172.18.0.2:8181'"));
}

#[test]
fn secrets_are_shown_as_fingerprints_wherever_they_are() {
    let value =
        json!({"a": [{"bearer_token": "t"}], "contextAttribute": "MD5", "contextValueRange": "k", "name": "plain"});
    let shown = redact(&value);
    assert_eq!(shown["name"], "plain");
    assert!(shown["a"][0]["bearer_token"].as_str().unwrap().starts_with("secret:"));
    assert!(shown["contextValueRange"].as_str().unwrap().starts_with("secret:"));
    assert!(plan(L2SM).told().iter().all(|call| !call.body.contains("a.secret.token")));
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_or_a_library_panic(text in "[a-zA-Z0-9:{}\\[\\], '\n_-]{0,300}") {
        let _ = parse(&text).and_then(|intent| standard().plan(&intent));
        let _ = Template::parse(&text);
    }

    #[test]
    fn damaged_documents_are_refused_or_understood(at in 0usize..2_000, byte in 32u8..127) {
        let mut text = L2SM.as_bytes().to_vec();
        let at = at % text.len();
        text[at] = byte;
        if let Ok(text) = String::from_utf8(text) {
            let _ = parse(&text).and_then(|intent| standard().plan(&intent));
        }
    }
}
