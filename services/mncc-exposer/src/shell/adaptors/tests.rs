//! Adaptors against real servers of the tests' own, and real namespaces where that is permitted.

#![expect(clippy::disallowed_methods, reason = "test servers are started")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::to_bytes,
    extract::Request,
    http::{StatusCode, header},
    response::IntoResponse as _,
    routing::any,
};
use mesh_proto::l2sm::{
    AddClusterRequest, CreateNetworkRequest, CreateOverlayRequest, DeleteNetworkRequest, DeleteOverlayRequest,
    L2smReply, RemoveClusterRequest,
    l2sm_multi_domain_server::{L2smMultiDomain, L2smMultiDomainServer},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{Response, Status};

use super::*;
use crate::domain::{
    intents::{Segment, parse, standard as libraries},
    statements::statements,
};

#[test]
fn what_is_not_proven_of_an_adaptor_is_stated_once() {
    let found = statements(["l2sm", "http", "tfs_controller", "l2sm", "linux", "sys_out"].into_iter());
    let [l2sm, tfs] = found.as_slice() else { panic!("{found:?}") };
    assert!(l2sm.contains("a protocol of this project") && tfs.contains("only against a recorder"), "{found:?}");
}

type Seen = Arc<Mutex<Vec<(String, String, String, String)>>>;

/// A server that writes down what it is asked and answers like the web interface of the controller.
async fn recording() -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let of = seen.clone();
    let handler = move |request: Request| {
        let of = of.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap();
            let header = |name: header::HeaderName| {
                parts.headers.get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
            };
            let told = format!("{} {}", header(header::CONTENT_TYPE), header(header::COOKIE));
            of.lock().unwrap().push((parts.method.to_string(), parts.uri.path().to_owned(), told, body));
            match (parts.method.as_str(), parts.uri.path()) {
                ("GET", "/webui") => (
                    [(header::SET_COOKIE, "session=abc; HttpOnly")],
                    "<form><input type=\"file\" name=\"descriptors\"><input id=\"csrf_token\" name=\"csrf_token\" type=\"hidden\" value=\"T0ken\"></form>",
                )
                    .into_response(),
                ("POST", "/webui") => (StatusCode::FOUND, [(header::LOCATION, "/webui/")]).into_response(),
                ("GET", "/webui/") => "services".into_response(),
                ("POST", "/things") => StatusCode::CREATED.into_response(),
                _ => (StatusCode::CONFLICT, "there is one").into_response(),
            }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(handler))).await });
    (address, seen)
}

async fn call(name: &str, operation: &str, target: &str, body: &Value) -> Result<String, Error> {
    let all = standard("/nonexistent");
    let adaptor = all.iter().find(|e| e.name() == name).unwrap();
    adaptor.call(&Call { id: "o/n", operation, target, body }).await
}

#[tokio::test]
async fn a7_the_descriptor_reaches_the_controller_with_token_and_session() {
    let (address, seen) = recording().await;
    let text =
        include_str!("../../../../../examples/network/l2vpn.yaml").replace("192.168.165.10", &address.to_string());
    let plan = libraries().plan(&parse(&text).unwrap()).unwrap();
    let descriptor = &plan.calls[1].1;
    call(&descriptor.executioner, &descriptor.operation, &descriptor.target, &descriptor.body).await.unwrap();
    let seen = seen.lock().unwrap();
    let asked: Vec<(&str, &str)> = seen.iter().map(|(method, path, ..)| (method.as_str(), path.as_str())).collect();
    assert_eq!(asked, [("GET", "/webui"), ("POST", "/webui"), ("GET", "/webui/")]);
    let (_, _, headers, body) = &seen[1];
    assert!(headers.starts_with("multipart/form-data; boundary=") && headers.ends_with("session=abc"), "{headers}");
    assert!(body.contains("name=\"csrf_token\"\r\n\r\nT0ken\r\n"));
    let sent = body.lines().find(|line| line.starts_with('{')).unwrap();
    assert_eq!(serde_json::from_str::<Value>(sent).unwrap(), descriptor.body);
}

#[tokio::test]
async fn a_controller_without_its_form_or_not_there_is_told() {
    let (address, _) = recording().await;
    assert!(matches!(call("tfs_controller", "x", "nonsense", &json!({})).await, Err(Error::Invalid(_))));
    let closed = mesh_test::free_address();
    assert!(matches!(
        call("tfs_controller", "x", &format!("http://{closed}/"), &json!({})).await,
        Err(Error::Unreachable(_))
    ));
    let refused = call("http", "PUT", &format!("http://{address}/other"), &json!({"a": 1})).await.unwrap_err();
    assert_eq!(refused.to_string(), "409 Conflict: there is one");
    assert!(matches!(call("http", "GET", "https://host/", &Value::Null).await, Err(Error::Invalid(_))));
    assert!(matches!(
        call("http", "BAD METHOD", &format!("http://{address}/"), &Value::Null).await,
        Err(Error::Invalid(_))
    ));
}

#[tokio::test]
async fn an_http_call_is_made_as_it_was_translated() {
    let (address, seen) = recording().await;
    let answer = call("http", "POST", &format!("http://{address}/things"), &json!({"name": "s1"})).await.unwrap();
    assert_eq!(answer, "201 Created");
    let seen = seen.lock().unwrap();
    assert_eq!((seen[0].0.as_str(), seen[0].3.as_str()), ("POST", "{\"name\":\"s1\"}"));
    assert!(seen[0].2.starts_with("application/json"));
}

#[derive(Clone, Default)]
struct Manager(Arc<Mutex<Vec<String>>>);

impl Manager {
    fn take(&self, what: &impl std::fmt::Debug) -> Result<Response<L2smReply>, Status> {
        self.0.lock().unwrap().push(format!("{what:?}"));
        Ok(Response::new(L2smReply { message: "done".into() }))
    }
}

#[tonic::async_trait]
impl L2smMultiDomain for Manager {
    async fn create_network(&self, r: tonic::Request<CreateNetworkRequest>) -> Result<Response<L2smReply>, Status> {
        self.take(&r.into_inner())
    }
    async fn delete_network(&self, r: tonic::Request<DeleteNetworkRequest>) -> Result<Response<L2smReply>, Status> {
        self.take(&r.into_inner())
    }
    async fn create_overlay(&self, r: tonic::Request<CreateOverlayRequest>) -> Result<Response<L2smReply>, Status> {
        self.take(&r.into_inner())
    }
    async fn delete_overlay(&self, r: tonic::Request<DeleteOverlayRequest>) -> Result<Response<L2smReply>, Status> {
        self.take(&r.into_inner())
    }
    async fn add_cluster(&self, r: tonic::Request<AddClusterRequest>) -> Result<Response<L2smReply>, Status> {
        self.take(&r.into_inner())
    }
    async fn remove_cluster(&self, _: tonic::Request<RemoveClusterRequest>) -> Result<Response<L2smReply>, Status> {
        Err(Status::not_found("no such overlay"))
    }
}

#[tokio::test]
async fn a8_a_cluster_and_a_network_reach_the_manager_with_the_token() {
    let manager = Manager::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let service = L2smMultiDomainServer::new(manager.clone());
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let text =
        include_str!("../../../../../examples/network/l2sm.yaml").replace("127.0.0.1:50051", &address.to_string());
    let plan = libraries().plan(&parse(&text).unwrap()).unwrap();
    for (_, made) in &plan.calls {
        assert_eq!(call(&made.executioner, &made.operation, &made.target, &made.body).await.unwrap(), "done");
    }
    let seen = manager.0.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    assert!(seen[0].contains("spain-network") && seen[0].contains("kind-worker-cluster-1"), "{}", seen[0]);
    assert!(seen[0].contains("a.secret.token") && seen[0].contains("https://172.18.0.3:6443"), "{}", seen[0]);
    assert!(seen[1].contains("CreateNetworkRequest") && seen[1].contains("uc3m") && seen[1].contains("172.18.0.2"));
    let (operation, body) = plan.calls[0].1.undo.clone().unwrap();
    let refused = call("l2sm", &operation, &plan.calls[0].1.target, &body).await.unwrap_err();
    assert!(refused.to_string().contains("no such overlay"));
    assert!(matches!(call("l2sm", "Explode", &format!("http://{address}"), &json!({})).await, Err(Error::Invalid(_))));
}

/// A folder for namespaces, or `None` with a loud word where this process may not make them.
fn privileged() -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let probe = linux::Linux::new(folder.path().join("probe"));
    match probe.create("probe/0", &segment(0)) {
        Ok(_) => {
            probe.delete("probe/0", &segment(0)).unwrap();
            Some(folder)
        }
        Err(Error::Forbidden(reason)) => {
            #[allow(clippy::print_stderr)]
            {
                eprintln!("SKIPPED, needs CAP_NET_ADMIN and CAP_SYS_ADMIN: {reason}");
            }
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn segment(number: u32) -> Segment {
    let text = |name: &str| format!("{name}{number}");
    Segment {
        name: text("seg"),
        vni: 100 + number,
        nodes: ["node-a".into(), "node-b".into()],
        endpoints: [text("left"), text("right")],
        addresses: [format!("10.9.{number}.1/24"), format!("10.9.{number}.2/24")],
    }
}

#[test]
fn segments_carry_traffic_are_idempotent_and_leave_nothing_behind() {
    let Some(folder) = privileged() else { return };
    let linux = linux::Linux::new(folder.path().join("ns"));
    for number in 0..3 {
        linux.create("o/n", &segment(number)).unwrap();
    }
    linux.create("o/n", &segment(1)).unwrap();
    for number in 0..3 {
        linux.traffic(&segment(number)).unwrap();
    }
    linux.delete("o/n", &segment(1)).unwrap();
    assert!(linux.traffic(&segment(1)).is_err());
    linux.traffic(&segment(2)).unwrap();
    for number in 0..3 {
        linux.delete("o/n", &segment(number)).unwrap();
    }
    let left: Vec<_> = std::fs::read_dir(folder.path().join("ns")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn two_segments_of_one_machine_do_not_hear_each_other() {
    let Some(folder) = privileged() else { return };
    let linux = linux::Linux::new(folder.path().join("ns"));
    let (one, mut other) = (segment(0), segment(1));
    other.addresses = one.addresses.clone();
    linux.create("o/a", &one).unwrap();
    linux.create("o/b", &other).unwrap();
    // The same addresses in two segments: each pair reaches its own.
    let mut crossed = one.clone();
    crossed.endpoints = ["left0".into(), "right1".into()];
    assert!(linux.traffic(&crossed).is_err());
    for (id, segment) in [("o/a", &one), ("o/b", &other)] {
        linux.traffic(segment).unwrap();
        linux.delete(id, segment).unwrap();
    }
}
