//! The whole mesh in one thread, five hundred times (five thousand with `CONTINUUM_FULL`). A failing seed is printed with the command that runs it again.
#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(clippy::print_stdout)]

use std::{
    panic::catch_unwind,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
};

use integration_tests::sim::{Mutation, Totals, areas, run};

const THREADS: usize = 2;

/// A run whose panics are failures of its seed.
fn attempt(seed: u64, mutation: Mutation) -> Result<Totals, String> {
    catch_unwind(|| run(seed, mutation)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!("panicked: {}", text.or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()))
    })
}

fn explained(seed: u64, error: &str) -> String {
    format!(
        "seed {seed}: {error}\nrun it again: CONTINUUM_SEED={seed} cargo test -p integration-tests --test simulation\n"
    )
}

#[test]
fn five_hundred_seeds_hold_every_invariant() {
    if let Some(seed) = std::env::var("CONTINUUM_SEED").ok().and_then(|text| text.parse().ok()) {
        println!("{:?}", attempt(seed, Mutation::None).unwrap_or_else(|error| panic!("{}", explained(seed, &error))));
        return;
    }
    let seeds: u64 = if mesh_test::is_full() { 5_000 } else { 500 };
    let next = AtomicU64::new(0);
    let work = || {
        let (mut sum, mut failed) = (Totals::default(), vec![]);
        loop {
            let seed = next.fetch_add(1, SeqCst);
            if seed >= seeds || failed.len() >= 5 {
                return (sum, failed);
            }
            match attempt(seed, Mutation::None) {
                Ok(totals) => {
                    sum.steps += totals.steps;
                    sum.messages += totals.messages;
                    sum.facts += totals.facts;
                    sum.commands += totals.commands;
                    sum.crashes += totals.crashes;
                    sum.retried += totals.retried;
                    sum.seconds += totals.seconds;
                    sum.conflicts += totals.conflicts;
                    sum.timed += totals.timed;
                    sum.rollbacks += totals.rollbacks;
                    for (kind, count) in totals.kinds {
                        *sum.kinds.entry(kind).or_default() += count;
                    }
                }
                Err(error) => failed.push(explained(seed, &error)),
            }
        }
    };
    let results: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    for (sum, _) in &results {
        println!("{seeds} seeds, one of {THREADS} threads: {sum:?}");
    }
    let failed: Vec<String> = results.iter().flat_map(|(_, failed)| failed.clone()).collect();
    assert!(failed.is_empty(), "{} seeds failed\n{}", failed.len(), failed.join("\n"));
    // The faults that this is about did happen.
    let sum = |of: fn(&Totals) -> u64| results.iter().map(|(sum, _)| of(sum)).sum::<u64>();
    assert!(sum(|t| t.crashes) > seeds && sum(|t| t.retried) > seeds && sum(|t| t.facts) > 50 * seeds);
    let rare: Vec<String> = areas::all_kinds()
        .into_iter()
        .map(|kind| (results.iter().filter_map(|(sum, _)| sum.kinds.get(&kind)).sum::<u64>(), kind))
        .filter(|(count, _)| *count < seeds / 50)
        .map(|(count, kind)| format!("{kind}: {count}"))
        .collect();
    assert!(rare.is_empty(), "too rare among {seeds} seeds: {}", rare.join(", "));
    assert!(sum(|t| t.conflicts) > seeds / 2 && sum(|t| t.timed) > seeds && sum(|t| t.rollbacks) > seeds / 5);
}

#[test]
fn a_seed_is_one_run() {
    for seed in [1, 2, 3] {
        assert_eq!(run(seed, Mutation::None), run(seed, Mutation::None));
    }
    assert_ne!(run(1, Mutation::None).unwrap().digest, run(2, Mutation::None).unwrap().digest);
}

#[test]
fn each_fault_put_in_on_purpose_is_found_within_a_few_seeds() {
    for mutation in [Mutation::IgnoresConditions, Mutation::LosesInputs, Mutation::SavesAhead] {
        let found = (0..40).find(|seed| attempt(*seed, mutation).is_err());
        assert!(found.is_some(), "{mutation:?} was not seen");
    }
}
