//! Access control for samples, from the contract.

use mesh_proto::Contract;
use serde_json::{Value, json};

/// Access control for a router with mutual TLS: each service, known by its certificate's common name, may write and
/// read the keys that the contract gives it, and answer questions on those where it is to; `readers` (common names) may
/// read and ask on all of them; everything else is denied.
pub fn samples_access(contract: &Contract, readers: &[String]) -> Value {
    let (mut rules, mut subjects, mut policies) = (vec![], vec![], vec![]);
    let written: Vec<&String> = contract.services.iter().flat_map(|s| &s.samples_out).collect();
    let answered: Vec<&String> = contract.services.iter().flat_map(|s| &s.answers).collect();
    let mut grant = |identity: &str, put: Vec<&String>, read: Vec<&String>, answer: Vec<&String>, ask: Vec<&String>| {
        let mut names = vec![];
        // The router accepts what a service writes, delivers what it reads, and accepts its subscriptions to that.
        let subscriptions = ["declare_subscriber", "declare_liveliness_subscriber", "liveliness_query"];
        let writes = ["put", "delete", "liveliness_token"];
        let parts = [
            ("writes", &put, &writes[..], "ingress"),
            ("subscriptions", &read, &subscriptions[..], "ingress"),
            ("reads", &read, &writes[..], "egress"),
            // A router passes subscriptions on to those who write.
            ("wanted", &put, &subscriptions[..], "egress"),
            // It accepts that a service answers, and its answers, and passes questions on to it.
            ("answers", &answer, &["declare_queryable", "reply"][..], "ingress"),
            ("questions", &answer, &["query"][..], "egress"),
            // It accepts questions from who may ask, and delivers the answers.
            ("asks", &ask, &["query"][..], "ingress"),
            ("answered", &ask, &["declare_queryable", "reply"][..], "egress"),
        ];
        for (part, keys, messages, flow) in parts {
            if !keys.is_empty() {
                let id = format!("{identity} {part}");
                rules.push(json!({
                    "id": id, "permission": "allow", "flows": [flow], "messages": messages, "key_exprs": keys,
                }));
                names.push(id);
            }
        }
        if !names.is_empty() {
            subjects.push(json!({"id": identity, "cert_common_names": [identity]}));
            policies.push(json!({"rules": names, "subjects": [identity]}));
        }
    };
    for service in &contract.services {
        let (put, read) = (service.samples_out.iter().collect(), service.samples_in.iter().collect());
        grant(&service.name, put, read, service.answers.iter().collect(), vec![]);
    }
    for reader in readers {
        grant(reader, vec![], written.clone(), vec![], answered.clone());
    }
    json!({
        "enabled": true, "default_permission": "deny", "rules": rules, "subjects": subjects, "policies": policies,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_the_contract_does_not_name_is_denied() {
        let contract = mesh_proto::contract();
        let access = samples_access(contract, &["person".to_owned()]);
        assert_eq!(access["default_permission"], "deny");
        let named: Vec<&str> =
            access["subjects"].as_array().unwrap().iter().map(|subject| subject["id"].as_str().unwrap()).collect();
        let wanted = contract.services.iter().filter(|s| !s.samples_out.is_empty() || !s.samples_in.is_empty());
        assert_eq!(named, wanted.map(|s| s.name.as_str()).chain(["person"]).collect::<Vec<_>>());
    }
}
