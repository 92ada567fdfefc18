//! Documents that hold the newest fact of one thing each.

use bytes::Bytes;
use prost::Message;

/// The newest fact of one thing, as its document holds it. A thing that is gone has no document.
#[derive(Clone, Debug, PartialEq)]
pub struct Newest<F> {
    sequence: u64,
    fact: Option<F>,
}

/// What a document says.
#[derive(Clone, PartialEq, Message)]
struct Packed {
    /// Sequence of the fact in its stream.
    #[prost(uint64, tag = "1")]
    sequence: u64,
    /// The fact, encoded.
    #[prost(bytes = "bytes", optional, tag = "2")]
    fact: Option<Bytes>,
}

impl<F: Message + Clone + Default> Newest<F> {
    /// From a document, if there is one.
    ///
    /// # Errors
    /// When it is something else.
    pub fn read(body: Option<&Bytes>) -> Result<Self, prost::DecodeError> {
        let packed = body.map(|body| Packed::decode(body.clone())).transpose()?.unwrap_or_default();
        Ok(Self { sequence: packed.sequence, fact: packed.fact.map(F::decode).transpose()? })
    }

    /// Takes in a fact; `None` is one that the thing is gone. False if it is known already, or a newer one is.
    pub fn fold(&mut self, sequence: u64, fact: Option<&F>) -> bool {
        if sequence <= self.sequence {
            return false;
        }
        *self = Self { sequence, fact: fact.cloned() };
        true
    }

    /// The document's body; `None` if the thing is gone.
    pub fn body(&self) -> Option<Bytes> {
        let fact = self.fact.as_ref()?.encode_to_vec().into();
        Some(Packed { sequence: self.sequence, fact: Some(fact) }.encode_to_vec().into())
    }

    /// The fact.
    pub fn fact(self) -> Option<F> {
        self.fact
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::cluster::ClusterRegistered;

    use super::*;

    /// As documents of clusters were first written.
    #[derive(Clone, PartialEq, Message)]
    struct Registration {
        #[prost(uint64, tag = "1")]
        sequence: u64,
        #[prost(message, optional, tag = "2")]
        registered: Option<ClusterRegistered>,
    }

    #[test]
    fn the_newest_fact_is_kept_until_its_thing_is_gone() {
        let registered = |site: &str| ClusterRegistered { site: site.into(), ..Default::default() };
        let mut entry = Newest::read(None).unwrap();
        assert_eq!(entry.body(), None);
        assert!(entry.fold(3, Some(&registered("new"))));
        assert!(!entry.fold(3, Some(&registered("same"))) && !entry.fold(2, Some(&registered("old"))));
        let body = entry.body().unwrap();
        let before = Registration { sequence: 3, registered: Some(registered("new")) };
        assert_eq!(body, before.encode_to_vec());
        let mut read = Newest::<ClusterRegistered>::read(Some(&body)).unwrap();
        assert_eq!((read.clone().fact().unwrap().site.as_str(), &read), ("new", &entry));
        assert!(read.fold(4, None));
        assert_eq!((read.body(), read.fact()), (None, None));
        assert!(Newest::<ClusterRegistered>::read(Some(&Bytes::from_static(&[0xff; 3]))).is_err());
    }
}
