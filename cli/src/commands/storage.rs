//! `storage`: policies, locations, objects, scrubs, health.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use clap::Subcommand;
use mesh_client::{ANSWER_WAIT, Client};
use mesh_proto::{
    AnyEvent, Event as _,
    object::ScrubEnded,
    storage::{
        DefinePolicy, DropPolicy, Location, Policy, RegisterLocation, RequestScrub, RetireLocation, StorageHealth,
        StorageRequest,
    },
};
use s3_client::{Client as S3, Credentials};
use serde_json::json;

use crate::{
    context::{Context, Watch, answer, show, to_json},
    document,
    outcome::{Outcome, conclude},
    output::{self, Shown, event, fields, megabytes},
};

/// Subcommands of `storage`.
#[derive(Debug, Subcommand)]
pub enum StorageCommand {
    /// Storage policies.
    #[command(subcommand)]
    Policy(StoragePolicyCommand),
    /// Where fragments rest.
    #[command(subcommand)]
    Location(StorageLocationCommand),
    /// Objects, by the S3 interface.
    #[command(subcommand)]
    Object(StorageObjectCommand),
    /// Reads and checks every fragment of every object.
    Scrub {
        /// Rewrite lost and rotten fragments, and remove those that belong to no object.
        #[arg(long)]
        repair: bool,
        /// Wrap data keys under the present master key.
        #[arg(long)]
        rewrap: bool,
        /// Seconds to wait for its report.
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        timeout: u64,
    },
    /// The gateway: its S3 address, locations, objects, cache.
    Health(Watch),
}

/// Subcommands of `storage policy`.
#[derive(Debug, Subcommand)]
pub enum StoragePolicyCommand {
    /// Makes or replaces one, of a file: YAML or JSON with the fields of continuum.storage.v1.Policy.
    Define {
        /// The file.
        file: std::path::PathBuf,
    },
    /// All policies.
    List,
    /// One policy; if it was chosen from goals, with every location that was considered.
    Get {
        /// Its name.
        name: String,
    },
    /// Removes one that no bucket uses.
    Drop {
        /// Its name.
        name: String,
    },
}

/// Subcommands of `storage location`.
#[derive(Debug, Subcommand)]
pub enum StorageLocationCommand {
    /// Registers one; again, when it was lost and starts empty.
    Register {
        /// Its name.
        name: String,
        /// `dir:<name>`, or an S3 bucket's address.
        #[arg(long)]
        url: Option<String>,
        /// `edge` or `cloud`.
        #[arg(long, default_value = "edge")]
        kind: String,
        /// Instead, a file: YAML or JSON with the fields of continuum.storage.v1.Location.
        #[arg(long, conflicts_with_all = ["url"])]
        file: Option<std::path::PathBuf>,
    },
    /// All locations, and whether they can be reached.
    List,
    /// Removes a location that no policy uses.
    Retire {
        /// Its name.
        name: String,
    },
}

/// Subcommands of `storage object`.
#[derive(Debug, Subcommand)]
pub enum StorageObjectCommand {
    /// Makes a bucket.
    Bucket {
        /// Its name.
        bucket: String,
        /// Its storage policy.
        #[arg(long, default_value = "default")]
        policy: String,
    },
    /// Stores a file.
    Put {
        /// The file.
        file: std::path::PathBuf,
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
    },
    /// Writes an object to a file, or to standard output.
    Get {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
        /// The file.
        file: Option<std::path::PathBuf>,
    },
    /// Objects of a bucket.
    List {
        /// Bucket.
        bucket: String,
        /// Only keys that begin so.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Deletes an object.
    Delete {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
    },
}

/// How long one S3 request may take.
const S3_LIMIT: Duration = Duration::from_secs(60);

/// Runs a subcommand of `storage`.
pub async fn run(context: &Context<'_>, command: StorageCommand) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    match command {
        StorageCommand::Policy(command) => policy(context, &client, command).await,
        StorageCommand::Location(command) => location(context, &client, command).await,
        StorageCommand::Object(command) => object(context, &client, command).await,
        StorageCommand::Scrub { repair, rewrap, timeout } => {
            let ended = scrub(&client, &context.owner, repair, rewrap, Duration::from_secs(timeout)).await?;
            let value = to_json("continuum.object.v1.ScrubEnded", &ended);
            output::show(context.format, &value, &["field", "value"], || fields(&value));
            Ok(ExitCode::from(u8::from(ended.lost > 0 || ended.degraded > 0)))
        }
        StorageCommand::Health(watch) => {
            show(context, watch.watch, async || {
                let health = health(&client, &context.owner).await?;
                let value = to_json("continuum.storage.v1.StorageHealth", &health);
                let unreachable = health.locations.iter().filter(|l| !l.reachable).count();
                let rows = vec![
                    vec!["S3".into(), health.s3_endpoint.clone()],
                    vec!["objects".into(), format!("{}, {}", health.objects, megabytes(health.object_bytes))],
                    vec!["uploads under way".into(), health.uploads.to_string()],
                    vec!["locations".into(), format!("{}, {unreachable} unreachable", health.locations.len())],
                    vec!["policies".into(), health.policies.len().to_string()],
                    vec![
                        "master key".into(),
                        format!("{}, {} objects under older ones", health.master_key, health.to_rewrap),
                    ],
                    vec![
                        "cache".into(),
                        format!(
                            "{}, {} hits, {} misses",
                            megabytes(health.cache_bytes),
                            health.cache_hits,
                            health.cache_misses
                        ),
                    ],
                ];
                Ok(Shown::table(value, &["what", "now"], rows))
            })
            .await
        }
    }
}

/// The gateway, as it is.
pub async fn health(client: &Client, owner: &str) -> anyhow::Result<StorageHealth> {
    let request = StorageRequest { owner: owner.to_owned() };
    answer("ask the storage gateway", client.storage().await?.probe(request).await)
}

/// Asks for a scrub and waits for its report.
pub async fn scrub(
    client: &Client,
    owner: &str,
    repair: bool,
    rewrap: bool,
    limit: Duration,
) -> anyhow::Result<ScrubEnded> {
    let scrub = uuid::Uuid::now_v7().to_string();
    send(client, &RequestScrub { owner: owner.into(), scrub: scrub.clone(), repair, rewrap }).await?;
    let mut tail = client.bus().log("OBJECT").tail(&ScrubEnded::filter(&[owner, &scrub]), 1);
    let ended = tokio::time::timeout(limit, tail.next())
        .await
        .map_err(|_| anyhow!("the scrub {scrub} is still running; its report will be in OBJECT"))?
        .context("wait for the report")?;
    ended.event::<ScrubEnded>()?.context("read the report")
}

/// Sends a command and waits until it is done.
///
/// # Errors
/// When it is refused, or not answered.
pub async fn send(client: &Client, command: &dyn AnyEvent) -> anyhow::Result<()> {
    client.ask(command, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    Ok(())
}

async fn conclude_command(
    context: &Context<'_>,
    client: &Client,
    noun: &str,
    id: &str,
    done: &str,
    command: &dyn AnyEvent,
) -> ExitCode {
    let outcome = match send(client, command).await {
        Ok(()) => Outcome { id: id.into(), ok: true, result: done.into(), ..Outcome::default() },
        Err(error) => Outcome::failed(id, &error),
    };
    conclude(context.format, noun, &[outcome])
}

fn read<M: prost::Message + Default>(file: &Path, message: &str) -> anyhow::Result<M> {
    let [document] = <[_; 1]>::try_from(document::read(file)?)
        .map_err(|_| anyhow!("{} holds several documents; give one", file.display()))?;
    let body = mesh_proto::json::written_to_protobuf(message, &document).map_err(|error| anyhow!("{error}"))?;
    M::decode(body.as_slice()).context("read the document")
}

async fn policy(context: &Context<'_>, client: &Client, command: StoragePolicyCommand) -> anyhow::Result<ExitCode> {
    let owner = context.owner.clone();
    match command {
        StoragePolicyCommand::Define { file } => {
            let definition: Policy = read(&file, "continuum.storage.v1.Policy")?;
            let policy = definition.name.clone();
            if policy.is_empty() {
                bail!("{}: the policy has no name", file.display());
            }
            let command = DefinePolicy { owner, policy: policy.clone(), definition: Some(definition) };
            Ok(conclude_command(context, client, "policy", &policy, "defined", &command).await)
        }
        StoragePolicyCommand::Drop { name } => {
            let command = DropPolicy { owner, policy: name.clone() };
            Ok(conclude_command(context, client, "policy", &name, "dropped", &command).await)
        }
        StoragePolicyCommand::List => {
            let health = health(client, &owner).await?;
            let value = health.policies.iter().map(|p| to_json("continuum.storage.v1.StoragePolicyView", p)).collect();
            let rows = health.policies.iter().map(|view| {
                let policy = view.definition.clone().unwrap_or_default();
                let redundancy = policy.redundancy.unwrap_or_default();
                let (edge, cloud) = (policy.edge_devices.join(", "), policy.backends.join(", "));
                let cipher = policy.encryption.map_or_else(|| "AES".to_owned(), |e| e.scheme);
                let shards = policy.edge_devices.len() + policy.backends.len();
                vec![
                    policy.name,
                    format!("{} {shards} with {} redundant", redundancy.scheme, redundancy.redundant_packets),
                    edge,
                    cloud,
                    cipher,
                    view.buckets.join(", "),
                ]
            });
            let rows = rows.collect();
            output::show(context.format, &value, &["policy", "code", "edge", "cloud", "cipher", "buckets"], || rows);
            Ok(ExitCode::SUCCESS)
        }
        StoragePolicyCommand::Get { name } => {
            let health = health(client, &owner).await?;
            let is =
                |p: &&mesh_proto::storage::StoragePolicyView| p.definition.as_ref().is_some_and(|d| d.name == name);
            let view = health.policies.iter().find(is);
            let view =
                view.ok_or_else(|| anyhow!("no policy is called {name}; see `continuum storage policy list`"))?;
            let value = to_json("continuum.storage.v1.StoragePolicyView", view);
            output::show(context.format, &value, &["field", "value"], || fields(&value));
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn location(context: &Context<'_>, client: &Client, command: StorageLocationCommand) -> anyhow::Result<ExitCode> {
    let owner = context.owner.clone();
    match command {
        StorageLocationCommand::Register { name, url, kind, file } => {
            let description = match file {
                Some(file) => read(&file, "continuum.storage.v1.Location")?,
                None => Location { url: url.unwrap_or_else(|| format!("dir:{name}")), kind, ..Location::default() },
            };
            let command = RegisterLocation { owner, location: name.clone(), description: Some(description) };
            Ok(conclude_command(context, client, "location", &name, "registered", &command).await)
        }
        StorageLocationCommand::Retire { name } => {
            let command = RetireLocation { owner, location: name.clone() };
            Ok(conclude_command(context, client, "location", &name, "retired", &command).await)
        }
        StorageLocationCommand::List => {
            let health = health(client, &owner).await?;
            let value = health.locations.iter().map(|l| to_json("continuum.storage.v1.LocationView", l)).collect();
            let rows = health.locations.iter().map(|view| {
                let l = view.description.clone().unwrap_or_default();
                let state =
                    if view.reachable { "reachable".to_owned() } else { format!("unreachable: {}", view.reason) };
                let last = |times: &[u32]| times.last().map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
                let times = format!("{} / {}", last(&view.rtt_upload_1b_ms), last(&view.rtt_download_1b_ms));
                vec![l.name, l.kind, l.url, state, times, megabytes(view.free_bytes)]
            });
            let rows = rows.collect();
            let header = ["location", "kind", "url", "state", "write / read", "free"];
            output::show(context.format, &value, &header, || rows);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// An S3 client of a bucket, with the keys that the gateway made on its first start.
pub async fn bucket(client: &Client, data_dir: &Path, owner: &str, bucket: &str) -> anyhow::Result<S3> {
    let path = data_dir.join("state/secure-storage/access.keys");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read the S3 keys in {}", path.display()))?;
    let found = text.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.len() == 3 && words[2] == owner)
            .then(|| Credentials { access: words[0].to_owned(), secret: words[1].to_owned() })
    });
    let credentials = found.ok_or_else(|| anyhow!("{} has no key of {owner}", path.display()))?;
    let endpoint = health(client, owner).await?.s3_endpoint;
    Ok(S3::new(&format!("{endpoint}/{bucket}"), "local", credentials, S3_LIMIT)?)
}

async fn object(context: &Context<'_>, client: &Client, command: StorageObjectCommand) -> anyhow::Result<ExitCode> {
    let of = async |name: &str| bucket(client, context.data_dir, &context.owner, name).await;
    let done = |id: &str, result: String| {
        let outcome = Outcome { id: id.to_owned(), ok: true, result, ..Outcome::default() };
        conclude(context.format, "object", &[outcome])
    };
    match command {
        StorageObjectCommand::Bucket { bucket, policy } => {
            of(&bucket).await?.make_bucket(&policy).await?;
            Ok(done(&bucket, format!("made under the policy {policy}")))
        }
        StorageObjectCommand::Put { file, bucket, key } => {
            let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            let size = bytes.len();
            of(&bucket).await?.put(&key, bytes.into()).await?;
            Ok(done(&key, format!("stored, {size} bytes")))
        }
        StorageObjectCommand::Get { bucket, key, file } => {
            let bytes = of(&bucket).await?.get(&key, None).await?;
            match file {
                Some(file) => {
                    std::fs::write(&file, &bytes).with_context(|| format!("write {}", file.display()))?;
                    Ok(done(&key, format!("read, {} bytes", bytes.len())))
                }
                None => {
                    use std::io::Write as _;
                    std::io::stdout().write_all(&bytes).context("write to standard output")?;
                    Ok(ExitCode::SUCCESS)
                }
            }
        }
        StorageObjectCommand::List { bucket, prefix } => {
            for found in of(&bucket).await?.list(&prefix).await? {
                let value = json!({"key": found.name, "modified": found.modified.to_string()});
                event(context.format, &value, || format!("{}  {}", found.modified, found.name))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        StorageObjectCommand::Delete { bucket, key } => {
            of(&bucket).await?.delete(&key).await?;
            Ok(done(&key, "deleted".into()))
        }
    }
}
