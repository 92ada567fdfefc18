//! Decides what is posted: one entry per registration, rate, window or command, each a leaf of the ledger's tree.

pub mod books;
pub mod fold;
pub(crate) mod heads;
pub(crate) mod kept;

use std::borrow::Cow;

use bytes::Bytes;
use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_proto::{
    Refusal, Timestamp,
    account::{Entry, Posted},
    deciders::ledger::{Fact, Input, NAME},
};
use prost::Message as _;

use ledger::{Ledger, MAIN, cluster_account, service_account, tariff, tree::leaf_hash};

/// The decider of the ledger.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accounting;

impl Decider for Accounting {
    const NAME: &'static str = NAME;
    type State = Ledger;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> Ledger {
        Ledger::default()
    }

    fn concerns(&self, input: &Input, _: &()) -> Vec<Key> {
        let ledger = match input {
            Input::SetRegion(m) => &m.ledger,
            Input::SetTariff(m) => &m.ledger,
            Input::TopUp(m) => &m.ledger,
            Input::WorkloadRegistered(_) | Input::ClusterRegistered(_) | Input::UsageClosed(_) => MAIN,
        };
        vec![Key::new([ledger])]
    }

    fn decide(&self, key: &Key, state: &Ledger, _: &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let Trigger::Event(input) = &envelope.trigger else { return Ok(vec![]) };
        if key.token(0) != MAIN {
            let reason = format!("there is no ledger {:?}", key.token(0));
            return Err(Refusal::not_found(reason, format!("name the ledger {MAIN:?}")));
        }
        let (mut facts, mut ledger) = (vec![], Cow::Borrowed(state));
        if ledger.size() == 0 {
            let (opened, leaf) = posted(&ledger, &ledger.opening(tariff::default_tariff(), envelope.at)?, "");
            ledger.to_mut().fold(&Entry::decode(opened.entry.clone()).unwrap_or_default(), leaf);
            facts.push(opened.into());
        }
        let (entry, command) = about(&ledger, input, envelope)?;
        if let Some(entry) = entry {
            facts.push(posted(&ledger, &entry, command).0.into());
        }
        Ok(facts)
    }

    fn evolve(&self, mut state: Ledger, fact: &Fact, _: Timestamp) -> Ledger {
        if let Fact::Posted(posted) = fact {
            // A leaf that this version cannot read still is a leaf: the tree must go on.
            let entry = Entry::decode(posted.entry.clone()).unwrap_or_default();
            state.fold(&entry, leaf_hash(&posted.entry));
        }
        state
    }

    fn due(&self, _: &Ledger) -> Option<Timestamp> {
        None
    }
}

/// The entry that an input makes, and the command that it answers.
fn about<'a>(
    ledger: &Ledger,
    input: &Input,
    envelope: &'a Envelope<Input>,
) -> Result<(Option<Entry>, &'a str), Refusal> {
    let at = envelope.at;
    let lacks = |what: &str| Refusal::invalid(format!("the command names no {what}"), format!("name a {what}"));
    Ok(match input {
        Input::SetRegion(m) => {
            (Some(ledger.region_set(m.region.clone().ok_or_else(|| lacks("region"))?, at)?), &envelope.id)
        }
        Input::SetTariff(m) => (Some(ledger.tariff_set(m.tariff.ok_or_else(|| lacks("tariff"))?, at)?), &envelope.id),
        Input::TopUp(m) => (Some(ledger.top_up(&m.account, m.amount, at)?), &envelope.id),
        Input::WorkloadRegistered(m) => (ledger.registration(&service_account(&m.owner, &m.name), at)?, ""),
        Input::ClusterRegistered(m) => (ledger.registration(&cluster_account(&m.cluster_id), at)?, ""),
        Input::UsageClosed(m) => (ledger.window(m.clone(), at)?, ""),
    })
}

/// An entry as a fact, with the hash of its leaf.
fn posted(ledger: &Ledger, entry: &Entry, command_id: &str) -> (Posted, ledger::tree::Hash) {
    let body = Bytes::from(entry.encode_to_vec());
    let leaf = leaf_hash(&body);
    let root = Bytes::copy_from_slice(&ledger.tree.root_after(leaf));
    let posted =
        Posted { ledger: MAIN.to_owned(), index: entry.index, entry: body, root, command_id: command_id.to_owned() };
    (posted, leaf)
}

#[cfg(test)]
mod tests;
