//! `remedy`: list, policy.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Subcommand;
use mesh_client::{ANSWER_WAIT, Client};
use mesh_proto::{
    anomaly::AnomalyListRequest,
    query::GetRequest,
    remedy::{Action, RemedyPolicy, RemedyView, SetRemedyPolicy},
};
use mesh_why::describe::short;
use prost::Message as _;

use crate::{
    context::{Context, Watch, answer, show, to_json},
    document,
    outcome::{Outcome, conclude},
    output::{Shown, clock, fields},
};

/// Subcommands of `remedy`.
#[derive(Debug, Subcommand)]
pub enum RemedyCommand {
    /// Remedies, requested or withheld, newest first, and what came of them.
    List {
        /// Only of this instance.
        #[arg(long)]
        instance: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// Shows your policy, or sets it.
    Policy {
        /// YAML or JSON with the policy to set; `-` is standard input.
        file: Option<PathBuf>,
        /// Sets whether it only reports what it would do.
        #[arg(long, value_name = "BOOL")]
        dry_run: Option<bool>,
    },
}

/// Runs a subcommand of `remedy`.
pub async fn run(context: &Context<'_>, command: RemedyCommand) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    match command {
        RemedyCommand::List { instance, limit, watch } => {
            let instance_id = instance.unwrap_or_default();
            let request = AnomalyListRequest { owner: context.owner.clone(), instance_id, limit, open: false };
            show(context, watch.watch, async || {
                let remedies = answer("list remedies", client.remedies().await?.list(request.clone()).await)?.remedies;
                let value = remedies.iter().map(|r| to_json("continuum.remedy.v1.RemedyView", r)).collect();
                let header = ["time", "instance", "action", "outcome", "why"];
                Ok(Shown::table(value, &header, remedies.iter().map(row).collect()))
            })
            .await
        }
        RemedyCommand::Policy { file: None, dry_run: None } => {
            show(context, false, async || {
                let request = GetRequest { owner: context.owner.clone(), ..GetRequest::default() };
                let view = answer("get the policy", client.remedies().await?.policy(request).await)?;
                let value = to_json("continuum.remedy.v1.RemedyPolicyView", &view);
                let rows = fields(&value);
                Ok(Shown::table(value, &["field", "value"], rows))
            })
            .await
        }
        RemedyCommand::Policy { file, dry_run } => {
            let mut policy = match &file {
                Some(file) => read(file)?,
                None => {
                    let request = GetRequest { owner: context.owner.clone(), ..GetRequest::default() };
                    let view = answer("get the policy", client.remedies().await?.policy(request).await)?;
                    view.policy.unwrap_or_default()
                }
            };
            policy.dry_run = dry_run.unwrap_or(policy.dry_run);
            let outcome =
                set(&client, &context.owner, policy).await.unwrap_or_else(|e| Outcome::failed(&context.owner, &e));
            Ok(conclude(context.format, "policy of", &[outcome]))
        }
    }
}

/// Sets a policy, and waits for the answer.
pub async fn set(client: &Client, owner: &str, policy: RemedyPolicy) -> anyhow::Result<Outcome> {
    let command = SetRemedyPolicy { owner: owner.to_owned(), policy: Some(policy) };
    match client.ask(&command, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await {
        Ok(_) => Ok(Outcome { ok: true, result: "set".into(), ..Outcome::of(owner) }),
        Err(error) => Ok(Outcome::of(owner).refused(error.into_refusal()?)),
    }
}

fn read(file: &Path) -> anyhow::Result<RemedyPolicy> {
    let mut values = document::read(file)?.into_iter();
    let value = values.next().with_context(|| format!("{} holds no policy", file.display()))?;
    if values.next().is_some() {
        bail!("{} holds more than one policy; an owner has one", file.display());
    }
    let body = mesh_proto::json::written_to_protobuf("continuum.remedy.v1.RemedyPolicy", &value)
        .map_err(|error| anyhow!("{}: {error}", file.display()))?;
    Ok(RemedyPolicy::decode(body.as_slice())?)
}

fn row(view: &RemedyView) -> Vec<String> {
    let action = |action: Action| match action {
        Action::Unspecified => "-".to_owned(),
        action => action.as_str_name().to_lowercase(),
    };
    let (instance, action, outcome, why) = match (&view.requested, &view.withheld, &view.settled) {
        (Some(requested), _, settled) => {
            let outcome = match settled {
                None => "under way".to_owned(),
                Some(s) if s.effective => format!("effective after {:.1} s", s.seconds),
                Some(s) => format!("not effective: {}", s.reason),
            };
            (requested.instance_id.clone(), action(requested.action()), outcome, requested.reason.clone())
        }
        (None, Some(withheld), _) => {
            let outcome = format!("withheld: {}", withheld.withheld().as_str_name().to_lowercase());
            (withheld.instance_id.clone(), action(withheld.action()), outcome, withheld.reason.clone())
        }
        (None, None, _) => Default::default(),
    };
    vec![clock(view.at.unwrap_or_default()), short(&instance).to_owned(), action, outcome, why]
}
