//! Signed heads of the ledger, and proofs that end at them.

use mesh_core::{Derived, query::Error};
use mesh_proto::{
    Timestamp,
    account::{Consistency, Head},
    account_head::HeadSigned,
    derived_id,
};

use ledger::{
    MAIN,
    note::{Checkpoint, Signer},
    tree::{Hash, Nodes, concat},
};

/// A tree and who signs its heads.
pub(crate) struct Heads<'a> {
    pub(crate) nodes: &'a dyn Nodes,
    pub(crate) signer: &'a Signer,
}

impl Heads<'_> {
    /// The signed head of a size, which [`size`] gave.
    pub(crate) fn head(&self, size: u64) -> Head {
        signed(self.signer, size, self.nodes.root(size).unwrap_or_default())
    }

    /// An entry's audit path to a head.
    pub(crate) fn inclusion(&self, index: u64, size: u64) -> (Vec<u8>, Head) {
        (concat(&self.nodes.inclusion(index, size).unwrap_or_default()), self.head(size))
    }

    /// That one head continues another.
    pub(crate) fn consistency(&self, from: u64, to: u64) -> Consistency {
        let path = self.nodes.consistency(from, to).unwrap_or_default();
        Consistency { path: concat(&path).into(), from: Some(self.head(from)), to: Some(self.head(to)) }
    }
}

/// A size that a ledger of `now` entries has or had; as it stands when 0 is asked for.
pub(crate) fn size(now: u64, asked: u64) -> Result<u64, Error> {
    match asked {
        0 => Ok(now),
        _ if asked <= now => Ok(asked),
        _ => Err(Error::invalid(format!("the ledger has {now} entries, not {asked}"), "ask for a size that it has")),
    }
}

/// The size in which an entry is to be proved.
pub(crate) fn proved_in(now: u64, index: u64, asked: u64) -> Result<u64, Error> {
    let size = size(now, asked)?;
    if index < size {
        return Ok(size);
    }
    Err(Error::not_found(format!("entry {index} in a ledger of {size}"), "entries are counted from 0"))
}

/// The size that is to be proved to continue the one of `from`.
pub(crate) fn continued_in(now: u64, from: u64, asked: u64) -> Result<u64, Error> {
    let to = size(now, asked)?;
    if from == 0 || from > to {
        return Err(Error::invalid(format!("{from} is not a size before {to}"), "ask from a size of at least 1"));
    }
    Ok(to)
}

fn signed(signer: &Signer, size: u64, root: Hash) -> Head {
    let note = signer.sign(&Checkpoint { size, root });
    Head { size, root: root.to_vec().into(), note, verifier_key: signer.verifier().to_string() }
}

/// Which head was published last.
#[derive(Debug)]
pub(crate) struct Announced {
    every_ms: i64,
    size: u64,
    at: Timestamp,
}

impl Announced {
    /// None yet; `every_ms` is the least time from one to the next, milliseconds.
    pub(crate) fn new(every_ms: u64) -> Self {
        Self { every_ms: i64::try_from(every_ms).unwrap_or(i64::MAX), size: 0, at: Timestamp::default() }
    }

    /// The head of this size and root, if it is to be published now. `posted` is when its last entry was.
    pub(crate) fn next(
        &mut self,
        now: Timestamp,
        signer: &Signer,
        (size, root): (u64, Hash),
        posted: Timestamp,
    ) -> Option<Derived> {
        if size == self.size || now.millis_since(self.at) < self.every_ms {
            return None;
        }
        (self.size, self.at) = (size, now);
        let Head { note, verifier_key, .. } = signed(signer, size, root);
        let id = derived_id(&["head", MAIN, &size.to_string(), &verifier_key]);
        Some(Derived::new(HeadSigned { ledger: MAIN.to_owned(), size, note, verifier_key }, id, posted))
    }
}
