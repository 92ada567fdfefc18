//! Probe packets: 64 bytes, the same in both directions.

/// Bytes of an echo packet.
pub(crate) const ECHO_BYTES: usize = 64;
/// Bytes that open a bulk transfer.
pub(crate) const BULK_HEADER_BYTES: usize = 24;
/// Largest bulk transfer that is taken, bytes.
pub(crate) const BULK_BYTES_MAX: u32 = 16 * 1024 * 1024;

const ECHO: [u8; 4] = *b"CPE1";
const BULK: [u8; 4] = *b"CPB1";

/// An echo request or its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Echo {
    pub(crate) reply: bool,
    /// Chosen for each probe: an answer to another probe does not count.
    pub(crate) nonce: u64,
    pub(crate) number: u32,
    /// Who shall answer.
    pub(crate) target: u64,
}

/// A cluster's name as a number (FNV-1a, 64 bits): tells clusters apart, and proves nothing.
pub(crate) fn target_of(cluster_id: &str) -> u64 {
    cluster_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn number<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at + N)?.try_into().ok()
}

impl Echo {
    pub(crate) fn write(&self) -> [u8; ECHO_BYTES] {
        let mut packet = [0; ECHO_BYTES];
        packet[..4].copy_from_slice(&ECHO);
        packet[4] = u8::from(self.reply);
        packet[8..16].copy_from_slice(&self.nonce.to_be_bytes());
        packet[16..20].copy_from_slice(&self.number.to_be_bytes());
        packet[24..32].copy_from_slice(&self.target.to_be_bytes());
        packet
    }

    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        if packet.len() != ECHO_BYTES || packet.get(..4) != Some(&ECHO) {
            return None;
        }
        Some(Self {
            reply: *packet.get(4)? == 1,
            nonce: u64::from_be_bytes(number(packet, 8)?),
            number: u32::from_be_bytes(number(packet, 16)?),
            target: u64::from_be_bytes(number(packet, 24)?),
        })
    }
}

/// The opening of a bulk transfer of this many bytes.
pub(crate) fn bulk_header(target: u64, bytes: u32) -> [u8; BULK_HEADER_BYTES] {
    let mut header = [0; BULK_HEADER_BYTES];
    header[..4].copy_from_slice(&BULK);
    header[4..8].copy_from_slice(&bytes.to_be_bytes());
    header[8..16].copy_from_slice(&target.to_be_bytes());
    header
}

/// How many bytes follow, if this opens a transfer to this target that is taken.
pub(crate) fn bulk_length(header: &[u8; BULK_HEADER_BYTES], target: u64) -> Option<u32> {
    let addressed = u64::from_be_bytes(number(header, 8)?) == target;
    let bytes = u32::from_be_bytes(number(header, 4)?);
    (header.get(..4) == Some(&BULK) && addressed && (1..=BULK_BYTES_MAX).contains(&bytes)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_packet_is_read_as_it_was_written(reply: bool, nonce: u64, number: u32, target: u64) {
            let echo = Echo { reply, nonce, number, target };
            prop_assert_eq!(Echo::read(&echo.write()), Some(echo));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Echo::read(&bytes);
        }
    }

    #[test]
    fn a_transfer_to_another_or_too_large_is_not_taken() {
        let (own, other) = (target_of("edge"), target_of("cloud"));
        assert_eq!(bulk_length(&bulk_header(own, 1_000), own), Some(1_000));
        assert_eq!(bulk_length(&bulk_header(other, 1_000), own), None);
        assert_eq!(bulk_length(&bulk_header(own, BULK_BYTES_MAX + 1), own), None);
        assert_eq!(bulk_length(&[0; BULK_HEADER_BYTES], own), None);
    }
}
