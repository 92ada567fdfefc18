//! A chapter: the learner's advice beside the planner's choice.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use mesh_proto::query::{AdviceRequest, GetRequest, PolicyRequest};

use super::{STEP_LIMIT, Story};
use crate::{
    client::{Client, OWNER},
    commands::learn::options,
    output::line,
};

/// Shows what a learned policy would have done where the planner decided about an instance, while its advice lasts.
pub(crate) async fn chapter(story: &mut Story, client: &Client, instance: &str) -> anyhow::Result<()> {
    story.step("what would a learned policy have done? advice in shadow mode, beside the planner's choice");
    let mut learner = client.learner().await?;
    let card = learner.policy(PolicyRequest {}).await?.into_inner().card.context("read the model card")?;
    story.say(format!(
        "policy {}: {}, {} weights, {} episodes, return {:.3} ± {:.3} on {} validation seeds",
        card.policy_id.chars().take(8).collect::<String>(),
        card.algorithm,
        card.parameters,
        card.episodes,
        card.validation_return,
        card.validation_half_width,
        card.validation_seeds
    ));
    let deadline = Instant::now() + STEP_LIMIT;
    let explained = loop {
        let request = GetRequest { owner: OWNER.into(), id: instance.to_owned() };
        let explained = client.orchestrator().await?.explain(request).await?.into_inner();
        if explained.advice.len() >= 2 || Instant::now() > deadline {
            break explained;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let advice = &explained.advice;
    for advised in advice.iter().rev() {
        story.say(format!("generation {}: {}", advised.generation, advised.reason));
    }
    if let Some(newest) = advice.first() {
        line(options(newest));
    }
    story.expect("the planner shows advice beside each of its decisions", advice.len() >= 2);
    story.expect(
        "regret is told, and is 0 where both agree",
        advice.iter().all(|a| {
            let agree = (&a.cluster_id, a.replicas) == (&a.planned_cluster_id, a.planned_replicas);
            a.regret >= 0.0 && (!agree || a.regret == 0.0)
        }),
    );
    let list = learner.advice(AdviceRequest { owner: OWNER.into(), ..AdviceRequest::default() }).await?.into_inner();
    story.say(format!(
        "{} decisions so far, agreed on {}, regret {:.2} points",
        list.advised_total, list.agreed_total, list.regret_total
    ));
    story.expect(
        "shadow mode moved nothing: no decision came of advice",
        explained.decisions.iter().all(|d| !d.reason.starts_with("learned advice")),
    );
    Ok(())
}
