//! Chapter: the learner's advice beside the planner's choice.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use continuum::{commands::learn::options, output::line};
use mesh_client::{Client, OWNER};
use mesh_proto::{
    learning::{AdviceRequest, PolicyRequest},
    query::GetRequest,
};

use crate::{STEP_LIMIT, repair::Repaired, story::Story};

/// Shows what a learned policy would have done where the planner decided about an instance, while its advice lasts.
pub(crate) async fn chapter(story: &mut Story, client: &Client, of: &Repaired) -> anyhow::Result<()> {
    story.chapter("what would a learned policy have done?");
    story.step("advice in shadow mode, beside the planner's choice");
    let mut learner = client.learner().await?;
    let card = learner.policy(PolicyRequest {}).await?.into_inner().card.context("read the model card")?;
    story.detail(format!(
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
        let request = GetRequest { owner: OWNER.into(), id: of.instance.clone() };
        let explained = client.orchestrator().await?.explain(request).await?.into_inner();
        if explained.advice.len() >= 2 || Instant::now() > deadline {
            break explained;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let advice = &explained.advice;
    for advised in advice.iter().rev() {
        story.detail(format!("generation {}: {}", advised.generation, advised.reason));
    }
    if let Some(newest) = advice.first() {
        line(options(newest));
    }
    story.expect("the planner shows advice beside each of its decisions", advice.len() >= 2);
    story.expect(
        "regret is shown, and is 0 where both agree",
        advice.iter().all(|a| {
            let agree = (&a.cluster_id, a.replicas) == (&a.planned_cluster_id, a.planned_replicas);
            a.regret >= 0.0 && (!agree || a.regret == 0.0)
        }),
    );
    let list = learner.advice(AdviceRequest { owner: OWNER.into(), ..AdviceRequest::default() }).await?.into_inner();
    story.detail(format!(
        "{} decisions so far, agreed on {}, regret {:.2} points",
        list.advised_total, list.agreed_total, list.regret_total
    ));
    story.expect(
        "shadow mode moved nothing: the planner's two decisions are the only ones",
        explained.decisions.iter().all(|d| of.generations.contains(&d.generation)),
    );
    story.close(
        "a policy trained in a load model published what it would have decided, and how much better or worse that is",
        "you can watch what a learner would do, on your own mesh, before you let it act.",
    );
    Ok(())
}
