//! Signed heads: a checkpoint (origin, size, root) in a signed note, as C2SP specifies them (c2sp.org/signed-note,
//! c2sp.org/tlog-checkpoint), so that the verifiers of transparency logs read them. Ed25519 (RFC 8032).

use std::fmt;

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::tree::Hash;

/// What a checkpoint is of, and the name of its signer's key.
pub const ORIGIN: &str = "continuum/ledger/main";
/// Kind byte of an Ed25519 key.
const ED25519_KIND: u8 = 1;
/// Longest note that is read, bytes.
pub const NOTE_BYTES_MAX: usize = 4_096;

/// Why a key or a note is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An invalid key.
    #[error("the key is not of the form {0}")]
    Key(&'static str),
    /// An invalid note.
    #[error("the signed head is malformed: {0}")]
    Malformed(&'static str),
    /// A note without a signature of this key.
    #[error("the signed head is not signed by {0}")]
    NotSigned(String),
    /// A signature that does not fit.
    #[error("the signature of the head is false")]
    False,
}

/// The public half of a signer's key.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    public: [u8; 32],
}

/// The key that signs heads. Prints nothing of itself.
pub struct Signer {
    pair: Ed25519KeyPair,
    verifier: Verifier,
    seed: [u8; 32],
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.verifier)
    }
}

/// A head as a note states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Entries in the tree.
    pub size: u64,
    /// Its root.
    pub root: Hash,
}

impl Checkpoint {
    /// The text that is signed.
    fn text(&self) -> String {
        format!("{ORIGIN}\n{}\n{}\n", self.size, STANDARD.encode(self.root))
    }
}

impl Signer {
    /// The signer of a seed.
    ///
    /// # Errors
    /// Never, for 32 bytes.
    pub fn from_seed(seed: [u8; 32]) -> Result<Self, Error> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| Error::Key(SIGNER_FORM))?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| Error::Key(SIGNER_FORM))?;
        Ok(Self { pair, verifier: Verifier { name: ORIGIN.to_owned(), public }, seed })
    }

    /// A key in the form of a signed note's signer.
    ///
    /// # Errors
    /// Another form; a key of another name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let form = || Error::Key(SIGNER_FORM);
        let rest = text.trim().strip_prefix("PRIVATE+KEY+").ok_or_else(form)?;
        let (name, id, key) = parts(rest).ok_or_else(form)?;
        let signer = Self::from_seed(key)?;
        if name != ORIGIN || signer.verifier.id() != id { Err(form()) } else { Ok(signer) }
    }

    /// The key as [`parse`](Self::parse) reads it. A secret.
    pub fn secret(&self) -> String {
        format!("PRIVATE+KEY+{}+{}+{}", self.verifier.name, hex(self.verifier.id()), encoded(&self.seed))
    }

    /// Its public half.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// A head as a signed note; the same head is always the same note.
    pub fn sign(&self, head: &Checkpoint) -> String {
        let text = head.text();
        let mut signed = self.verifier.id().to_vec();
        signed.extend(self.pair.sign(text.as_bytes()).as_ref());
        format!("{text}\n\u{2014} {} {}\n", self.verifier.name, STANDARD.encode(signed))
    }
}

const SIGNER_FORM: &str = "PRIVATE+KEY+<name>+<id>+<base64>";
const VERIFIER_FORM: &str = "<name>+<id>+<base64>";

fn parts(text: &str) -> Option<(&str, [u8; 4], [u8; 32])> {
    let mut parts = text.splitn(3, '+');
    let (name, id, key) = (parts.next()?, parts.next()?, parts.next()?);
    if id.len() != 8 || id.bytes().any(|b| !b.is_ascii_digit() && !(b'a'..=b'f').contains(&b)) {
        return None;
    }
    let key = STANDARD.decode(key).ok()?;
    let (kind, key) = key.split_first()?;
    (*kind == ED25519_KIND).then_some((name, u32::from_str_radix(id, 16).ok()?.to_be_bytes(), key.try_into().ok()?))
}

fn encoded(key: &[u8; 32]) -> String {
    STANDARD.encode([&[ED25519_KIND], key.as_slice()].concat())
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Verifier {
    /// A key in the form of a signed note's verifier; white space around it is left out.
    ///
    /// # Errors
    /// Another form; a key whose id is another's.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let form = || Error::Key(VERIFIER_FORM);
        let (name, id, public) = parts(text.trim()).ok_or_else(form)?;
        let verifier = Self { name: name.to_owned(), public };
        if verifier.id() == id { Ok(verifier) } else { Err(form()) }
    }

    /// First four bytes of the hash of name and key.
    fn id(&self) -> [u8; 4] {
        let hashed = [self.name.as_bytes(), b"\n", &[ED25519_KIND], &self.public].concat();
        let mut id = [0; 4];
        id.copy_from_slice(&digest(&SHA256, &hashed).as_ref()[..4]);
        id
    }

    /// The head in a note, if this key signed it and the note has not another byte than the signer wrote.
    ///
    /// # Errors
    /// What is wrong with the note.
    pub fn open(&self, note: &str) -> Result<Checkpoint, Error> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(Error::Malformed("it is too long"));
        }
        let (text, signatures) = note.rsplit_once("\n\n").ok_or(Error::Malformed("it has no signature"))?;
        let line = signatures.strip_suffix('\n').ok_or(Error::Malformed("its last line does not end"))?;
        let signature = line
            .strip_prefix("\u{2014} ")
            .and_then(|line| line.strip_prefix(self.name.as_str())?.strip_prefix(' '))
            .filter(|signature| !signature.contains('\n'))
            .ok_or_else(|| Error::NotSigned(self.name.clone()))?;
        let signature = STANDARD.decode(signature).map_err(|_| Error::Malformed("its signature is not base64"))?;
        let signature = signature.strip_prefix(&self.id()).ok_or_else(|| Error::NotSigned(self.to_string()))?;
        let text = format!("{text}\n");
        UnparsedPublicKey::new(&ED25519, self.public).verify(text.as_bytes(), signature).map_err(|_| Error::False)?;
        let mut lines = text.lines();
        let (origin, size, root) = (lines.next(), lines.next(), lines.next());
        let root = root.and_then(|root| STANDARD.decode(root).ok()).and_then(|root| root.try_into().ok());
        let size = size.and_then(|size| size.parse().ok());
        let head = size.zip(root).map(|(size, root)| Checkpoint { size, root });
        // What this version does not write is not a head of this ledger.
        head.filter(|head| origin == Some(ORIGIN) && head.text() == text)
            .ok_or(Error::Malformed("its text is not a checkpoint of this ledger"))
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}+{}", self.name, hex(self.id()), encoded(&self.public))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_signed_and_opened_and_no_changed_one_is() {
        let signer = Signer::from_seed([7; 32]).unwrap();
        let head = Checkpoint { size: 1_000, root: [9; 32] };
        let note = signer.sign(&head);
        assert_eq!(note, signer.sign(&head));
        let verifier = Verifier::parse(&signer.verifier().to_string()).unwrap();
        assert_eq!(verifier.open(&note), Ok(head));
        let bytes = note.as_bytes();
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0x20] {
                let mut changed = bytes.to_vec();
                changed[at] ^= flip;
                if let Ok(changed) = String::from_utf8(changed) {
                    assert!(verifier.open(&changed).is_err(), "byte {at}: {changed:?}");
                }
            }
        }
        assert!(verifier.open(&format!("{note}\n")).is_err());
        assert!(verifier.open(note.trim_end()).is_err());
        assert!(verifier.open("").is_err());
        let other = Signer::from_seed([8; 32]).unwrap();
        assert!(matches!(other.verifier().open(&note), Err(Error::NotSigned(_))));
    }

    #[test]
    fn keys_survive_their_text_and_nothing_else_is_a_key() {
        let signer = Signer::from_seed([7; 32]).unwrap();
        assert_eq!(Signer::parse(&signer.secret()).unwrap().verifier(), signer.verifier());
        assert!(!format!("{signer:?}").contains(&signer.secret()[20..]));
        let public = signer.verifier().to_string();
        for wrong in ["", "a+b", &public[1..], &public.replace("+", "-"), &format!("{public}A")] {
            assert!(Verifier::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Signer::parse(&public).is_err());
    }

    /// The example key of the signed-note specification's reference implementation.
    #[test]
    fn the_id_of_a_key_is_the_specifications() {
        let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        assert_eq!(Verifier::parse(key).unwrap().to_string(), key);
    }
}
