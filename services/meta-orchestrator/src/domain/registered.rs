//! The registration of a cluster as a document holds it: the newest.

use bytes::Bytes;
use mesh_proto::cluster::ClusterRegistered;
use prost::Message as _;

/// What a document says.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Registration {
    /// Sequence of the registration in CLUSTER.
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(message, optional, tag = "2")]
    registered: Option<ClusterRegistered>,
}

impl Registration {
    /// From a document, if there is one.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn read(body: Option<&Bytes>) -> Result<Self, prost::DecodeError> {
        Ok(body.map(|body| Self::decode(body.clone())).transpose()?.unwrap_or_default())
    }

    /// Takes in a registration. False if it is known already, or a newer one is.
    pub(crate) fn fold(&mut self, sequence: u64, fact: &ClusterRegistered) -> bool {
        if sequence <= self.sequence {
            return false;
        }
        *self = Self { sequence, registered: Some(fact.clone()) };
        true
    }

    /// The document's content.
    pub(crate) fn body(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// What was registered.
    pub(crate) fn registered(self) -> Option<ClusterRegistered> {
        self.registered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_registration_is_kept() {
        let registered = |site: &str| ClusterRegistered { site: site.into(), ..Default::default() };
        let mut entry = Registration::read(None).unwrap();
        assert!(entry.fold(3, &registered("new")));
        assert!(!entry.fold(3, &registered("same")) && !entry.fold(2, &registered("old")));
        let read = Registration::read(Some(&entry.body())).unwrap();
        assert_eq!(read.registered().unwrap().site, "new");
        assert!(Registration::read(Some(&Bytes::from_static(&[0xff; 3]))).is_err());
    }
}
