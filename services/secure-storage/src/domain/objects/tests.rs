use mesh_proto::object::Layout;

use super::*;

fn put(id: u8) -> ObjectStored {
    ObjectStored {
        bucket: "b".into(),
        object: "o".into(),
        etag: format!("etag-{id}"),
        layout: Some(Layout { key_id: vec![id; 16].into(), ..Layout::default() }),
        parts: vec![Part { blob: vec![id; 16].into(), size: 1 }],
        ..ObjectStored::default()
    }
}

fn completed(id: u8) -> ObjectStored {
    ObjectStored { upload: format!("upload-{id}"), ..put(id) }
}

fn deleted(condition: Condition) -> Command {
    let fact = ObjectDeleted { bucket: "b".into(), object: "o".into(), key: "k".into(), epoch: 1 };
    Command::Delete { fact, condition }
}

fn given(facts: &[Fact]) -> State {
    facts.iter().fold(initial(), evolve)
}

fn if_match(etag: &str) -> Condition {
    Condition { if_match: vec![etag.into()], if_none: false }
}

const IF_NONE: Condition = Condition { if_match: vec![], if_none: true };

#[test]
fn conditions_are_decided_against_what_the_fact_replaces() {
    let (none, one) = (given(&[]), given(&[put(1).into()]));
    let with = |condition: &Condition| Command::Put { object: put(2), condition: condition.clone() };
    for (state, condition, holds) in [
        (&none, Condition::default(), true),
        (&none, IF_NONE, true),
        (&none, if_match("*"), false),
        (&one, Condition::default(), true),
        (&one, IF_NONE, false),
        (&one, if_match("*"), true),
        (&one, if_match("etag-1"), true),
        (&one, if_match("etag-2"), false),
    ] {
        assert_eq!(decide(state, &with(&condition)).is_ok(), holds, "{condition:?}");
        if !condition.if_none {
            assert_eq!(decide(state, &deleted(condition.clone())).is_ok(), holds, "delete, {condition:?}");
        }
    }
    assert_eq!(decide(&none, &deleted(Condition::default())), Ok(None));
    assert_eq!(decide(&one, &deleted(if_match("nope"))), Err(Refused::Precondition));
}

#[test]
fn a_completed_upload_becomes_visible_once_or_is_dropped() {
    let complete = |condition| Command::Complete { object: completed(1), condition };
    let visible = given(&[completed(1).into(), put(2).into()]);
    // Completed, and replaced since: it is not made visible again.
    assert_eq!(decide(&visible, &complete(Condition::default())), Ok(None));
    let drop = Command::Drop { bucket: "b".into(), object: "o".into(), upload: "upload-1".into() };
    assert_eq!(decide(&visible, &drop), Err(Refused::NoUpload));
    // A condition that no longer holds drops it, for good.
    let taken = given(&[put(2).into()]);
    let fact = decide(&taken, &complete(IF_NONE)).unwrap().unwrap();
    assert!(matches!(&fact, Fact::UploadDropped(m) if m.upload == "upload-1"));
    let dropped = evolve(taken, &fact);
    assert_eq!(dropped.now, Some(put(2)));
    assert_eq!(decide(&dropped, &complete(Condition::default())), Err(Refused::NoUpload));
    assert_eq!(decide(&dropped, &drop), Ok(None));
}

#[test]
fn an_upload_that_another_gateway_finishes_overwrites_nothing_newer() {
    let finish = |replaces: String| Command::Finish { object: completed(3), replaces };
    let state = given(&[put(1).into()]);
    assert!(matches!(decide(&state, &finish(write_id(&put(1)))), Ok(Some(Fact::ObjectStored(_)))));
    assert!(matches!(decide(&state, &finish(String::new())), Ok(Some(Fact::UploadDropped(_)))));
    assert!(matches!(decide(&initial(), &finish(String::new())), Ok(Some(Fact::ObjectStored(_)))));
    assert_eq!(decide(&given(&[completed(3).into()]), &finish(String::new())), Ok(None));
}

#[test]
fn a_move_is_decided_only_for_the_object_that_was_read() {
    let layout = Layout { master_key: "new".into(), ..put(1).layout.unwrap() };
    let after = ObjectStored { layout: Some(layout), ..put(1) };
    let moves = Command::Move { before: put(1), after: after.clone(), reason: "rewrapped".into() };
    let fact = decide(&given(&[put(1).into()]), &moves).unwrap().unwrap();
    assert_eq!(evolve(given(&[put(1).into()]), &fact).now, Some(after));
    assert_eq!(garbage(&given(&[put(1).into()]), &fact), None);
    assert_eq!(decide(&given(&[put(2).into()]), &moves), Ok(None));
    assert_eq!(decide(&initial(), &moves), Ok(None));
}

#[test]
fn garbage_is_what_the_new_object_does_not_hold() {
    let before = given(&[put(1).into()]);
    let mut shares = put(2);
    shares.parts.extend(put(1).parts);
    assert_eq!(garbage(&before, &put(2).into()).unwrap().parts, put(1).parts);
    assert_eq!(garbage(&before, &shares.into()), None);
    assert_eq!(garbage(&initial(), &put(2).into()), None);
    let Ok(Some(fact)) = decide(&before, &deleted(Condition::default())) else { panic!() };
    assert_eq!(garbage(&before, &fact).unwrap().parts, put(1).parts);
}
