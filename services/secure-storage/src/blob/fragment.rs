//! The files in a location: one per extent and fragment.
//!
//! ```text
//! "CSF1" | extent u32 | fragment u8 | k u8 | r u8 | scheme u8 | pieces u32
//! per piece: stored bytes u32, its highest bit for "deflated"
//! tag of all above
//! per piece: the shard, its tag
//! ```
//!
//! Numbers are little-endian. A piece of plain bytes is deflated if the policy asks for it and it becomes shorter, then
//! sealed, and coded into shards; shard i of every piece is in fragment i. All fragments of an extent carry the same
//! table, so that any good one says where everything is. Nothing is used before its tag is verified.

use std::{
    io::{IoSliceMut, Write as _},
    ops::Range,
};

use super::{
    code::{self, Code, Scheme},
    seal::{self, BlobKeys, Place, TAG_BYTES},
};

/// Fixed bytes before the table.
const FIXED: usize = 16;
const MAGIC: &[u8; 4] = b"CSF1";
const DEFLATED: u32 = 1 << 31;
/// The number of the header among the pieces.
const HEADER: u32 = u32::MAX;
/// Plain bytes per extent at most.
pub const EXTENT_MAX: u32 = 64 << 20;
/// Plain bytes per piece at most.
pub const PIECE_MAX: u32 = 8 << 20;

/// Bytes cannot be written or read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The layout is impossible.
    #[error("layout: {0}")]
    Layout(&'static str),
    /// The code refuses.
    #[error("decode")]
    Code(#[from] code::Error),
    /// The cipher refuses.
    #[error("open")]
    Seal(#[from] seal::Error),
    /// The fragment is not what was written.
    #[error("fragment {fragment} of extent {extent}: {problem}")]
    Rotten {
        /// Extent.
        extent: u32,
        /// Fragment.
        fragment: u32,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A piece does not inflate to its plain length.
    #[error("a piece does not inflate to its length")]
    Inflate,
}

/// How a blob's bytes become fragments.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// The code.
    pub code: Code,
    scheme: u8,
    /// Plain bytes per extent.
    pub extent_bytes: u32,
    /// Plain bytes per piece.
    pub piece_bytes: u32,
    /// DEFLATE level; 0 for none.
    pub deflate_level: u32,
}

impl Geometry {
    /// Of these sizes; extents hold whole pieces.
    ///
    /// # Errors
    /// When sizes or shape are impossible.
    pub fn new(
        scheme: Scheme,
        data: usize,
        redundant: usize,
        extent_bytes: u32,
        piece_bytes: u32,
        deflate_level: u32,
    ) -> Result<Self, Error> {
        if piece_bytes == 0 || piece_bytes > PIECE_MAX || extent_bytes > EXTENT_MAX || extent_bytes < piece_bytes {
            return Err(Error::Layout("piece or extent size out of bounds"));
        }
        if !extent_bytes.is_multiple_of(piece_bytes) || deflate_level > 9 {
            return Err(Error::Layout("an extent is not whole pieces, or the level is above 9"));
        }
        let code = Code::new(scheme, data, redundant)?;
        let scheme = match scheme {
            Scheme::ReedSolomon => 0,
            Scheme::Rlnc => 1,
            Scheme::Replication => 2,
        };
        Ok(Self { code, scheme, extent_bytes, piece_bytes, deflate_level })
    }

    /// Extents of a blob.
    pub fn extents(&self, size: u64) -> u32 {
        u32::try_from(size.div_ceil(u64::from(self.extent_bytes))).unwrap_or(u32::MAX)
    }

    /// Plain bytes of an extent.
    pub fn extent_size(&self, size: u64, extent: u32) -> usize {
        let from = u64::from(extent) * u64::from(self.extent_bytes);
        size.saturating_sub(from).min(u64::from(self.extent_bytes)) as usize
    }

    /// Pieces of an extent of `plain` bytes.
    pub fn pieces(&self, plain: usize) -> usize {
        plain.div_ceil(self.piece_bytes as usize)
    }

    /// Bytes of a fragment before its shards.
    pub fn header_bytes(&self, plain: usize) -> usize {
        FIXED + 4 * self.pieces(plain) + TAG_BYTES
    }

    fn piece_size(&self, plain: usize, piece: usize) -> usize {
        plain.saturating_sub(piece * self.piece_bytes as usize).min(self.piece_bytes as usize)
    }

    /// The header of a fragment of an extent, whose pieces have these entries.
    ///
    /// # Errors
    /// If the cipher fails.
    pub fn header(&self, keys: &BlobKeys, extent: u32, fragment: u32, table: &[u32]) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(FIXED + 4 * table.len() + TAG_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&extent.to_le_bytes());
        let (data, shards) = (self.code.data(), self.code.shards());
        bytes.extend_from_slice(&[fragment as u8, data as u8, (shards - data) as u8, self.scheme]);
        bytes.extend_from_slice(&(table.len() as u32).to_le_bytes());
        table.iter().for_each(|entry| bytes.extend_from_slice(&entry.to_le_bytes()));
        let tag = keys.tag(Place { extent, piece: HEADER, fragment }, &bytes)?;
        bytes.extend_from_slice(&tag);
        Ok(bytes)
    }

    /// Room for [`Geometry::code_pieces`] of this many plain bytes, after `header` bytes. Who allocates it keeps it, whichever thread
    /// fills it: an allocator holds what a thread once had ready for that thread.
    pub fn prepare(&self, keys: &BlobKeys, plain: usize, header: usize) -> Coded {
        let size = |piece| self.piece_size(plain, piece) + keys.seal_bytes();
        let capacity =
            (0..self.pieces(plain)).map(|piece| self.code.shard_bytes(size(piece)) + TAG_BYTES).sum::<usize>();
        let fragment = || {
            let mut fragment = Vec::with_capacity(header + capacity);
            fragment.resize(header, 0);
            fragment
        };
        Coded {
            table: vec![],
            fragments: (0..self.code.shards()).map(|_| fragment()).collect(),
            stored: Vec::with_capacity(size(0)),
        }
    }

    /// Seals and codes pieces of an extent, of which the first has this number.
    ///
    /// # Errors
    /// If cipher or code fail.
    pub fn code_pieces(
        &self,
        keys: &BlobKeys,
        extent: u32,
        first: usize,
        plain: &[u8],
        coded: &mut Coded,
    ) -> Result<(), Error> {
        let Coded { table, fragments, stored } = coded;
        for (piece, bytes) in (first..).zip(plain.chunks(self.piece_bytes as usize)) {
            stored.clear();
            let deflated = (self.deflate_level > 0).then(|| deflate(bytes, self.deflate_level)).flatten();
            stored.extend_from_slice(deflated.as_deref().unwrap_or(bytes));
            keys.seal(Place { extent, piece: piece as u32, fragment: 0 }, stored)?;
            table.push(stored.len() as u32 | if deflated.is_some() { DEFLATED } else { 0 });
            let size = self.code.shard_bytes(stored.len());
            self.code.encode(stored, fragments)?;
            for (fragment, output) in fragments.iter_mut().enumerate() {
                let place = Place { extent, piece: piece as u32, fragment: fragment as u32 };
                let tag = keys.tag(place, &output[output.len() - size..])?;
                output.extend_from_slice(&tag);
            }
        }
        Ok(())
    }

    /// Codes a whole extent into what was prepared with room for its header.
    ///
    /// # Errors
    /// If cipher or code fail.
    pub fn code_extent(&self, keys: &BlobKeys, extent: u32, plain: &[u8], coded: &mut Coded) -> Result<(), Error> {
        self.code_pieces(keys, extent, 0, plain, coded)?;
        for (fragment, bytes) in coded.fragments.iter_mut().enumerate() {
            let header = self.header(keys, extent, fragment as u32, &coded.table)?;
            bytes[..header.len()].copy_from_slice(&header);
        }
        Ok(())
    }

    /// Makes the n fragments of an extent.
    ///
    /// # Errors
    /// If cipher or code fail.
    pub fn write(&self, keys: &BlobKeys, extent: u32, plain: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut coded = self.prepare(keys, plain.len(), self.header_bytes(plain.len()));
        self.code_extent(keys, extent, plain, &mut coded)?;
        Ok(coded.fragments)
    }

    /// Memory that [`Geometry::prepare`] takes for this many plain bytes.
    pub fn write_bytes(&self, plain: usize) -> u64 {
        (plain.div_ceil(self.code.data()) * self.code.shards() + self.piece_bytes as usize) as u64
    }

    /// Reads and checks a fragment's header; the extent has `plain` bytes.
    ///
    /// # Errors
    /// When the header is not the one that was written.
    pub fn table(
        &self,
        keys: &BlobKeys,
        extent: u32,
        fragment: u32,
        plain: usize,
        bytes: &[u8],
    ) -> Result<Table, Error> {
        let rotten = |problem| Error::Rotten { extent, fragment, problem };
        let header = bytes.get(..self.header_bytes(plain)).ok_or(rotten("is shorter than its header"))?;
        let (header, tag) = header.split_at(header.len() - TAG_BYTES);
        if !keys.is_tagged(Place { extent, piece: HEADER, fragment }, header, tag) {
            return Err(rotten("its header was changed, or was written under another key"));
        }
        let entries = header[FIXED..].chunks_exact(4).map(|e| u32::from_le_bytes([e[0], e[1], e[2], e[3]])).collect();
        // We wrote what is tagged; this fails only if layouts are mixed up.
        if &header[..4] != MAGIC || header[9] as usize != self.code.data() || header[11] != self.scheme {
            return Err(rotten("was written with another layout"));
        }
        Ok(Table { entries, plain })
    }

    /// Where the shards of pieces are in each fragment of an extent.
    pub fn span(&self, table: &Table, pieces: &Range<usize>) -> Range<usize> {
        let size = |entry: &u32| self.code.shard_bytes((entry & !DEFLATED) as usize) + TAG_BYTES;
        let header = self.header_bytes(table.plain);
        let from = header + table.entries[..pieces.start].iter().map(size).sum::<usize>();
        from..from + table.entries[pieces.clone()].iter().map(size).sum::<usize>()
    }

    /// The shards of pieces in a fragment's span; `None` for each that is not what was written.
    pub fn shards<'a>(
        &self,
        keys: &BlobKeys,
        extent: u32,
        fragment: u32,
        table: &Table,
        pieces: &Range<usize>,
        mut span: &'a [u8],
    ) -> Vec<Option<&'a [u8]>> {
        let mut found = vec![];
        for piece in pieces.clone() {
            let size = self.code.shard_bytes((table.entries[piece] & !DEFLATED) as usize);
            let place = Place { extent, piece: piece as u32, fragment };
            let shard = span.split_at_checked(size + TAG_BYTES).and_then(|(shard, rest)| {
                span = rest;
                let (shard, tag) = shard.split_at(size);
                keys.is_tagged(place, shard, tag).then_some(shard)
            });
            found.push(shard);
        }
        found
    }

    /// The plain bytes of pieces, appended; `fragments` holds for each fragment its shards of these pieces.
    ///
    /// # Errors
    /// When a piece has too few good shards, or does not open.
    pub fn read(
        &self,
        keys: &BlobKeys,
        extent: u32,
        table: &Table,
        pieces: &Range<usize>,
        fragments: &[Vec<Option<&[u8]>>],
        output: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let mut stored = vec![];
        for (position, piece) in pieces.clone().enumerate() {
            let entry = table.entries[piece];
            let shards: Vec<Option<&[u8]>> =
                fragments.iter().map(|shards| shards.get(position).copied().flatten()).collect();
            stored.clear();
            self.code.decode(&shards, (entry & !DEFLATED) as usize, &mut stored)?;
            keys.open(Place { extent, piece: piece as u32, fragment: 0 }, &mut stored)?;
            let plain = self.piece_size(table.plain, piece);
            if entry & DEFLATED != 0 {
                inflate(&stored, plain, output)?;
            } else if stored.len() == plain {
                output.extend_from_slice(&stored);
            } else {
                return Err(Error::Inflate);
            }
        }
        Ok(())
    }

    /// The table of an extent of `plain` bytes; `None` if only its fragments know it, because pieces may be deflated.
    pub fn known_table(&self, keys: &BlobKeys, plain: usize) -> Option<Table> {
        let entry = |piece| (self.piece_size(plain, piece) + keys.seal_bytes()) as u32;
        let entries = || (0..self.pieces(plain)).map(entry).collect();
        (self.deflate_level == 0).then(|| Table { entries: entries(), plain })
    }

    /// Bytes of the first k shards of pieces, one after the other.
    pub fn whole_bytes(&self, table: &Table, pieces: &Range<usize>) -> usize {
        let whole = |entry: &u32| self.code.data() * self.code.shard_bytes((entry & !DEFLATED) as usize);
        table.entries[pieces.clone()].iter().map(whole).sum()
    }

    /// Where the span of each of the first k fragments is to be read to, so that the stored bytes of each piece lie whole in
    /// a buffer of [`Geometry::whole_bytes`], one piece after the other; `tags` are k for each piece.
    pub fn scatter<'a>(
        &self,
        table: &Table,
        pieces: &Range<usize>,
        mut buffer: &'a mut [u8],
        tags: &'a mut [[u8; TAG_BYTES]],
    ) -> Vec<Vec<IoSliceMut<'a>>> {
        let mut spans: Vec<Vec<IoSliceMut<'a>>> = (0..self.code.data()).map(|_| vec![]).collect();
        let mut tags = tags.iter_mut();
        for entry in &table.entries[pieces.clone()] {
            let size = self.code.shard_bytes((entry & !DEFLATED) as usize);
            for span in &mut spans {
                let Some((shard, rest)) = buffer.split_at_mut_checked(size) else { return vec![] };
                buffer = rest;
                span.push(IoSliceMut::new(shard));
                span.extend(tags.next().map(|tag| IoSliceMut::new(tag.as_mut_slice())));
            }
        }
        spans
    }

    /// Checks every shard that was read to where [`Geometry::scatter`] said, and opens each piece where it lies; gives where
    /// the plain bytes lie, or `None` if anything differs from what was written.
    pub fn open_whole(
        &self,
        keys: &BlobKeys,
        extent: u32,
        table: &Table,
        pieces: &Range<usize>,
        buffer: &mut [u8],
        tags: &[[u8; TAG_BYTES]],
    ) -> Option<Vec<Range<usize>>> {
        let (mut start, mut tags, mut plain) = (0, tags.iter(), vec![]);
        for piece in pieces.clone() {
            let entry = *table.entries.get(piece)? as usize;
            let size = self.code.shard_bytes(entry);
            for fragment in 0..self.code.data() {
                let place = Place { extent, piece: piece as u32, fragment: fragment as u32 };
                let from = start + fragment * size;
                if !keys.is_tagged(place, buffer.get(from..from + size)?, tags.next()?) {
                    return None;
                }
            }
            let place = Place { extent, piece: piece as u32, fragment: 0 };
            let opened = keys.open_in(place, buffer.get_mut(start..start + entry)?).ok()?;
            if opened != self.piece_size(table.plain, piece) {
                return None;
            }
            plain.push(start..start + opened);
            start += self.code.data() * size;
        }
        Some(plain)
    }

    /// Pieces for which fewer than k of these fragments have a good shard.
    pub fn wanting(&self, pieces: &Range<usize>, fragments: &[Vec<Option<&[u8]>>]) -> usize {
        let good = |position: usize| fragments.iter().filter(|s| s.get(position).is_some_and(Option::is_some)).count();
        (0..pieces.len()).filter(|&position| good(position) < self.code.data()).count()
    }
}

/// Pieces that were coded.
#[derive(Debug)]
pub struct Coded {
    /// Their entries in the table of their extent.
    pub table: Vec<u32>,
    /// What they add to each fragment.
    pub fragments: Vec<Vec<u8>>,
    stored: Vec<u8>,
}

/// Where the pieces of an extent are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    entries: Vec<u32>,
    plain: usize,
}

impl Table {
    /// All pieces.
    pub fn all(&self) -> Range<usize> {
        0..self.entries.len()
    }
}

/// Name of a fragment in its location: `ab/ab12….extent.fragment`.
pub fn name(blob: &[u8], extent: u32, fragment: usize) -> String {
    let blob = hex::encode(blob);
    format!("{}/{blob}.{extent}.{fragment}", &blob[..2.min(blob.len())])
}

/// The blob, extent and fragment of a name.
pub fn named(name: &str) -> Option<(Vec<u8>, u32, usize)> {
    let (short, rest) = name.split_once('/')?;
    let mut tokens = rest.split('.');
    let (blob, extent, fragment) = (tokens.next()?, tokens.next()?, tokens.next()?);
    let found = (hex::decode(blob).ok()?, extent.parse().ok()?, fragment.parse().ok()?);
    let whole = tokens.next().is_none() && found.0.len() == seal::BLOB_BYTES;
    (whole && short.len() == 2 && blob.starts_with(short)).then_some(found)
}

/// Deflated, if that is shorter.
fn deflate(bytes: &[u8], level: u32) -> Option<Vec<u8>> {
    let mut encoder =
        flate2::write::DeflateEncoder::new(Vec::with_capacity(bytes.len() / 2), flate2::Compression::new(level));
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().filter(|deflated| deflated.len() < bytes.len())
}

/// Inflates to exactly `plain` bytes; never more than one beyond, whatever the input claims.
fn inflate(bytes: &[u8], plain: usize, output: &mut Vec<u8>) -> Result<(), Error> {
    use std::io::Read as _;
    let start = output.len();
    let mut decoder = flate2::read::DeflateDecoder::new(bytes).take(plain as u64 + 1);
    decoder.read_to_end(output).map_err(|_| Error::Inflate)?;
    if output.len() - start == plain { Ok(()) } else { Err(Error::Inflate) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::blob::seal::DataKey;

    fn keys(encrypted: bool) -> BlobKeys {
        DataKey::new([5; 32]).blob(&[1; 16], encrypted).unwrap()
    }

    fn geometry(deflate_level: u32) -> Geometry {
        Geometry::new(Scheme::ReedSolomon, 3, 1, 4_096, 1_024, deflate_level).unwrap()
    }

    /// Reads pieces from fragment files, as a gateway does.
    fn read(
        geometry: &Geometry,
        keys: &BlobKeys,
        plain: usize,
        pieces: Range<usize>,
        files: &[Option<Vec<u8>>],
    ) -> Result<Vec<u8>, Error> {
        let table = files
            .iter()
            .enumerate()
            .find_map(|(fragment, file)| geometry.table(keys, 7, fragment as u32, plain, file.as_ref()?).ok());
        let table = table.ok_or(Error::Layout("no header"))?;
        let span = geometry.span(&table, &pieces);
        let shards: Vec<Vec<Option<&[u8]>>> = files
            .iter()
            .enumerate()
            .map(|(fragment, file)| {
                let bytes = file.as_ref().and_then(|f| f.get(span.clone())).unwrap_or_default();
                geometry.shards(keys, 7, fragment as u32, &table, &pieces, bytes)
            })
            .collect();
        let mut output = vec![];
        geometry.read(keys, 7, &table, &pieces, &shards, &mut output)?;
        Ok(output)
    }

    #[test]
    fn a_fragment_holds_no_plain_text_and_four_of_three_take_a_third_more() {
        let (geometry, keys) = (geometry(0), keys(true));
        let plain = b"the same words again and again. ".repeat(100);
        let files = geometry.write(&keys, 7, &plain).unwrap();
        assert!(files.iter().all(|f| !f.windows(10).any(|w| plain.windows(10).next() == Some(w))));
        let stored: usize = files.iter().map(Vec::len).sum();
        // Headers and tags are 4 x (16 + 4 x 4 + 16) and 4 x 4 x 16 of 3,200 bytes.
        assert!(stored.abs_diff(plain.len() * 4 / 3) < 600, "{stored}");
        let files: Vec<_> = files.into_iter().map(Some).collect();
        assert_eq!(read(&geometry, &keys, plain.len(), 0..4, &files).unwrap(), plain);
        assert_eq!(read(&geometry, &keys, plain.len(), 1..2, &files).unwrap(), plain[1_024..2_048]);
        let other = DataKey::new([6; 32]).blob(&[1; 16], true).unwrap();
        assert!(read(&geometry, &other, plain.len(), 0..4, &files).is_err());
    }

    #[test]
    fn compression_saves_room_and_gives_the_same_bytes() {
        let plain = b"the same words again and again. ".repeat(100);
        for encrypted in [true, false] {
            let keys = keys(encrypted);
            let size =
                |geometry: &Geometry| geometry.write(&keys, 7, &plain).unwrap().iter().map(Vec::len).sum::<usize>();
            assert!(size(&geometry(7)) * 3 < size(&geometry(0)));
            let files: Vec<_> = geometry(7).write(&keys, 7, &plain).unwrap().into_iter().map(Some).collect();
            assert_eq!(read(&geometry(7), &keys, plain.len(), 0..4, &files).unwrap(), plain);
        }
    }

    #[test]
    fn names_are_read_back_and_foreign_ones_are_not() {
        let blob = [0xab; 16];
        assert_eq!(named(&name(&blob, 12, 3)), Some((blob.to_vec(), 12, 3)));
        for foreign in ["", "ab/ab.1.1", "cd/abababababababababababababababab.1.1", "ab/x.1.1", "a/b/c/d", "../../etc"]
        {
            assert_eq!(named(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Flips, cuts and removals of one fragment are repaired by the others; of two, they are an error. Never
        /// other bytes.
        #[test]
        fn damaged_fragments_give_the_right_bytes_or_an_error(
            plain in proptest::collection::vec(any::<u8>(), 1..4_096),
            level in 0u32..3, encrypted: bool, hurt in 0usize..4, second in 0usize..4, at: prop::sample::Index, how in 0..3,
        ) {
            let (geometry, keys) = (geometry(level), keys(encrypted));
            let mut files: Vec<_> = geometry.write(&keys, 7, &plain).unwrap().into_iter().map(Some).collect();
            let damage = |file: &mut Option<Vec<u8>>| {
                let bytes = file.as_mut().unwrap();
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] ^= 1 << (at % 8),
                    1 => bytes.truncate(at),
                    _ => *file = None,
                }
            };
            damage(&mut files[hurt]);
            let all = 0..geometry.pieces(plain.len());
            let repaired = read(&geometry, &keys, plain.len(), all.clone(), &files);
            prop_assert_eq!(repaired.as_deref(), Ok(plain.as_slice()));
            if second != hurt {
                damage(&mut files[second]);
                if let Ok(bytes) = read(&geometry, &keys, plain.len(), all, &files) {
                    prop_assert_eq!(bytes, plain);
                }
            }
        }

        /// Read to where they are opened, in whatever steps they were written: the same bytes, or nothing once one is changed.
        #[test]
        fn pieces_read_in_place_are_those_that_were_written(
            plain in proptest::collection::vec(any::<u8>(), 1..4_096),
            encrypted: bool, step in 1usize..4, first: prop::sample::Index, count in 1usize..4, at: prop::sample::Index,
        ) {
            let (geometry, keys) = (geometry(0), keys(encrypted));
            let written = geometry.write(&keys, 7, &plain).unwrap();
            let (mut table, mut files) = (vec![], vec![vec![]; 4]);
            for bytes in plain.chunks(step * 1_024) {
                let mut coded = geometry.prepare(&keys, bytes.len(), 0);
                geometry.code_pieces(&keys, 7, table.len(), bytes, &mut coded).unwrap();
                table.extend(coded.table);
                files.iter_mut().zip(coded.fragments).for_each(|(file, shards)| file.extend(shards));
            }
            for (fragment, file) in files.iter().enumerate() {
                let header = geometry.header(&keys, 7, fragment as u32, &table).unwrap();
                prop_assert_eq!(&[header, file.clone()].concat(), &written[fragment]);
            }

            let all = geometry.pieces(plain.len());
            let first = first.index(all);
            let pieces = first..(first + count).min(all);
            let table = geometry.known_table(&keys, plain.len()).unwrap();
            let span = geometry.span(&table, &pieces);
            let read = |written: &[Vec<u8>]| {
                let mut buffer = vec![0; geometry.whole_bytes(&table, &pieces)];
                let mut tags = vec![[0; TAG_BYTES]; 3 * pieces.len()];
                for (file, to) in written.iter().zip(geometry.scatter(&table, &pieces, &mut buffer, &mut tags)) {
                    let mut from = &file[span.clone()];
                    to.into_iter().for_each(|mut to| std::io::Read::read_exact(&mut from, &mut to).unwrap());
                }
                let found = geometry.open_whole(&keys, 7, &table, &pieces, &mut buffer, &tags)?;
                Some(found.into_iter().flat_map(|range| buffer[range].to_vec()).collect::<Vec<_>>())
            };
            let wanted = &plain[first * 1_024..(pieces.end * 1_024).min(plain.len())];
            prop_assert_eq!(read(&written), Some(wanted.to_vec()));
            let mut changed = written.clone();
            let flipped = at.index(3 * span.len());
            changed[flipped / span.len()][span.start + flipped % span.len()] ^= 1;
            prop_assert_eq!(read(&changed), None);
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), plain in 0usize..5_000) {
            let (geometry, keys) = (geometry(0), keys(true));
            prop_assert!(geometry.table(&keys, 7, 0, plain, &bytes).is_err());
        }
    }
}
