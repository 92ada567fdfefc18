//! `account`: list, statement, region, tariff, top-up, prove, verify, export.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Subcommand;
use ledger::{
    MAIN,
    files::{self, Proved},
    note::Verifier,
    service_account, tariff, tree,
};
use mesh_client::{ANSWER_WAIT, Client};
use mesh_proto::{
    AnyEvent,
    account::{
        AccountView, ConsistencyRequest, EntriesRequest, Entry, EntryKind, Formula, HeadRequest, InclusionRequest,
        Outcome, Region, SetRegion, SetTariff, StatementRequest, Tariff, TopUp, Transfer,
        account_queries_client::AccountQueriesClient,
    },
    query::ListRequest,
};
use serde_json::{Value as Json, json};
use tonic::transport::Channel;

use crate::{
    context::{Context, Watch, answer, show, to_json},
    output::{self, Shown, date, fields, note},
};

/// Subcommands of `account`.
#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Accounts with their balances, in tokens.
    List {
        /// Only accounts whose names begin so, for example `cluster/`.
        #[arg(default_value = "")]
        prefix: String,
        /// Whether to show again at every change.
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
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// Sets a region's rates; without them nothing is charged there.
    Region {
        /// The clusters' label `region`, or their site.
        name: String,
        /// Demand is high: every window costs this number of tokens more.
        #[arg(long, value_name = "TOKENS", value_parser = parse_amount)]
        high_demand: Option<u64>,
        /// CPU per window up to which none is charged, millionths of core seconds.
        #[arg(long, default_value_t = 0)]
        cpu_threshold: u64,
        /// Memory per window up to which none is charged, thousandths of megabyte seconds.
        #[arg(long, default_value_t = 0)]
        memory_threshold: u64,
        /// What all of a cluster's CPU costs per window; 1 token without it.
        #[arg(long, value_name = "TOKENS", value_parser = parse_amount)]
        cpu_rate: Option<u64>,
        /// What all of a cluster's memory costs per window; 1 token without it.
        #[arg(long, value_name = "TOKENS", value_parser = parse_amount)]
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
        #[arg(long, value_name = "TOKENS", value_parser = parse_amount)]
        workload_grant: Option<u64>,
        /// Grant of a cluster.
        #[arg(long, value_name = "TOKENS", value_parser = parse_amount)]
        cluster_grant: Option<u64>,
    },
    /// Gives an account tokens from the treasury; what it owes is paid from them first.
    TopUp {
        /// As in `statement`.
        account: String,
        /// Number of tokens, for example 2.5.
        #[arg(value_parser = parse_amount)]
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

const ENTRY: &str = "continuum.account.v1.Entry";

/// Runs a subcommand of `account`.
pub async fn run(context: &Context<'_>, command: AccountCommand) -> anyhow::Result<ExitCode> {
    if let AccountCommand::Verify { file, key } = command {
        return verify(context, &file, key);
    }
    let client = context.client().await?;
    match command {
        AccountCommand::List { prefix, watch } => {
            show(context, watch.watch, async || list(&client, &prefix).await).await
        }
        AccountCommand::Statement { account, from, watch } => {
            let account = full_name(&account, &context.owner);
            show(context, watch.watch, async || statement(&client, &account, from).await).await
        }
        AccountCommand::Region { name, high_demand, cpu_threshold, memory_threshold, cpu_rate, memory_rate } => {
            let region = Region {
                name,
                high_demand: high_demand.is_some(),
                high_demand_cost: high_demand
                    .unwrap_or_default()
                    .checked_mul(1_000)
                    .context("the surcharge is too large")?,
                cpu_threshold,
                memory_threshold,
                cpu_base_rate: cpu_rate.unwrap_or_default(),
                memory_base_rate: memory_rate.unwrap_or_default(),
            };
            send(context, &client, &SetRegion { ledger: MAIN.into(), region: Some(region) }).await
        }
        AccountCommand::Tariff { formula, fee_rate, workload_grant, cluster_grant } => {
            let now = client.accounts().await?.list(ListRequest { page_size: 1, ..ListRequest::default() }).await;
            let now = answer("read the tariff", now)?.tariff.unwrap_or_else(tariff::default_tariff);
            let formula = match formula.as_deref() {
                Some("faithful") => Formula::Faithful,
                Some(_) => Formula::Fair,
                None => now.formula(),
            };
            let wanted = Tariff {
                formula: formula.into(),
                fee_rate: fee_rate.unwrap_or(now.fee_rate),
                workload_grant: workload_grant.unwrap_or(now.workload_grant),
                cluster_grant: cluster_grant.unwrap_or(now.cluster_grant),
            };
            if wanted == now {
                let value = to_json("continuum.account.v1.Tariff", &now);
                let rows = fields(&value);
                return show(context, false, async || {
                    Ok(Shown::table(value.clone(), &["field", "value"], rows.clone()))
                })
                .await;
            }
            send(context, &client, &SetTariff { ledger: MAIN.into(), tariff: Some(wanted) }).await
        }
        AccountCommand::TopUp { account, tokens } => {
            let account = full_name(&account, &context.owner);
            send(context, &client, &TopUp { ledger: MAIN.into(), account, amount: tokens }).await
        }
        AccountCommand::Prove { entry, since, file } => match (entry, since) {
            (Some(index), _) => {
                let (text, key) = inclusion(&client, index).await?;
                written(context, &text, &key, &file.unwrap_or_else(|| format!("entry-{index}.proof").into()))
            }
            (None, Some(size)) => {
                let (text, key) = consistency(&client, size).await?;
                written(context, &text, &key, &file.unwrap_or_else(|| format!("since-{size}.proof").into()))
            }
            (None, None) => bail!("name what to prove: --entry INDEX, or --since SIZE"),
        },
        AccountCommand::Export { file } => {
            let (text, key) = export(&client).await?;
            written(context, &text, &key, &file)
        }
        AccountCommand::Verify { .. } => bail!("verify needs no mesh"),
    }
}

/// `spinner` is the workload of that name of the owner.
fn full_name(account: &str, owner: &str) -> String {
    let known = account.contains('/') || account == "treasury" || account == "issuance";
    if known { account.to_owned() } else { service_account(owner, account) }
}

async fn list(client: &Client, prefix: &str) -> anyhow::Result<Shown> {
    let (mut accounts, mut page_token) = (vec![], String::new());
    let mut queries = client.accounts().await?;
    loop {
        let request = ListRequest { state: prefix.into(), page_size: 1_000, page_token, ..ListRequest::default() };
        let page = answer("list accounts", queries.list(request).await)?;
        accounts.extend(page.accounts);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let value = accounts.iter().map(|a| to_json("continuum.account.v1.AccountView", a)).collect();
    let row = |a: &AccountView| vec![a.account.clone(), amount(a.balance), owes(a), a.entries.to_string()];
    Ok(Shown::table(value, &["account", "balance", "owes", "entries"], accounts.iter().map(row).collect()))
}

fn owes(account: &AccountView) -> String {
    let owed = account.owes.iter().map(|(to, units)| format!("{} to {to}", amount(units.cast_signed())));
    owed.collect::<Vec<_>>().join(", ")
}

async fn statement(client: &Client, account: &str, from: u64) -> anyhow::Result<Shown> {
    let (mut entries, mut from_index) = (vec![], from);
    let mut queries = client.accounts().await?;
    let view = loop {
        let request = StatementRequest { account: account.to_owned(), from_index, page_size: 1_000 };
        let page = answer("read the statement", queries.get_statement(request).await)?;
        entries.extend(page.entries);
        from_index = page.next_index;
        if from_index == 0 {
            break page.account.unwrap_or_default();
        }
    };
    let value = json!({
        "account": to_json("continuum.account.v1.AccountView", &view),
        "entries": entries.iter().map(|e| to_json(ENTRY, e)).collect::<Vec<Json>>(),
    });
    let text = format!(
        "{}\n\n{}: {} tokens{}",
        bill(account, &entries),
        account,
        amount(view.balance),
        if view.owes.is_empty() { String::new() } else { format!("; owes {}", owes(&view)) }
    );
    Ok(Shown { value, text })
}

/// The entries as a table for a person, from one account's side.
pub fn bill(account: &str, entries: &[Entry]) -> String {
    let mut rows = vec![];
    for entry in entries {
        let at = entry.at.map(date).unwrap_or_default();
        let mine = |t: &&Transfer| t.from == account || t.to == account;
        let moved: Vec<&Transfer> = entry.transfers.iter().filter(mine).collect();
        let what = what(entry);
        if moved.is_empty() {
            rows.push(vec![entry.index.to_string(), at.clone(), what.clone(), String::new(), String::new()]);
        }
        for transfer in moved {
            let (sign, other, balance) = if transfer.from == account {
                ("-", &transfer.to, transfer.from_balance)
            } else {
                ("+", &transfer.from, transfer.to_balance)
            };
            let moved = format!("{sign}{} {other}", amount(transfer.amount.cast_signed()));
            rows.push(vec![entry.index.to_string(), at.clone(), what.clone(), moved, amount(balance)]);
        }
    }
    output::table(&["entry", "at", "what", "moved", "balance"], rows)
}

/// What an entry is about, in a line.
fn what(entry: &Entry) -> String {
    match (entry.kind(), entry.charge.as_ref().and_then(|c| Some((c, c.usage.as_ref()?)))) {
        (EntryKind::Window, Some((charge, usage))) => {
            let outcome = match charge.outcome() {
                Outcome::Paid => "paid",
                Outcome::Free => "free",
                Outcome::Owed => "owed in part",
                Outcome::UnknownRegion => "not charged: region without rates",
                Outcome::NoTelemetry => "not charged: not measured",
                Outcome::Reverted => "not charged: given up",
                Outcome::Unspecified => "unknown",
            };
            let gap = if usage.gap_ms >= 50 {
                format!(", {:.1} s unmeasured", f64::from(usage.gap_ms) / 1e3)
            } else {
                String::new()
            };
            let source = mesh_intent::types::unmeasured(usage.provenance()).map(|source| format!(" ({source})"));
            let source = source.unwrap_or_default();
            format!(
                "{:.0} s on {}: {:.2} core s, {:.0} MB s{source}{gap}; {outcome}",
                f64::from(usage.window_ms) / 1e3,
                usage.cluster_id,
                usage.cpu_ms as f64 / 1e3,
                usage.memory_byte_seconds as f64 / 1e6,
            )
        }
        (kind, _) => kind.as_str_name().to_lowercase().replace('_', " "),
    }
}

/// Units as tokens, without zeros at the end.
pub fn amount(units: i64) -> String {
    let (whole, rest) = (units.unsigned_abs() / tariff::TOKEN, units.unsigned_abs() % tariff::TOKEN);
    let text = format!("{}{whole}.{rest:08}", if units < 0 { "-" } else { "" });
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Tokens with at most eight decimals, as units.
pub fn parse_amount(text: &str) -> Result<u64, String> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && rest.is_empty()) || !digits(whole) || !digits(rest) || rest.len() > 8 {
        return Err("write tokens with at most eight decimals, for example 2.5".into());
    }
    let units = format!("{whole}{rest:0<8}");
    units.parse().map_err(|_| "more tokens than can be counted".to_owned())
}

async fn send(context: &Context<'_>, client: &Client, command: &dyn AnyEvent) -> anyhow::Result<ExitCode> {
    let stored = client.ask(command, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    let posted = stored.event::<mesh_proto::account::Posted>()?.context("the answer is not an entry of the ledger")?;
    let entry = <Entry as prost::Message>::decode(posted.entry).context("read the entry")?;
    let value = to_json(ENTRY, &entry);
    show(context, false, async || {
        Ok(Shown { value: value.clone(), text: format!("entry {}: {}", entry.index, what(&entry)) })
    })
    .await
}

/// A proof that an entry is in the ledger, as a file's text, and the signer's key.
pub async fn inclusion(client: &Client, index: u64) -> anyhow::Result<(String, String)> {
    let proof = client.accounts().await?.prove_inclusion(InclusionRequest { index, size: 0 }).await;
    let proof = answer("prove the entry", proof)?;
    let head = proof.head.context("the proof has no head")?;
    let path = tree::parted(&proof.path).context("the path is not one of hashes")?;
    Ok((files::inclusion(index, &proof.entry, &path, &head.note), head.verifier_key))
}

async fn consistency(client: &Client, from_size: u64) -> anyhow::Result<(String, String)> {
    let proof = client.accounts().await?.prove_consistency(ConsistencyRequest { from_size, to_size: 0 }).await;
    let proof = answer("prove the ledger", proof)?;
    let (from, to) = proof.from.zip(proof.to).context("the proof has no heads")?;
    let path = tree::parted(&proof.path).context("the path is not one of hashes")?;
    Ok((files::consistency(&from.note, &path, &to.note), to.verifier_key))
}

/// The whole ledger as a file's text, and the signer's key.
pub async fn export(client: &Client) -> anyhow::Result<(String, String)> {
    let mut queries = client.accounts().await?;
    let head = answer("read the head", queries.get_head(HeadRequest { size: 0 }).await)?;
    let entries = entries(&mut queries, head.size).await?;
    Ok((files::ledger(entries.iter().map(AsRef::as_ref), &head.note), head.verifier_key))
}

async fn entries(queries: &mut AccountQueriesClient<Channel>, size: u64) -> anyhow::Result<Vec<bytes::Bytes>> {
    let mut entries = vec![];
    while (entries.len() as u64) < size {
        let from_index = entries.len() as u64;
        let page = queries.entries(EntriesRequest { from_index, page_size: 1_000 }).await;
        let page = answer("read the entries", page)?.entries;
        if page.is_empty() {
            bail!("entry {from_index} of {size} cannot be read");
        }
        let left = usize::try_from(size - from_index)?;
        entries.extend(page.into_iter().take(left).map(|posted| posted.entry));
    }
    Ok(entries)
}

/// Where a signer's key is kept beside a file.
fn key_file(file: &Path) -> PathBuf {
    file.with_file_name("ledger.pub")
}

fn written(context: &Context<'_>, text: &str, key: &str, file: &Path) -> anyhow::Result<ExitCode> {
    let keys = key_file(file);
    // A key that is trusted already is not replaced by what a service sends.
    match fs::read_to_string(&keys) {
        Ok(known) if known.trim() != key => bail!(
            "{} holds another key than the ledger is signed with ({key}); if that is right, remove it and ask again",
            keys.display()
        ),
        Ok(_) => {}
        Err(_) => fs::write(&keys, format!("{key}\n")).with_context(|| format!("write {}", keys.display()))?,
    }
    fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    note(format!("check it, without any mesh: continuum account verify {}", file.display()));
    let value = json!({"file": file.display().to_string(), "key": key, "bytes": text.len()});
    output::show(context.format, &value, &["file", "bytes", "key"], || {
        vec![vec![file.display().to_string(), text.len().to_string(), key.to_owned()]]
    });
    Ok(ExitCode::SUCCESS)
}

fn verify(context: &Context<'_>, file: &Path, key: Option<String>) -> anyhow::Result<ExitCode> {
    let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let text = String::from_utf8(text).map_err(|_| anyhow!("{} is not text: it was changed", file.display()))?;
    let key = match key {
        Some(key) if key.contains('+') => key,
        Some(path) => fs::read_to_string(&path).with_context(|| format!("read {path}"))?,
        None => {
            let path = key_file(file);
            fs::read_to_string(&path)
                .with_context(|| format!("read the signer's key {}; name it with --key", path.display()))?
        }
    };
    let key = Verifier::parse(&key).context("read the signer's key")?;
    let proved = files::verify(&text, &key).with_context(|| format!("{} does not hold", file.display()))?;
    let (value, text) = match &proved {
        Proved::Ledger { head, ledger } => (
            json!({"holds": true, "kind": "ledger", "size": head.size, "root": hex(&head.root), "accounts": ledger.accounts}),
            format!(
                "the ledger holds: {} entries, every charge made again, {} accounts that sum to {}; signed by {key}",
                head.size,
                ledger.accounts.len(),
                ledger.sum()
            ),
        ),
        Proved::Inclusion { head, entry } => (
            json!({"holds": true, "kind": "inclusion", "size": head.size, "root": hex(&head.root), "entry": to_json(ENTRY, &**entry)}),
            format!(
                "entry {} ({}) is in the ledger of {} entries signed by {key}",
                entry.index,
                what(entry),
                head.size
            ),
        ),
        Proved::Consistency { from, to } => (
            json!({"holds": true, "kind": "consistency", "from": from.size, "to": to.size, "root": hex(&to.root)}),
            format!("the ledger of {} entries continues that of {}; both signed by {key}", to.size, from.size),
        ),
    };
    output::show(context.format, &value, &["holds"], || vec![vec![text]]);
    Ok(ExitCode::SUCCESS)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_and_written_to_the_last_unit() {
        for (text, units) in [("5", 500_000_000), ("0.00000001", 1), (".5", 50_000_000), ("4.99999", 499_999_000)] {
            assert_eq!(parse_amount(text), Ok(units));
            let shown = amount(units.cast_signed());
            assert_eq!(parse_amount(&shown), Ok(units), "{shown}");
        }
        for wrong in ["", ".", "-1", "1e3", "0.000000001", "1,5", "99999999999999999999"] {
            assert!(parse_amount(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            (amount(-150_000_000).as_str(), amount(0).as_str(), amount(1_000_000_000).as_str()),
            ("-1.5", "0", "10")
        );
    }

    #[test]
    fn a_bare_name_is_a_workload_of_the_owner() {
        assert_eq!(full_name("spinner", "local"), "service/local/spinner");
        assert_eq!(full_name("cluster/edge", "local"), "cluster/edge");
        assert_eq!(full_name("treasury", "local"), "treasury");
    }
}
