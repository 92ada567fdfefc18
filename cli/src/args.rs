//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;

/// Continuum: declare what you want; the mesh validates, plans, runs, watches, repairs, and can say why.
#[derive(Debug, Parser)]
#[command(name = "continuum", version, propagate_version = true)]
pub(crate) struct Arguments {
    /// Folder with the mesh's state, keys and endpoints file.
    #[arg(long, global = true, env = "CONTINUUM_DATA_DIR", default_value = ".continuum")]
    pub(crate) data_dir: PathBuf,
    /// How results are written.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// Whose intents and workloads are meant.
    #[arg(long, global = true, env = "CONTINUUM_OWNER", default_value = crate::client::OWNER)]
    pub(crate) owner: String,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts the whole mesh and keeps it running until stopped.
    Up(UpOptions),
    /// Stops a running mesh and removes what it started; says what it kept.
    Down,
    /// Tells the main story end to end; fails if any expectation does not hold.
    Demo(DemoOptions),
    /// Services, streams, consumers with their lag, dead letters.
    Status(Watch),
    /// Ends in OK, or names each thing that is wrong and its hint.
    Doctor,
    /// Clusters and their capacity.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Workload documents and their instances.
    #[command(subcommand)]
    Workload(WorkloadCommand),
    /// Intents.
    #[command(subcommand)]
    Intent(IntentCommand),
    /// Tells why: each step with its time, writer, reason and cause; of a placement every candidate.
    Why(WhyOptions),
    /// Digital twins of workloads, nodes and clusters.
    #[command(subcommand)]
    Twin(TwinCommand),
    /// Objects that survive: policies, locations, objects, scrubs.
    #[command(subcommand)]
    Storage(StorageCommand),
    /// The ledger: what was used, who owes what, and the proof of it.
    #[command(subcommand)]
    Account(AccountCommand),
    /// Learned advice beside the planner's choices; policies and rounds.
    #[command(subcommand)]
    Learn(crate::commands::learn::LearnCommand),
    /// Anomalies of instances, with the metrics that are to blame.
    #[command(subcommand)]
    Anomaly(AnomalyCommand),
    /// What is done about anomalies, by your policy.
    #[command(subcommand)]
    Remedy(RemedyCommand),
    /// The network as it is measured, and network intents.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Asks the ALTO server (RFC 7285): maps, costs between sites and addresses.
    #[command(subcommand)]
    Alto(AltoCommand),
    /// Shows live messages, decoded, with their headers.
    Tap(TapOptions),
    /// Dead letters: what could not be decoded or handled.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Measures the mesh against its bounds.
    #[command(subcommand)]
    Bench(crate::bench::BenchCommand),
    /// Signs in at the gateway; later commands renew the token by themselves.
    Login(LoginOptions),
    /// Ends the session.
    Logout,
    /// Writes a token that is good now, for `curl -H "Authorization: Bearer $(continuum token)"`.
    Token,
    /// Writes the completions of a shell to standard output.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Makes the bus what the contract says: streams, durables, buckets; or first renders its configuration.
    Provision(ProvisionArguments),
}

/// Shows again at every change.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Watch {
    /// Show again at every change, until interrupted.
    #[arg(short, long)]
    pub(crate) watch: bool,
}

/// Whether and how long a command waits for what comes of it.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Waiting {
    /// Send only; do not wait for the answer.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
}

impl Waiting {
    /// The limit.
    pub(crate) fn limit(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.timeout)
    }
}

/// What `intent submit` and `update` wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Until {
    /// The verdict on the document.
    Accepted,
    /// FULFILLED, or a state from which it does not get there by itself.
    Fulfilled,
}

/// Subcommands of `storage`.
#[derive(Debug, Subcommand)]
pub(crate) enum StorageCommand {
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
        /// Write lost and rotten fragments anew, and remove those that belong to nothing.
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
pub(crate) enum StoragePolicyCommand {
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
pub(crate) enum StorageLocationCommand {
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
    /// Removes one that no policy uses.
    Retire {
        /// Its name.
        name: String,
    },
}

/// Subcommands of `storage object`.
#[derive(Debug, Subcommand)]
pub(crate) enum StorageObjectCommand {
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

/// Subcommands of `cluster`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// All clusters that have registered.
    List(Watch),
    /// One cluster, with what runs on it.
    Get {
        /// Its id.
        id: String,
    },
}

/// Subcommands of `workload`.
#[derive(Debug, Subcommand)]
pub(crate) enum WorkloadCommand {
    /// Registers each document of a file, or a Helm chart; waits for the verdict.
    Push {
        /// YAML or JSON, documents divided by `---`; `-` is standard input. Or a chart: its archive, `.tgz`, or its folder.
        file: PathBuf,
        #[command(flatten)]
        chart: ChartOptions,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Documents and instances.
    List {
        /// Only instances in this phase, for example `RUNNING`.
        #[arg(long)]
        phase: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// A document by `name` (newest version) or `name@version`, or an instance by its id.
    Get {
        /// Name, `name@version`, or instance id.
        id: String,
    },
    /// The last lines that an instance's processes wrote.
    Logs {
        /// Instance id or its beginning, or the id of an intent with one instance.
        id: String,
        /// Newest lines.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        lines: u32,
        /// Go on with new lines as they are written.
        #[arg(short, long)]
        follow: bool,
    },
    /// Runs an instance of a document without an intent.
    Run {
        /// Document, `name@version`.
        workload: String,
        /// Instance id, a UUID; a new one when absent.
        #[arg(long)]
        id: Option<String>,
        /// Copies; as in the document when 0.
        #[arg(long, default_value_t = 0)]
        replicas: u32,
        /// Wait until every copy runs.
        #[arg(long, conflicts_with = "no_wait")]
        wait: bool,
        #[command(flatten)]
        release: ReleaseOptions,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Stops an instance that was started without an intent.
    Stop {
        /// Instance id.
        id: String,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Checks a chart in four steps (structure, template, images, ingress) without storing it.
    Check {
        /// The chart's archive, `.tgz`, or its folder.
        file: PathBuf,
        #[command(flatten)]
        chart: ChartOptions,
    },
    /// Gives an instance another version of its document, or a chart's instance other values.
    Upgrade {
        /// Instance id or its beginning.
        id: String,
        /// Document, `name@version`; the present one when absent.
        workload: Option<String>,
        /// Copies; as it has now when 0.
        #[arg(long, default_value_t = 0)]
        replicas: u32,
        /// Goes back by itself if the new revision fails for good.
        #[arg(long)]
        atomic: bool,
        #[command(flatten)]
        release: ReleaseOptions,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Makes an earlier revision the newest.
    Rollback {
        /// Instance id or its beginning.
        id: String,
        /// Revision; the one before the present one when 0.
        #[arg(default_value_t = 0)]
        revision: u32,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Moves an instance to another cluster; waits until it is there or stays.
    Migrate {
        /// Instance id or its beginning.
        id: String,
        /// Cluster; the best other one when absent.
        #[arg(long)]
        to: Option<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Ends an instance and forgets it; or removes a document that is pending or was rejected, `name@version`.
    Delete {
        /// Instance id or its beginning, or `name@version`.
        id: String,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// What an instance's cluster is told: a chart's rendered manifests, or the process' document.
    Manifests {
        /// Instance id or its beginning.
        id: String,
    },
}

/// What a chart's document says beside its archive.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ChartOptions {
    /// The chart can be exposed: a Service must carry `nemo.eu/ingress-expose`.
    #[arg(long)]
    pub(crate) ingress: bool,
    /// YAML file that is laid over the chart's values.yaml.
    #[arg(long, value_name = "FILE")]
    pub(crate) values: Option<PathBuf>,
}

/// How a chart is released.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ReleaseOptions {
    /// Of a chart: YAML file that is laid over the document's values.
    #[arg(long, value_name = "FILE")]
    pub(crate) values: Option<PathBuf>,
    /// Of a chart: name of the release.
    #[arg(long)]
    pub(crate) release: Option<String>,
    /// Of a chart: Kubernetes namespace.
    #[arg(long)]
    pub(crate) namespace: Option<String>,
    /// Of a chart: expose it.
    #[arg(long)]
    pub(crate) ingress: bool,
}

/// Subcommands of `intent`.
#[derive(Debug, Subcommand)]
pub(crate) enum IntentCommand {
    /// Submits each intent of a file.
    Submit(IntentFile),
    /// Gives existing intents a new definition, each by its id.
    Update(IntentFile),
    /// Says whether the intents of a file would be accepted, and what would come of them; changes nothing.
    Check {
        /// YAML or JSON, documents divided by `---`; `-` is standard input.
        file: PathBuf,
    },
    /// Every type of intent, with its targets.
    Types,
    /// Translates goals (a TOSCA topology, or its node templates) into objectives over the clusters that there are.
    Objectives {
        /// YAML or JSON; `-` is standard input.
        file: PathBuf,
    },
    /// The versions of an intent.
    History {
        /// Its id.
        id: String,
    },
    /// Makes an earlier version the definition again, as a next version.
    Rollback {
        /// The intent.
        #[command(flatten)]
        which: IntentId,
        /// The version to go back to.
        #[arg(long)]
        to: u64,
    },
    /// All intents.
    List {
        /// Only those in this state, for example `DEGRADED`.
        #[arg(long)]
        state: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// One intent with its targets and instances.
    Get {
        /// Its id.
        id: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// One line at every change of an intent, until it is TERMINATED or you interrupt.
    Watch {
        /// Its id.
        id: String,
    },
    /// Stops what an intent wants until it is resumed.
    Suspend(IntentId),
    /// Takes a suspended intent up again.
    Resume(IntentId),
    /// Ends an intent and what it runs.
    Terminate(IntentId),
}

/// A file of intents.
#[derive(Debug, Args)]
pub(crate) struct IntentFile {
    /// YAML or JSON, documents divided by `---`; `-` is standard input.
    pub(crate) file: PathBuf,
    /// Id of the intent, where its document names none.
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// What to wait for.
    #[arg(long, value_enum, default_value = "accepted", conflicts_with = "no_wait")]
    pub(crate) wait: Until,
    /// Waiting.
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

/// An intent.
#[derive(Debug, Args)]
pub(crate) struct IntentId {
    /// Its id.
    pub(crate) id: String,
    /// Waiting.
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

/// Options of `why`.
#[derive(Debug, Args)]
pub(crate) struct WhyOptions {
    /// An intent, an instance, a workload (`name` or `name@version`), a cluster, or one message as `STREAM:SEQUENCE`.
    pub(crate) id: String,
    /// Only backwards from the last fact, cause by cause.
    #[arg(long)]
    pub(crate) chain: bool,
    /// Newest steps shown.
    #[arg(long, default_value_t = 200)]
    pub(crate) steps: usize,
}

/// Subcommands of `twin`.
#[derive(Debug, Subcommand)]
pub(crate) enum TwinCommand {
    /// All twins.
    List {
        /// Only `workload`, `node` or `cluster`.
        #[arg(long, value_parser = ["workload", "node", "cluster"])]
        kind: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// One twin, now or as it was.
    Get {
        /// Instance id, node or cluster.
        id: String,
        /// Which kind, where an id is that of several.
        #[arg(long, value_parser = ["workload", "node", "cluster"])]
        kind: Option<String>,
        /// As it was then, RFC 3339.
        #[arg(long, value_name = "TIME", conflicts_with = "watch")]
        at: Option<mesh_proto::Timestamp>,
        #[command(flatten)]
        watch: Watch,
    },
}

/// Subcommands of `account`.
#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Accounts with their balances, in tokens.
    List {
        /// Only accounts whose names begin so, for example `cluster/`.
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// The bill: every entry that names an account.
    Statement {
        /// `service/<owner>/<workload>`, `cluster/<cluster>`, `treasury`, or a workload's name.
        account: String,
        /// Leave out entries before this one.
        #[arg(long, default_value_t = 0, value_name = "INDEX")]
        from: u64,
        #[command(flatten)]
        watch: Watch,
    },
    /// Sets a region's rates; without them nothing is charged there.
    Region {
        /// The clusters' label `region`, or their site.
        name: String,
        /// Demand is high: every window costs so many tokens more.
        #[arg(long, value_name = "TOKENS", value_parser = crate::commands::account::parse_amount)]
        high_demand: Option<u64>,
        /// CPU per window up to which none is charged, millionths of core seconds.
        #[arg(long, default_value_t = 0)]
        cpu_threshold: u64,
        /// Memory per window up to which none is charged, thousandths of megabyte seconds.
        #[arg(long, default_value_t = 0)]
        memory_threshold: u64,
        /// What all of a cluster's CPU costs per window; 1 token without it.
        #[arg(long, value_name = "TOKENS", value_parser = crate::commands::account::parse_amount)]
        cpu_rate: Option<u64>,
        /// What all of a cluster's memory costs per window; 1 token without it.
        #[arg(long, value_name = "TOKENS", value_parser = crate::commands::account::parse_amount)]
        memory_rate: Option<u64>,
    },
    /// Shows the ledger's tariff, or changes what is named of it.
    Tariff {
        /// The rules: `fair`, or `faithful` to the specification's contracts.
        #[arg(long, value_parser = ["fair", "faithful"])]
        formula: Option<String>,
        /// Share of a fee, in 10^8.
        #[arg(long)]
        fee_rate: Option<u64>,
        /// Grant of a workload.
        #[arg(long, value_name = "TOKENS", value_parser = crate::commands::account::parse_amount)]
        workload_grant: Option<u64>,
        /// Grant of a cluster.
        #[arg(long, value_name = "TOKENS", value_parser = crate::commands::account::parse_amount)]
        cluster_grant: Option<u64>,
    },
    /// Gives an account tokens from the treasury; what it owes is paid from them first.
    TopUp {
        /// As in `statement`.
        account: String,
        /// How many, for example 2.5.
        #[arg(value_parser = crate::commands::account::parse_amount)]
        tokens: u64,
    },
    /// Writes a proof: that an entry is in the ledger, or that the ledger continues what it was.
    #[command(group(clap::ArgGroup::new("what").required(true).args(["entry", "since"])))]
    Prove {
        /// Index of the entry.
        #[arg(long, value_name = "INDEX")]
        entry: Option<u64>,
        /// Size of the ledger that was seen before.
        #[arg(long, value_name = "SIZE")]
        since: Option<u64>,
        /// Where to; the signer's key is written beside it as `ledger.pub`.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Checks a proof or an exported ledger. Needs the files and nothing else.
    Verify {
        /// The file.
        file: PathBuf,
        /// The signer's key or a file with it; `ledger.pub` beside the file without it.
        #[arg(long)]
        key: Option<String>,
    },
    /// Writes the whole ledger with its signed head.
    Export {
        /// Where to; the signer's key is written beside it as `ledger.pub`.
        #[arg(long, default_value = "ledger.txt")]
        file: PathBuf,
    },
}

/// Subcommands of `anomaly`.
#[derive(Debug, Subcommand)]
pub(crate) enum AnomalyCommand {
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

/// Subcommands of `remedy`.
#[derive(Debug, Subcommand)]
pub(crate) enum RemedyCommand {
    /// Remedies, requested or withheld, newest first, and what came of them.
    List {
        /// Only of this instance.
        #[arg(long)]
        instance: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        watch: Watch,
    },
    /// Shows your policy, or sets it.
    Policy {
        /// YAML or JSON with the policy to set; `-` is standard input.
        file: Option<PathBuf>,
        /// Sets whether it only says what it would do.
        #[arg(long, value_name = "BOOL")]
        dry_run: Option<bool>,
    },
}

/// Subcommands of `network`.
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Latency, jitter, loss, throughput and failures of every way between clusters.
    Map {
        #[command(flatten)]
        watch: Watch,
    },
    /// Submits network intents from a file; several are divided by `---`.
    Submit {
        /// YAML or JSON; `-` for standard input.
        file: PathBuf,
        /// Its id; the document's own when absent.
        #[arg(long)]
        id: Option<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Shows what a network intent would be translated to; changes nothing.
    Check {
        /// YAML or JSON; `-` for standard input.
        file: PathBuf,
    },
    /// All network intents.
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// One network intent, with the result of each of its calls.
    Get {
        /// Its id.
        id: String,
    },
    /// Ends what a network intent made.
    Withdraw {
        /// Its id.
        id: String,
        #[command(flatten)]
        waiting: Waiting,
    },
}

/// Subcommands of `alto`.
#[derive(Debug, Subcommand)]
pub(crate) enum AltoCommand {
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

/// Options of `tap`.
#[derive(Debug, Args)]
pub(crate) struct TapOptions {
    /// Subject, with `*` and `>` as in NATS.
    #[arg(default_value = ">")]
    pub(crate) subject: String,
    /// Only messages in whose decoded body this field has this value, for example `targets.0.measured=true`; may be repeated.
    #[arg(long, value_name = "FIELD=VALUE")]
    pub(crate) filter: Vec<String>,
    /// One JSON object a line.
    #[arg(long)]
    pub(crate) json_lines: bool,
    /// End after so many messages.
    #[arg(long)]
    pub(crate) count: Option<u64>,
}

/// Subcommands of `dead`.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// The newest dead letters.
    List {
        /// How many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// One letter: headers, reason and body.
    Show {
        /// Its number.
        number: u64,
    },
    /// Sends the body of a letter again where it came from; says what came of it.
    Replay {
        /// Its number.
        number: u64,
        #[command(flatten)]
        waiting: Waiting,
    },
}

/// Arguments of `provision`.
#[derive(Debug, Args)]
pub(crate) struct ProvisionArguments {
    /// Render instead: writes `nats.conf` and the keys of every identity.
    #[command(subcommand)]
    pub(crate) render: Option<Render>,
    /// Addresses of the NATS servers, divided by commas.
    #[arg(long, value_name = "URL", default_value = "nats://127.0.0.1:4222", env = "CONTINUUM_BUS_URL")]
    pub(crate) url: String,
    /// File with the NKey seed of the identity `provisioner`; the one in the data folder when absent.
    #[arg(long, value_name = "FILE")]
    pub(crate) seed_file: Option<PathBuf>,
    /// Copies of each stream: 1, or 3 in a cluster.
    #[arg(long, default_value_t = 1)]
    pub(crate) replicas: usize,
}

/// What `provision` may do first.
#[derive(Debug, Subcommand)]
pub(crate) enum Render {
    /// Writes `nats.conf` and `keys/<identity>.nk`; keys that exist are kept.
    Render {
        /// Where to write.
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
        /// Address that clients connect to.
        #[arg(long, default_value = "0.0.0.0:4222")]
        listen: String,
        /// Folder where the server keeps its streams.
        #[arg(long, default_value = "/data/jetstream")]
        store_dir: PathBuf,
        /// Disk that all streams may use together, MiB; what the contract asks for when absent.
        #[arg(long)]
        disk_mib: Option<u64>,
        /// Address of the server's HTTP monitoring.
        #[arg(long)]
        http_listen: Option<String>,
    },
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// Folder with the example documents.
    #[arg(long, value_name = "DIR", default_value = "examples")]
    pub(crate) examples: PathBuf,
}

/// Options of `login`.
#[derive(Debug, Args)]
pub(crate) struct LoginOptions {
    /// Account.
    #[arg(default_value = "admin")]
    pub(crate) username: String,
    /// File with the password, `-` for standard input. The first account of a mesh on this machine needs none.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Address of the gateway; that of the mesh on this machine when absent.
    #[arg(long, value_name = "URL")]
    pub(crate) gateway: Option<String>,
}

/// Options of `up`.
#[derive(Debug, Default, Args)]
pub(crate) struct UpOptions {
    /// One process per service instead of one for all.
    #[arg(long)]
    pub(crate) processes: bool,
    /// Clusters to run, as YAML; three (cloud, edge, device) when absent.
    #[arg(long, value_name = "FILE")]
    pub(crate) clusters: Option<PathBuf>,
    /// Port of the NATS server; a free one when 0.
    #[arg(long, default_value_t = 0)]
    pub(crate) nats_port: u16,
    /// Port of the Zenoh router; a free one when 0.
    #[arg(long, default_value_t = 0)]
    pub(crate) zenoh_port: u16,
    /// Sets a service's configuration, for example `meta-orchestrator.move_cooldown_ms=5000`.
    #[arg(long = "set", value_name = "SERVICE.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// A service that is not started, for example `json-mirror`; may be repeated.
    #[arg(long, value_name = "SERVICE")]
    pub(crate) without: Vec<String>,
    /// Address of an OpenTelemetry collector (OTLP over gRPC), for example `http://127.0.0.1:4317`.
    #[arg(long, value_name = "URL")]
    pub(crate) otlp: Option<String>,
    /// Log level or filter, as tracing-subscriber's `EnvFilter` reads it.
    #[arg(long, default_value = "warn", env = "CONTINUUM_LOG_LEVEL")]
    pub(crate) log: String,
    /// Puts a relay before each agent's probes; milliseconds in `<data-dir>/probe-delay-<cluster>` delay them.
    #[arg(long, hide = true)]
    pub(crate) relays: bool,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_has_no_contradiction() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_submission_waits_for_acceptance_unless_told_otherwise() {
        let file = |line: &str| match parse(line).unwrap().command {
            Command::Intent(IntentCommand::Submit(file)) => file,
            other => panic!("{other:?}"),
        };
        assert_eq!(file("continuum intent submit a.yaml").wait, Until::Accepted);
        let fulfilled = file("continuum intent submit a.yaml --wait fulfilled --timeout 5");
        assert_eq!((fulfilled.wait, fulfilled.waiting.limit().as_secs()), (Until::Fulfilled, 5));
        assert!(file("continuum intent submit a.yaml --no-wait").waiting.no_wait);
        assert!(parse("continuum intent submit a.yaml --no-wait --wait fulfilled").is_err());
    }

    #[test]
    fn the_format_may_stand_anywhere() {
        for line in ["continuum -o json cluster list", "continuum cluster list -o json"] {
            assert_eq!(parse(line).unwrap().output, Format::Json);
        }
        assert!(parse("continuum cluster list -o xml").is_err());
    }

    #[test]
    fn a_time_that_is_none_and_a_kind_that_is_none_are_refused() {
        assert!(parse("continuum twin get a --at 2026-11-22T05:00:00Z").is_ok());
        assert!(parse("continuum twin get a --at yesterday").is_err());
        assert!(parse("continuum twin list --kind planet").is_err());
    }

    #[test]
    fn every_subcommand_of_the_handbook_is_there() {
        for line in [
            "up --processes",
            "down",
            "status --watch",
            "doctor",
            "cluster list --watch",
            "cluster get a",
            "workload push f",
            "workload list",
            "workload get a",
            "workload logs a --follow",
            "workload run a@1 --wait",
            "workload stop a",
            "intent list --state DEGRADED",
            "intent get a -w",
            "intent watch a",
            "intent update f",
            "intent suspend a",
            "intent resume a",
            "intent terminate a --no-wait",
            "intent check f",
            "why a --chain",
            "twin get a",
            "twin list",
            "anomaly list --open --instance a",
            "anomaly get a",
            "anomaly watch",
            "anomaly explain a",
            "remedy list -w",
            "remedy policy f --dry-run false",
            "tap intent.> --filter a=b --json-lines --count 3",
            "dead list",
            "dead show 1",
            "dead replay 1",
            "completions bash",
        ] {
            assert!(parse(&format!("continuum {line}")).is_ok(), "{line}");
        }
    }
}
