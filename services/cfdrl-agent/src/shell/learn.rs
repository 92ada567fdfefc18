//! The task that learns: trains between rounds, shows its weights, hears the others', and adopts what is not worse.

#![expect(clippy::disallowed_methods, reason = "measures how long an update takes")]

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use mesh_bus::{About, SampleStream, Samples};
use mesh_core::Outgoing;
use mesh_kit::{Mesh, ReadableBy, View, write_atomic};
use mesh_proto::{
    AnyEvent, Timestamp, derived_id,
    learning::{MemberOutcome, ModelCard, PolicyAdopted, RoundClosed},
    sample_key,
};
use mesh_scenes::episode::Profile;

use crate::{
    config::Config,
    domain::{
        dqn::Trainer,
        evaluate::{Mean, VALIDATION_FIRST, difference, score_network},
        federation::{Federation, Round, sign},
        live::Advisor,
        network::Network,
        policy::{Current, Policy},
    },
};

/// Signal on which members publish their weights.
pub(crate) const UPDATES: &str = "learn";
/// Key of this site's own weights.
fn own_key(federation: &Federation) -> String {
    sample_key(&federation.own, &federation.own, UPDATES, &federation.own)
}

/// File of the policy in use, in the service's data folder.
const SNAPSHOT: &str = "policy.json";

/// A site's learner.
pub(crate) struct Learner {
    pub(crate) mesh: Mesh,
    pub(crate) config: Config,
    pub(crate) current: Current,
    pub(crate) view: View<Advisor>,
    pub(crate) together: Option<Together>,
}

/// What learning with others needs.
pub(crate) struct Together {
    pub(crate) federation: Federation,
    pub(crate) keys: nkeys::KeyPair,
    pub(crate) samples: Samples,
    pub(crate) updates: SampleStream,
}

/// Where a service keeps its policy.
pub(crate) fn snapshot(mesh: &Mesh) -> Option<PathBuf> {
    mesh.data_dir().map(|folder| folder.join(SNAPSHOT))
}

/// What one round made of the policy.
struct Judged {
    network: Network,
    before: f64,
    /// On as many validation episodes as `seeds` says; nothing is known about it when that is 0.
    after: Mean,
    seeds: u32,
    adopted: bool,
}

/// Is a network worth adopting? It is unless it does significantly worse (95 %, pairwise) on the validation episodes.
fn judge(old: &Network, new: Network, seeds: u32) -> Judged {
    if seeds == 0 {
        return Judged { network: new, before: 0.0, after: Mean::default(), seeds, adopted: true };
    }
    let score = |network: &Network| score_network("", VALIDATION_FIRST, seeds.into(), &Profile::default(), network);
    let (before, after) = (score(old), score(&new));
    let change = difference(&after, &before);
    Judged {
        network: new,
        before: before.points.mean,
        after: after.points,
        seeds,
        adopted: change.mean + change.half_width >= 0.0,
    }
}

/// Learns in rounds until the process stops. Rounds are counted from 1970, so that members need no other agreement than
/// their clocks.
pub(crate) async fn learn(mut learner: Learner) -> anyhow::Result<()> {
    let (mesh, length) = (learner.mesh.clone(), learner.config.round_ms.max(1));
    let stopping = mesh.stopping();
    let number_of = |at: Timestamp| u64::try_from(at.as_millis()).unwrap_or(0) / length;
    let policy = learner.current.get();
    let mut trainer = Trainer::from_network(learner.config.settings(), policy.network.clone(), learner.config.seed);
    let mut round = learner.together.as_ref().map(|t| Round::new(t.federation.clone(), number_of(mesh.now())));
    loop {
        let number = number_of(mesh.now());
        let begin = mesh.now();
        // Train on episodes of this site's own world.
        let profile = learner.view.read(Advisor::profile).unwrap_or_default();
        let episodes = learner.config.episodes;
        let trained = tokio::task::spawn_blocking(move || {
            for _ in 0..episodes {
                trainer.episode(&profile);
            }
            trainer
        });
        trainer = tokio::select! {
            trained = trained => trained.context("train")?,
            () = stopping.cancelled() => return Ok(()),
        };
        let own = trainer.network().clone();
        if let (Some(together), Some(round)) = (&learner.together, &mut round) {
            if round.number() < number {
                round.close(number);
            }
            let body = sign(&together.federation, &together.keys, number, own.weights(), episodes)
                .context("sign the update")?;
            let key = own_key(&together.federation);
            let about = About {
                id: derived_id(&["update", &together.federation.own, &number.to_string()]),
                message: "continuum.learning.v1.SignedUpdate".into(),
                source: mesh.name().to_owned(),
                time: mesh.now(),
                traceparent: None,
            };
            // Lost samples are expected: the others go on without.
            if let Err(error) = together.samples.publish(&key, body, &about).await {
                tracing::warn!(error = &error as &dyn std::error::Error, round = number, "could not show own weights");
            }
            round.own(own.weights().to_vec());
        }
        // Hear the others until the round is over.
        let left = length.saturating_sub(u64::try_from(mesh.now().as_millis()).unwrap_or(0) - number * length);
        let end = tokio::time::Instant::now() + Duration::from_millis(left);
        loop {
            let heard = async {
                match &mut learner.together {
                    Some(together) => together.updates.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(end) => break,
                sample = heard => {
                    let Some(sample) = sample else { anyhow::bail!("the session that brings the others' weights was closed") };
                    let own = learner.together.as_ref().map(|t| own_key(&t.federation));
                    if let Some(round) = round.as_mut().filter(|_| own.as_deref() != Some(sample.key.as_str()))
                        && let Err(refused) = round.offer(&sample.body)
                    {
                        tracing::warn!(key = sample.key, reason = %refused, "an update does not count");
                    }
                }
            }
        }
        // Join, judge, adopt.
        let closed = round.as_mut().map(|round| round.close(number + 1));
        let (joined, members, mut reason) = match &closed {
            None => (Some(own), vec![], String::new()),
            Some(closed) => match &closed.joined {
                Ok(joined) => {
                    (Network::of(own.widths(), joined.weights.clone()), closed.members.clone(), String::new())
                }
                Err(error) => (None, closed.members.clone(), error.to_string()),
            },
        };
        let (old, seeds) = (learner.current.get().network.clone(), learner.config.gate_seeds);
        let judged = match joined {
            Some(joined) => {
                Some(tokio::task::spawn_blocking(move || judge(&old, joined, seeds)).await.context("judge")?)
            }
            None => None,
        };
        if let Some(judged) = &judged {
            if judged.adopted {
                learner.adopt(judged, number, &trainer).await;
            } else {
                reason = format!(
                    "not adopted: {:.4} points on {seeds} validation episodes, and {:.4} before",
                    judged.after.mean, judged.before
                );
            }
            // The others' weights are kept in training only if they are good enough to be used.
            trainer.adopt(learner.current.get().network.weights());
        }
        learner.close_round(number, begin, members, judged.as_ref(), reason).await;
    }
}

impl Learner {
    /// Uses another network from now on, keeps it, and says so.
    async fn adopt(&self, judged: &Judged, round: u64, trainer: &Trainer) {
        let old = self.current.get();
        if old.network == judged.network {
            return;
        }
        let (episodes, steps) = (u64::from(self.config.episodes), trainer.steps());
        let card = ModelCard {
            parent_policy_id: old.card.policy_id.clone(),
            seed: self.config.seed,
            episodes: old.card.episodes + episodes,
            gradient_steps: old.card.gradient_steps.max(steps),
            learning_rate: self.config.settings().learning_rate.into(),
            trained_on: format!(
                "seeded episodes of the load model with the clusters and loads of site {}",
                self.config.site
            ),
            site: self.config.site.clone(),
            aggregation: self.together.as_ref().map(|_| self.config.rule.name().to_owned()).unwrap_or_default(),
            round,
            validation_return: judged.after.mean,
            validation_half_width: judged.after.half_width,
            validation_seeds: judged.seeds,
            ..old.card.clone()
        };
        let policy = Policy::new(judged.network.clone(), card);
        if let Some(path) = snapshot(&self.mesh) {
            keep(path, policy.to_file()).await;
        }
        let adopted = PolicyAdopted {
            site: self.config.site.clone(),
            card: Some(policy.card.clone()),
            reason: format!("round {round}"),
        };
        let id = derived_id(&["adopted", &self.config.site, &policy.card.policy_id, &round.to_string()]);
        self.current.set(policy);
        self.publish(&adopted, id).await;
    }

    async fn close_round(
        &self,
        round: u64,
        begin: Timestamp,
        members: Vec<MemberOutcome>,
        judged: Option<&Judged>,
        reason: String,
    ) {
        let adopted = judged.is_some_and(|j| j.adopted);
        let closed = RoundClosed {
            site: self.config.site.clone(),
            round,
            rule: self.together.as_ref().map(|_| self.config.rule.name().to_owned()).unwrap_or_default(),
            members,
            adopted,
            return_before: judged.map_or(0.0, |j| j.before),
            return_after: judged.map_or(0.0, |j| j.after.mean),
            policy_id: self.current.get().card.policy_id.clone(),
            reason,
            begin: Some(begin),
            end: Some(self.mesh.now()),
        };
        tracing::info!(round, adopted, reason = closed.reason, "a round of learning is over");
        self.publish(&closed, derived_id(&["round", &self.config.site, &round.to_string(), self.mesh.process()])).await;
    }

    async fn publish(&self, event: &dyn AnyEvent, id: String) {
        let published = match Outgoing::new(event, id, self.mesh.now()) {
            Ok(message) => self.mesh.bus().publish(&message).await.map(|_| ()).map_err(anyhow::Error::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = published {
            tracing::warn!(error = format!("{error:#}"), event = event.message(), "could not tell what was learned");
        }
    }
}

/// Writes the policy whole or not at all; without it the next start begins with the one before.
async fn keep(path: PathBuf, text: String) {
    let written = tokio::task::spawn_blocking(move || {
        let written = write_atomic(&path, text.as_bytes(), ReadableBy::Anyone);
        written.with_context(|| format!("write {}", path.display()))
    });
    if let Err(error) = written.await.map_err(anyhow::Error::from).flatten() {
        tracing::warn!(error = format!("{error:#}"), "could not keep the policy");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::features::FEATURES;
    use learning::BUILT_IN;

    #[test]
    fn a_worse_policy_is_not_adopted_and_the_same_is() {
        let good = Policy::from_file(BUILT_IN.as_bytes()).unwrap().network;
        let bad: Vec<f32> = good.weights().iter().map(|w| -w).collect();
        let bad = Network::of(good.widths(), bad).unwrap();
        assert_eq!(good.widths().first(), Some(&FEATURES));
        assert!(judge(&good, good.clone(), 8).adopted);
        let judged = judge(&good, bad.clone(), 8);
        assert!(!judged.adopted && judged.after.mean < judged.before);
        assert!(judge(&bad, good, 8).adopted);
    }
}
