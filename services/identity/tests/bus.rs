//! The first account: a ready identity service can be signed in to, and a password file holds the password that works.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_core::Outgoing;
use mesh_kit::{Running, Settings};
use mesh_proto::identity::{AccountDefined, DefineAccount};
use mesh_test::{TestBus, until};
use serde_json::{Value as Json, json};

const FIRST: &str = "identity.account_defined.v1.account.admin";

type Http = Client<HttpConnector, Full<Bytes>>;

fn client() -> Http {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Passwords that are hashed quickly.
fn quick() -> identity::Config {
    identity::Config { password_memory_kib: 64, password_passes: 1, ..Default::default() }
}

/// An identity service, with its data in a folder if there is one.
async fn join(test_bus: &TestBus, folder: Option<&Path>, config: identity::Config) -> Running {
    let settings = Settings { data_dir: folder.map(Into::into), ..test_bus.settings("identity") };
    mesh_kit::join("identity", settings, config, identity::start).await.unwrap()
}

/// Waits until a service has all that it needs.
async fn ready(service: &Running) {
    until("the service is ready", async || service.mesh().readiness().missing(), |missing| missing.is_empty()).await;
}

async fn send(http: &Http, request: Request<Full<Bytes>>) -> (u16, HeaderMap, Json) {
    let response = http.request(request).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, headers, serde_json::from_slice(&body).unwrap_or_default())
}

async fn login(http: &Http, url: &str, name: &str, password: &str) -> (u16, HeaderMap, Json) {
    let body = json!({"username": name, "password": password}).to_string();
    let request = Request::post(format!("{url}/api/v1/auth/login/"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    send(http, request).await
}

/// A request with a token.
async fn ask(http: &Http, url: &str, token: &str, method: &str, body: &Json) -> u16 {
    let request = Request::builder()
        .method(method)
        .uri(url)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    send(http, request).await.0
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_ready_once_somebody_can_sign_in() {
    let Some(test_bus) = TestBus::start("identity, readiness").await else { return };
    let random = aws_lc_rs::rand::SystemRandom::new();
    let key = STANDARD.encode(Ed25519KeyPair::generate_pkcs8(&random).unwrap());
    let keys = test_bus.folder().join("issuer.keys");
    std::fs::write(&keys, format!("sign {key}\npepper {}\n", STANDARD.encode([7; 32]))).unwrap();
    // It has no place to keep a password, so it makes no account.
    let shared = || identity::Config { issuer_keys_file: Some(keys.clone()), ..quick() };
    let waiting = join(&test_bus, None, shared()).await;
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
    let early = login(&http, &waiting.endpoint(), "admin", "any password").await;
    assert_eq!(early.0, 503, "its password is not called wrong: {early:?}");
    assert!(early.1.contains_key(header::RETRY_AFTER));

    let folder = test_bus.folder().join("other");
    let other = join(&test_bus, Some(&folder), shared()).await;
    ready(&other).await;
    ready(&waiting).await;
    let password = text(&folder.join("admin.password"));
    for url in [waiting.endpoint(), other.endpoint()] {
        let answer = login(&http, &url, "admin", &password).await;
        assert_eq!(answer.0, 200, "at the first try: {answer:?}");
    }
    other.stop().await;
    waiting.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_file_stays_while_its_password_holds_and_goes_with_anothers() {
    let Some(test_bus) = TestBus::start("identity, first account").await else { return };
    let folder = test_bus.folder().join("identity");
    let first = join(&test_bus, Some(&folder), quick()).await;
    ready(&first).await;
    let stored = test_bus.connect("identity").await.log("IDENTITY").last(FIRST).await.unwrap().unwrap();
    let made = stored.event::<AccountDefined>().unwrap().unwrap();
    first.stop().await;
    let (password, keys) = (text(&folder.join("admin.password")), text(&folder.join("issuer.keys")));
    let http = client();
    // Killed after it had sent its command, it starts again on the same folder, and the earlier command is answered
    // before the new one. Or the command of another process is.
    for (kept, holds) in [(password.as_str(), true), ("what another process had drawn", false)] {
        let test_bus = TestBus::start("identity, first account asked for before").await.unwrap();
        let folder = test_bus.folder().join("identity");
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
        test_bus.connect("identity").await.publish(&before).await.unwrap();
        let again = join(&test_bus, Some(&folder), quick()).await;
        ready(&again).await;
        let stored = test_bus.connect("identity").await.log("IDENTITY").last(FIRST).await.unwrap().unwrap();
        assert_eq!(stored.cause.unwrap().id, "asked-before", "the first command made it");
        assert_eq!(folder.join("admin.password").exists(), holds, "{kept}");
        let answer = login(&http, &again.endpoint(), "admin", &password).await;
        assert_eq!(answer.0, 200, "{answer:?}");
        again.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_checks_tokens_and_roles_itself() {
    let Some(test_bus) = TestBus::start("identity, permissions").await else { return };
    let folder = test_bus.folder().join("identity");
    let service = join(&test_bus, Some(&folder), quick()).await;
    ready(&service).await;
    let (http, url) = (client(), service.endpoint());
    let accounts = format!("{url}/api/v1/auth/account/");
    let token = async |name: &str, password: &str| {
        let (status, _, body) = login(&http, &url, name, password).await;
        assert_eq!(status, 200, "{body}");
        body["token"].as_str().unwrap().to_owned()
    };
    let admin = token("admin", &text(&folder.join("admin.password"))).await;
    let ada = json!({"username": "ada", "password": "correct horse", "roles": ["owner"]});
    assert_eq!(ask(&http, &accounts, "none.of.these", "PUT", &ada).await, 401);
    assert_eq!(ask(&http, &accounts, &admin, "PUT", &ada).await, 200);
    let own = token("ada", "correct horse").await;
    assert_eq!(ask(&http, &accounts, &own, "GET", &Json::Null).await, 403, "an owner manages no accounts");
    assert_eq!(ask(&http, &format!("{accounts}admin/"), &own, "DELETE", &Json::Null).await, 403);
    assert_eq!(ask(&http, &format!("{accounts}nobody/"), &admin, "DELETE", &Json::Null).await, 404);
    assert_eq!(ask(&http, &format!("{accounts}admin/"), &admin, "DELETE", &Json::Null).await, 409, "one's own stays");
    assert_eq!(ask(&http, &format!("{accounts}ada/"), &admin, "DELETE", &Json::Null).await, 204);
    let (status, _, keys) = send(&http, Request::get(format!("{url}/oauth/jwks")).body(Full::default()).unwrap()).await;
    assert_eq!((status, keys["keys"].as_array().map(Vec::len)), (200, Some(1)), "{keys}");
    // Its accounts stay on the bus; new keys would make every password wrong, so it does not start with them.
    service.stop().await;
    let settings = Settings { data_dir: Some(test_bus.folder().join("elsewhere")), ..test_bus.settings("identity") };
    let refused = mesh_kit::join("identity", settings, quick(), identity::start).await.err().unwrap();
    assert!(format!("{refused:#}").contains("issuer_keys_file"), "{refused:#}");
}
