//! Checksums that S3 clients send with a body or ask for: kept with objects and parts, and those of an object of parts.

use aws_lc_rs::digest;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use crc_fast::CrcAlgorithm;
use mesh_proto::object::Checksum;

/// An algorithm of S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// CRC-32 of ISO-HDLC.
    Crc32,
    /// CRC-32C of iSCSI.
    Crc32c,
    /// CRC-64 of NVMe.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// The name that S3 uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The header, or trailer, that carries its value.
    pub fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// Is the checksum of an object of parts one of the checksums of its parts, if nobody says? As in S3.
    pub fn is_composite(self) -> bool {
        self != Self::Crc64Nvme
    }

    /// Can an object of parts have this kind of checksum?
    pub fn allows(self, composite: bool) -> bool {
        match self {
            Self::Crc32 | Self::Crc32c => true,
            Self::Crc64Nvme => !composite,
            // It cannot be computed from those of the parts.
            Self::Sha1 | Self::Sha256 => composite,
        }
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }

    /// The value of base64 text; `None` if it is not one of this algorithm.
    pub fn value(self, text: &str) -> Option<Vec<u8>> {
        BASE64_STANDARD.decode(text).ok().filter(|value| value.len() == self.bytes())
    }

    /// A checksum over bytes.
    pub fn checksum(self, value: &[u8]) -> Checksum {
        Checksum { algorithm: self.name().into(), value: BASE64_STANDARD.encode(value), composite: false }
    }
}

/// Computes a checksum piece by piece.
pub struct Hasher(Algorithm, Inner);

enum Inner {
    Crc(crc_fast::Digest),
    Sha(digest::Context),
}

impl Hasher {
    /// Of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        let inner = match (algorithm.crc(), algorithm) {
            (Some(crc), _) => Inner::Crc(crc_fast::Digest::new(crc)),
            (None, Algorithm::Sha1) => Inner::Sha(digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY)),
            (None, _) => Inner::Sha(digest::Context::new(&digest::SHA256)),
        };
        Self(algorithm, inner)
    }

    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.1 {
            Inner::Crc(crc) => crc.update(bytes),
            Inner::Sha(sha) => sha.update(bytes),
        }
    }

    /// The value.
    pub fn finish(self) -> Vec<u8> {
        match self.1 {
            Inner::Crc(crc) => crc.finalize().to_be_bytes()[8 - self.0.bytes()..].to_vec(),
            Inner::Sha(sha) => sha.finish().as_ref().to_vec(),
        }
    }
}

/// The checksum of an object of these parts, each with its size; `None` if some part has none of this algorithm.
pub fn of_parts(algorithm: Algorithm, composite: bool, parts: &[(Option<&Checksum>, u64)]) -> Option<Checksum> {
    let values: Vec<(Vec<u8>, u64)> = parts
        .iter()
        .map(|(checksum, size)| {
            let checksum = checksum.filter(|c| c.algorithm == algorithm.name() && !c.composite)?;
            Some((algorithm.value(&checksum.value)?, *size))
        })
        .collect::<Option<_>>()?;
    if composite {
        let mut hasher = Hasher::new(algorithm);
        values.iter().for_each(|(value, _)| hasher.update(value));
        let value = format!("{}-{}", BASE64_STANDARD.encode(hasher.finish()), values.len());
        return Some(Checksum { algorithm: algorithm.name().into(), value, composite });
    }
    let crc = algorithm.crc()?;
    let number = |value: &[u8]| value.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let mut values = values.into_iter();
    let (first, _) = values.next()?;
    let whole = values.fold(number(&first), |whole, (value, size)| match size {
        0 => whole,
        size => crc_fast::checksum_combine(crc, whole, number(&value), size),
    });
    Some(algorithm.checksum(&whole.to_be_bytes()[8 - algorithm.bytes()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(algorithm: Algorithm, bytes: &[u8]) -> Checksum {
        let mut hasher = Hasher::new(algorithm);
        bytes.chunks(3).for_each(|piece| hasher.update(piece));
        algorithm.checksum(&hasher.finish())
    }

    #[test]
    fn values_are_those_of_the_standards() {
        for (algorithm, expected) in [
            (Algorithm::Crc32, "cbf43926"),
            (Algorithm::Crc32c, "e3069283"),
            (Algorithm::Crc64Nvme, "ae8b14860a799888"),
            (Algorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (Algorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ] {
            let checksum = over(algorithm, b"123456789");
            assert_eq!(hex::encode(algorithm.value(&checksum.value).unwrap()), expected, "{algorithm:?}");
            assert_eq!(Algorithm::named(algorithm.name()), Some(algorithm));
            assert_eq!(algorithm.value("AAAA=A"), None);
            assert_eq!(algorithm.value("AA=="), None);
        }
    }

    #[test]
    fn the_checksum_of_parts_is_that_of_the_whole_or_of_their_checksums() {
        let parts: [&[u8]; 4] = [b"first ", b"second ", b"", b"third"];
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let sums = parts.map(|part| over(algorithm, part));
            let of: Vec<_> = sums.iter().zip(parts).map(|(sum, part)| (Some(sum), part.len() as u64)).collect();
            assert_eq!(of_parts(algorithm, false, &of), Some(over(algorithm, &parts.concat())), "{algorithm:?}");
            assert_eq!(of_parts(algorithm, false, &[(None, 1)]), None);
        }
        let sums = parts.map(|part| over(Algorithm::Sha256, part));
        let of: Vec<_> = sums.iter().zip(parts).map(|(sum, part)| (Some(sum), part.len() as u64)).collect();
        let values: Vec<u8> = sums.iter().flat_map(|sum| Algorithm::Sha256.value(&sum.value).unwrap()).collect();
        let expected = format!("{}-4", over(Algorithm::Sha256, &values).value);
        assert_eq!(of_parts(Algorithm::Sha256, true, &of).unwrap().value, expected);
        assert_eq!(of_parts(Algorithm::Sha256, false, &of), None);
    }
}
