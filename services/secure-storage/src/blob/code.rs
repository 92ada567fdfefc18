//! Erasure coding: a payload becomes n = k + r shards, any k of which give it back.
//!
//! The first k shards are the payload itself, cut into k (systematic), so that nothing is decoded while they are
//! available. What the redundant shards are depends on the scheme and on r:
//!
//! - r = 1, `RS` and `RLNC` alike: the exclusive or of the data shards. No random coefficients are drawn, and no field
//!   larger than GF(2) is used: at r = 1 `RLNC` names the same code as `RS`.
//! - `RS`, r > 1: Reed-Solomon over GF(2^16) by FFT (`reed-solomon-simd`).
//! - `RLNC`, r > 1: a linear code over GF(2^8) with fixed pseudo-random coefficients for each (k, r), chosen so that
//!   any k of the n shards suffice. Shapes for which no such draw is found get a Cauchy matrix.
//! - `REPLICATION`, and every scheme at k = 1: copies.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

/// Shards at most, n.
pub const SHARDS_MAX: usize = 16;

/// Which code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Reed-Solomon.
    ReedSolomon,
    /// Random linear network coding.
    Rlnc,
    /// Whole copies.
    Replication,
}

impl Scheme {
    /// What the redundant fragments of k + r are, in words for people.
    pub fn describe(self, data: usize, redundant: usize) -> &'static str {
        match (self, data, redundant) {
            (_, _, 0) => "none",
            (_, 1, _) => "copies",
            (Self::Rlnc, _, 1) => "an exclusive or, the same code as RS with one redundant fragment",
            (_, _, 1) => "an exclusive or",
            (Self::Rlnc, ..) => "random linear combinations over GF(2^8)",
            (Self::ReedSolomon | Self::Replication, ..) => "Reed-Solomon",
        }
    }

    /// By the name that policies use.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "RS" | "" => Some(Self::ReedSolomon),
            "RLNC" => Some(Self::Rlnc),
            "REPLICATION" => Some(Self::Replication),
            _ => None,
        }
    }

    /// The name that policies use.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReedSolomon => "RS",
            Self::Rlnc => "RLNC",
            Self::Replication => "REPLICATION",
        }
    }
}

/// A code or its use is impossible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The shape is impossible.
    #[error(
        "{data} data and {redundant} redundant shards make no code; use 1 to {SHARDS_MAX} in all, at least one of data"
    )]
    Shape {
        /// k.
        data: usize,
        /// r.
        redundant: usize,
    },
    /// Fewer than k shards.
    #[error("only {have} of the {need} shards needed")]
    TooFew {
        /// How many there are.
        have: usize,
        /// k.
        need: usize,
    },
    /// Shards that cannot belong together.
    #[error("the shards do not have the length that a payload of {0} bytes gives")]
    Length(usize),
    /// The library refused what it should not.
    #[error("code: {0}")]
    Library(String),
}

/// A systematic code of k data and r redundant shards.
#[derive(Clone, Debug)]
pub struct Code {
    data: usize,
    redundant: usize,
    /// Rows of the redundant shards, for `RLNC` with r > 1.
    rows: Option<Arc<Vec<Vec<u8>>>>,
}

impl Code {
    /// A code; k at least 1, n at most [`SHARDS_MAX`].
    ///
    /// # Errors
    /// When the shape is impossible.
    pub fn new(scheme: Scheme, data: usize, redundant: usize) -> Result<Self, Error> {
        let possible = data >= 1 && data + redundant <= SHARDS_MAX && (scheme != Scheme::Replication || data == 1);
        if !possible {
            return Err(Error::Shape { data, redundant });
        }
        let rows = (scheme == Scheme::Rlnc && redundant > 1 && data > 1).then(|| rows(data, redundant));
        Ok(Self { data, redundant, rows })
    }

    /// k.
    pub fn data(&self) -> usize {
        self.data
    }

    /// n.
    pub fn shards(&self) -> usize {
        self.data + self.redundant
    }

    /// Bytes of each shard of a payload: its k-th part, rounded up to an even number.
    pub fn shard_bytes(&self, payload: usize) -> usize {
        payload.div_ceil(self.data).next_multiple_of(2)
    }

    /// Appends each shard of a payload to its output; `outputs` has n.
    ///
    /// # Errors
    /// None for n outputs.
    pub fn encode(&self, payload: &[u8], outputs: &mut [Vec<u8>]) -> Result<(), Error> {
        if outputs.len() != self.shards() {
            return Err(Error::Shape { data: outputs.len(), redundant: 0 });
        }
        let size = self.shard_bytes(payload.len());
        let starts: Vec<usize> = outputs.iter().map(Vec::len).collect();
        let (data, redundant) = outputs.split_at_mut(self.data);
        for (index, output) in data.iter_mut().enumerate() {
            let from = (index * size).min(payload.len());
            let to = ((index + 1) * size).min(payload.len());
            output.extend_from_slice(&payload[from..to]);
            output.resize(starts[index] + size, 0);
        }
        let shard = |index: usize| &data[index][starts[index]..];
        if size == 0 {
            return Ok(());
        }
        if self.data == 1 {
            for output in redundant {
                output.extend_from_slice(shard(0));
            }
        } else if redundant.len() == 1 {
            let parity = &mut redundant[0];
            parity.extend_from_slice(shard(0));
            for index in 1..self.data {
                xor(&mut parity[starts[self.data]..], shard(index));
            }
        } else if let Some(rows) = &self.rows {
            for (row, output) in redundant.iter_mut().enumerate() {
                let start = output.len();
                output.resize(start + size, 0);
                for (index, &coefficient) in rows[row].iter().enumerate() {
                    multiply_add(&mut output[start..], shard(index), coefficient);
                }
            }
        } else if !redundant.is_empty() {
            let mut encoder = ReedSolomonEncoder::new(self.data, self.redundant, size).map_err(library)?;
            for index in 0..self.data {
                encoder.add_original_shard(shard(index)).map_err(library)?;
            }
            let coded = encoder.encode().map_err(library)?;
            for (output, parity) in redundant.iter_mut().zip(coded.recovery_iter()) {
                output.extend_from_slice(parity);
            }
        }
        Ok(())
    }

    /// Appends the payload of these shards. An absent shard is given as `None`; the others must be right.
    ///
    /// # Errors
    /// When fewer than k are present, or their lengths are wrong.
    pub fn decode(&self, shards: &[Option<&[u8]>], payload: usize, output: &mut Vec<u8>) -> Result<(), Error> {
        let size = self.shard_bytes(payload);
        let have: Vec<usize> = (0..self.shards()).filter(|&i| shards.get(i).is_some_and(Option::is_some)).collect();
        if have.len() < self.data {
            return Err(Error::TooFew { have: have.len(), need: self.data });
        }
        if shards.iter().flatten().any(|shard| shard.len() != size) {
            return Err(Error::Length(payload));
        }
        let restored = if size == 0 || have[..self.data].iter().copied().eq(0..self.data) {
            BTreeMap::new()
        } else {
            self.restore(shards, &have[..self.data], size)?
        };
        let start = output.len();
        for (index, shard) in shards.iter().enumerate().take(self.data) {
            let shard = shard.or_else(|| restored.get(&index).map(Vec::as_slice)).unwrap_or_default();
            let left = start + payload - output.len();
            output.extend_from_slice(&shard[..left.min(shard.len())]);
        }
        Ok(())
    }

    /// The absent data shards, from exactly k present ones.
    fn restore(
        &self,
        shards: &[Option<&[u8]>],
        have: &[usize],
        size: usize,
    ) -> Result<BTreeMap<usize, Vec<u8>>, Error> {
        let absent: Vec<usize> = (0..self.data).filter(|i| !have.contains(i)).collect();
        let there = |index: usize| shards.get(index).copied().flatten().unwrap_or_default();
        if self.data == 1 {
            return Ok([(0, there(have[0]).to_vec())].into());
        }
        if self.redundant == 1 {
            let mut shard = vec![0; size];
            have.iter().for_each(|&index| xor(&mut shard, there(index)));
            return Ok(absent.first().map(|&index| (index, shard)).into_iter().collect());
        }
        if let Some(rows) = &self.rows {
            let matrix = have.iter().map(|&index| row(rows, self.data, index)).collect();
            let inverse = invert(matrix).ok_or_else(|| Error::Library("dependent rows".into()))?;
            let solve = |&index: &usize| {
                let mut shard = vec![0; size];
                for (position, &source) in have.iter().enumerate() {
                    multiply_add(&mut shard, there(source), inverse[index][position]);
                }
                (index, shard)
            };
            return Ok(absent.iter().map(solve).collect());
        }
        let mut decoder = ReedSolomonDecoder::new(self.data, self.redundant, size).map_err(library)?;
        for &index in have {
            match index < self.data {
                true => decoder.add_original_shard(index, there(index)),
                false => decoder.add_recovery_shard(index - self.data, there(index)),
            }
            .map_err(library)?;
        }
        let decoded = decoder.decode().map_err(library)?;
        Ok(decoded.restored_original_iter().map(|(index, shard)| (index, shard.to_vec())).collect())
    }
}

fn library(error: reed_solomon_simd::Error) -> Error {
    Error::Library(error.to_string())
}

fn xor(into: &mut [u8], from: &[u8]) {
    into.iter_mut().zip(from).for_each(|(into, from)| *into ^= from);
}

/// Products in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1.
fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 != 0 { 0x1d } else { 0 };
        b >>= 1;
    }
    product
}

fn multiply_add(into: &mut [u8], from: &[u8], coefficient: u8) {
    match coefficient {
        0 => {}
        1 => xor(into, from),
        _ => {
            let mut table = [0u8; 256];
            (0..=255u8).for_each(|value| table[usize::from(value)] = multiply(coefficient, value));
            into.iter_mut().zip(from).for_each(|(into, from)| *into ^= table[usize::from(*from)]);
        }
    }
}

/// The row of the generator matrix that makes a shard.
fn row(rows: &[Vec<u8>], data: usize, index: usize) -> Vec<u8> {
    match index.checked_sub(data) {
        Some(redundant) => rows[redundant].clone(),
        None => (0..data).map(|column| u8::from(column == index)).collect(),
    }
}

/// The inverse by Gauss-Jordan elimination; `None` if the rows are dependent.
fn invert(mut matrix: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let size = matrix.len();
    let mut inverse: Vec<Vec<u8>> = (0..size).map(|r| (0..size).map(|c| u8::from(r == c)).collect()).collect();
    for column in 0..size {
        let pivot = (column..size).find(|&r| matrix[r][column] != 0)?;
        matrix.swap(column, pivot);
        inverse.swap(column, pivot);
        // a^254 is the inverse of a: the multiplicative group has 255 elements.
        let scale = (0..253).fold(matrix[column][column], |power, _| multiply(power, matrix[column][column]));
        for c in 0..size {
            matrix[column][c] = multiply(matrix[column][c], scale);
            inverse[column][c] = multiply(inverse[column][c], scale);
        }
        for r in (0..size).filter(|&r| r != column) {
            let factor = matrix[r][column];
            for c in 0..size {
                matrix[r][c] ^= multiply(factor, matrix[column][c]);
                inverse[r][c] ^= multiply(factor, inverse[column][c]);
            }
        }
    }
    Some(inverse)
}

/// Rows by k and r.
type ByShape = BTreeMap<(usize, usize), Arc<Vec<Vec<u8>>>>;

/// Random rows for the redundant shards, drawn from the first seed with which any k shards suffice. A systematic code
/// has that property exactly when every square submatrix of these rows is regular.
fn rows(data: usize, redundant: usize) -> Arc<Vec<Vec<u8>>> {
    static FOUND: OnceLock<Mutex<ByShape>> = OnceLock::new();
    let mut found = FOUND.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    found.entry((data, redundant)).or_insert_with(|| Arc::new(draw(data, redundant))).clone()
}

fn draw(data: usize, redundant: usize) -> Vec<Vec<u8>> {
    // Draw row by row; draw a row again if it makes a dependent set with those before it.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // SplitMix64.
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as u8
    };
    // In a field of 256 elements, random rows beyond about 8 + 5 are rarely independent in every choice. After these
    // attempts, use a Cauchy matrix: all its square submatrices are regular by construction.
    for _ in 0..4 {
        let mut rows: Vec<Vec<u8>> = vec![];
        let mut attempts = 0;
        while rows.len() < redundant && attempts < 256 {
            attempts += 1;
            rows.push((0..data).map(|_| next()).collect());
            if !independent(&rows) {
                rows.pop();
            }
        }
        if rows.len() == redundant {
            return rows;
        }
    }
    (0..redundant).map(|r| (0..data).map(|c| reciprocal(((data + r) ^ c) as u8)).collect()).collect()
}

fn reciprocal(value: u8) -> u8 {
    (0..253).fold(value, |power, _| multiply(power, value))
}

/// Is every square submatrix that holds the last row regular?
fn independent(rows: &[Vec<u8>]) -> bool {
    let (above, columns) = (rows.len() - 1, rows.last().map_or(0, Vec::len));
    (0..1u32 << above).all(|chosen| {
        let size = chosen.count_ones() as usize + 1;
        let mut picked: Vec<usize> = (0..above).filter(|r| chosen >> r & 1 == 1).collect();
        picked.push(above);
        (1..1u32 << columns).filter(|c| c.count_ones() as usize == size).all(|c| {
            let columns: Vec<usize> = (0..columns).filter(|i| c >> i & 1 == 1).collect();
            invert(picked.iter().map(|&r| columns.iter().map(|&c| rows[r][c]).collect()).collect()).is_some()
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn every_loss(scheme: Scheme, data: usize, redundant: usize, payload: &[u8]) {
        let code = Code::new(scheme, data, redundant).unwrap();
        let mut shards = vec![vec![]; code.shards()];
        code.encode(payload, &mut shards).unwrap();
        assert!(shards.iter().all(|s| s.len() == code.shard_bytes(payload.len())));
        for kept in 0u32..1 << code.shards() {
            let there: Vec<Option<&[u8]>> =
                shards.iter().enumerate().map(|(i, s)| (kept >> i & 1 == 1).then_some(s.as_slice())).collect();
            let mut back = vec![7];
            let decoded = code.decode(&there, payload.len(), &mut back);
            if (kept.count_ones() as usize) < data {
                assert!(matches!(decoded, Err(Error::TooFew { .. })));
            } else {
                decoded.unwrap();
                assert_eq!((&back[1..], back[0]), (payload, 7));
            }
        }
    }

    #[test]
    fn any_k_shards_give_the_payload_back_and_fewer_say_so() {
        let payload: Vec<u8> = (0..1_001u32).map(|i| (i * 31 % 251) as u8).collect();
        for scheme in [Scheme::ReedSolomon, Scheme::Rlnc] {
            for (data, redundant) in [(1, 0), (1, 3), (2, 1), (3, 1), (3, 0), (2, 2), (4, 2), (3, 5), (6, 4), (8, 3)] {
                for length in [0, 1, 2, 3, 1_001] {
                    every_loss(scheme, data, redundant, &payload[..length]);
                }
            }
        }
        every_loss(Scheme::Replication, 1, 2, &payload);
    }

    #[test]
    fn the_random_rows_of_every_shape_leave_no_dependent_set() {
        for data in 2..=8 {
            for redundant in 2..=5 {
                let rows = rows(data, redundant);
                for kept in 0u32..1 << (data + redundant) {
                    if kept.count_ones() as usize == data {
                        let chosen = (0..data + redundant).filter(|i| kept >> i & 1 == 1);
                        let matrix = chosen.map(|i| row(&rows, data, i)).collect();
                        assert!(invert(matrix).is_some(), "k {data} r {redundant}: {kept:b}");
                    }
                }
            }
        }
    }

    #[test]
    fn one_redundant_shard_is_an_exclusive_or_whatever_the_scheme() {
        let payload: Vec<u8> = (0..300u32).map(|i| (i * 31 % 251) as u8).collect();
        let shards = |scheme| {
            let mut shards = vec![vec![]; 4];
            Code::new(scheme, 3, 1).unwrap().encode(&payload, &mut shards).unwrap();
            shards
        };
        let (rs, rlnc) = (shards(Scheme::ReedSolomon), shards(Scheme::Rlnc));
        assert_eq!(rs, rlnc);
        assert!((0..100).all(|i| rlnc[3][i] == rlnc[0][i] ^ rlnc[1][i] ^ rlnc[2][i]));
        assert!(Scheme::Rlnc.describe(3, 1).contains("exclusive or"));
        assert!(!Scheme::Rlnc.describe(3, 2).contains("exclusive or"));
    }

    #[test]
    fn impossible_shapes_and_lengths_are_refused() {
        assert!(Code::new(Scheme::ReedSolomon, 0, 1).is_err());
        assert!(Code::new(Scheme::ReedSolomon, 12, 5).is_err());
        assert!(Code::new(Scheme::Replication, 2, 1).is_err());
        let code = Code::new(Scheme::ReedSolomon, 2, 1).unwrap();
        let shard = [0u8; 3];
        assert_eq!(code.decode(&[Some(&shard), Some(&shard), None], 8, &mut vec![]), Err(Error::Length(8)));
    }

    proptest! {
        #[test]
        fn what_is_coded_comes_back_from_a_random_choice_of_shards(
            payload in proptest::collection::vec(any::<u8>(), 0..3_000),
            data in 1usize..9, redundant in 0usize..6, rlnc: bool, order in any::<u64>(),
        ) {
            let code = Code::new(if rlnc { Scheme::Rlnc } else { Scheme::ReedSolomon }, data, redundant).unwrap();
            let mut shards = vec![vec![]; code.shards()];
            code.encode(&payload, &mut shards).unwrap();
            let mut indices: Vec<usize> = (0..code.shards()).collect();
            indices.rotate_left((order % code.shards() as u64) as usize);
            let there: Vec<Option<&[u8]>> =
                (0..code.shards()).map(|i| indices[..data].contains(&i).then_some(shards[i].as_slice())).collect();
            let mut back = vec![];
            code.decode(&there, payload.len(), &mut back).unwrap();
            prop_assert_eq!(back, payload);
        }
    }
}
