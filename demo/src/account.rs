//! The bill, with its proof.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use continuum::{
    commands::account::{amount, bill, export, inclusion},
    output::line,
};
use ledger::{
    MAIN,
    files::{self, Proved},
    note::Verifier,
    service_account,
};
use mesh_client::{ANSWER_WAIT, Client, OWNER};
use mesh_proto::{
    account::{Entry, Outcome, Region, SetRegion, StatementRequest},
    derived_id,
    query::ListRequest,
};

use crate::story::Story;

/// How long a window may take to be posted once its workload has run.
const WINDOW_LIMIT: Duration = Duration::from_secs(9);

/// Gives the clusters' regions rates, so that what the demo uses is charged.
pub(crate) async fn rates(client: &Client) -> anyhow::Result<()> {
    let clusters = client.orchestrator().await?.list_clusters(ListRequest::default()).await?.into_inner().clusters;
    for cluster in clusters.into_iter().filter_map(|c| c.registered) {
        let name = cluster.labels.get("region").unwrap_or(&cluster.site).clone();
        let id = derived_id(&["demo", "region", &name]);
        let region = Region { name, ..Region::default() };
        let command = SetRegion { ledger: MAIN.into(), region: Some(region) };
        client.ask(&command, id, ANSWER_WAIT).await.context("set the rates of a region")?;
    }
    Ok(())
}

/// Shows it. `own` is a mesh that the demo started, whose windows are short.
pub(crate) async fn chapter(story: &mut Story, client: &Client, own: bool) -> anyhow::Result<()> {
    story.chapter("the bill, and its proof");
    story.step("what the workload used, window by window, from a ledger that anybody can check");
    let account = service_account(OWNER, "spinner");
    let deadline = Instant::now() + WINDOW_LIMIT;
    let (view, entries) = loop {
        let request = StatementRequest { account: account.clone(), from_index: 0, page_size: 1_000 };
        let statement = client.accounts().await?.get_statement(request).await?.into_inner();
        // It ran in two places, and owes both.
        let places = statement.entries.iter().filter(|entry| paid(entry)).filter_map(place);
        if places.collect::<BTreeSet<_>>().len() >= 2 || Instant::now() > deadline || !own {
            break (statement.account.unwrap_or_default(), statement.entries);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    line(bill(&account, &entries));
    let Some(last) = entries.iter().rev().find(|entry| paid(entry)) else {
        story.detail("no window has ended yet in this mesh");
        if own {
            story.expect("a window is charged", false);
        }
        return Ok(());
    };
    let charged: u64 = entries.iter().filter_map(|e| e.charge.as_ref()).map(|c| c.paid).sum();
    let granted = entries.iter().flat_map(|e| &e.transfers).filter(|t| t.to == account).map(|t| t.amount).sum::<u64>();
    story.expect(
        &format!("{} tokens were granted, {} paid, {} are left", show(granted), show(charged), amount(view.balance)),
        view.balance >= 0 && granted.cast_signed() - charged.cast_signed() == view.balance,
    );

    let (proof, key) = inclusion(client, last.index).await?;
    let key = Verifier::parse(&key)?;
    let holds = files::verify(&proof, &key);
    let path = proof.lines().skip(3).take_while(|text| !text.is_empty()).count();
    story.expect(
        &format!("entry {} is proved by {path} hashes and a signed head, {} bytes", last.index, proof.len()),
        matches!(&holds, Ok(Proved::Inclusion { entry, .. }) if **entry == *last),
    );
    let (ledger, _) = export(client).await?;
    let begun = Instant::now();
    let checked = files::verify(&ledger, &key);
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let (entries, sum) = match &checked {
        Ok(Proved::Ledger { head, ledger }) => (head.size, Some(ledger.sum())),
        _ => (0, None),
    };
    story.expect(
        &format!("the whole ledger of {entries} entries is recomputed from its file in {took:.1} ms, and sums to 0"),
        sum == Some(0),
    );
    let at = ledger.len() / 2;
    let changed: String = ledger.char_indices().map(|(n, c)| if n == at { swapped(c) } else { c }).collect();
    let found = files::verify(&changed, &key);
    let reason = found.as_ref().err().map(ToString::to_string).unwrap_or_default();
    story.expect(&format!("with one character of it changed it is refused: {reason}"), found.is_err());
    story.close(
        "the workload paid the clusters it ran on, and its last entry was proved with a few hashes and a signature",
        "no one has to trust the operator's bill: a changed character is found with nothing but the exported file.",
    );
    Ok(())
}

fn paid(entry: &Entry) -> bool {
    entry.charge.as_ref().is_some_and(|charge| charge.outcome() == Outcome::Paid)
}

/// The cluster that it pays.
fn place(entry: &Entry) -> Option<&str> {
    entry.charge.as_ref()?.usage.as_ref().map(|usage| usage.cluster_id.as_str())
}

fn show(units: u64) -> String {
    amount(units.cast_signed())
}

fn swapped(character: char) -> char {
    if character == 'A' { 'B' } else { 'A' }
}
