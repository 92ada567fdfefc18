//! The storage policy API and the lists of locations, on the same port as S3. No bucket name holds `_`, so that none of
//! their paths is a path of S3.
//!
//! Policy requests are signed with S3 credentials; the lists of locations are open to all and hold nothing secret.

use http::{Extensions, HeaderMap, Method, StatusCode, Uri};
use mesh_proto::{
    Event as _, Refusal, RefusalCode,
    storage::{Compression, DefinePolicy, DropPolicy, Encryption, Policy, PolicyDefined, Redundancy},
};
use s3s::{Body, S3Request, S3Response, S3Result, route::S3Route, s3_error};
use serde::Deserialize;
use serde_json::{Value, json};

use super::caller::owner;
use crate::{
    domain::storages::number,
    locations::Measured,
    objects::{Error, ObjectStore},
};

/// Bytes of a policy at most.
const BODY_MAX: usize = 64 << 10;

/// The routes.
pub(crate) struct Routes(pub(crate) ObjectStore);

/// A location as a policy names it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Named {
    Number(u64),
    Name(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RedundancyBody {
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    redundant_packets: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CompressionBody {
    scheme: String,
    level: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EncryptionBody {
    scheme: String,
    #[serde(default)]
    key_size: u32,
    #[serde(default)]
    block_mode: String,
}

/// A policy as the API takes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyBody {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    edge_devices: Vec<Named>,
    #[serde(default)]
    backends: Vec<Named>,
    redundancy: Option<RedundancyBody>,
    compression: Option<CompressionBody>,
    /// Absent: AES-256-GCM. An explicit null: none.
    #[serde(default, deserialize_with = "explicit")]
    encryption: Option<Option<EncryptionBody>>,
    // Set by the gateway; accepted and ignored, so that the answer to a GET can be sent as a PUT.
    #[serde(default)]
    #[allow(dead_code)]
    id: Value,
    #[serde(default)]
    #[allow(dead_code)]
    team_id: Value,
}

fn explicit<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<EncryptionBody>>, D::Error> {
    Option::deserialize(from).map(Some)
}

fn reply(status: StatusCode, body: &Value) -> S3Response<Body> {
    let mut response = S3Response::with_status(Body::from(body.to_string()), status);
    response.headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn refused(status: StatusCode, refusal: &Refusal) -> S3Response<Body> {
    reply(status, &json!({"error": refusal.reason, "code": refusal.code.mapping().name, "hint": refusal.hint}))
}

impl Routes {
    fn names(&self, owner: &str, named: Vec<Named>) -> Result<Vec<String>, Refusal> {
        let known = self.0.view.read(|view| view.known.locations_of(owner));
        named
            .into_iter()
            .map(|named| match named {
                Named::Name(name) => Ok(name),
                Named::Number(id) => {
                    known.iter().find(|(_, l)| l.id == id).map(|(name, _)| name.clone()).ok_or_else(|| {
                        Refusal::not_found(
                            format!("location {id} does not exist"),
                            "list the locations with /edge_devices/ and /cloud_locations/",
                        )
                    })
                }
            })
            .collect()
    }

    fn numbers(&self, owner: &str, names: &[String]) -> Vec<Value> {
        let known = self.0.view.read(|view| view.known.locations_of(owner));
        names.iter().map(|name| known.get(name).map_or_else(|| json!(name), |l| json!(l.id))).collect()
    }

    fn render(&self, owner: &str, policy: &Policy) -> Value {
        let redundancy = policy.redundancy.clone().unwrap_or_default();
        let scheme = if redundancy.scheme.is_empty() { "RS".to_owned() } else { redundancy.scheme };
        let none = policy.encryption.as_ref().is_some_and(|e| e.scheme == "NONE");
        let compression = policy.compression.as_ref().map(|c| json!({"scheme": c.scheme, "level": c.level}));
        json!({
            "name": policy.name,
            "description": policy.description,
            "edge_devices": self.numbers(owner, &policy.edge_devices),
            "backends": self.numbers(owner, &policy.backends),
            "redundancy": {"scheme": scheme, "redundant_packets": redundancy.redundant_packets},
            "compression": compression,
            "encryption": if none { Value::Null } else { json!({"scheme": "AES", "key_size": 256, "block_mode": "GCM"}) },
            "team_id": number(owner, "team"),
            "id": number(owner, &policy.name),
        })
    }

    fn policy(&self, owner: &str, name: &str) -> Option<Value> {
        let key = (owner.to_owned(), name.to_owned());
        let found = self.0.view.read(|view| view.known.policies.get(&key).and_then(|p| p.definition.clone()));
        found.map(|policy| self.render(owner, &policy))
    }

    fn read(&self, owner: &str, bytes: &[u8]) -> Result<Policy, Refusal> {
        let body: PolicyBody = serde_json::from_slice(bytes).map_err(|error| {
            Refusal::invalid(
                format!("the body is not a storage policy: {error}"),
                "send name, edge_devices, backends, redundancy, compression and encryption as JSON",
            )
        })?;
        let encryption = match body.encryption {
            None => None,
            Some(None) => Some(Encryption { scheme: "NONE".into(), ..Encryption::default() }),
            Some(Some(e)) => Some(Encryption { scheme: e.scheme, key_size: e.key_size, block_mode: e.block_mode }),
        };
        Ok(Policy {
            name: body.name,
            description: body.description,
            edge_devices: self.names(owner, body.edge_devices)?,
            backends: self.names(owner, body.backends)?,
            redundancy: body
                .redundancy
                .map(|r| Redundancy { scheme: r.scheme, redundant_packets: r.redundant_packets }),
            compression: body.compression.map(|c| Compression { scheme: c.scheme, level: c.level }),
            encryption,
            ..Policy::default()
        })
    }

    async fn define(&self, owner: &str, request: S3Request<Body>, made: StatusCode) -> S3Result<S3Response<Body>> {
        let mut body = request.input;
        let bytes = body
            .store_all_limited(BODY_MAX)
            .await
            .map_err(|_| s3_error!(EntityTooLarge, "a policy has at most {BODY_MAX} bytes"))?;
        let policy = match self.read(owner, &bytes) {
            Ok(policy) => policy,
            Err(refusal) => return Ok(refused(StatusCode::BAD_REQUEST, &refusal)),
        };
        let name = policy.name.clone();
        if !mesh_proto::is_key(&name) {
            let reason = format!("invalid policy name {name:?}");
            let refusal = Refusal::invalid(reason, "use 1 to 64 letters, digits, `_` and `-`");
            return Ok(refused(StatusCode::BAD_REQUEST, &refusal));
        }
        let exists = self.policy(owner, &name).is_some();
        if exists != (made == StatusCode::OK) {
            let (code, status) = match exists {
                true => (RefusalCode::AlreadyExists, StatusCode::CONFLICT),
                false => (RefusalCode::NotFound, StatusCode::NOT_FOUND),
            };
            let reason = format!("policy {name} {}", if exists { "exists already" } else { "does not exist" });
            return Ok(refused(status, &Refusal::new(code, reason, "use POST to make a policy, PUT to change one")));
        }
        let command = DefinePolicy { owner: owner.into(), policy: name.clone(), definition: Some(policy) };
        match self.0.ask(&command).await {
            Err(Error::Refused(refusal)) => Ok(refused(StatusCode::BAD_REQUEST, &refusal)),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(reply(made, &self.policy(owner, &name).unwrap_or_default())),
        }
    }

    fn locations(&self, cloud: bool) -> Value {
        let known = self.0.view.read(|view| view.known.locations.clone());
        let rendered = known.into_iter().filter(|(_, (l, _))| (l.kind == "cloud") == cloud).map(|(at, (l, _))| {
            let Measured { rtt_ms: [up, down, up_mb, down_mb], .. } = self.0.locations.measured(&at);
            if cloud {
                json!({
                    "id": l.id, "location": l.location, "country": l.country, "countrycode": l.countrycode,
                    "lat": l.lat, "lng": l.lng, "is_gdpr": l.is_gdpr,
                    "storage_price": l.storage_price, "download_price": l.download_price,
                    "upload_price": l.upload_price.unwrap_or_default(),
                    "cloud_provider_name": l.cloud_provider_name,
                    "cloud_provider_jurisdiction": l.cloud_provider_jurisdiction,
                    "cloud_provider_url": l.cloud_provider_url,
                    "upload_errors_in_last_12_months": l.upload_errors_in_last_12_months,
                    "download_errors_in_last_12_months": l.download_errors_in_last_12_months,
                    "rtt_upload_1B_ms": up, "rtt_download_1B_ms": down,
                    "rtt_upload_1MB_ms": up_mb, "rtt_download_1MB_ms": down_mb,
                })
            } else {
                json!({
                    "id": l.id, "name": l.name, "description": l.description, "cluster_id": l.cluster_id,
                    "node": l.node, "s3_region": l.region, "lat": l.lat, "lng": l.lng,
                    "team_id": number(&at.0, "team"),
                    "rtt_upload_1B_ms": up, "rtt_download_1B_ms": down,
                    "rtt_upload_1MB_ms": up_mb, "rtt_download_1MB_ms": down_mb,
                })
            }
        });
        Value::Array(rendered.collect())
    }
}

/// Does a path with this first segment belong here?
pub(crate) fn is_route(first: &str) -> bool {
    matches!(first, "storage_policy" | "cloud_locations" | "edge_devices")
}

/// The first two segments of a path.
fn segments(uri: &Uri) -> (&str, &str) {
    let path = uri.path().trim_matches('/');
    path.split_once('/').unwrap_or((path, ""))
}

#[async_trait::async_trait]
impl S3Route for Routes {
    fn is_match(&self, _: &Method, uri: &Uri, _: &HeaderMap, _: &mut Extensions) -> bool {
        is_route(segments(uri).0)
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        if segments(&request.uri).0 == "storage_policy" { owner(&self.0, request).map(|_| ()) } else { Ok(()) }
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let (method, uri) = (request.method.clone(), request.uri.clone());
        let (first, second) = segments(&uri);
        match (first, &method, second) {
            ("cloud_locations", &Method::GET, "") => return Ok(reply(StatusCode::OK, &self.locations(true))),
            ("edge_devices", &Method::GET, "") => return Ok(reply(StatusCode::OK, &self.locations(false))),
            _ => {}
        }
        let owner = owner(&self.0, &request)?;
        match (first, method, second) {
            ("storage_policy", Method::GET, "") => {
                self.0.catch_up(PolicyDefined::STREAM).await?;
                let names: Vec<String> = self.0.view.read(|view| {
                    view.known.policies.keys().filter(|(o, _)| *o == owner).map(|(_, name)| name.clone()).collect()
                });
                let policies = names.iter().filter_map(|name| self.policy(&owner, name)).collect();
                Ok(reply(StatusCode::OK, &Value::Array(policies)))
            }
            ("storage_policy", Method::POST, "") => self.define(&owner, request, StatusCode::CREATED).await,
            ("storage_policy", Method::PUT, "") => self.define(&owner, request, StatusCode::OK).await,
            ("storage_policy", Method::GET, bucket) => {
                let (_, bucket) = self.0.bucket(&owner, bucket).await?;
                match self.policy(bucket.provider(), &bucket.policy) {
                    Some(policy) => Ok(reply(StatusCode::OK, &policy)),
                    None => Err(s3_error!(NoSuchBucketPolicy, "policy {} no longer exists", bucket.policy)),
                }
            }
            ("storage_policy", Method::DELETE, policy) if mesh_proto::is_key(policy) => {
                match self.0.ask(&DropPolicy { owner, policy: policy.into() }).await {
                    Err(Error::Refused(refusal)) => {
                        let status = match refusal.code {
                            RefusalCode::NotFound => StatusCode::NOT_FOUND,
                            _ => StatusCode::CONFLICT,
                        };
                        Ok(refused(status, &refusal))
                    }
                    Err(error) => Err(error.into()),
                    Ok(()) => Ok(S3Response::with_status(Body::empty(), StatusCode::NO_CONTENT)),
                }
            }
            _ => Err(s3_error!(MethodNotAllowed, "GET, POST and PUT /storage_policy; GET and DELETE with a name")),
        }
    }
}
