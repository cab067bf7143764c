//! Devices: whether a user has signed in from one before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::context::Cx;
use super::error::Result;
use crate::crypto::Purpose;
use crate::model::UserId;
use crate::store::Tx;
use crate::store::device as devices;

/// Notes from which device a user, who is locked already, signs in. Returns whether it was known: a device is a program, whatever its
/// version, in a network. One that was not signed in from for 90 days is forgotten.
pub(super) async fn note(cx: Cx<'_>, tx: &mut Tx, user: UserId) -> Result<bool> {
    let program = cx.origin.user_agent.as_deref().map(without_versions).unwrap_or_default();
    let network = cx.origin.ip_address.map(|address| network(address).to_string()).unwrap_or_default();
    // Neither an id nor a network has a line break in it.
    let digests = cx.services.keys.digests(Purpose::Device, format!("{user}\n{network}\n{program}").as_bytes());
    let digests: Vec<_> = digests.iter().map(|digest| digest.as_bytes().to_vec()).collect();
    Ok(devices::note(tx, user, &digests, cx.services.clock.now()).await?)
}

/// A browser that was updated is no other one.
fn without_versions(program: &str) -> String {
    program.chars().filter(|character| !character.is_ascii_digit() && !matches!(character, '.' | '_')).collect()
}

/// The network that an address is in, as providers give them out: 24 bits of IPv4, 48 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() >> 8 << 8).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 80 << 80).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_or_a_neighbour_is_no_other_device() {
        let chrome = |version: &str| format!("Mozilla/5.0 (X11; Linux x86_64) Chrome/{version} Safari/537.36");
        assert_eq!(without_versions(&chrome("141.0.0.0")), without_versions(&chrome("142.0.7444.59")));
        assert_ne!(
            without_versions(&chrome("141.0")),
            without_versions("Mozilla/5.0 (X11; Linux x86_64) Firefox/141.0")
        );
        let network = |address: &str| network(address.parse().unwrap());
        assert_eq!(network("192.0.2.1"), network("::ffff:192.0.2.254"));
        assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
        assert_eq!(network("2001:db8:1::1"), network("2001:db8:1:ffff::1"));
        assert_ne!(network("2001:db8:1::1"), network("2001:db8:2::1"));
    }
}
