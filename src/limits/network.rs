//! Where somebody comes from, as far as it counts.

use std::net::{IpAddr, Ipv6Addr};

/// A network that counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// How many bits the wider network of an IPv6 address has: what a provider gives a company, and a tunnel anybody.
const WIDE: u8 = 48;
/// How much more may come from the wider network than from the narrow one.
const WIDER: u32 = 16;

impl Network {
    /// The narrowest that an address counts with: of IPv4 the address, of IPv6 its first 64 bits, of which nobody has fewer.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => Self::of_v6(address, 64),
            address @ IpAddr::V4(_) => Self { address, bits: 32 },
        }
    }

    /// All that an address counts with, and how many times as much each may as the narrowest. One of IPv6 counts twice: a home
    /// often has 256 networks of 64 bits, a company 65,536.
    pub fn all_of(address: IpAddr) -> impl Iterator<Item = (Self, u32)> {
        let wide = match address.to_canonical() {
            IpAddr::V6(address) => Some((Self::of_v6(address, WIDE), WIDER)),
            IpAddr::V4(_) => None,
        };
        std::iter::once((Self::of(address), 1)).chain(wide)
    }

    fn of_v6(address: Ipv6Addr, bits: u8) -> Self {
        let host = u128::BITS - u32::from(bits);
        Self { address: Ipv6Addr::from_bits(address.to_bits() >> host << host).into(), bits }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_counts_with_its_networks() {
        for (address, networks) in [
            ("192.0.2.1", &[("192.0.2.1/32", 1)][..]),
            ("::ffff:192.0.2.1", &[("192.0.2.1/32", 1)]),
            ("2001:db8:1:2:3::4", &[("2001:db8:1:2::/64", 1), ("2001:db8:1::/48", 16)]),
        ] {
            let found: Vec<_> = Network::all_of(address.parse().unwrap()).collect();
            let found: Vec<_> = found.iter().map(|(network, factor)| (network.to_string(), *factor)).collect();
            let expected: Vec<_> = networks.iter().map(|(text, factor)| ((*text).to_owned(), *factor)).collect();
            assert_eq!(found, expected);
        }
    }
}
