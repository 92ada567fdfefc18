//! The decision about archives: stored once, by what they hold.
//!
//! An entity is `[owner, SHA-256]`. Its state is whether the archive is there; the archive itself lies in the fact and
//! nowhere else, so nothing that reads documents or instances ever carries it.

use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_proto::{
    Refusal, Timestamp,
    chart::{ChartStored, ChartUnchanged},
    deciders::charts::{Fact, Input, NAME},
};
use serde::{Deserialize, Serialize};

use chart::{ARCHIVE_BYTES_MAX, is_sha256, sha256};

/// The decider of archives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Charts;

/// One archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    stored: bool,
}

impl Decider for Charts {
    const NAME: &'static str = NAME;
    type State = State;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> State {
        State::default()
    }

    fn concerns(&self, input: &Input, (): &()) -> Vec<Key> {
        let Input::UploadChart(m) = input;
        vec![Key::new([&m.owner, &m.sha256])]
    }

    fn decide(&self, key: &Key, state: &State, (): &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let Trigger::Event(Input::UploadChart(m)) = &envelope.trigger else { return Ok(vec![]) };
        let (owner, named, command_id) = (key.token(0).to_owned(), key.token(1).to_owned(), envelope.id.clone());
        if !is_sha256(&named) {
            let reason = "its subject names no SHA-256";
            return Err(Refusal::invalid(reason, "send it for the 64 lower-case hexadecimal digits of the archive"));
        }
        if m.archive.len() > ARCHIVE_BYTES_MAX {
            let reason = format!("the archive has {} bytes; at most {ARCHIVE_BYTES_MAX} are allowed", m.archive.len());
            return Err(Refusal::too_large(reason, "leave out what the chart does not need (see .helmignore)"));
        }
        if !m.archive.starts_with(&[0x1f, 0x8b]) {
            return Err(Refusal::invalid(
                "the archive is not gzip-compressed",
                "upload the .tgz that `helm package` made",
            ));
        }
        let found = sha256(&m.archive);
        if found != named {
            let reason = format!("the archive's SHA-256 is {found}, the command is about {named}");
            return Err(Refusal::invalid(
                reason,
                "upload it again; it was changed on its way, or the digest is another's",
            ));
        }
        Ok(vec![match state.stored {
            true => ChartUnchanged { owner, sha256: named, command_id }.into(),
            false => ChartStored { owner, sha256: named, archive: m.archive.clone(), command_id }.into(),
        }])
    }

    fn evolve(&self, state: State, fact: &Fact, _: Timestamp) -> State {
        State { stored: state.stored || matches!(fact, Fact::ChartStored(_)) }
    }

    fn due(&self, _: &State) -> Option<Timestamp> {
        None
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mesh_proto::{Event as _, chart::UploadChart};

    use super::*;

    fn upload(state: State, digest: &str, archive: &[u8]) -> Result<Vec<Fact>, Refusal> {
        let archive = Bytes::copy_from_slice(archive);
        let upload = UploadChart { owner: "local".into(), sha256: digest.into(), archive };
        let key = Charts.concerns(&upload.clone().into(), &()).remove(0);
        assert_eq!(key.0, upload.keys());
        let what = Trigger::Event(upload.into());
        let envelope =
            Envelope { trigger: what, at: Timestamp::default(), id: "c".into(), sequence: 1, body: Bytes::new() };
        Charts.decide(&key, &state, &(), &envelope)
    }

    #[test]
    fn an_archive_is_stored_once_under_the_digest_of_what_it_holds() {
        let archive = [0x1f, 0x8b, 1, 2, 3];
        let digest = sha256(&archive);
        let facts = upload(State::default(), &digest, &archive).unwrap();
        assert!(matches!(&facts[..], [Fact::ChartStored(m)] if m.sha256 == digest && m.archive[..] == archive));
        let state = Charts.evolve(State::default(), &facts[0], Timestamp::default());
        let facts = upload(state, &digest, &archive).unwrap();
        assert!(matches!(&facts[..], [Fact::ChartUnchanged(_)]));
        assert_eq!(Charts.evolve(state, &facts[0], Timestamp::default()), state);
    }

    #[test]
    fn what_is_no_archive_of_that_digest_is_refused() {
        let archive = [0x1f, 0x8b, 1];
        let refused = |digest: &str, archive: &[u8]| upload(State::default(), digest, archive).unwrap_err().reason;
        assert!(refused(&sha256(b"other"), &archive).contains("the archive's SHA-256 is"));
        assert!(refused("abc", &archive).contains("names no SHA-256"));
        assert!(refused(&sha256(b"PK"), b"PK").contains("not gzip-compressed"));
        let large = [&archive[..], &vec![0; ARCHIVE_BYTES_MAX]].concat();
        assert!(refused(&sha256(&large), &large).contains("at most 3145728 are allowed"));
    }
}
