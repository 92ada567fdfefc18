//! IP prefixes, and the longest match among them (RFC 7285 §11.2.2).

use std::{fmt, net::IpAddr, str::FromStr};

/// A block of addresses, its host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    v6: bool,
    /// Address bits, left-aligned within 32 or 128.
    bits: u128,
    length: u8,
}

/// Not a prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IP prefix: write it as 10.1.0.0/16 or 2001:db8::/32")]
pub struct PrefixError(String);

fn bits(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (false, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (true, v6.to_bits()),
    }
}

fn mask(v6: bool, length: u8) -> u128 {
    let width = if v6 { 128 } else { 32 };
    let host = u32::from(width - length.min(width));
    let all = if v6 { u128::MAX } else { u128::from(u32::MAX) };
    all.checked_shr(host).map_or(0, |kept| kept.checked_shl(host).unwrap_or(0)) & all
}

impl Prefix {
    /// Every IPv4 address.
    pub const ALL_V4: Self = Self { v6: false, bits: 0, length: 0 };
    /// Every IPv6 address.
    pub const ALL_V6: Self = Self { v6: true, bits: 0, length: 0 };

    /// The prefix that holds one address only.
    pub fn host(address: IpAddr) -> Self {
        let (v6, bits) = bits(address.to_canonical());
        Self { v6, bits, length: if v6 { 128 } else { 32 } }
    }

    /// Does it hold this address?
    pub fn holds(&self, address: IpAddr) -> bool {
        let (v6, bits) = bits(address.to_canonical());
        v6 == self.v6 && bits & mask(v6, self.length) == self.bits
    }

    /// Its ALTO address type: `ipv4` or `ipv6`.
    pub fn kind(&self) -> &'static str {
        if self.v6 { "ipv6" } else { "ipv4" }
    }

    /// Number of leading bits that are fixed.
    pub fn length(&self) -> u8 {
        self.length
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.v6 {
            write!(f, "{}/{}", std::net::Ipv6Addr::from_bits(self.bits), self.length)
        } else {
            let bits = u32::try_from(self.bits).unwrap_or_default();
            write!(f, "{}/{}", std::net::Ipv4Addr::from_bits(bits), self.length)
        }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// Reads `address/length` or a single address; host bits are cleared, so that one block has one spelling.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let wrong = || PrefixError(text.chars().take(64).collect());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let (v6, bits) = bits(address);
        let width = if v6 { 128 } else { 32 };
        let length: u8 = match length {
            Some(length) if length.bytes().all(|b| b.is_ascii_digit()) => length.parse().map_err(|_| wrong())?,
            Some(_) => return Err(wrong()),
            None => width,
        };
        if length > width {
            return Err(wrong());
        }
        Ok(Self { v6, bits: bits & mask(v6, length), length })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_prefix_is_refused() {
        for bad in
            ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "::/129", "a/8", "10.0.0/8", "01.2.3.4/8", "1.2.3.4/8/8"]
        {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        assert_eq!("10.1.2.3/16".parse::<Prefix>().unwrap().to_string(), "10.1.0.0/16");
        assert_eq!("0.0.0.0/0".parse::<Prefix>().unwrap(), Prefix::ALL_V4);
        assert_eq!("2001:db8::7".parse::<Prefix>().unwrap().to_string(), "2001:db8::7/128");
    }

    proptest! {
        #[test]
        fn a_prefix_holds_exactly_the_addresses_that_share_its_bits(a: u32, b: u32, length in 0u8..=32) {
            let prefix: Prefix = format!("{}/{length}", std::net::Ipv4Addr::from_bits(a)).parse().unwrap();
            let shared = (a ^ b).leading_zeros() >= u32::from(length);
            prop_assert_eq!(prefix.holds(IpAddr::V4(b.into())), shared);
            prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}") {
            let _ = text.parse::<Prefix>();
        }
    }
}
