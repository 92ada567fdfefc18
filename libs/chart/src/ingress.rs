//! The fourth check: the annotations of a chart's Services say how it can be exposed.
//!
//! | annotation | need | default |
//! | --- | --- | --- |
//! | `nemo.eu/ingress-expose` | required, `"true"` | |
//! | `nemo.eu/ingress-service-port` | optional: number or name of a port of the Service | its first port |
//! | `nemo.eu/ingress-path` | optional | `/` |
//! | `nemo.eu/ingress-path-type` | optional: `Exact`, `Prefix`, `ImplementationSpecific` | `ImplementationSpecific` |

use mesh_proto::intent::Problem;
use serde_json::{Value, json};

use super::{manifests::Manifest, problem, quoted};

const EXPOSE: &str = "nemo.eu/ingress-expose";
const PORT: &str = "nemo.eu/ingress-service-port";
const PATH: &str = "nemo.eu/ingress-path";
const PATH_TYPE: &str = "nemo.eu/ingress-path-type";
/// Path types of Kubernetes.
const PATH_TYPES: &[&str] = &["Exact", "Prefix", "ImplementationSpecific"];
/// Bytes of the longest path.
const PATH_BYTES_MAX: usize = 1_024;

/// A Service that may be exposed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// Name of the Service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// Where the path begins.
    pub path: String,
    /// How it is compared.
    pub path_type: String,
}

/// The Services that may be exposed; of a chart that can be exposed at least one.
///
/// # Errors
/// Everything that is wrong with the annotations.
pub fn check(manifests: &[Manifest]) -> Result<Vec<Exposed>, Vec<Problem>> {
    let (mut found, mut problems) = (vec![], vec![]);
    let services = manifests.iter().filter(|m| m.kind == "Service");
    for service in services {
        let at = |key: &str| format!("Service/{}: metadata.annotations[{key}]", service.name);
        let annotation = |key: &str| service.value.pointer("/metadata/annotations").and_then(|a| a.get(key));
        match annotation(EXPOSE) {
            None => continue,
            Some(Value::String(text)) if text == "true" => {}
            Some(Value::String(text)) if text == "false" => continue,
            Some(Value::Bool(_)) => {
                let hint = "write \"true\" in quotes; Kubernetes takes no other annotation than text";
                problems.push(problem(at(EXPOSE), "it is not text", hint));
                continue;
            }
            Some(other) => {
                let reason = format!("{} is neither \"true\" nor \"false\"", quoted(&plain(other)));
                problems.push(problem(at(EXPOSE), reason, "write \"true\" to expose the Service"));
                continue;
            }
        }
        match exposed(service, annotation) {
            Ok(exposed) => found.push(exposed),
            Err((key, reason, hint)) => problems.push(problem(at(key), reason, hint)),
        }
    }
    if found.is_empty() && problems.is_empty() {
        let reason = format!("the document sets ingressSupport, but no Service carries the annotation {EXPOSE}");
        let hint = format!("add `{EXPOSE}: \"true\"` to a Service, or leave ingressSupport out");
        problems.push(problem("templates", reason, hint));
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

type Wrong = (&'static str, String, String);

fn exposed<'a>(service: &'a Manifest, annotation: impl Fn(&str) -> Option<&'a Value>) -> Result<Exposed, Wrong> {
    let ports = service.value.pointer("/spec/ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let number = |port: &Value| port.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
    let known: Vec<String> = ports.iter().filter_map(number).map(|p| p.to_string()).collect();
    let port = match annotation(PORT) {
        None => ports.first().and_then(number).ok_or_else(|| {
            (EXPOSE, "the Service has no port".to_owned(), "give the Service a port under spec.ports".to_owned())
        })?,
        Some(wanted) => {
            let text = plain(wanted);
            let named = |port: &&Value| {
                number(port).is_some_and(|p| p.to_string() == text)
                    || port.get("name").and_then(Value::as_str).is_some_and(|name| name == text)
            };
            ports.iter().find(named).and_then(number).ok_or_else(|| {
                let reason = format!("the Service has no port {}", quoted(&text));
                (PORT, reason, format!("use one of {}, or leave it out for the first", known.join(", ")))
            })?
        }
    };
    let path = annotation(PATH).map_or("/".to_owned(), plain);
    if !path.starts_with('/')
        || path.len() > PATH_BYTES_MAX
        || path.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        let reason = format!("{} is not a path", quoted(&path));
        return Err((PATH, reason, "begin it with `/`, without blanks, at most 1024 bytes".into()));
    }
    let path_type = annotation(PATH_TYPE).map_or("ImplementationSpecific".to_owned(), plain);
    if !PATH_TYPES.contains(&path_type.as_str()) {
        let reason = format!("{} is not a path type", quoted(&path_type));
        return Err((PATH_TYPE, reason, format!("use one of {}", PATH_TYPES.join(", "))));
    }
    Ok(Exposed { service: service.name.clone(), port, path, path_type })
}

/// The Ingress of a release that is exposed.
pub fn ingress(release: &str, exposed: &[Exposed]) -> Value {
    let paths: Vec<Value> = exposed
        .iter()
        .map(|e| {
            json!({"path": e.path, "pathType": e.path_type,
                "backend": {"service": {"name": e.service, "port": {"number": e.port}}}})
        })
        .collect();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": release},
        "spec": {"rules": [{"http": {"paths": paths}}]}})
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::manifests, *};

    fn service(annotations: &str) -> Vec<Manifest> {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations: {{{annotations}}}\nspec:\n  ports:\n  \
             - {{name: http, port: 80}}\n  - {{name: admin, port: 8080}}\n"
        );
        manifests::read(&text).unwrap()
    }

    fn wrong(annotations: &str) -> String {
        let problems = check(&service(annotations)).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(!problems[0].hint.is_empty());
        format!("{}: {}", problems[0].path, problems[0].reason)
    }

    #[test]
    fn annotations_have_their_defaults_and_may_name_a_port_by_number_or_name() {
        let web = |port, path: &str, path_type: &str| Exposed {
            service: "web".into(),
            port,
            path: path.into(),
            path_type: path_type.into(),
        };
        let plain = check(&service("nemo.eu/ingress-expose: \"true\"")).unwrap();
        assert_eq!(plain, [web(80, "/", "ImplementationSpecific")]);
        let port = "nemo.eu/ingress-expose: \"true\", nemo.eu/ingress-service-port: \"8080\"";
        assert_eq!(check(&service(port)).unwrap()[0].port, 8080);
        let full = "nemo.eu/ingress-expose: \"true\", nemo.eu/ingress-service-port: admin, nemo.eu/ingress-path: /a, \
                    nemo.eu/ingress-path-type: Prefix";
        let exposed = check(&service(full)).unwrap();
        assert_eq!(exposed, [web(8080, "/a", "Prefix")]);
        let ingress = ingress("r", &exposed);
        let backend = ingress.pointer("/spec/rules/0/http/paths/0/backend/service").unwrap();
        assert_eq!(*backend, serde_json::json!({"name": "web", "port": {"number": 8080}}));
    }

    #[test]
    fn each_wrong_annotation_is_named_with_its_place() {
        assert!(wrong("").contains("no Service carries the annotation nemo.eu/ingress-expose"));
        assert!(wrong("nemo.eu/ingress-expose: \"false\"").contains("no Service carries"));
        assert!(wrong("nemo.eu/ingress-expose: true").contains("it is not text"));
        assert!(wrong("nemo.eu/ingress-expose: \"yes\"").contains("neither \"true\" nor \"false\""));
        let on = "nemo.eu/ingress-expose: \"true\"";
        let port = wrong(&format!("{on}, nemo.eu/ingress-service-port: \"81\""));
        assert!(port.starts_with("Service/web: metadata.annotations[nemo.eu/ingress-service-port]: "), "{port}");
        assert!(wrong(&format!("{on}, nemo.eu/ingress-path: a/b")).contains("\"a/b\" is not a path"));
        assert!(wrong(&format!("{on}, nemo.eu/ingress-path-type: Regex")).contains("not a path type"));
    }
}
