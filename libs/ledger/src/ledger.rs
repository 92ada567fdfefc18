//! The ledger: accounts, what they owe, regions, and which windows were charged, as the fold of its entries.
//!
//! Each entry is built by one function from the ledger before it and what it is about, and is folded by [`Ledger::fold`].
//! Whoever has the entries can therefore build each again and compare, byte for byte: that is the audit
//! ([`Ledger::audit`]). Units move by transfers only, so that none is lost or made; `issuance` is the account they were
//! issued from, and the only one below zero.

use std::collections::BTreeMap;

use mesh_proto::{
    Refusal, Timestamp,
    account::{Charge, Entry, EntryKind, Formula, Outcome, Region, Tariff, Transfer},
    is_key,
    usage::UsageClosed,
};
use serde::{Deserialize, Serialize};

use crate::{
    tariff::{self, TREASURY},
    tree::{Frontier, Hash},
};

/// The ledger that usage is billed to.
pub const MAIN: &str = "main";
/// The account that units are issued from; minus their sum.
pub const ISSUANCE: &str = "issuance";
/// The account that fees go to and that accounts are topped up from.
pub const TREASURY_ACCOUNT: &str = "treasury";
/// Accounts that a ledger may hold.
pub const ACCOUNTS_MAX: usize = 50_000;
/// Regions that a ledger may hold.
pub const REGIONS_MAX: usize = 1_000;
/// Instances whose windows are remembered. Above it the ones silent for longest are forgotten, and with them
/// every window that ended before theirs.
pub const TRACKS_MAX: usize = 20_000;
/// Longest window, milliseconds.
pub const WINDOW_MAX_MS: u32 = 86_400_000;
/// How far after the newest measured window one without measurement may end, milliseconds: a clock that runs ahead
/// must not close windows that are still to come.
pub const AHEAD_MAX_MS: i64 = 86_400_000;
/// Windows behind the newest of an instance that are still distinguished.
pub const BEHIND_MAX: u64 = 64;

/// Which windows of one instance on one cluster were charged: the newest, and those just behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Track {
    window_ms: u32,
    newest: u64,
    /// Bit `n` is set if the window `n` before the newest was charged; bit 0 is.
    charged: u64,
    /// Index of the last entry about it.
    touched: u64,
}

impl Track {
    fn end_ms(&self) -> i64 {
        end_ms(self.newest, self.window_ms).unwrap_or(i64::MAX)
    }
}

fn end_ms(window: u64, window_ms: u32) -> Option<i64> {
    i64::try_from(window.checked_add(1)?.checked_mul(window_ms.into())?).ok()
}

/// A ledger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Its Merkle tree's right edge.
    pub tree: Frontier,
    /// What it goes by; `None` before it is opened.
    pub tariff: Option<Tariff>,
    /// Balances, units; an account that is named here is open.
    pub accounts: BTreeMap<String, i64>,
    /// What an account owes to others, units. Whoever owes has nothing.
    pub owes: BTreeMap<String, BTreeMap<String, u64>>,
    /// Rates by region.
    pub regions: BTreeMap<String, Region>,
    /// Transfers so far, without the opening's.
    pub actions: u64,
    /// By `<cluster>/<instance>`.
    tracks: BTreeMap<String, Track>,
    /// Windows of instances that are not remembered and that ended by then are not charged, milliseconds.
    forgotten_ms: i64,
    /// End of the newest measured window, milliseconds since 1970.
    measured_ms: i64,
}

/// What is to be done about a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// It was charged before.
    Again,
    /// It is new; this many between it and the newest one are missing.
    New { missed: u64 },
}

/// Why this ledger cannot have written an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not the next one.
    #[error("entry {found} stands where entry {expected} belongs")]
    OutOfPlace {
        /// Its index.
        found: u64,
        /// The index that would follow.
        expected: u64,
    },
    /// It is of no known kind, or lacks what its kind needs.
    #[error("entry {0} has no kind")]
    Incomplete(u64),
    /// Its rules give something else.
    #[error("entry {0} is not what the ledger's rules make of what it is about: {1}")]
    Wrong(u64, String),
}

/// The account of a workload's owner for that workload.
pub fn service_account(owner: &str, workload: &str) -> String {
    format!("service/{owner}/{workload}")
}

/// The account of a cluster.
pub fn cluster_account(cluster_id: &str) -> String {
    format!("cluster/{cluster_id}")
}

/// Transfers of one entry, with the balances as they move.
struct Moves<'a> {
    ledger: &'a Ledger,
    balances: Vec<(String, i64)>,
    transfers: Vec<Transfer>,
}

impl Moves<'_> {
    fn balance(&self, account: &str) -> i64 {
        let moved = self.balances.iter().find(|(name, _)| name == account).map(|(_, balance)| *balance);
        moved.unwrap_or_else(|| self.ledger.balance(account))
    }

    fn set(&mut self, account: &str, balance: i64) {
        match self.balances.iter_mut().find(|(name, _)| name == account) {
            Some((_, known)) => *known = balance,
            None => self.balances.push((account.to_owned(), balance)),
        }
    }

    fn is_open(&self, account: &str) -> bool {
        self.ledger.accounts.contains_key(account) || self.balances.iter().any(|(name, _)| name == account)
    }

    fn transfer(&mut self, from: &str, to: &str, amount: u64) -> Result<(), Refusal> {
        let beyond =
            || Refusal::invalid(format!("{amount} units from {from} to {to} are more than can be counted"), SPLIT);
        let signed = i64::try_from(amount).map_err(|_| beyond())?;
        let left = self.balance(from).checked_sub(signed).ok_or_else(beyond)?;
        if left < 0 && from != ISSUANCE {
            return Err(Refusal::exhausted(
                format!("{from} has {} units, {amount} are asked of it", self.balance(from)),
                "ask for less, or top it up first",
            ));
        }
        self.set(from, left);
        let arrived = self.balance(to).checked_add(signed).ok_or_else(beyond)?;
        self.set(to, arrived);
        self.transfers.push(Transfer {
            from: from.to_owned(),
            to: to.to_owned(),
            amount,
            from_balance: self.balance(from),
            to_balance: arrived,
            action_id: self.ledger.actions + self.transfers.len() as u64,
        });
        Ok(())
    }

    /// Opens an account with its grant, unless it is open.
    fn open(&mut self, account: &str, grant: u64) -> Result<(), Refusal> {
        if self.is_open(account) {
            return Ok(());
        }
        let opened = self.balances.iter().filter(|(name, _)| !self.ledger.accounts.contains_key(name)).count();
        if self.ledger.accounts.len() + opened >= ACCOUNTS_MAX {
            return Err(Refusal::exhausted(
                format!("the ledger holds {ACCOUNTS_MAX} accounts, and no more"),
                "begin another ledger for further workloads",
            ));
        }
        self.transfer(ISSUANCE, account, grant)
    }

    /// Pays with the faithful formula: in, out, and a fee on the cluster's whole balance. All or nothing.
    fn pay_faithfully(&mut self, service: &str, cluster: &str, tokens: u64, rate: u64) -> Result<(), &'static str> {
        let short = |have: i64, want: u64| u64::try_from(have).is_ok_and(|have| have <= want) || have < 0;
        let broke = "Customer is out of funds!!!";
        let before = (self.balances.clone(), self.transfers.len());
        let mut pay = || {
            if short(self.balance(service), tokens) {
                return Err(broke);
            }
            self.transfer(service, TREASURY_ACCOUNT, tokens).map_err(|_| broke)?;
            if short(self.balance(TREASURY_ACCOUNT), tokens) {
                return Err("NEMO is out of funds!!!");
            }
            self.transfer(TREASURY_ACCOUNT, cluster, tokens).map_err(|_| broke)?;
            let balance = self.balance(cluster);
            if short(balance, rate) {
                return Err(broke);
            }
            self.transfer(cluster, TREASURY_ACCOUNT, tariff::fee(balance.unsigned_abs(), rate)).map_err(|_| broke)
        };
        let paid = pay();
        if paid.is_err() {
            self.balances = before.0;
            self.transfers.truncate(before.1);
        }
        paid
    }

    /// Pays a cluster what it earned, and the treasury its fee on that.
    fn pay(&mut self, service: &str, cluster: &str, amount: u64, rate: u64) -> Result<(), Refusal> {
        if amount == 0 {
            return Ok(());
        }
        self.transfer(service, cluster, amount)?;
        match tariff::fee(amount, rate) {
            0 => Ok(()),
            fee => self.transfer(cluster, TREASURY_ACCOUNT, fee),
        }
    }
}

const SPLIT: &str = "ask for less";

impl Ledger {
    /// An account's balance, units; 0 if it is not open.
    pub fn balance(&self, account: &str) -> i64 {
        self.accounts.get(account).copied().unwrap_or_default()
    }

    /// What an account owes in all, units.
    pub fn debt(&self, account: &str) -> u64 {
        self.owes.get(account).map_or(0, |owed| owed.values().fold(0, |sum, one| sum.saturating_add(*one)))
    }

    /// Entries so far.
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    fn tariff(&self) -> Tariff {
        self.tariff.unwrap_or_else(tariff::default_tariff)
    }

    fn moves(&self) -> Moves<'_> {
        Moves { ledger: self, balances: vec![], transfers: vec![] }
    }

    fn entry(&self, kind: EntryKind, at: Timestamp) -> Entry {
        Entry { ledger: MAIN.to_owned(), index: self.size(), at: Some(at), kind: kind.into(), ..Entry::default() }
    }

    /// The first entry: the treasury is issued.
    ///
    /// # Errors
    /// Never, for a ledger without entries.
    pub fn opening(&self, tariff: Tariff, at: Timestamp) -> Result<Entry, Refusal> {
        let mut moves = self.moves();
        moves.transfer(ISSUANCE, TREASURY_ACCOUNT, TREASURY)?;
        Ok(Entry { tariff: Some(tariff), transfers: moves.transfers, ..self.entry(EntryKind::Opened, at) })
    }

    /// An account is opened with its grant; `None` if it is open.
    ///
    /// # Errors
    /// An invalid name; too many accounts.
    pub fn registration(&self, account: &str, at: Timestamp) -> Result<Option<Entry>, Refusal> {
        let tariff = self.tariff();
        let grant = match account.split('/').collect::<Vec<_>>().as_slice() {
            ["service", owner, workload] if is_key(owner) && is_key(workload) => tariff.workload_grant,
            ["cluster", cluster] if is_key(cluster) => tariff.cluster_grant,
            _ => return Err(Refusal::invalid(format!("{account:?} is not an account"), ACCOUNT_NAMES)),
        };
        if self.accounts.contains_key(account) {
            return Ok(None);
        }
        let mut moves = self.moves();
        moves.open(account, grant)?;
        let entry = self.entry(EntryKind::Registered, at);
        Ok(Some(Entry { account: account.to_owned(), transfers: moves.transfers, ..entry }))
    }

    /// A region's rates are set.
    ///
    /// # Errors
    /// An invalid name; too many regions.
    pub fn region_set(&self, region: Region, at: Timestamp) -> Result<Entry, Refusal> {
        if !is_key(&region.name) {
            return Err(Refusal::invalid(
                format!("region name {:?} is not 1 to 64 letters, digits, `_` and `-`", head_of(&region.name)),
                "name the region as the clusters' label `region` does",
            ));
        }
        if !self.regions.contains_key(&region.name) && self.regions.len() >= REGIONS_MAX {
            return Err(Refusal::exhausted(
                format!("the ledger holds {REGIONS_MAX} regions, and no more"),
                "set one that is there",
            ));
        }
        Ok(Entry { region: Some(region), ..self.entry(EntryKind::RegionSet, at) })
    }

    /// The tariff is set.
    ///
    /// # Errors
    /// An unknown formula; a fee above 100 %; a grant beyond a billion tokens.
    pub fn tariff_set(&self, tariff: Tariff, at: Timestamp) -> Result<Entry, Refusal> {
        let problem = if tariff.formula() == Formula::Unspecified {
            Some("the formula is neither FAIR nor FAITHFUL".to_owned())
        } else if tariff.fee_rate > tariff::TOKEN {
            Some(format!("a fee of {} in 10^8 is more than everything", tariff.fee_rate))
        } else if tariff.workload_grant.max(tariff.cluster_grant) > tariff::TOKEN * 1_000_000_000 {
            Some("a grant is more than a billion tokens".to_owned())
        } else {
            None
        };
        match problem {
            Some(problem) => Err(Refusal::invalid(problem, "see `continuum account tariff --help`")),
            None => Ok(Entry { tariff: Some(tariff), ..self.entry(EntryKind::TariffSet, at) }),
        }
    }

    /// An account is given units from the treasury, and pays with them what it owes, creditors in order of their names.
    ///
    /// # Errors
    /// An account that is not open; a treasury that has not enough.
    pub fn top_up(&self, account: &str, amount: u64, at: Timestamp) -> Result<Entry, Refusal> {
        if !self.accounts.contains_key(account) || [ISSUANCE, TREASURY_ACCOUNT].contains(&account) {
            return Err(Refusal::not_found(
                format!("account {:?} does not exist", head_of(account)),
                format!("{ACCOUNT_NAMES}; list them with `continuum account list`"),
            ));
        }
        if amount == 0 {
            return Err(Refusal::invalid("nothing is asked for", "ask for at least one unit"));
        }
        let tariff = self.tariff();
        let has = self.balance(TREASURY_ACCOUNT);
        // The printed contract never gives the last unit away.
        let least = if tariff.formula() == Formula::Faithful { amount.saturating_add(1) } else { amount };
        if !u64::try_from(has).is_ok_and(|has| has >= least) {
            return Err(Refusal::exhausted(format!("the treasury has {has} units, {amount} are asked of it"), SPLIT));
        }
        let mut moves = self.moves();
        moves.transfer(TREASURY_ACCOUNT, account, amount)?;
        let mut left = amount;
        for (creditor, owed) in self.owes.get(account).into_iter().flatten() {
            let paid = left.min(*owed);
            moves.pay(account, creditor, paid, tariff.fee_rate)?;
            left -= paid;
        }
        let entry = self.entry(EntryKind::ToppedUp, at);
        Ok(Entry { account: account.to_owned(), transfers: moves.transfers, ..entry })
    }

    /// A window of usage; `None` if it was charged before. Accounts that it needs and that are not open are opened by it,
    /// so that the order in which registrations and windows arrive changes nothing.
    ///
    /// # Errors
    /// A window that contradicts itself, is too old to be distinguished from one that was charged, or is from the future.
    pub fn window(&self, usage: UsageClosed, at: Timestamp) -> Result<Option<Entry>, Refusal> {
        let Seen::New { missed } = self.seen(&usage)? else { return Ok(None) };
        let (tariff, mut moves) = (self.tariff(), self.moves());
        let service = service_account(&usage.owner, &usage.workload);
        let cluster = cluster_account(&usage.cluster_id);
        moves.open(&cluster, tariff.cluster_grant)?;
        moves.open(&service, tariff.workload_grant)?;
        let mut charge = Charge { missed_windows: missed, ..Charge::default() };
        let (outcome, reason) = match (self.regions.get(&usage.region), usage.samples) {
            (_, 0) => (Outcome::NoTelemetry, "no sample of it was seen".to_owned()),
            (None, _) => {
                (Outcome::UnknownRegion, "Data for region must be set before calling this function.".to_owned())
            }
            (Some(region), _) => match tariff::cost(tariff.formula(), region, &usage) {
                Err(error) => (Outcome::Reverted, error.to_string()),
                Ok(tokens) if tariff.formula() == Formula::Faithful => {
                    charge.tokens = tokens;
                    match moves.pay_faithfully(&service, &cluster, tokens, tariff.fee_rate) {
                        Ok(()) => {
                            charge.paid = tokens;
                            (Outcome::Paid, String::new())
                        }
                        Err(reason) => (Outcome::Reverted, reason.to_owned()),
                    }
                }
                Ok(0) => (Outcome::Free, String::new()),
                Ok(tokens) => {
                    charge.tokens = tokens;
                    charge.paid = u64::try_from(moves.balance(&service)).unwrap_or_default().min(tokens);
                    moves.pay(&service, &cluster, charge.paid, tariff.fee_rate)?;
                    let owed = tokens - charge.paid;
                    if owed == 0 {
                        (Outcome::Paid, String::new())
                    } else if self.debt(&service).checked_add(owed).is_none() {
                        return Err(Refusal::exhausted(
                            format!("{service} owes more than can be counted"),
                            "top it up",
                        ));
                    } else {
                        (Outcome::Owed, format!("{service} has not enough; the rest is owed"))
                    }
                }
            },
        };
        charge.outcome = outcome.into();
        charge.reason = reason;
        charge.usage = Some(usage);
        let entry = self.entry(EntryKind::Window, at);
        Ok(Some(Entry { charge: Some(charge), transfers: moves.transfers, ..entry }))
    }

    fn seen(&self, usage: &UsageClosed) -> Result<Seen, Refusal> {
        let keys = [&usage.cluster_id, &usage.instance_id, &usage.owner, &usage.workload];
        let begin = i64::try_from(usage.window).ok().and_then(|n| n.checked_mul(usage.window_ms.into()));
        let ends = end_ms(usage.window, usage.window_ms);
        let sound = keys.iter().all(|key| is_key(key))
            && (usage.region.is_empty() || is_key(&usage.region))
            && (1..=WINDOW_MAX_MS).contains(&usage.window_ms)
            && usage.gap_ms <= usage.window_ms
            && begin.is_some_and(|begin| usage.begin == Some(Timestamp::from_millis(begin)));
        let Some(end) = ends.filter(|end| sound && usage.end == Some(Timestamp::from_millis(*end))) else {
            return Err(Refusal::invalid(
                "the window contradicts itself",
                "its publisher is at fault; see the collector's log",
            ));
        };
        let old = || {
            Refusal::stale(
                format!("window {} is too old to be distinguished from one that was charged", usage.window),
                "top up or correct by hand what it would have cost; see docs/accounting.md",
            )
        };
        if usage.samples == 0 && self.measured_ms > 0 && end - self.measured_ms > AHEAD_MAX_MS {
            return Err(Refusal::invalid(
                format!("window {} has no samples and ends more than a day after anything measured", usage.window),
                "set the collector's clock right",
            ));
        }
        let Some(track) = self.tracks.get(&track_key(usage)) else {
            return if end <= self.forgotten_ms { Err(old()) } else { Ok(Seen::New { missed: 0 }) };
        };
        if track.window_ms != usage.window_ms {
            // The length was changed: the first window of the new one must not overlap the last of the old.
            return if begin.is_none_or(|begin| begin < track.end_ms()) {
                Err(old())
            } else {
                Ok(Seen::New { missed: 0 })
            };
        }
        match track.newest.checked_sub(usage.window) {
            None => Ok(Seen::New { missed: usage.window - track.newest - 1 }),
            Some(behind) if behind >= BEHIND_MAX => Err(old()),
            Some(behind) if track.charged >> behind & 1 == 1 => Ok(Seen::Again),
            Some(_) => Ok(Seen::New { missed: 0 }),
        }
    }

    /// The ledger after an entry whose leaf has this hash. Entries are folded as they are, without judging them.
    pub fn fold(&mut self, entry: &Entry, leaf: Hash) {
        for transfer in &entry.transfers {
            set(&mut self.accounts, &transfer.from, transfer.from_balance);
            set(&mut self.accounts, &transfer.to, transfer.to_balance);
        }
        match entry.kind() {
            EntryKind::Opened | EntryKind::TariffSet => self.tariff = entry.tariff,
            EntryKind::RegionSet => {
                self.regions.extend(entry.region.clone().map(|region| (region.name.clone(), region)));
            }
            EntryKind::ToppedUp => self.repaid(entry),
            EntryKind::Window => self.charged(entry),
            EntryKind::Registered | EntryKind::Unspecified => {}
        }
        if entry.kind() != EntryKind::Opened {
            self.actions += entry.transfers.len() as u64;
        }
        self.tree.push(leaf);
    }

    fn repaid(&mut self, entry: &Entry) {
        let Some(owed) = self.owes.get_mut(&entry.account) else { return };
        for transfer in entry.transfers.iter().filter(|t| t.from == entry.account) {
            if let Some(debt) = owed.get_mut(&transfer.to) {
                *debt = debt.saturating_sub(transfer.amount);
            }
        }
        owed.retain(|_, debt| *debt > 0);
        if owed.is_empty() {
            self.owes.remove(&entry.account);
        }
    }

    fn charged(&mut self, entry: &Entry) {
        let Some((charge, usage)) = entry.charge.as_ref().and_then(|c| Some((c, c.usage.as_ref()?))) else { return };
        if charge.outcome() == Outcome::Owed {
            let owed = self.owes.entry(service_account(&usage.owner, &usage.workload)).or_default();
            let debt = owed.entry(cluster_account(&usage.cluster_id)).or_default();
            *debt = debt.saturating_add(charge.tokens.saturating_sub(charge.paid));
        }
        let end = end_ms(usage.window, usage.window_ms).unwrap_or(0);
        if usage.samples > 0 {
            self.measured_ms = self.measured_ms.max(end);
        }
        let fresh = Track { window_ms: usage.window_ms, newest: usage.window, charged: 1, touched: entry.index };
        let key = track_key(usage);
        match self.tracks.get_mut(&key).filter(|track| track.window_ms == usage.window_ms) {
            Some(track) if usage.window > track.newest => {
                let ahead = u32::try_from(usage.window - track.newest).unwrap_or(u32::MAX);
                *track = Track { charged: track.charged.checked_shl(ahead).unwrap_or(0) | 1, ..fresh };
            }
            Some(track) => {
                track.charged |= 1u64.checked_shl((track.newest - usage.window) as u32).unwrap_or(0);
                track.touched = entry.index;
            }
            None => {
                self.tracks.insert(key, fresh);
                self.forget();
            }
        }
    }

    /// Forgets a tenth of the instances when there are too many: those silent for longest.
    fn forget(&mut self) {
        if self.tracks.len() <= TRACKS_MAX {
            return;
        }
        let mut touched: Vec<u64> = self.tracks.values().map(|track| track.touched).collect();
        touched.sort_unstable();
        let Some(limit) = touched.get(TRACKS_MAX / 10).copied() else { return };
        let mut forgotten = self.forgotten_ms;
        self.tracks.retain(|_, track| {
            let keep = track.touched >= limit;
            if !keep {
                forgotten = forgotten.max(track.end_ms());
            }
            keep
        });
        self.forgotten_ms = forgotten;
    }

    /// Is this the entry that the ledger writes next about what the entry is about?
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn audit(&self, entry: &Entry) -> Result<(), Fault> {
        let index = entry.index;
        if index != self.size() {
            return Err(Fault::OutOfPlace { found: index, expected: self.size() });
        }
        let incomplete = Fault::Incomplete(index);
        let at = entry.at.ok_or(incomplete.clone())?;
        let expected = match entry.kind() {
            EntryKind::Opened if index == 0 => self.opening(entry.tariff.ok_or(incomplete)?, at).map(Some),
            EntryKind::Registered => self.registration(&entry.account, at),
            EntryKind::RegionSet => self.region_set(entry.region.clone().ok_or(incomplete)?, at).map(Some),
            EntryKind::TariffSet => self.tariff_set(entry.tariff.ok_or(incomplete)?, at).map(Some),
            EntryKind::ToppedUp => {
                let given = entry.transfers.first().ok_or(incomplete)?;
                self.top_up(&entry.account, given.amount, at).map(Some)
            }
            EntryKind::Window => {
                let usage = entry.charge.as_ref().and_then(|charge| charge.usage.clone()).ok_or(incomplete)?;
                self.window(usage, at)
            }
            EntryKind::Opened | EntryKind::Unspecified => return Err(incomplete),
        };
        match expected {
            Ok(Some(expected)) if expected == *entry => Ok(()),
            Ok(Some(_)) => Err(Fault::Wrong(index, "its amounts or outcome differ".into())),
            Ok(None) => Err(Fault::Wrong(index, "it was done before".into())),
            Err(refusal) => Err(Fault::Wrong(index, refusal.reason)),
        }
    }

    /// Sum of all balances: zero, whatever happened.
    pub fn sum(&self) -> i128 {
        self.accounts.values().map(|balance| i128::from(*balance)).sum()
    }
}

const ACCOUNT_NAMES: &str = "accounts are `service/<owner>/<workload>` and `cluster/<cluster>`";

fn set(accounts: &mut BTreeMap<String, i64>, account: &str, balance: i64) {
    match accounts.get_mut(account) {
        Some(known) => *known = balance,
        None => {
            accounts.insert(account.to_owned(), balance);
        }
    }
}

fn track_key(usage: &UsageClosed) -> String {
    format!("{}/{}", usage.cluster_id, usage.instance_id)
}

/// The beginning of a text that may be long.
fn head_of(text: &str) -> String {
    text.chars().take(80).collect()
}
