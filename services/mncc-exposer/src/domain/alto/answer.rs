//! The server as a function: a request goes in, a response comes out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde_json::{Value, json};

use super::{
    error::Fault,
    maps::{CostType, MAP_ID, Maps, told},
    params,
};

/// Path of the root directory; every other is relative to it.
pub const ROOT: &str = "/alto/directory";
/// Largest request body, bytes.
pub const BODY_BYTES_MAX: usize = 512 * 1024;
/// Pairs of endpoints in one request.
const PAIRS_MAX: usize = 65_536;

const DIRECTORY: &str = "application/alto-directory+json";
const NETWORK_MAP: &str = "application/alto-networkmap+json";
const NETWORK_MAP_FILTER: &str = "application/alto-networkmapfilter+json";
const COST_MAP: &str = "application/alto-costmap+json";
const COST_MAP_FILTER: &str = "application/alto-costmapfilter+json";
const ENDPOINT_PROP: &str = "application/alto-endpointprop+json";
const ENDPOINT_PROP_PARAMS: &str = "application/alto-endpointpropparams+json";
const ENDPOINT_COST: &str = "application/alto-endpointcost+json";
const ENDPOINT_COST_PARAMS: &str = "application/alto-endpointcostparams+json";
const ERROR: &str = "application/alto-error+json";
const TEXT: &str = "text/plain; charset=utf-8";

/// The property that names an endpoint's PID.
const PID_PROPERTY: &str = "network-map.pid";
/// The property that names the cluster at an address.
const CLUSTER_PROPERTY: &str = "priv:continuum-cluster";

/// A request as it came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Path without query.
    pub path: &'a str,
    /// `Accept`, if given.
    pub accept: Option<&'a str>,
    /// `Content-Type`, if given.
    pub content_type: Option<&'a str>,
    /// Body.
    pub body: &'a [u8],
    /// Address of the client.
    pub client: Option<IpAddr>,
}

/// What goes back.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Media type of the body.
    pub content_type: &'static str,
    /// Methods that the resource takes, told with 405.
    pub allow: Option<&'static str>,
    /// Body.
    pub body: String,
}

impl Response {
    fn plain(status: u16, text: &str) -> Self {
        Self { status, content_type: TEXT, allow: None, body: format!("{text}\n") }
    }
}

/// What one URI offers.
struct Offer {
    /// Media type that GET gives.
    get: Option<&'static str>,
    /// Media types that POST gives and takes.
    post: Option<(&'static str, &'static str)>,
}

/// Answers a request.
pub fn answer(maps: &Maps, request: &Request<'_>) -> Response {
    let Some(path) = request.path.strip_prefix("/alto/").map(|p| p.trim_end_matches('/')) else {
        return Response::plain(404, "no such resource; the directory is at /alto/directory");
    };
    let cost_type = path.strip_prefix("costmap/").and_then(|p| p.split_once('/'));
    let cost_type = cost_type.and_then(|(mode, metric)| params::of_path(mode, metric));
    let offer = match path {
        "directory" | "" => Offer { get: Some(DIRECTORY), post: None },
        "networkmap" => Offer { get: Some(NETWORK_MAP), post: Some((NETWORK_MAP, NETWORK_MAP_FILTER)) },
        "costmap/filtered" => Offer { get: None, post: Some((COST_MAP, COST_MAP_FILTER)) },
        "endpointprop" => Offer { get: None, post: Some((ENDPOINT_PROP, ENDPOINT_PROP_PARAMS)) },
        "endpointcost" => Offer { get: None, post: Some((ENDPOINT_COST, ENDPOINT_COST_PARAMS)) },
        _ if cost_type.is_some() => Offer { get: Some(COST_MAP), post: None },
        _ => return Response::plain(404, "no such resource; the directory is at /alto/directory"),
    };
    let allow = match (&offer.get, &offer.post) {
        (Some(_), Some(_)) => "GET, HEAD, POST",
        (Some(_), None) => "GET, HEAD",
        _ => "POST",
    };
    let media_type = match (request.method, offer.get, offer.post) {
        ("GET" | "HEAD", Some(media_type), _) => media_type,
        ("POST", _, Some((media_type, takes))) => {
            let given = request.content_type.map(|t| t.split(';').next().unwrap_or(t).trim().to_ascii_lowercase());
            if given.as_deref() != Some(takes) {
                return Response::plain(415, &format!("send the parameters as {takes}"));
            }
            media_type
        }
        _ => return Response { allow: Some(allow), ..Response::plain(405, &format!("use {allow}")) },
    };
    if !accepts(request.accept, media_type) {
        return Response::plain(406, &format!("this resource is {media_type}; accept it"));
    }
    if request.body.len() > BODY_BYTES_MAX {
        return Response::plain(413, &format!("send at most {BODY_BYTES_MAX} bytes"));
    }
    let filtered = request.method == "POST";
    let body = match path {
        "networkmap" if filtered => filtered_network_map(maps, request),
        "networkmap" => Ok(json!({"meta": {"vtag": maps.vtag()}, "network-map": maps.network_map(|_| true, |_| true)})),
        "costmap/filtered" => filtered_cost_map(maps, request),
        "endpointprop" => endpoint_properties(maps, request),
        "endpointcost" => endpoint_costs(maps, request),
        _ => Ok(cost_type.map_or_else(directory, |cost_type| cost_map(maps, cost_type, None, None, &[]))),
    };
    match body {
        Ok(body) => Response { status: 200, content_type: media_type, allow: None, body: body.to_string() },
        Err(fault) => Response { status: 400, content_type: ERROR, allow: None, body: fault.body().to_string() },
    }
}

/// Does the client take this type? What the most specific of its ranges says counts (RFC 9110 §12.5.1); without any range
/// it takes everything.
fn accepts(header: Option<&str>, media_type: &str) -> bool {
    let ranges: Vec<&str> = unquoted(header.unwrap_or_default(), ',').filter(|range| !range.is_empty()).collect();
    let kind = media_type.split('/').next().unwrap_or_default();
    let judged = ranges.iter().filter_map(|range| {
        let mut parts = unquoted(range, ';');
        let range = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut weight, mut parameters) = (1.0, 0);
        for part in parts.filter(|part| !part.is_empty()) {
            match part.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("q")) {
                Some((_, given)) => {
                    weight = given.trim().parse::<f64>().unwrap_or(1.0);
                    // What follows is about the range no more.
                    break;
                }
                None => parameters += 1,
            }
        }
        // A type with parameters that ours does not have says less of it than the bare one.
        let precedence = match () {
            () if range == media_type => Some(if parameters == 0 { 4 } else { 3 }),
            () if range.split_once('/') == Some((kind, "*")) => Some(2),
            () if range == "*/*" => Some(1),
            () => None,
        };
        precedence.map(|precedence| (precedence, weight > 0.0))
    });
    ranges.is_empty() || judged.max().is_some_and(|(_, takes)| takes)
}

/// The parts of a header between separators that are not in quotes.
fn unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        let was_escaped = std::mem::take(&mut escaped);
        match c {
            '"' if !was_escaped => quoted = !quoted,
            '\\' if quoted && !was_escaped => escaped = true,
            _ => {}
        }
        c == separator && !quoted
    })
    .map(str::trim)
}

fn directory() -> Value {
    let types: BTreeMap<String, Value> = CostType::all()
        .map(|cost_type| {
            let mut written = cost_type.json();
            written["description"] = json!(cost_type.metric.description());
            (cost_type.name(), written)
        })
        .collect();
    let names: Vec<String> = CostType::all().map(CostType::name).collect();
    let mut resources = BTreeMap::from([
        (MAP_ID.to_owned(), json!({"uri": "networkmap", "media-type": NETWORK_MAP})),
        (
            "filtered-network-map".to_owned(),
            json!({"uri": "networkmap", "media-type": NETWORK_MAP, "accepts": NETWORK_MAP_FILTER, "uses": [MAP_ID]}),
        ),
        (
            "filtered-cost-map".to_owned(),
            json!({
                "uri": "costmap/filtered", "media-type": COST_MAP, "accepts": COST_MAP_FILTER, "uses": [MAP_ID],
                "capabilities": {"cost-constraints": true, "cost-type-names": names},
            }),
        ),
        (
            "endpoint-property".to_owned(),
            json!({
                "uri": "endpointprop", "media-type": ENDPOINT_PROP, "accepts": ENDPOINT_PROP_PARAMS,
                "capabilities": {"prop-types": [PID_PROPERTY, CLUSTER_PROPERTY]},
            }),
        ),
        (
            "endpoint-cost".to_owned(),
            json!({
                "uri": "endpointcost", "media-type": ENDPOINT_COST, "accepts": ENDPOINT_COST_PARAMS,
                "capabilities": {"cost-constraints": true, "cost-type-names": names},
            }),
        ),
    ]);
    for cost_type in CostType::all() {
        let entry = json!({
            "uri": format!("costmap/{}/{}", cost_type.mode.id(), cost_type.metric.id()),
            "media-type": COST_MAP, "uses": [MAP_ID], "capabilities": {"cost-type-names": [cost_type.name()]},
        });
        resources.insert(format!("cost-map-{}", cost_type.name()), entry);
    }
    json!({"meta": {"cost-types": types, "default-alto-network-map": MAP_ID}, "resources": resources})
}

fn cost_map(
    maps: &Maps,
    cost_type: CostType,
    srcs: Option<&BTreeSet<String>>,
    dsts: Option<&BTreeSet<String>>,
    constraints: &[params::Constraint],
) -> Value {
    let within = |set: Option<&BTreeSet<String>>, pid: &String| set.is_none_or(|set| set.contains(pid));
    let mut values = vec![];
    for from in maps.pids().filter(|pid| within(srcs, pid)) {
        for to in maps.pids().filter(|pid| within(dsts, pid)) {
            if let Some(value) = maps.cost(cost_type.metric, from, to) {
                values.push((from.clone(), to.clone(), value));
            }
        }
    }
    let mut rows = told(cost_type, values);
    rows.values_mut().for_each(|row| row.retain(|_, told| params::pass(constraints, told)));
    rows.retain(|_, row| !row.is_empty());
    json!({"meta": {"dependent-vtags": [maps.vtag()], "cost-type": cost_type.json()}, "cost-map": rows})
}

/// A list of which an empty or absent one means all; names that are not known count as not named.
fn some_of(list: Option<Vec<String>>) -> Option<BTreeSet<String>> {
    list.filter(|list| !list.is_empty()).map(|list| list.into_iter().collect())
}

fn filtered_network_map(maps: &Maps, request: &Request<'_>) -> Result<Value, Fault> {
    let object = params::object(request.body)?;
    let pids = some_of(Some(params::required(&object, "pids", "pids")?));
    let kinds = some_of(params::texts(&object, "address-types", "address-types")?);
    let data = maps.network_map(
        |pid| pids.as_ref().is_none_or(|set| set.contains(pid)),
        |kind| kinds.as_ref().is_none_or(|set| set.contains(kind)),
    );
    Ok(json!({"meta": {"vtag": maps.vtag()}, "network-map": data}))
}

fn filtered_cost_map(maps: &Maps, request: &Request<'_>) -> Result<Value, Fault> {
    let object = params::object(request.body)?;
    let cost_type = params::cost_type(&object)?;
    let constraints = params::constraints(&object)?;
    let (srcs, dsts) = match object.get("pids") {
        None => (None, None),
        Some(Value::Object(pids)) => {
            let srcs = params::required(pids, "srcs", "pids/srcs")?;
            (some_of(Some(srcs)), some_of(Some(params::required(pids, "dsts", "pids/dsts")?)))
        }
        Some(_) => return Err(Fault::mistyped("pids")),
    };
    Ok(cost_map(maps, cost_type, srcs.as_ref(), dsts.as_ref(), &constraints))
}

fn endpoint_properties(maps: &Maps, request: &Request<'_>) -> Result<Value, Fault> {
    let object = params::object(request.body)?;
    let properties = params::required(&object, "properties", "properties")?;
    let endpoints = params::required(&object, "endpoints", "endpoints")?;
    for (list, name) in [(&properties, "properties"), (&endpoints, "endpoints")] {
        if list.is_empty() {
            return Err(Fault::wrong(name, &json!([])));
        }
    }
    if let Some(unknown) = properties.iter().find(|p| ![PID_PROPERTY, CLUSTER_PROPERTY].contains(&p.as_str())) {
        return Err(Fault::wrong("properties", &json!(unknown)));
    }
    let mut found = BTreeMap::new();
    for (text, address) in params::addresses(endpoints, "endpoints")? {
        let mut own = BTreeMap::new();
        for property in &properties {
            let value = if property == PID_PROPERTY { maps.pid_of(address) } else { maps.cluster_at(address) };
            own.extend(value.map(|value| (property, json!(value))));
        }
        found.insert(text, own);
    }
    let vtags: Vec<Value> = properties.iter().filter(|p| *p == PID_PROPERTY).map(|_| maps.vtag()).collect();
    Ok(json!({"meta": {"dependent-vtags": vtags}, "endpoint-properties": found}))
}

fn endpoint_costs(maps: &Maps, request: &Request<'_>) -> Result<Value, Fault> {
    let object = params::object(request.body)?;
    let cost_type = params::cost_type(&object)?;
    let constraints = params::constraints(&object)?;
    let endpoints = object.get("endpoints").ok_or_else(|| Fault::missing("endpoints"))?;
    let endpoints = endpoints.as_object().ok_or_else(|| Fault::mistyped("endpoints"))?;
    let list = |name: &str| {
        let path = format!("endpoints/{name}");
        params::addresses(params::texts(endpoints, name, &path)?.unwrap_or_default(), &path)
    };
    let (mut srcs, mut dsts) = (list("srcs")?, list("dsts")?);
    if srcs.is_empty() && dsts.is_empty() {
        return Err(Fault::wrong("endpoints", &Value::Object(endpoints.clone())));
    }
    if srcs.len().max(1).saturating_mul(dsts.len().max(1)) > PAIRS_MAX {
        let value = format!("{} pairs, more than {PAIRS_MAX}", srcs.len() * dsts.len());
        return Err(Fault::wrong("endpoints", &json!(value)));
    }
    // An absent list is the client itself (§11.5.1.3).
    let own = || request.client.map(|address| (params::written(address), address));
    if srcs.is_empty() {
        srcs.extend(own());
    }
    if dsts.is_empty() {
        dsts.extend(own());
    }
    let mut values = vec![];
    for (from, a) in &srcs {
        for (to, b) in &dsts {
            if let Some(value) = maps.endpoint_cost(cost_type.metric, *a, *b) {
                values.push((from.clone(), to.clone(), value));
            }
        }
    }
    let mut rows = told(cost_type, values);
    rows.values_mut().for_each(|row| row.retain(|_, told| params::pass(&constraints, told)));
    rows.retain(|_, row| !row.is_empty());
    Ok(json!({"meta": {"cost-type": cost_type.json()}, "endpoint-cost-map": rows}))
}
