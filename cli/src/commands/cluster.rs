//! `cluster`: list, get.

use std::process::ExitCode;

use clap::Subcommand;
use mesh_client::Client;
use mesh_proto::{
    instance::{AgentState, AgentStateRequest},
    placement::ClusterView,
    query::{GetRequest, ListRequest},
};
use serde_json::json;

use crate::{
    context::{Context, Watch, answer, show, to_json},
    output::{Shown, fields, megabytes, table},
};

/// Subcommands of `cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// All clusters that have registered.
    List(Watch),
    /// One cluster, with what runs on it.
    Get {
        /// Its id.
        id: String,
    },
}

const VIEW: &str = "continuum.placement.v1.ClusterView";

/// Runs a subcommand of `cluster`.
pub async fn run(context: &Context<'_>, command: ClusterCommand) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    match command {
        ClusterCommand::List(watch) => show(context, watch.watch, async || Ok(shown(&all(&client).await?))).await,
        ClusterCommand::Get { id } => show(context, false, async || get(&client, &id).await).await,
    }
}

/// Every cluster.
pub async fn all(client: &Client) -> anyhow::Result<Vec<ClusterView>> {
    let (mut clusters, mut page_token) = (vec![], String::new());
    let mut queries = client.orchestrator().await?;
    loop {
        let request = ListRequest { page_size: 1_000, page_token, ..ListRequest::default() };
        let page = answer("list clusters", queries.list_clusters(request).await)?;
        clusters.extend(page.clusters);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(clusters);
        }
    }
}

fn shown(clusters: &[ClusterView]) -> Shown {
    let rows = clusters.iter().filter_map(|c| c.registered.as_ref().map(|r| (c, r))).map(|(c, r)| {
        let labels: Vec<String> = r.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        vec![
            r.cluster_id.clone(),
            if c.available { "available" } else { "lost" }.to_owned(),
            format!("{} of {} mCPU", c.cpu_milli_reserved, r.cpu_milli),
            format!("{} of {}", megabytes(c.memory_bytes_reserved), megabytes(r.memory_bytes)),
            c.instances.len().to_string(),
            r.driver.clone(),
            r.enforcement.clone(),
            labels.join(", "),
        ]
    });
    let rows = rows.collect();
    let value = clusters.iter().map(|c| to_json(VIEW, c)).collect();
    let header = ["cluster", "state", "cpu reserved", "memory reserved", "instances", "driver", "limits by", "labels"];
    Shown::table(value, &header, rows)
}

async fn get(client: &Client, id: &str) -> anyhow::Result<Shown> {
    let request = GetRequest { id: id.to_owned(), ..GetRequest::default() };
    let view = answer("get the cluster", client.orchestrator().await?.get_cluster(request).await)?;
    let mut value = to_json(VIEW, &view);
    let mut text = table(&["field", "value"], fields(&value));
    // What its agent reports is extra: a lost cluster is shown without it.
    match processes(client, &view).await {
        Ok(state) => {
            let rows = state.processes.iter().map(|p| {
                let numbers =
                    [p.replica.to_string(), p.generation.to_string(), p.pid.to_string(), p.restarts.to_string()];
                [vec![p.instance_id.clone()], numbers.to_vec(), vec![p.enforcement.clone()]].concat()
            });
            let header = ["instance", "replica", "generation", "pid", "restarts", "limits by"];
            text.push_str(&format!("\n\n{}", table(&header, rows.collect())));
            value["processes"] = to_json("continuum.instance.v1.AgentState", &state)["processes"].take();
        }
        Err(error) => {
            text.push_str(&format!("\n\nits agent cannot be asked what runs: {error:#}"));
            value["agentError"] = json!(format!("{error:#}"));
        }
    }
    Ok(Shown { value, text })
}

async fn processes(client: &Client, view: &ClusterView) -> anyhow::Result<AgentState> {
    let endpoint = view.registered.as_ref().map(|r| r.endpoint.clone()).unwrap_or_default();
    answer("ask the agent", client.agent(&endpoint).await?.state(AgentStateRequest {}).await)
}

#[cfg(test)]
mod tests {
    use mesh_proto::cluster::ClusterRegistered;

    use super::*;

    #[test]
    fn a_lost_cluster_is_listed_as_lost_with_its_capacity() {
        let registered = ClusterRegistered {
            cluster_id: "edge".into(),
            cpu_milli: 500,
            memory_bytes: 512_000_000,
            ..Default::default()
        };
        let shown =
            shown(&[ClusterView { registered: Some(registered), cpu_milli_reserved: 40, ..Default::default() }]);
        let row = shown.text.lines().nth(1).unwrap_or_default();
        for part in ["edge", "lost", "40 of 500 mCPU", "512.0 MB"] {
            assert!(row.contains(part), "{row}");
        }
        assert_eq!(shown.value[0]["registered"]["cpuMilli"], 500);
    }
}
