//! Chapter: what would come of an intent, predicted before anything is done; and two intents that cannot both be met.

use std::time::Duration;

use anyhow::Context as _;
use mesh_client::{ANSWER_WAIT, Client, OWNER};
use mesh_proto::{
    intent::{Intent, IntentView, NotFulfilledState, SubmitIntent, TerminateIntent, UpdateIntent},
    query::GetRequest,
    validation::CheckRequest,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{STEP_LIMIT, repair::Repaired, story::Story};

/// Shows it, with an instance that an intent keeps below a share of its cluster's CPU.
pub(crate) async fn chapter(story: &mut Story, client: &Client, of: &Repaired) -> anyhow::Result<()> {
    let (holder, instance) = (of.intent_id.as_str(), of.instance.as_str());
    story.chapter("two intents that cannot both be met");
    story.step(
        "a second intent on the same instance wants more than 90 % of the CPU: asked first, and nothing is changed",
    );
    let rival = format!("{holder}-rival");
    let intent = contradiction(instance, 5)?;
    let request = CheckRequest { intent: Some(intent.clone()), owner: OWNER.into(), intent_id: rival.clone() };
    let check = client.validator().await?.check(request).await?.into_inner();
    story.expect("its content is acceptable", check.problems.is_empty());
    for one in &check.predictions {
        story.detail(format!(
            "predicted on {}: {:.1} W, {:.0} J and {:.1} credits a day",
            one.cluster_id, one.watts, one.joules_per_day, one.credits_per_day
        ));
    }
    let foreseen = check.conflicts.iter().find(|c| c.conflicting_intent == holder);
    story.detail(foreseen.map_or_else(|| "no conflict was foreseen".to_owned(), |c| format!("foreseen: {}", c.reason)));
    story.expect("the conflict is foreseen, and that it would win by its priority", foreseen.is_some_and(|c| !c.loses));

    story.step("submitted, it wins: the one with the lower priority is SUSPENDED, and its report names the winner");
    let submit = SubmitIntent { owner: OWNER.into(), intent_id: rival.clone(), intent: Some(intent) };
    client.ask(&submit, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    let lost = until(client, holder, |view| state(view) == Some(NotFulfilledState::Suspended)).await?;
    story.detail(lost.state.as_ref().map(|s| s.reason.clone()).unwrap_or_default());
    let reported = lost.report.map(|r| r.intent_conflict_reports).unwrap_or_default();
    story.expect(
        "its report names the winner and the losing target",
        reported.iter().any(|c| c.loses && c.conflicting_intent == rival && c.target_name == "cpuUsage"),
    );
    let update = UpdateIntent {
        owner: OWNER.into(),
        intent_id: holder.into(),
        intent: Some(contradiction(instance, 9)?),
        if_revision: 0,
    };
    let refused = match client.ask(&update, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await {
        Ok(_) => None,
        Err(error) => Some(error.into_refusal()?),
    };
    story.detail(refused.as_ref().map_or_else(|| "the update was accepted".to_owned(), ToString::to_string));
    story.expect("an update in this state is refused", refused.is_some());

    story.step("the winner is terminated, and the other is watched again without anybody's help");
    let terminate = TerminateIntent { owner: OWNER.into(), intent_id: rival, if_revision: 0 };
    client.ask(&terminate, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    let again = until(client, holder, |view| state(view) == Some(NotFulfilledState::Compliant)).await?;
    story.expect("it runs on, and is judged", again.state.is_some());
    story.close(
        "the conflict was predicted, then decided by priority; the loser was suspended, and resumed once the winner ended",
        "contradicting wishes do not fight each other on the clusters: one wins by a rule, and the report says which.",
    );
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
