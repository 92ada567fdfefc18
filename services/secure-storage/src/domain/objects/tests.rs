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

fn deleted_as(condition: Condition, versioning: Versioning) -> Command {
    let [bucket, object, key, version] = ["b", "o", "k", "m"].map(Into::into);
    let marker = MarkerStored { bucket, object, key, epoch: 1, version, modified: None };
    Command::Delete { marker, condition, versioning }
}

fn deleted(condition: Condition) -> Command {
    deleted_as(condition, Versioning::Off)
}

fn version_deleted(version: &str) -> Command {
    let [bucket, object, key, version] = ["b", "o", "k", version].map(Into::into);
    let fact = ObjectDeleted { bucket, object, key, epoch: 1, version, ..ObjectDeleted::default() };
    Command::DeleteVersion { fact, condition: Condition::default() }
}

fn put_as(id: u8, versioning: Versioning) -> Command {
    Command::Put { object: put(id), condition: Condition::default(), versioning }
}

fn names(state: &State) -> Vec<&str> {
    state.versions.iter().map(Version::name).collect()
}

/// The state after a command that changes something.
fn after(state: State, command: &Command) -> State {
    let fact = decide(&state, command).unwrap().unwrap();
    evolve(state, &fact)
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
    let with = |condition: &Condition| Command::Put {
        object: put(2),
        condition: condition.clone(),
        versioning: Versioning::Off,
    };
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
    // As in S3: what is not there is no key, and not another one.
    assert_eq!(decide(&none, &with(&if_match("etag-1"))), Err(Refused::NoObject));
    assert_eq!(decide(&none, &deleted(if_match("*"))), Err(Refused::NoObject));
}

#[test]
fn a_completed_upload_becomes_visible_once_or_is_dropped() {
    let complete = |condition| Command::Complete { object: completed(1), condition, versioning: Versioning::Off };
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
    assert_eq!(dropped.now(), Some(&put(2)));
    assert_eq!(decide(&dropped, &complete(Condition::default())), Err(Refused::NoUpload));
    assert_eq!(decide(&dropped, &drop), Ok(None));
}

#[test]
fn an_upload_that_another_gateway_finishes_overwrites_nothing_newer() {
    let finish = |replaces: String| Command::Finish { object: completed(3), replaces, versioning: Versioning::Off };
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
    assert_eq!(evolve(given(&[put(1).into()]), &fact).now(), Some(&after));
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

#[test]
fn where_versions_are_kept_a_put_replaces_none_and_a_delete_hides() {
    let state = after(given(&[put(1).into()]), &put_as(2, Versioning::Enabled));
    let named = state.now().unwrap().version.clone();
    assert_eq!((names(&state), named.len()), (vec!["", named.as_str()], 32));
    let hidden = after(state.clone(), &deleted_as(Condition::default(), Versioning::Enabled));
    assert_eq!(names(&hidden), ["", named.as_str(), "m"]);
    assert_eq!(hidden.find(None), Err(Refused::Hidden { marker: "m".into() }));
    assert!(matches!(hidden.find(Some("m")), Err(Refused::Marker { .. })));
    assert_eq!(hidden.find(Some("x")), Err(Refused::NoVersion));
    assert_eq!(hidden.find(Some("")).unwrap().etag, "etag-1");
    // A condition is on what is visible: nothing.
    let only_new = Command::Put { object: put(3), condition: IF_NONE, versioning: Versioning::Enabled };
    assert!(decide(&hidden, &only_new).is_ok());
    assert_eq!(decide(&hidden, &deleted_as(if_match("*"), Versioning::Enabled)), Err(Refused::NoObject));
    // Without its marker it is visible again.
    let shown = after(hidden.clone(), &version_deleted("m"));
    assert_eq!(shown.now().unwrap().etag, "etag-2");
    assert_eq!(decide(&shown, &version_deleted("m")), Ok(None));
    let without = after(shown, &version_deleted(&named));
    assert_eq!(without.now().unwrap().etag, "etag-1");
}

#[test]
fn while_versions_are_suspended_only_the_null_version_is_replaced() {
    let state = after(given(&[put(1).into()]), &put_as(2, Versioning::Enabled));
    let fact = decide(&state, &put_as(3, Versioning::Suspended)).unwrap().unwrap();
    assert_eq!(garbage(&state, &fact).unwrap().parts, put(1).parts);
    let suspended = evolve(state, &fact);
    assert_eq!((suspended.versions.len(), suspended.now().unwrap().etag.as_str()), (2, "etag-3"));
    let fact = decide(&suspended, &deleted_as(Condition::default(), Versioning::Suspended)).unwrap().unwrap();
    assert_eq!(garbage(&suspended, &fact).unwrap().parts, put(3).parts);
    let hidden = evolve(suspended, &fact);
    assert_eq!(hidden.find(None), Err(Refused::Hidden { marker: String::new() }));
    assert_eq!(hidden.versions.len(), 2);
}

#[test]
fn a_version_is_named_alike_by_each_attempt_and_tagged_in_its_place() {
    let state = given(&[put(1).into()]);
    let first = decide(&state, &put_as(2, Versioning::Enabled)).unwrap();
    assert_eq!(first, decide(&initial(), &put_as(2, Versioning::Enabled)).unwrap());
    let state = evolve(state, &first.unwrap());
    let tags = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let tag = |version: Option<&str>| Command::Tag {
        bucket: "b".into(),
        object: "o".into(),
        version: version.map(Into::into),
        tags: tags.clone(),
    };
    let old = after(state.clone(), &tag(Some("")));
    assert_eq!((names(&old), old.find(Some("")).unwrap().tags == tags), (names(&state), true));
    assert!(old.now().unwrap().tags.is_empty());
    let new = after(old, &tag(None));
    assert_eq!(new.now().unwrap().tags, tags);
    assert_eq!(decide(&new, &tag(None)), Ok(None));
    assert_eq!(decide(&initial(), &tag(None)), Err(Refused::NoObject));
    assert_eq!(decide(&new, &tag(Some("x"))), Err(Refused::NoVersion));
}

#[test]
fn a_last_fact_suffices_only_where_it_tells_all_that_is_needed() {
    let old: Fact = put(1).into();
    assert!(suffices(&old, Need::All) && suffices(&old, Need::Latest));
    let state = given(std::slice::from_ref(&old));
    let new = decide(&state, &put_as(2, Versioning::Enabled)).unwrap().unwrap();
    assert!(!suffices(&new, Need::All) && suffices(&new, Need::Latest));
    let both = evolve(state, &new);
    let gone = decide(&both, &version_deleted("")).unwrap().unwrap();
    assert!(!suffices(&gone, Need::Latest));
    // A gateway that has not heard of versions keeps them, once the key has some.
    let late = decide(&both, &put_as(3, Versioning::Off)).unwrap().unwrap();
    assert_eq!(garbage(&both, &late), None);
    let late = decide(&both, &deleted(Condition::default())).unwrap().unwrap();
    assert!(matches!(late, Fact::MarkerStored(_)));
}
