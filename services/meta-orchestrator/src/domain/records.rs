//! Decisions as a history keeps them: one record of an instance for each thing that was said about where it runs.

use bytes::Bytes;
use mesh_core::Stored;
use mesh_proto::{
    deciders::placements::Fact,
    placement::{PlacementDecided, PlacementUnplaced},
};
use prost::Message as _;

use super::view::read;

/// What is kept of a fact. Without the other two: the instance was given up.
#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(message, optional, tag = "1")]
    decided: Option<PlacementDecided>,
    #[prost(message, optional, tag = "2")]
    unplaced: Option<PlacementUnplaced>,
}

/// The key of an instance's records.
pub(crate) fn key(owner: &str, instance_id: &str) -> String {
    format!("{owner}/{instance_id}")
}

/// The key and the record of a fact; `None` if nothing is kept of it.
pub(crate) fn record(stored: &Stored) -> Option<(String, Bytes)> {
    // Documents are told by the workload manager.
    let (key, record) = match read(stored)? {
        Fact::PlacementDecided(f) => {
            let key = key(&f.owner, &f.instance_id);
            let decided = Some(PlacementDecided { document: Bytes::new(), ..f });
            (key, Record { decided, unplaced: None })
        }
        Fact::PlacementUnplaced(f) => {
            let key = key(&f.owner, &f.instance_id);
            let unplaced = Some(PlacementUnplaced { document: Bytes::new(), ..f });
            (key, Record { decided: None, unplaced })
        }
        Fact::PlacementReleased(f) if f.r#final => (key(&f.owner, &f.instance_id), Record::default()),
        _ => return None,
    };
    Some((key, record.encode_to_vec().into()))
}

/// What records say of an instance, taken in one by one, the newest first.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Explained {
    /// Newest first.
    pub(crate) decisions: Vec<PlacementDecided>,
    /// If it is the last that was said.
    pub(crate) unplaced: Option<PlacementUnplaced>,
    is_begun: bool,
}

impl Explained {
    /// Takes in the next older record.
    ///
    /// # Errors
    /// When it is not a record.
    pub(crate) fn take_in(&mut self, record: &Bytes) -> Result<(), prost::DecodeError> {
        let Record { decided, unplaced } = Record::decode(record.clone())?;
        if !std::mem::replace(&mut self.is_begun, true) {
            self.unplaced = unplaced;
        }
        self.decisions.extend(decided);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::Projector as _;
    use mesh_proto::{AnyEvent, Timestamp, placement::PlacementReleased};

    use super::*;
    use crate::domain::view::Orchestrator;

    #[test]
    fn records_explain_as_the_view_in_memory_does() {
        let decided = |generation| PlacementDecided {
            domain: "d".into(),
            owner: "local".into(),
            instance_id: "i".into(),
            generation,
            document: Bytes::from_static(b"large"),
            ..Default::default()
        };
        let unplaced = PlacementUnplaced {
            domain: "d".into(),
            owner: "local".into(),
            instance_id: "i".into(),
            document: Bytes::from_static(b"large"),
            ..Default::default()
        };
        let released = |r#final| PlacementReleased {
            domain: "d".into(),
            owner: "local".into(),
            instance_id: "i".into(),
            r#final,
            ..Default::default()
        };
        let said: Vec<Box<dyn AnyEvent>> = vec![
            Box::new(unplaced.clone()),
            Box::new(decided(1)),
            Box::new(released(false)),
            Box::new(unplaced),
            Box::new(released(true)),
            Box::new(decided(2)),
        ];
        let (mut view, mut records) = (Orchestrator::default(), vec![]);
        for (sequence, fact) in (1..).zip(&said) {
            let stored = mesh_test::stored(fact.as_ref(), sequence, Timestamp::from_millis(1));
            view.apply(&stored);
            records.extend(record(&stored));
            let mut explained = Explained::default();
            for (key, record) in records.iter().rev() {
                assert_eq!(key, "local/i");
                explained.take_in(record).unwrap();
            }
            let expected = view.explain("local", "i").unwrap_or_default();
            assert_eq!((explained.decisions, explained.unplaced), (expected.decisions, expected.unplaced));
        }
        assert_eq!(records.len(), 5);
        assert!(Explained::default().take_in(&Bytes::from_static(&[0xff])).is_err());
    }
}
