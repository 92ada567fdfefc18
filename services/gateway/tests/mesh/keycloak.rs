//! Sign-in at a real Keycloak: its tokens, its roles, its keys as they rotate.

use std::{path::PathBuf, process::Stdio, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use mesh_test::until;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{Configs, World};

/// Of the users in its realm, and of its administrator.
const PASSWORD: &str = "a password of the test";

fn home() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools/keycloak/current")
}

struct Keycloak {
    child: tokio::process::Child,
    url: String,
}

impl Drop for Keycloak {
    fn drop(&mut self) {
        // Its script starts it as a child: the group is both.
        if let Some(group) = self.child.id() {
            let _ended = std::process::Command::new("kill").args(["-KILL", "--", &format!("-{group}")]).status();
        }
    }
}

impl Keycloak {
    /// On a port of its own choice. It takes half a minute on a free core.
    async fn start() -> Self {
        let mut child = tokio::process::Command::new(home().join("bin/kc.sh"))
            .args(["start", "--optimized", "--import-realm", "--http-enabled=true", "--http-host=127.0.0.1"])
            .args(["--http-port=0", "--hostname-strict=false"])
            .env("KC_BOOTSTRAP_ADMIN_USERNAME", "admin")
            .env("KC_BOOTSTRAP_ADMIN_PASSWORD", PASSWORD)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("Keycloak says where it listens");
                if let Some((_, url)) = line.split_once("Listening on: ") {
                    return url.trim().to_owned();
                }
            }
        };
        let listening = tokio::time::timeout(Duration::from_secs(300), listening).await;
        // What it says later is read, so that it does not stop over a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let mut keycloak = Self { child, url: String::new() };
        keycloak.url = listening.expect("Keycloak starts");
        keycloak
    }

    fn issuer(&self) -> String {
        format!("{}/realms/plant", self.url)
    }

    async fn post(&self, world: &World, path: &str, kind: &str, token: &str, body: String) -> (u16, Json) {
        let request = Request::post(format!("{}{path}", self.url))
            .header("content-type", kind)
            .header("authorization", format!("Bearer {token}"))
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let response = world.http.request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// What a person gets who signs in at a client of a realm.
    async fn tokens(&self, world: &World, realm: &str, client: &str, user: &str) -> Json {
        let path = format!("/realms/{realm}/protocol/openid-connect/token");
        let password = PASSWORD.replace(' ', "+");
        let form = format!("grant_type=password&scope=openid&client_id={client}&username={user}&password={password}");
        let (status, tokens) = self.post(world, &path, "application/x-www-form-urlencoded", "", form).await;
        assert_eq!(status, 200, "{user} signs in at {client}: {tokens}");
        tokens
    }

    async fn token(&self, world: &World, client: &str, user: &str) -> String {
        text(&self.tokens(world, "plant", client, user).await, "access_token")
    }

    /// A new key that signs from now on.
    async fn rotate(&self, world: &World) {
        let admin = text(&self.tokens(world, "master", "admin-cli", "admin").await, "access_token");
        let key = json!({"name": "next", "providerId": "rsa-generated", "providerType": "org.keycloak.keys.KeyProvider",
            "config": {"priority": ["200"], "active": ["true"], "enabled": ["true"]}});
        let path = "/admin/realms/plant/components";
        let (status, answer) = self.post(world, path, "application/json", &admin, key.to_string()).await;
        assert_eq!(status, 201, "{answer}");
    }
}

fn text(value: &Json, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("{field} of {value}")).to_owned()
}

fn key_id(token: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let head = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    text(&serde_json::from_slice(&head).unwrap(), "kid")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_sign_in_at_keycloak() {
    if !home().join(".built").is_file() {
        eprintln!("SKIPPED: gateway, Keycloak: no .tools/keycloak (run `make setup-test`)");
        return;
    }
    let keycloak = Keycloak::start().await;
    let issuer = keycloak.issuer();
    let trust = |configs: &mut Configs| configs.gateway.oidc_issuer.clone_from(&issuer);
    let Some(world) = World::start("gateway, Keycloak", 1, trust).await else { return };
    let whoami = async |token: &str| world.ask(token, "GET", "/api/v1/auth/whoami/", None).await;

    let ada = keycloak.token(&world, "panel", "ada").await;
    let known = whoami(&ada).await;
    assert_eq!((known.status, &known.body["roles"]), (200, &json!(["owner"])), "{known:?}");
    let spinner = json!({"userLabel": "DeliverComputingWorkload", "intentExpectations": [{
        "expectationId": "a", "expectationVerb": "DELIVER",
        "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": "spinner@1.0.0"},
        "expectationTargets": [{"targetName": "cpuUsage", "targetCondition": "IS_LESS_THAN", "targetValueRange": "50"}],
    }]});
    let made = world.ask(&ada, "POST", "/api/v1/intent/", Some(spinner.clone())).await;
    assert_eq!(made.status, 201, "{made:?}");
    let path = format!("/api/v1/intent/{}/", text(&made.body, "id"));
    assert_eq!(world.ask(&ada, "GET", &path, None).await.status, 200);

    let eve = keycloak.token(&world, "panel", "eve").await;
    assert_eq!(world.ask(&eve, "GET", &path, None).await.status, 404, "what is another's is not there");
    assert_eq!(world.ask(&eve, "POST", "/api/v1/intent/", Some(spinner)).await.status, 403, "a viewer looks");

    let elsewhere = whoami(&keycloak.token(&world, "elsewhere", "ada").await).await;
    assert_eq!(elsewhere.status, 401, "a token for another audience: {elsewhere:?}");
    let identity = text(&keycloak.tokens(&world, "plant", "panel", "ada").await, "id_token");
    assert_eq!(whoami(&identity).await.status, 401, "an ID token is no access token");
    let admin = text(&keycloak.tokens(&world, "master", "admin-cli", "admin").await, "access_token");
    assert_eq!(whoami(&admin).await.status, 401, "another realm is another issuer, with keys of its own");

    keycloak.rotate(&world).await;
    let next = keycloak.token(&world, "panel", "ada").await;
    assert_ne!(key_id(&next), key_id(&ada), "another key signs now");
    until("the new key is known", async || whoami(&next).await.status, |status| *status == 200).await;
    assert_eq!(whoami(&ada).await.status, 200, "the previous key is still published");
    world.stop().await;
}
