//! `learn`: policy, advice, rounds of the running learner; train, evaluate, key without a mesh.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Subcommand;
use learning::{
    dqn::Settings,
    evaluate::{HELD_OUT_FIRST, Score, difference, score_network, score_rules},
    policy::{FILE_BYTES_MAX, Policy},
};
use mesh_client::Client;
use mesh_proto::{
    learning::{AdviceRequest, LearningAdvised, ModelCard, PolicyRequest, RoundClosed, RoundsRequest},
    query::GetRequest,
};
use mesh_scenes::episode::Profile;
use serde_json::{Value as Json, json};

use crate::{
    context::{Context, Watch, answer, show, to_json},
    output::{self, Shown, clock, fields, line, note},
};

const ADVISED: &str = "continuum.learning.v1.LearningAdvised";
const CARD: &str = "continuum.learning.v1.ModelCard";
const ROUND: &str = "continuum.learning.v1.RoundClosed";

/// Subcommands of `learn`.
#[derive(Debug, Subcommand)]
pub enum LearnCommand {
    /// The model card of the policy in use, or of a file.
    Policy {
        /// A policy file instead of the running learner's.
        #[arg(long)]
        file: Option<PathBuf>,
        /// Write the policy in use to this file.
        #[arg(long, conflicts_with = "file")]
        save: Option<PathBuf>,
    },
    /// What the policy would have done, beside what the planner did; of one instance with every option.
    Advice {
        /// Instance id; all when absent.
        instance: Option<String>,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// Rounds of learning, newest first, with what became of each member.
    Rounds {
        /// Newest rounds shown.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// Trains a policy in the load model: the same seed and episodes give the same file.
    Train {
        /// Seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Episodes, 1 to 100,000.
        #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(1..=100_000))]
        episodes: u64,
        /// File to write.
        #[arg(long)]
        out: PathBuf,
    },
    /// Compares a policy with schedulers by rule on held-out seeds.
    Evaluate {
        /// Policy file; the one built in when absent.
        #[arg(long)]
        file: Option<PathBuf>,
        /// Held-out seeds, 2 to 10,000.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(2..=10_000))]
        seeds: u64,
    },
    /// Makes a signing key for a member of a federation: the seed goes to a file, the public key is shown.
    Key {
        /// File for the seed; never overwritten.
        #[arg(long)]
        out: PathBuf,
    },
}

/// Runs a subcommand of `learn`.
pub async fn run(context: &Context<'_>, command: LearnCommand) -> anyhow::Result<ExitCode> {
    match command {
        LearnCommand::Policy { file: Some(file), .. } => show(context, false, async || card(&read(&file)?.card)).await,
        LearnCommand::Policy { file: None, save } => {
            let client = context.client().await?;
            let reply = client.learner().await?.policy(PolicyRequest {}).await;
            let reply = answer("get the policy", reply)?;
            if let Some(path) = save {
                std::fs::write(&path, &reply.file).with_context(|| format!("write {}", path.display()))?;
                note(format!("the policy is in {}", path.display()));
            }
            show(context, false, async || card(reply.card.as_ref().unwrap_or(&ModelCard::default()))).await
        }
        LearnCommand::Advice { instance, watch } => {
            let client = context.client().await?;
            show(context, watch.watch, async || match &instance {
                Some(instance) => one(&client, &context.owner, instance).await,
                None => all(&client, &context.owner).await,
            })
            .await
        }
        LearnCommand::Rounds { limit, watch } => {
            let client = context.client().await?;
            show(context, watch.watch, async || {
                let reply = client.learner().await?.rounds(RoundsRequest { limit }).await;
                let rounds = answer("list rounds", reply)?.rounds;
                let value = rounds.iter().map(|r| to_json(ROUND, r)).collect();
                let header = ["round", "site", "at", "rule", "members", "before", "after", "adopted", "reason"];
                Ok(Shown::table(value, &header, rounds.iter().map(round).collect()))
            })
            .await
        }
        LearnCommand::Train { seed, episodes, out } => {
            let step = (episodes / 10).max(1);
            let trained = tokio::task::spawn_blocking(move || {
                Policy::train(Settings::default(), seed, episodes, &Profile::default(), |done| {
                    if done.is_multiple_of(step) {
                        note(format!("{done} of {episodes} episodes"));
                    }
                })
            });
            let policy = trained.await.context("train")?;
            std::fs::write(&out, policy.to_file()).with_context(|| format!("write {}", out.display()))?;
            note(format!("the policy is in {}", out.display()));
            show(context, false, async || card(&policy.card)).await
        }
        LearnCommand::Evaluate { file, seeds } => {
            let policy = match file {
                Some(file) => read(&file)?,
                None => Policy::from_file(learning::BUILT_IN.as_bytes())?,
            };
            let scores = tokio::task::spawn_blocking(move || {
                let profile = Profile::default();
                let mut scores = vec![score_network("learned", HELD_OUT_FIRST, seeds, &profile, &policy.network)];
                scores.extend(score_rules(HELD_OUT_FIRST, seeds, &profile));
                scores
            });
            let scores = scores.await.context("evaluate")?;
            show(context, false, async || Ok(comparison(&scores))).await
        }
        LearnCommand::Key { out } => {
            let keys = nkeys::KeyPair::new_user();
            let seed = keys.seed().context("make a key")?;
            write_secret(&out, &seed).with_context(|| format!("write {} (it must not exist yet)", out.display()))?;
            line(keys.public_key());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn write_secret(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")
}

fn read(path: &std::path::Path) -> anyhow::Result<Policy> {
    let long = std::fs::metadata(path).with_context(|| format!("read {}", path.display()))?.len();
    anyhow::ensure!(long <= FILE_BYTES_MAX as u64, "{} has {long} bytes; a policy file has fewer", path.display());
    let file = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Policy::from_file(&file).with_context(|| path.display().to_string())
}

fn card(card: &ModelCard) -> anyhow::Result<Shown> {
    let value = to_json(CARD, card);
    let rows = fields(&value);
    Ok(Shown::table(value, &["field", "value"], rows))
}

async fn all(client: &Client, owner: &str) -> anyhow::Result<Shown> {
    let request = AdviceRequest { owner: owner.to_owned(), page_size: 1_000, ..AdviceRequest::default() };
    let mut queries = client.learner().await?;
    let list = answer("list advice", queries.advice(request).await)?;
    let value = json!({
        "advice": list.advice.iter().map(|a| to_json(ADVISED, a)).collect::<Vec<Json>>(),
        "advisedTotal": list.advised_total, "agreedTotal": list.agreed_total, "regretTotal": list.regret_total,
    });
    let rows = list.advice.iter().map(|a| {
        vec![
            a.instance_id.clone(),
            a.generation.to_string(),
            format!("{} × {}", a.planned_replicas, a.planned_cluster_id),
            format!("{} × {}", a.replicas, a.cluster_id),
            format!("{:.2}", a.regret),
            format!("{:+.2}", a.modelled_gain),
        ]
    });
    let mut shown =
        Shown::table(value, &["instance", "gen", "planner", "learner", "regret", "modelled"], rows.collect());
    shown.text.push_str(&format!(
        "\n{} decisions, agreed on {}, regret {:.2} points",
        list.advised_total, list.agreed_total, list.regret_total
    ));
    Ok(shown)
}

/// Newest advice about an instance with all options, and what the planner shows of it.
async fn one(client: &Client, owner: &str, instance: &str) -> anyhow::Result<Shown> {
    let request = GetRequest { owner: owner.to_owned(), id: instance.to_owned() };
    let explained = client.orchestrator().await?.explain(request).await;
    let explained = answer("ask the planner", explained)?;
    let value = json!(explained.advice.iter().map(|a| to_json(ADVISED, a)).collect::<Vec<Json>>());
    let Some(newest) = explained.advice.first() else {
        return Ok(Shown { value, text: format!("no advice about {instance} yet") });
    };
    Ok(Shown { value, text: format!("{}\n{}", newest.reason, options(newest)) })
}

/// The options of an advice, for a person.
pub fn options(advised: &LearningAdvised) -> String {
    let rows = advised.options.iter().map(|o| {
        let learned = o.cluster_id == advised.cluster_id && o.replicas == advised.replicas;
        let who = match (learned, o.planned) {
            (true, true) => "both",
            (true, false) => "learner",
            (false, true) => "planner",
            (false, false) => "",
        };
        vec![
            o.cluster_id.clone(),
            o.replicas.to_string(),
            format!("{:.2}", o.value),
            format!("{:+.2}", o.modelled),
            who.into(),
        ]
    });
    output::table(&["cluster", "replicas", "value", "next period", "choice of"], rows.collect())
}

fn round(round: &RoundClosed) -> Vec<String> {
    let members = round.members.iter().map(|m| {
        let name = if m.member.is_empty() { "strangers" } else { &m.member };
        format!("{name} {}", m.outcome)
    });
    vec![
        round.round.to_string(),
        round.site.clone(),
        clock(round.end.unwrap_or_default()),
        round.rule.clone(),
        members.collect::<Vec<_>>().join(", "),
        format!("{:.3}", round.return_before),
        format!("{:.3}", round.return_after),
        if round.adopted { "yes" } else { "no" }.to_owned(),
        round.reason.clone(),
    ]
}

/// Scores beside the first of them.
pub fn comparison(scores: &[Score]) -> Shown {
    let value = scores.iter().map(|s| to_value(s, scores.first())).collect::<Json>();
    let cell = |m: learning::evaluate::Mean, digits: usize| format!("{:.digits$} ± {:.digits$}", m.mean, m.half_width);
    let rows = scores.iter().enumerate().map(|(index, s)| {
        let ahead =
            scores.first().filter(|_| index > 0).map_or_else(String::new, |first| cell(difference(first, s), 3));
        vec![s.name.clone(), cell(s.points, 3), ahead, cell(s.kept, 3), cell(s.watts, 1), cell(s.moves, 1)]
    });
    let header = ["scheduler", "return (95 %)", "learned is ahead by", "intents kept", "watts", "moves"];
    Shown::table(value, &header, rows.collect())
}

fn to_value(score: &Score, first: Option<&Score>) -> Json {
    let mean = |m: learning::evaluate::Mean| json!({"mean": m.mean, "halfWidth": m.half_width});
    json!({
        "scheduler": score.name, "return": mean(score.points), "kept": mean(score.kept), "watts": mean(score.watts),
        "moves": mean(score.moves), "ahead": first.map(|first| mean(difference(first, score))), "seeds": score.returns.len(),
    })
}
