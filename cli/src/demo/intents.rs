//! A chapter: what would come of an intent, told before anything is done; and two intents that cannot both be met.

use std::time::Duration;

use anyhow::Context as _;
use mesh_proto::{
    intent::{Intent, NotFulfilledState, SubmitIntent, TerminateIntent, UpdateIntent},
    query::{CheckRequest, GetRequest, IntentView},
};
use serde_json::json;
use tokio::time::Instant;

use super::{ANSWER_WAIT, STEP_LIMIT, Story};
use crate::client::{Client, OWNER};

/// Tells the chapter about an instance that an intent keeps below a share of its cluster's CPU.
pub(crate) async fn chapter(story: &mut Story, client: &Client, owner: &str, instance: &str) -> anyhow::Result<()> {
    story.step(
        "a second intent on the same instance wants more than 90 % of the CPU: asked first, and nothing is changed",
    );
    let rival = format!("{owner}-rival");
    let intent = contradiction(instance, 5)?;
    let request = CheckRequest { intent: Some(intent.clone()), owner: OWNER.into(), intent_id: rival.clone() };
    let check = client.validator().await?.check(request).await?.into_inner();
    story.expect("its content is acceptable", check.problems.is_empty());
    for one in &check.predictions {
        story.say(format!(
            "predicted on {}: {:.1} W, {:.0} J and {:.1} credits a day",
            one.cluster_id, one.watts, one.joules_per_day, one.credits_per_day
        ));
    }
    let told = check.conflicts.iter().find(|c| c.conflicting_intent == owner);
    story.say(told.map_or_else(|| "no conflict was foreseen".to_owned(), |c| format!("foreseen: {}", c.reason)));
    story.expect("the conflict is foreseen, and that it would win by its priority", told.is_some_and(|c| !c.loses));

    story.step("submitted, it wins: the lower priority is SUSPENDED, and told against whom");
    let submit = SubmitIntent { owner: OWNER.into(), intent_id: rival.clone(), intent: Some(intent) };
    client.ask(&submit, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    let lost = until(client, owner, |view| state(view) == Some(NotFulfilledState::Suspended)).await?;
    story.say(lost.state.as_ref().map(|s| s.reason.clone()).unwrap_or_default());
    let reported = lost.report.map(|r| r.intent_conflict_reports).unwrap_or_default();
    story.expect(
        "its report names the winner and the losing target",
        reported.iter().any(|c| c.loses && c.conflicting_intent == rival && c.target_name == "cpuUsage"),
    );
    let update = UpdateIntent {
        owner: OWNER.into(),
        intent_id: owner.into(),
        intent: Some(contradiction(instance, 9)?),
        if_revision: 0,
    };
    let answer = client.ask(&update, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    story.say(crate::describe::describe(&answer));
    story.expect("an update in this state is refused", answer.subject.starts_with("intent.refused."));

    story.step("the winner ends: the other is watched again, by itself");
    let terminate = TerminateIntent { owner: OWNER.into(), intent_id: rival, if_revision: 0 };
    client.ask(&terminate, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    let again = until(client, owner, |view| state(view) == Some(NotFulfilledState::Compliant)).await?;
    story.expect("it runs on, and is judged", again.state.is_some());
    Ok(())
}

fn contradiction(instance: &str, priority: u32) -> anyhow::Result<Intent> {
    let value = json!({
        "userLabel": "DeliverComputingWorkload",
        "intentExpectations": [{
            "expectationId": "more", "expectationVerb": "ENSURE",
            "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": instance},
            "expectationTargets": [
                {"targetName": "cpuUsage", "targetCondition": "IS_GREATER_THAN", "targetValueRange": "90"},
            ],
        }],
        "intentPriority": priority,
        "observationPeriod": 2,
    });
    mesh_proto::json::from_value("continuum.intent.v1.Intent", value).context("write the intent")
}

fn state(view: &IntentView) -> Option<NotFulfilledState> {
    view.state.as_ref().map(mesh_proto::intent::State::not_fulfilled_state)
}

/// The intent once it is so, or as it is when the step's time is over.
async fn until(client: &Client, id: &str, is: impl Fn(&IntentView) -> bool) -> anyhow::Result<IntentView> {
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        let request = GetRequest { owner: OWNER.into(), id: id.to_owned() };
        let view = client.intents().await?.get(request).await?.into_inner();
        if is(&view) || Instant::now() > deadline {
            return Ok(view);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
