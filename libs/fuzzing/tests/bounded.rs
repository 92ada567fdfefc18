//! A bounded run of every target, and what made one fail once.

#![cfg(test)]
#![allow(missing_docs)]

use fuzzing::{run, targets};

const CASES: u64 = 2_000;

#[test]
fn no_input_makes_a_parser_panic_or_break_its_word() {
    for target in targets() {
        let mut tried = 0;
        let read = run(target, 1, CASES, |_| tried += 1);
        // One that reads nothing, or everything, tries nothing.
        assert!(read > 0, "{} read none of {tried}", target.name);
        assert!(read < tried || target.name == "shown", "{} read all of {tried}", target.name);
    }
}

#[test]
fn the_same_seed_makes_the_same_input() {
    let target = targets().next().unwrap();
    let inputs = |seed| {
        let mut all = vec![];
        run(target, seed, 50, |input| all.push(input.to_owned()));
        all
    };
    assert_eq!(inputs(7), inputs(7));
    assert_ne!(inputs(7), inputs(8));
}

#[test]
fn what_made_a_target_fail_once_does_not_any_more() {
    const FAILED: &[(&str, &[u8])] = &[
        // A leap second beyond the last year; a fraction that was read as the number beside it.
        ("time", b"9999-12-31T23:59:60Z"),
        ("yaml", b"a: 1000.184467440737095516160\n"),
        // A priority that was shown and could not be sent again.
        ("tmf-body", b"0{\"name\": \"a\", \"expression\": {\"expressionValue\": {\"intentPriority\": 9010}}}"),
    ];
    for (name, input) in FAILED {
        let target = targets().find(|target| target.name == *name).unwrap();
        (target.try_on)(input);
    }
}
