//! The first account: who is served by a gateway that is ready can sign in, and a password file holds what it says.

use std::path::Path;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::header;
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_core::Outgoing;
use mesh_kit::{Running, Settings};
use mesh_proto::identity::{AccountDefined, DefineAccount};
use mesh_test::{TestBus, until};

use super::{login, quick, ready};

const FIRST: &str = "identity.account_defined.v1.account.admin";

fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// A gateway alone, whose data is in a folder if it is given one.
async fn join(test_bus: &TestBus, folder: Option<&Path>, config: gateway::Config) -> Running {
    let settings = Settings { data_dir: folder.map(Into::into), ..test_bus.settings("gateway") };
    mesh_kit::join("gateway", settings, config, gateway::start).await.unwrap()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_ready_once_somebody_can_sign_in_there() {
    let Some(test_bus) = TestBus::start("gateway, readiness").await else { return };
    let random = aws_lc_rs::rand::SystemRandom::new();
    let key = STANDARD.encode(Ed25519KeyPair::generate_pkcs8(&random).unwrap());
    let keys = test_bus.folder().join("issuer.keys");
    std::fs::write(&keys, format!("sign {key}\npepper {}\n", STANDARD.encode([7; 32]))).unwrap();
    // It can keep no password, so it makes no account. Its port is free: nobody else has this address.
    let held = std::net::TcpListener::bind((mesh_test::loopback(), 0)).unwrap();
    let rest_listen = held.local_addr().unwrap().to_string();
    drop(held);
    let url = format!("http://{rest_listen}");
    let shared = || gateway::Config { issuer_keys_file: Some(keys.clone()), ..quick() };
    let waiting = join(&test_bus, None, gateway::Config { rest_listen, ..shared() }).await;
    let missing = until(
        "an account is all that it waits for",
        async || waiting.mesh().readiness().missing(),
        |missing| missing.len() == 1 && missing[0].reason.contains("no account"),
    )
    .await;
    assert_eq!(missing[0].condition, "an account to sign in with");
    let page = mesh_test::page(&waiting.endpoint(), "/readyz").await.unwrap();
    assert!(page.0 == 503 && page.1.contains("an account to sign in with"), "{page:?}");
    let http = client();
    let early = login(&http, &url, "admin", "any password").await;
    assert_eq!(early.status, 503, "its password is not called wrong: {early:?}");
    assert!(early.headers.contains_key(header::RETRY_AFTER));

    let folder = test_bus.folder().join("other");
    let other = join(&test_bus, Some(&folder), shared()).await;
    ready(&other).await;
    ready(&waiting).await;
    let password = text(&folder.join("admin.password"));
    for url in [&url, &text(&folder.join("url"))] {
        let answer = login(&http, url, "admin", &password).await;
        assert_eq!(answer.status, 200, "at the first try: {answer:?}");
    }
    other.stop().await;
    waiting.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_file_stays_while_its_password_holds_and_goes_with_anothers() {
    let Some(test_bus) = TestBus::start("gateway, first account").await else { return };
    let folder = test_bus.folder().join("gateway");
    let first = join(&test_bus, Some(&folder), quick()).await;
    ready(&first).await;
    let stored = test_bus.connect("gateway").await.log("IDENTITY").last(FIRST).await.unwrap().unwrap();
    let made = stored.event::<AccountDefined>().unwrap().unwrap();
    first.stop().await;
    let (password, keys) = (text(&folder.join("admin.password")), text(&folder.join("issuer.keys")));
    let http = client();
    // Killed after it had asked, it starts again on the same folder, and its earlier command is answered before the new
    // one. Or another gateway's command is.
    for (kept, holds) in [(password.as_str(), true), ("what another gateway had drawn", false)] {
        let test_bus = TestBus::start("gateway, first account asked for before").await.unwrap();
        let folder = test_bus.folder().join("gateway");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("issuer.keys"), &keys).unwrap();
        std::fs::write(folder.join("admin.password"), kept).unwrap();
        let before = DefineAccount {
            realm: made.realm.clone(),
            name: made.name.clone(),
            password_hash: made.password_hash.clone(),
            roles: made.roles.clone(),
            owner: made.owner.clone(),
            disabled: false,
            only_new: true,
        };
        let before = Outgoing::new(&before, "asked-before", mesh_test::now()).unwrap();
        test_bus.connect("gateway").await.publish(&before).await.unwrap();
        let gateway = join(&test_bus, Some(&folder), quick()).await;
        ready(&gateway).await;
        let stored = test_bus.connect("gateway").await.log("IDENTITY").last(FIRST).await.unwrap().unwrap();
        assert_eq!(stored.cause.unwrap().id, "asked-before", "the first command made it");
        assert_eq!(folder.join("admin.password").exists(), holds, "{kept}");
        let answer = login(&http, &text(&folder.join("url")), "admin", &password).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        gateway.stop().await;
    }
}
