//! Chapter: the same over REST: sign in, submit, follow by server-sent events, and get refusals.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use continuum::{commands::login, http::request as send};
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client as Http, rt::TokioExecutor};
use serde_json::json;

use crate::story::Story;

/// Shows it.
pub(super) async fn chapter(story: &mut Story, data_dir: &Path) -> anyhow::Result<()> {
    story.chapter("the same over REST, with roles");
    story.step("an administrator signs in at the gateway, and creates an account for ada");
    let gateway = login::gateway_of(data_dir)?;
    let session = login::sign_in(data_dir, &gateway, "admin", &login::first_password(data_dir)?).await?;
    let ada = json!({"username": "ada", "password": "demo only!", "roles": ["viewer"]});
    let (status, _) = session.ask(Method::PUT, "/api/v1/auth/account/", Some(&ada)).await?;
    story.expect("the account is created", status == 200);

    story.step("an intent is submitted over REST, and followed by server-sent events");
    let intent = json!({"user_label": "DeliverComputingWorkload", "observation_period": 2, "intent_expectations": [{
        "expectation_id": "run", "expectation_verb": "DELIVER",
        "expectation_object": {"object_type": "NEMO_WORKLOAD", "object_instance": "spinner@1.0.0"},
        "expectation_targets": [{"target_name": "cpuUsage", "target_condition": "IS_LESS_THAN", "target_value_range": "50"}],
    }]});
    let (status, made) = session.ask(Method::POST, "/api/v1/intent/", Some(&intent)).await?;
    story.detail(format!("201 Created: {} is {}", made["id"], made["not_fulfilled_state"]));
    story.expect("it is created and acknowledged", status == 201 && made["not_fulfilled_state"] == "ACKNOWLEDGED");
    let id = made["id"].as_str().context("it has an id")?.to_owned();
    let request = Request::get(format!("{gateway}/api/v1/intent/{id}/events/"))
        .header(header::AUTHORIZATION, format!("Bearer {}", session.token()))
        .body(Empty::<bytes::Bytes>::new())?;
    let mut events = Http::builder(TokioExecutor::new()).build_http().request(request).await?.into_body();
    let mut text = String::new();
    let mut shown = String::new();
    let followed = async {
        while let Some(Ok(frame)) = events.frame().await {
            text.push_str(&String::from_utf8_lossy(frame.data_ref().map(|d| &d[..]).unwrap_or_default()));
            while let Some((event, rest)) = text.split_once("\n\n") {
                let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or("{}");
                let seen: serde_json::Value = serde_json::from_str(data).unwrap_or_default();
                let state = format!("{} / {}", seen["fulfilment_status"], seen["not_fulfilled_state"]).replace('"', "");
                text = rest.to_owned();
                if state != shown && seen["id"].is_string() {
                    story.detail(format!("event: {state}"));
                    shown = state;
                }
                if seen["fulfilment_status"] == "FULFILLED" {
                    return true;
                }
            }
        }
        false
    };
    let fulfilled = tokio::time::timeout(Duration::from_secs(30), followed).await.unwrap_or(false);
    story.expect("its events end in FULFILLED", fulfilled);

    story.step("why it is in this state, over REST");
    let (status, steps) = session.ask(Method::GET, &format!("/api/v1/intent/{id}/why/"), None).await?;
    let steps = steps.as_array().cloned().unwrap_or_default();
    for step in steps.iter().rev().take(4).rev() {
        let text = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
        story.detail(format!("{}  {}: {}  (because of {})", text("address"), text("who"), text("says"), text("cause")));
    }
    let of = |stream: &str| steps.iter().any(|s| s["address"].as_str().is_some_and(|a| a.starts_with(stream)));
    story.expect(
        "the answer reaches from the command over the placement to the measurement",
        status == 200 && of("INTENT_ASK:") && of("PLACEMENT:") && of("OBSERVATION:"),
    );

    story.step("what its state or a role forbids is refused, with the reason");
    let update = json!({"target_id": "cpuUsage", "target_value_range": "60"});
    let (status, answer) = session.ask(Method::PUT, &format!("/api/v1/intent/{id}/target/"), Some(&update)).await?;
    story.detail(format!(
        "{status}: {}; {}",
        answer["detail"].as_str().unwrap_or_default(),
        answer["hint"].as_str().unwrap_or_default()
    ));
    story.expect("an update of a FULFILLED intent is refused", status == 409);
    let body = json!({"username": "ada", "password": "demo only!"}).to_string();
    let login_url = format!("{gateway}/api/v1/auth/login/");
    let (_, ada) = send(Method::POST, &login_url, None, "application/json", body).await?;
    let url = format!("{gateway}/api/v1/intent/");
    let token = ada["token"].as_str();
    let (status, answer) = send(Method::POST, &url, token, "application/json", intent.to_string()).await?;
    story.detail(format!("{status}: {}", answer["detail"].as_str().unwrap_or_default()));
    story.expect("a viewer may not submit", status == 403);
    let (status, _) = session.ask(Method::DELETE, &format!("/api/v1/intent/{id}/"), None).await?;
    story.expect("it is terminated over REST", status == 204);
    story.close(
        "an intent was submitted, followed, explained and terminated over HTTP; two requests were refused with a reason",
        "any client can drive the mesh without knowing its bus, and every refusal says what would be right.",
    );
    Ok(())
}
