//! Keys and seals.
//!
//! - A master key (AES-256, from a file) wraps each object's data key, bound to the object's own random id.
//! - The data key, by HKDF-SHA-256, gives each run of bytes (blob) two keys: one seals its pieces (AES-256-GCM), the
//!   other tags its fragments (the authenticator of GCM alone, over each shard).
//! - A blob is written once, so that the place of a piece in it is a nonce that is used once under its key. A repair
//!   makes the same bytes again.

use std::collections::BTreeMap;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
};

/// Bytes that a seal or a tag adds.
pub const TAG_BYTES: usize = 16;
/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes that name a blob.
pub const BLOB_BYTES: usize = 16;

/// A key or what it protects is wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The object was written under a master key that this gateway does not have.
    #[error("no master key named {0:?}; add it to the gateway's master key file")]
    NoMaster(String),
    /// The wrapped data key does not open: another master key of that name, or changed metadata.
    #[error(
        "the data key does not open with the master key {0:?}: the key differs from the one of that name that sealed it, or the object's metadata were changed"
    )]
    Unwrap(String),
    /// A piece does not open.
    #[error("a piece was changed, or has another key")]
    Open,
    /// A line of the master key file.
    #[error("line {line} of the master keys: {problem}")]
    File {
        /// From 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// The library failed.
    #[error("cipher")]
    Cipher,
}

/// Where a nonce is used.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Extent of the blob.
    pub extent: u32,
    /// Piece of the extent; `u32::MAX` for the header.
    pub piece: u32,
    /// Fragment; 0 for a piece.
    pub fragment: u32,
}

impl Place {
    fn nonce(self) -> Nonce {
        let mut bytes = [0; NONCE_LEN];
        bytes[..4].copy_from_slice(&self.extent.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.piece.to_le_bytes());
        bytes[8..].copy_from_slice(&self.fragment.to_le_bytes());
        Nonce::assume_unique_for_key(bytes)
    }
}

fn key(bytes: &[u8]) -> Result<LessSafeKey, Error> {
    UnboundKey::new(&AES_256_GCM, bytes).map(LessSafeKey::new).map_err(|_| Error::Cipher)
}

/// The master keys of a gateway. New objects are wrapped under the last of the file.
pub struct Keyring {
    keys: BTreeMap<String, LessSafeKey>,
    active: String,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("active", &self.active).field("keys", &self.keys.keys()).finish()
    }
}

impl Keyring {
    /// Reads lines of `<name> <64 hexadecimal digits>`; ignores empty lines and lines that begin with `#`.
    ///
    /// # Errors
    /// On the first malformed line, when a name comes twice, and when there is no key.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (mut keys, mut active) = (BTreeMap::new(), None);
        for (index, line) in text.lines().enumerate() {
            let at = |problem| Error::File { line: index + 1, problem };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, digits) = line.split_once(char::is_whitespace).ok_or(at("is not `<name> <key>`"))?;
            if !mesh_proto::is_key(name) {
                return Err(at("the name is not 1 to 64 letters, digits, `_` or `-`"));
            }
            let bytes = hex::decode(digits.trim()).ok().filter(|b| b.len() == KEY_BYTES);
            let bytes = bytes.ok_or(at("the key is not 64 hexadecimal digits"))?;
            if keys.insert(name.to_owned(), key(&bytes)?).is_some() {
                return Err(at("the name comes twice"));
            }
            active = Some(name.to_owned());
        }
        let active = active.ok_or(Error::File { line: 1, problem: "the file holds no key" })?;
        Ok(Self { keys, active })
    }

    /// Name of the key for new objects.
    pub fn active(&self) -> &str {
        &self.active
    }

    /// Wraps a data key under the active master key: nonce, ciphertext, tag. The nonce is random.
    ///
    /// # Errors
    /// If the library fails.
    pub fn wrap(&self, data: &DataKey, id: &[u8], nonce: [u8; NONCE_LEN]) -> Result<Vec<u8>, Error> {
        let master = self.keys.get(&self.active).ok_or_else(|| Error::NoMaster(self.active.clone()))?;
        let mut sealed = data.0.to_vec();
        master
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(id), &mut sealed)
            .map_err(|_| Error::Cipher)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Opens a wrapped data key.
    ///
    /// # Errors
    /// When the master key is not there or does not open it.
    pub fn unwrap(&self, name: &str, wrapped: &[u8], id: &[u8]) -> Result<DataKey, Error> {
        let master = self.keys.get(name).ok_or_else(|| Error::NoMaster(name.to_owned()))?;
        let wrong = || Error::Unwrap(name.to_owned());
        let (nonce, sealed) = wrapped.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut sealed = sealed.to_vec();
        let opened = master.open_in_place(nonce, Aad::from(id), &mut sealed).map_err(|_| wrong())?;
        Ok(DataKey(<[u8; KEY_BYTES]>::try_from(&*opened).map_err(|_| wrong())?))
    }
}

/// The key of one object. Prints nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey([u8; KEY_BYTES]);

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey")
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl DataKey {
    /// Of random bytes.
    pub fn new(random: [u8; KEY_BYTES]) -> Self {
        Self(random)
    }

    /// The keys of a blob.
    ///
    /// # Errors
    /// If the library fails.
    pub fn blob(&self, blob: &[u8], encrypted: bool) -> Result<BlobKeys, Error> {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, b"continuum secure-storage 1").extract(&self.0);
        let derive = |purpose: &[u8]| {
            let mut bytes = [0; KEY_BYTES];
            let info = [purpose, blob];
            let expanded = extracted.expand(&info, Length(KEY_BYTES)).map_err(|_| Error::Cipher)?;
            expanded.fill(&mut bytes).map_err(|_| Error::Cipher)?;
            key(&bytes)
        };
        let cipher = encrypted.then(|| derive(b"pieces")).transpose()?;
        Ok(BlobKeys { cipher, tag: derive(b"shards")? })
    }
}

/// The keys of one blob.
pub struct BlobKeys {
    cipher: Option<LessSafeKey>,
    tag: LessSafeKey,
}

impl BlobKeys {
    /// Bytes that sealing a piece adds.
    pub fn seal_bytes(&self) -> usize {
        if self.cipher.is_some() { TAG_BYTES } else { 0 }
    }

    /// Seals a piece in place and appends its tag; does nothing for blobs that are not encrypted.
    ///
    /// # Errors
    /// If the library fails.
    pub fn seal(&self, place: Place, piece: &mut Vec<u8>) -> Result<(), Error> {
        let Some(cipher) = &self.cipher else { return Ok(()) };
        cipher.seal_in_place_append_tag(place.nonce(), Aad::empty(), piece).map_err(|_| Error::Cipher)
    }

    /// Opens a piece in place and takes off its tag.
    ///
    /// # Errors
    /// If it was changed.
    pub fn open(&self, place: Place, piece: &mut Vec<u8>) -> Result<(), Error> {
        let length = self.open_in(place, piece)?;
        piece.truncate(length);
        Ok(())
    }

    /// Opens a piece where it lies; gives the number of its plain bytes.
    ///
    /// # Errors
    /// If it was changed.
    pub fn open_in(&self, place: Place, piece: &mut [u8]) -> Result<usize, Error> {
        let Some(cipher) = &self.cipher else { return Ok(piece.len()) };
        let opened = cipher.open_in_place(place.nonce(), Aad::empty(), piece).map_err(|_| Error::Open)?;
        Ok(opened.len())
    }

    /// Authenticates bytes that stay as they are.
    ///
    /// # Errors
    /// If the library fails.
    pub fn tag(&self, place: Place, bytes: &[u8]) -> Result<[u8; TAG_BYTES], Error> {
        let tag = self.tag.seal_in_place_separate_tag(place.nonce(), Aad::from(bytes), &mut []);
        tag.ok().and_then(|tag| tag.as_ref().try_into().ok()).ok_or(Error::Cipher)
    }

    /// Were exactly these bytes tagged?
    pub fn is_tagged(&self, place: Place, bytes: &[u8], tag: &[u8]) -> bool {
        let Ok(mut sealed) = <[u8; TAG_BYTES]>::try_from(tag) else { return false };
        self.tag.open_in_place(place.nonce(), Aad::from(bytes), &mut sealed).is_ok()
    }
}

/// MD5, S3's etag.
pub fn md5(bytes: &[u8]) -> [u8; 16] {
    use md5::Digest as _;
    md5::Md5::digest(bytes).into()
}

/// SHA-256, which S3 clients sign bodies with.
pub fn sha256(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(lines: &[(&str, u8)]) -> Keyring {
        let text: String = lines.iter().map(|(name, byte)| format!("{name} {}\n", hex::encode([*byte; 32]))).collect();
        Keyring::parse(&format!("# keys\n\n{text}")).unwrap()
    }

    #[test]
    fn a_data_key_opens_with_its_master_key_and_id_and_with_no_other() {
        let old = ring(&[("a", 1)]);
        let data = DataKey::new([9; 32]);
        let wrapped = old.wrap(&data, b"id", [3; 12]).unwrap();
        let rotated = ring(&[("a", 1), ("b", 2)]);
        assert_eq!(rotated.active(), "b");
        assert_eq!(rotated.unwrap("a", &wrapped, b"id"), Ok(data));
        assert_eq!(rotated.unwrap("a", &wrapped, b"other"), Err(Error::Unwrap("a".into())));
        assert_eq!(rotated.unwrap("b", &wrapped, b"id"), Err(Error::Unwrap("b".into())));
        assert_eq!(ring(&[("a", 7)]).unwrap("a", &wrapped, b"id"), Err(Error::Unwrap("a".into())));
        assert_eq!(ring(&[("c", 1)]).unwrap("a", &wrapped, b"id"), Err(Error::NoMaster("a".into())));
        for bad in [&wrapped[..5], &[], &[0; 200]] {
            assert_eq!(rotated.unwrap("a", bad, b"id"), Err(Error::Unwrap("a".into())));
        }
    }

    #[test]
    fn a_key_file_with_a_wrong_line_names_it() {
        let hex = "00".repeat(32);
        for (text, line) in [
            (String::new(), 1),
            ("only-a-name".into(), 1),
            (format!("a {hex}\nb 00"), 2),
            (format!("a {hex}\na {hex}"), 2),
            (format!("a.b {hex}"), 1),
            (format!("a {}", "zz".repeat(32)), 1),
        ] {
            assert!(matches!(Keyring::parse(&text), Err(Error::File { line: l, .. }) if l == line), "{text:?}");
        }
    }

    #[test]
    fn pieces_and_shards_open_only_in_their_place_and_unchanged() {
        let keys = DataKey::new([9; 32]).blob(&[1; 16], true).unwrap();
        let place = Place { extent: 1, piece: 2, fragment: 0 };
        let mut piece = b"plain text".to_vec();
        keys.seal(place, &mut piece).unwrap();
        assert_eq!(piece.len(), 10 + keys.seal_bytes());
        assert!(!piece.windows(5).any(|w| w == b"plain"));
        let tag = keys.tag(place, &piece).unwrap();
        assert!(keys.is_tagged(place, &piece, &tag));
        assert!(!keys.is_tagged(Place { fragment: 1, ..place }, &piece, &tag));
        assert!(!keys.is_tagged(place, &piece[1..], &tag));
        assert!(!keys.is_tagged(place, &piece, &tag[1..]));
        let mut elsewhere = piece.clone();
        assert_eq!(keys.open(Place { extent: 0, ..place }, &mut elsewhere), Err(Error::Open));
        let other = DataKey::new([9; 32]).blob(&[2; 16], true).unwrap();
        assert_eq!(other.open(place, &mut piece.clone()), Err(Error::Open));
        keys.open(place, &mut piece).unwrap();
        assert_eq!(piece, b"plain text");
    }
}
