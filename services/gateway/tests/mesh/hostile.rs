//! Clients that would pose as another user, or leave the path that a workload exposes.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

/// A workload that reads its headers as WSGI does: letters in one case, `_` for everything else, repeated ones joined.
/// It says what it was asked for, and takes any upgrade that is offered.
async fn wsgi() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let head = read_head(&mut socket).await;
                let mut lines = head.lines();
                let target = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
                let mut environ: BTreeMap<String, String> = BTreeMap::new();
                for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
                    let name: String = name
                        .chars()
                        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
                        .collect();
                    let slot = environ.entry(name).or_default();
                    slot.push_str(if slot.is_empty() { "" } else { "," });
                    slot.push_str(value);
                }
                if let Some(protocol) = environ.get("UPGRADE") {
                    let said = format!("HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n");
                    socket.write_all(said.as_bytes()).await.unwrap();
                    return;
                }
                let body = json!({"target": target, "environ": environ}).to_string();
                let length = body.len();
                let said = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                socket.write_all(said.as_bytes()).await.unwrap();
            });
        }
    });
    port
}

async fn read_head(socket: &mut TcpStream) -> String {
    let (mut head, mut byte) = (vec![], [0; 1]);
    while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).await.unwrap_or(0) > 0 {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Sends a request as it is written; its status, and the body if it is JSON.
async fn written(host: &str, request: &[u8]) -> (u16, Json) {
    let mut socket = TcpStream::connect(host).await.unwrap();
    socket.write_all(request).await.unwrap();
    let head = soon("an answer", read_head(&mut socket)).await;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head:?}"));
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|text| text.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    soon("a body", socket.read_exact(&mut body)).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_hostile_requests_reach_a_workload_as_their_sender() {
    let Some(world) = World::start("gateway, hostile clients", 1, |_| {}).await else { return };
    let port = wsgi().await;
    let admin = world.admin().await;
    let ada = world.account(&admin, "ada", &["owner"]).await;
    let document = json!({"name": "wsgi", "version": "1.0.0", "kind": "process", "driver": "simulated", "process": {"command": "true"},
        "resources": {"cpu_milli": 10, "memory_bytes": 1_000_000}, "replicas": 1, "expose": {"port": port, "path": "/app"}});
    assert_eq!(world.ask(&ada, "POST", "/api/v1/workload/", Some(document)).await.status, 201);
    let run = world.ask(&ada, "POST", "/api/v1/workload/wsgi@1.0.0/template/", Some(json!({}))).await;
    let path = format!("/access/ada/{}", run.body["instance_id"].as_str().unwrap());
    until(
        "the workload is reached",
        async || world.ask(&ada, "GET", &format!("{path}/"), None).await,
        |answer: &Answer| answer.status == 200,
    )
    .await;
    let host = world.urls[0].strip_prefix("http://").unwrap();

    let spellings = [
        "X-Forwarded-User",
        "X_Forwarded_User",
        "x_forwarded_user",
        "X-Forwarded_User",
        "X_Forwarded-User",
        "X.Forwarded.User",
        "X-Forwarded.User",
        "X!Forwarded!User",
        "X~Forwarded~User",
        "X|Forwarded|User",
        "X'Forwarded'User",
        "X`Forwarded`User",
        "X^Forwarded^User",
        "X*Forwarded*User",
        "X+Forwarded+User",
        "X&Forwarded&User",
        "X%Forwarded%User",
        "X$Forwarded$User",
        "X#Forwarded#User",
        "X_FORWARDED_USER",
        "x-forwarded-USER",
        "X-Forwarded-User_",
        "X--Forwarded--User",
        "XForwardedUser",
    ];
    let mut heads: Vec<String> = vec![];
    for spelling in spellings {
        heads.push(format!("{spelling}: root\r\n"));
        heads.push(format!("Connection: x-forwarded-user, {}\r\n{spelling}: root\r\n", spelling.to_lowercase()));
    }
    for more in [
        "Connection: x-forwarded-user, x-forwarded-owner, x-forwarded-prefix, x-forwarded-proto, x-forwarded-host",
        "Connection: X-FORWARDED-USER\r\nX_Forwarded_User: root",
        "Connection: close\r\nConnection: x-forwarded-user\r\nX_Forwarded_User: root",
        "Connection: \u{ff}, x-forwarded-user\r\nX_Forwarded_User: root",
        "Connection: upgrade, http2-settings, x-forwarded-user\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        "Connection: Upgrade\r\nUpgrade: h2c",
        "Connection: Upgrade\r\nUpgrade: HTTP/2.0, TLS/1.0",
        "Keep-Alive: x-forwarded-user\r\nProxy-Connection: x-forwarded-user",
        "TE: trailers, x-forwarded-user\r\nConnection: TE, x-forwarded-user",
        "X-Forwarded-User: root\r\nX-Forwarded-User: root",
        "X_Forwarded_Owner: root\r\nX_Forwarded_Prefix: /\r\nX_Forwarded_Proto: https\r\nX_Forwarded_Host: evil",
        "Forwarded: for=1.1.1.1;by=root\r\nForwarded_: for=1.1.1.1\r\nX-Forwarded-For: 1.1.1.1\r\nX_Forwarded_For: 1.1.1.1",
        "X-Forwarded-Groups: root\r\nX-Forwarded-Email: root\r\nX-Forwarded-Preferred-Username: root\r\nX-Forwarded-Access-Token: root",
        "Remote-User: root\r\nRemote_User: root\r\nScript_Name: /root\r\nPath_Info: /root\r\nProxy: root",
        "X-Original-URL: /root\r\nX-Rewrite-URL: /root\r\nX_Original_Uri: /root",
    ] {
        heads.push(format!("{more}\r\n"));
    }
    let told = |seen: &Json, name: &str| seen["environ"][name].as_str().map(str::to_owned);
    for head in &heads {
        let mut request =
            format!("GET {path}/in HTTP/1.1\r\nHost: front\r\nAuthorization: Bearer {ada}\r\n").into_bytes();
        // One byte for each character, so that what is no ASCII is sent as no UTF-8.
        request.extend(head.chars().map(|c| c as u8));
        request.extend(b"\r\n");
        let (status, seen) = written(host, &request).await;
        assert_eq!((status, seen["target"].as_str()), (200, Some("/app/in")), "{head}: {seen}");
        for (name, value) in
            [("USER", "ada"), ("OWNER", "ada"), ("PROTO", "http"), ("HOST", "front"), ("PREFIX", &path)]
        {
            assert_eq!(told(&seen, &format!("X_FORWARDED_{name}")).as_deref(), Some(value), "{head}: {seen}");
        }
        assert!(!seen.to_string().contains("root") && !seen.to_string().contains("1.1.1.1"), "{head}: {seen}");
        assert!(told(&seen, "AUTHORIZATION").is_none() && told(&seen, "UPGRADE").is_none(), "{head}: {seen}");
    }

    let mut paths: Vec<String> = vec![];
    for dots in [
        "..",
        "%2e%2e",
        "%2E.",
        "..;",
        "..;x=y",
        "%252e%252e",
        "%c0%ae%c0%ae",
        "%u002e%u002e",
        "%EF%BC%8E%EF%BC%8E",
        "..%00",
        "..%20",
    ] {
        for slash in ["/", "%2f", "\\", "%5C", "%252f", "%c0%af"] {
            paths.push(format!("/{dots}{slash}root"));
            paths.push(format!("/in{slash}{dots}{slash}{dots}{slash}root"));
        }
    }
    for rest in &paths {
        let request = format!("GET {path}{rest} HTTP/1.1\r\nHost: front\r\nAuthorization: Bearer {ada}\r\n\r\n");
        let (status, seen) = written(host, request.as_bytes()).await;
        assert_eq!(status, 400, "{rest}: {seen}");
    }
    for (rest, target) in [
        ("//front/x", "/app/front/x"),
        ("/a/../b/./c", "/app/b/c"),
        ("/a/%2e%2e/b?x=../..", "/app/b?x=../.."),
        ("/a%2Fb", "/app/a%2Fb"),
    ] {
        let request = format!("GET {path}{rest} HTTP/1.1\r\nHost: front\r\nAuthorization: Bearer {ada}\r\n\r\n");
        let (status, seen) = written(host, request.as_bytes()).await;
        assert_eq!((status, seen["target"].as_str()), (200, Some(target)), "{rest}: {seen}");
    }
    println!(
        "{} spellings of headers, {} of paths: the true user each time, none leaves its path",
        heads.len(),
        paths.len() + 4
    );
    world.stop().await;
}
