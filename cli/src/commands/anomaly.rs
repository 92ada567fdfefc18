//! `anomaly`: list, get, watch, explain.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Subcommand;
use mesh_client::Client;
use mesh_proto::{
    anomaly::{AnomalyDetected, AnomalyListRequest, AnomalyView, Contribution, Direction, ExplainInstanceRequest},
    query::GetRequest,
};
use mesh_why::describe::short;

use crate::{
    context::{Context, Watch, answer, show, to_json},
    output::{self, Shown, clock, date, event, fields},
};

/// Subcommands of `anomaly`.
#[derive(Debug, Subcommand)]
pub enum AnomalyCommand {
    /// Episodes, newest change first.
    List {
        /// Only of this instance.
        #[arg(long)]
        instance: Option<String>,
        /// Only those that go on.
        #[arg(long)]
        open: bool,
        /// How many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// One episode, with every metric's part in it.
    Get {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// One line as each episode begins, and one as it ends.
    Watch {
        /// Only of this instance.
        #[arg(long)]
        instance: Option<String>,
    },
    /// How an instance stands now: its metrics beside what is usual for it.
    Explain {
        /// Instance id.
        instance: String,
    },
}

const VIEW: &str = "continuum.anomaly.v1.AnomalyView";

/// Runs a subcommand of `anomaly`.
pub async fn run(context: &Context<'_>, command: AnomalyCommand) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    match command {
        AnomalyCommand::List { instance, open, limit, watch } => {
            let request = AnomalyListRequest {
                owner: context.owner.clone(),
                instance_id: instance.unwrap_or_default(),
                open,
                limit,
            };
            show(context, watch.watch, async || list(&client, request.clone()).await).await
        }
        AnomalyCommand::Get { id } => {
            show(context, false, async || {
                let request = GetRequest { owner: context.owner.clone(), id: id.clone() };
                let view = answer("get the anomaly", client.anomalies().await?.get(request).await)?;
                Ok(one(&view))
            })
            .await
        }
        AnomalyCommand::Watch { instance } => {
            let request = AnomalyListRequest {
                owner: context.owner.clone(),
                instance_id: instance.unwrap_or_default(),
                ..AnomalyListRequest::default()
            };
            let mut views = answer("watch anomalies", client.anomalies().await?.watch(request).await)?;
            loop {
                let next = tokio::select! {
                    next = views.message() => next.map_err(|status| anyhow!("watch anomalies: {}", status.message()))?,
                    _ = tokio::signal::ctrl_c() => None,
                };
                let Some(view) = next else { return Ok(ExitCode::SUCCESS) };
                event(context.format, &to_json(VIEW, &view), || sentence(&view))?;
            }
        }
        AnomalyCommand::Explain { instance } => {
            show(context, false, async || {
                let request = ExplainInstanceRequest { instance_id: instance.clone() };
                let model = answer("explain the instance", client.anomalies().await?.explain(request).await)?;
                let value = to_json("continuum.anomaly.v1.ModelView", &model);
                let rows = model.metrics.iter().map(|m| {
                    let share = format!("{:.0} %", m.share * 100.0);
                    vec![
                        m.metric.clone(),
                        format!("{:.1}", m.value),
                        format!("{:.1}", m.usual),
                        format!("{:.1}", m.spread),
                        share,
                    ]
                });
                let table = output::table(&["metric", "value", "usual", "spread", "of the score"], rows.collect());
                let learned = match model.learned < model.warm {
                    true => format!("learning: {} of {} samples", model.learned, model.warm),
                    false => format!("score {:.2}, anomalous above {:.2}", model.score, model.threshold),
                };
                Ok(Shown { value, text: format!("{learned}\n{table}") })
            })
            .await
        }
    }
}

/// Episodes, newest change first.
async fn list(client: &Client, request: AnomalyListRequest) -> anyhow::Result<Shown> {
    let anomalies = answer("list anomalies", client.anomalies().await?.list(request).await)?.anomalies;
    let value = anomalies.iter().map(|view| to_json(VIEW, view)).collect();
    let rows = anomalies.iter().map(|view| {
        let detected = view.detected.clone().unwrap_or_default();
        let cause = detected.contributions.first().map(cause).unwrap_or_default();
        vec![
            short(&detected.episode_id).to_owned(),
            date(detected.since.unwrap_or_default()),
            short(&detected.instance_id).to_owned(),
            detected.cluster_id.clone(),
            detected.detector.clone(),
            cause,
            ended(view),
        ]
    });
    let header = ["anomaly", "since", "instance", "cluster", "detector", "cause", "state"];
    Ok(Shown::table(value, &header, rows.collect()))
}

fn ended(view: &AnomalyView) -> String {
    match &view.cleared {
        None => "goes on".into(),
        Some(cleared) => {
            format!("{} {}", cleared.ending().as_str_name().to_lowercase(), clock(cleared.at.unwrap_or_default()))
        }
    }
}

/// A metric with its share: `cpu_milli above (93 %)`.
pub fn cause(contribution: &Contribution) -> String {
    let way = match contribution.direction() {
        Direction::Above => " above",
        Direction::Below => " below",
        Direction::Unspecified => "",
    };
    format!("{}{way} ({:.0} %)", contribution.metric, contribution.share * 100.0)
}

fn one(view: &AnomalyView) -> Shown {
    let value = to_json(VIEW, view);
    let AnomalyDetected { contributions, sentence, .. } = view.detected.clone().unwrap_or_default();
    let rows = contributions.iter().map(|c| vec![cause(c), format!("{:.1}", c.value), format!("{:.1}", c.usual)]);
    let table = output::table(&["metric", "value", "usual"], rows.collect());
    let rest = output::table(
        &["field", "value"],
        fields(&value).into_iter().filter(|r| !r[0].contains("contributions")).collect(),
    );
    Shown { text: format!("{sentence}\n{table}\n{rest}"), value }
}

fn sentence(view: &AnomalyView) -> String {
    let detected = view.detected.clone().unwrap_or_default();
    let id = short(&detected.episode_id).to_owned();
    match &view.cleared {
        None => format!("{} {id} detected: {}", clock(detected.at.unwrap_or_default()), detected.sentence),
        Some(cleared) => format!("{} {id} cleared: {}", clock(cleared.at.unwrap_or_default()), cleared.reason),
    }
}
