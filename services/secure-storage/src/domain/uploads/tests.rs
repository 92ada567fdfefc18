use super::*;
use crate::domain::objects::write_id;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn started() -> Fact {
    UploadStarted { bucket: "b".into(), upload: "u".into(), key: "k".into(), epoch: 1, ..UploadStarted::default() }
        .into()
}

/// A part of a blob that is named by one byte; its etag is that of its content.
fn part(number: u32, blob: u8, content: u8, size: u64) -> Fact {
    PartStored {
        bucket: "b".into(),
        upload: "u".into(),
        number: number.to_string(),
        part: Some(Part { blob: vec![blob; 16].into(), size }),
        etag: etag_of(content),
        ..PartStored::default()
    }
    .into()
}

fn etag_of(content: u8) -> String {
    hex::encode([content; 16])
}

fn given(facts: &[Fact]) -> State {
    facts.iter().fold(initial(), |state, fact| evolve(state, fact, at(1)))
}

fn complete(named: &[(u32, u8)]) -> Command {
    let named = named.iter().map(|(number, content)| (*number, etag_of(*content))).collect();
    let (bucket, upload, claims) = ("b".into(), "u".into(), Claims::default());
    Command::Complete { bucket, upload, named, claims, replaces: String::new(), at: at(9) }
}

fn decided(state: &State, command: &Command) -> State {
    let fact = decide(state, command).unwrap().unwrap();
    evolve(state.clone(), &fact, at(9))
}

const ABORT: fn() -> Command = || Command::Abort { bucket: "b".into(), upload: "u".into() };
const FULL: u64 = PART_MIN_BYTES;

#[test]
fn named_parts_become_the_object_and_none_of_it_is_garbage() {
    // Part 1 twice with the same bytes, and a part that nobody names.
    let state = given(&[started(), part(1, 1, 1, FULL), part(1, 2, 1, FULL), part(2, 3, 2, 7), part(3, 4, 3, 7)]);
    let state = decided(&state, &complete(&[(1, 1), (2, 2)]));
    let object = state.object().unwrap();
    assert_eq!((object.size, object.key.as_str(), write_id(object).as_str()), (FULL + 7, "k", "u"));
    assert!(object.etag.ends_with("-2"));
    let blobs: Vec<u8> = object.parts.iter().map(|part| part.blob[0]).collect();
    assert_eq!(blobs, [2, 3]);
    let garbage: Vec<u8> = state.garbage().iter().map(|part| part.blob[0]).collect();
    assert_eq!(garbage, [4, 1]);
}

#[test]
fn a_part_that_ends_after_complete_or_abort_is_no_part() {
    let open = given(&[started(), part(1, 1, 1, 7)]);
    for end in [complete(&[(1, 1)]), ABORT()] {
        let over = decided(&open, &end);
        let Fact::PartStored(late) = part(1, 9, 1, 7) else { panic!() };
        assert_eq!(decide(&over, &Command::AddPart(late.clone())), Err(Refused::NoUpload));
        // Its fact was on its way when the upload ended.
        let late = evolve(over.clone(), &late.into(), at(10));
        assert!(!late.took(&[9; 16]) && late.took(&[1; 16]));
        assert_eq!(late.object(), over.object());
        assert!(late.garbage().iter().any(|part| part.blob[0] == 9));
        assert_eq!(late.garbage().iter().any(|part| part.blob[0] == 1), over.object().is_none());
    }
}

#[test]
fn of_two_lists_one_completes_and_the_same_list_again_is_right() {
    let state = given(&[started(), part(1, 1, 1, FULL), part(2, 2, 2, 7)]);
    let won = decided(&state, &complete(&[(1, 1), (2, 2)]));
    assert_eq!(decide(&won, &complete(&[(1, 1), (2, 2)])), Ok(None));
    assert_eq!(decide(&won, &complete(&[(1, 1)])), Err(Refused::NoUpload));
    // The object decides whether it can still be dropped.
    assert_eq!(decide(&won, &ABORT()), Ok(None));
    let aborted = decided(&state, &ABORT());
    assert_eq!(decide(&aborted, &ABORT()), Err(Refused::NoUpload));
    assert_eq!(decide(&aborted, &complete(&[(1, 1)])), Err(Refused::NoUpload));
}

#[test]
fn wrong_lists_are_refused_by_kind_and_leave_the_upload_open() {
    let state = given(&[started(), part(1, 1, 1, 7), part(2, 2, 2, 7)]);
    let refused = |named: &[(u32, u8)]| decide(&state, &complete(named)).unwrap_err();
    assert_eq!(refused(&[]), Refused::PartCount(0));
    assert_eq!(refused(&[(2, 2), (1, 1)]), Refused::PartOrder);
    assert_eq!(refused(&[(1, 1), (1, 1)]), Refused::PartOrder);
    assert_eq!(refused(&[(1, 2)]), Refused::PartUnknown { number: 1, etag: etag_of(2) });
    assert_eq!(refused(&[(3, 1)]), Refused::PartUnknown { number: 3, etag: etag_of(1) });
    assert_eq!(refused(&[(1, 1), (2, 2)]), Refused::PartTooSmall { number: 1, bytes: 7 });
    assert!(state.open().is_ok());
    assert_eq!(decide(&initial(), &complete(&[(1, 1)])), Err(Refused::NoUpload));
    for number in ["0", "10001", "x", ""] {
        assert_eq!(part_number(number), Err(Refused::PartNumber(number.into())));
    }
}

#[test]
fn a_completed_upload_is_due_and_an_aborted_one_is_not() {
    let state = given(&[started(), part(1, 1, 1, 7)]);
    let ended = |command| decided(&state, &command).ended.unwrap().0;
    assert_eq!(due(&ended(complete(&[(1, 1)])), at(5)), Some(at(5 + FINISH_AFTER_MS)));
    assert_eq!(due(&ended(ABORT()), at(5)), None);
}

/// A part with the checksum of its content, under an upload of an algorithm.
fn summed(number: u32, content: &[u8], algorithm: Algorithm) -> Fact {
    let mut hasher = super::super::checksums::Hasher::new(algorithm);
    hasher.update(content);
    let Fact::PartStored(stored) = part(number, number as u8, number as u8, content.len() as u64) else { panic!() };
    PartStored { checksum: Some(algorithm.checksum(&hasher.finish())), ..stored }.into()
}

#[test]
fn a_completed_object_has_the_checksum_that_was_agreed_and_claimed() {
    let with = |algorithm: Algorithm, composite| {
        let Fact::UploadStarted(begun) = started() else { panic!() };
        let checksum = Checksum { algorithm: algorithm.name().into(), composite, ..Checksum::default() };
        UploadStarted { checksum: Some(checksum), ..begun }.into()
    };
    let claim = |claims: Claims| {
        let Command::Complete { bucket, upload, named, replaces, at, .. } = complete(&[(1, 1)]) else { panic!() };
        Command::Complete { bucket, upload, named, claims, replaces, at }
    };
    let crc = |value: &str| Some((Algorithm::Crc32, value.to_owned()));
    let whole = given(&[with(Algorithm::Crc32, false), summed(1, b"123456789", Algorithm::Crc32)]);
    let state = decided(&whole, &claim(Claims { checksum: crc("y/Q5Jg=="), size: Some(9), ..Claims::default() }));
    assert_eq!(state.object().unwrap().checksum.as_ref().unwrap().value, "y/Q5Jg==");
    let composite = given(&[with(Algorithm::Sha256, true), summed(1, b"123456789", Algorithm::Sha256)]);
    let state = decided(&composite, &claim(Claims::default()));
    assert!(state.object().unwrap().checksum.as_ref().is_some_and(|c| c.composite && c.value.ends_with("-1")));
    let wrong = |claims: Claims| decide(&whole, &claim(claims)).unwrap_err();
    assert_eq!(wrong(Claims { checksum: crc("AAAAAA=="), ..Claims::default() }), Refused::ObjectChecksum);
    assert_eq!(wrong(Claims { size: Some(8), ..Claims::default() }), Refused::Size { bytes: 9, claimed: 8 });
    let part = [(1, Algorithm::Crc32.checksum(&[0; 4]))].into();
    assert_eq!(wrong(Claims { parts: part, ..Claims::default() }), Refused::PartChecksum { number: 1 });
    let kind = wrong(Claims { composite: Some(true), ..Claims::default() });
    assert!(matches!(kind, Refused::ChecksumKind { .. }), "{kind}");
    let other = Some((Algorithm::Crc32c, "AAAAAA==".to_owned()));
    assert!(matches!(wrong(Claims { checksum: other, ..Claims::default() }), Refused::ChecksumKind { .. }));
}
