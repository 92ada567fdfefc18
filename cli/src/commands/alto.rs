//! `alto`: asks the mesh's ALTO server as any client would, over HTTP.

use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use http::Method;
use mesh_client::Client;
use serde_json::{Value as Json, json};

use super::network;
use crate::{
    context::{Context, show},
    http::request,
    output::Shown,
};

/// Subcommands of `alto`.
#[derive(Debug, Subcommand)]
pub enum AltoCommand {
    /// What the server offers, and where.
    Directory,
    /// PIDs and the addresses in them.
    Map,
    /// Costs between PIDs.
    Cost {
        /// For example `routingcost`, `delay-ow`, `lossrate`, `tput`.
        #[arg(default_value = "routingcost")]
        metric: String,
        /// `numerical` or `ordinal`.
        #[arg(long, default_value = "numerical", value_parser = ["numerical", "ordinal"])]
        mode: String,
    },
    /// Costs between addresses; your own where a list is empty.
    Endpoint {
        /// Metric, as for `cost`.
        #[arg(long, default_value = "routingcost")]
        metric: String,
        /// `numerical` or `ordinal`.
        #[arg(long, default_value = "numerical", value_parser = ["numerical", "ordinal"])]
        mode: String,
        /// From these addresses.
        #[arg(long, value_delimiter = ',')]
        from: Vec<std::net::IpAddr>,
        /// To these addresses.
        #[arg(long, value_delimiter = ',')]
        to: Vec<std::net::IpAddr>,
    },
}

/// Runs a subcommand of `alto`.
pub async fn run(context: &Context<'_>, command: AltoCommand) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let root = root(&client).await?;
    show(context, false, async || match &command {
        AltoCommand::Directory => {
            let directory = get(&root, "directory").await?;
            let entries = directory["resources"].as_object().cloned().unwrap_or_default();
            let text = |entry: &Json, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let row = |(id, entry): (&String, &Json)| {
                let method = if entry.get("accepts").is_some() { "POST" } else { "GET" };
                vec![id.clone(), method.into(), format!("{root}/{}", text(entry, "uri")), text(entry, "media-type")]
            };
            let rows = entries.iter().map(row).collect();
            Ok(Shown::table(directory, &["resource", "method", "uri", "media type"], rows))
        }
        AltoCommand::Map => {
            let map = get(&root, "networkmap").await?;
            let pids = map["network-map"].as_object().cloned().unwrap_or_default();
            let row = |(pid, groups): (&String, &Json)| {
                let groups = groups.as_object().cloned().unwrap_or_default();
                let prefixes: Vec<String> =
                    groups.values().flat_map(|list| list.as_array().cloned().unwrap_or_default()).map(plain).collect();
                vec![pid.clone(), prefixes.join(", ")]
            };
            let rows = pids.iter().map(row).collect();
            Ok(Shown::table(map, &["pid", "prefixes"], rows))
        }
        AltoCommand::Cost { metric, mode } => {
            let map = get(&root, &format!("costmap/{mode}/{metric}")).await?;
            let rows = table(&map["cost-map"]);
            Ok(Shown::table(map, &["from", "to", metric.as_str()], rows))
        }
        AltoCommand::Endpoint { metric, mode, from, to } => {
            let typed = |list: &Vec<std::net::IpAddr>| -> Vec<String> {
                list.iter().map(|a| format!("{}:{a}", if a.is_ipv4() { "ipv4" } else { "ipv6" })).collect()
            };
            let body = json!({
                "cost-type": {"cost-mode": mode, "cost-metric": metric},
                "endpoints": {"srcs": typed(from), "dsts": typed(to)},
            });
            let kind = "application/alto-endpointcostparams+json";
            let answer = request(Method::POST, &format!("{root}/endpointcost"), None, kind, body.to_string()).await?;
            let map = checked(answer)?;
            let rows = table(&map["endpoint-cost-map"]);
            Ok(Shown::table(map, &["from", "to", metric.as_str()], rows))
        }
    })
    .await
}

/// Where the server's resources are: the address of its directory without the directory.
async fn root(client: &Client) -> anyhow::Result<String> {
    let url = network::map(client).await?.alto_url;
    Ok(url.strip_suffix("/directory").unwrap_or(&url).to_owned())
}

async fn get(root: &str, path: &str) -> anyhow::Result<Json> {
    checked(request(Method::GET, &format!("{root}/{path}"), None, "", String::new()).await?)
}

fn checked((status, answer): (u16, Json)) -> anyhow::Result<Json> {
    if !(200..300).contains(&status) {
        bail!("the ALTO server answered {status}: {answer}");
    }
    Ok(answer)
}

/// A resource of the mesh's ALTO server.
pub async fn resource(client: &Client, path: &str) -> anyhow::Result<Json> {
    get(&root(client).await?, path).await
}

/// The rows of a cost map.
pub fn table(map: &Json) -> Vec<Vec<String>> {
    let rows = map.as_object().cloned().unwrap_or_default();
    let cells = |(from, row): (String, Json)| {
        let row = row.as_object().cloned().unwrap_or_default();
        row.into_iter().map(move |(to, cost)| vec![from.clone(), to, plain(cost)])
    };
    rows.into_iter().flat_map(cells).collect()
}

fn plain(value: Json) -> String {
    match value {
        Json::String(text) => text,
        other => other.to_string(),
    }
}
