//! The caller's address: that of the connection, or what proxies that are trusted say of it.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;

/// Whether an address is a proxy's that the settings name.
pub(super) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address.to_canonical()))
}

/// The right-most address that no trusted proxy has: what stands left of it, the caller may have made up.
///
/// Where that is not an address, nor is what stands left of it believed: the answer is then the nearest proxy that is known.
pub(super) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    // Each proxy adds to the last line, or a line of its own: read together, they are one list. A line that is not a text
    // is still part of it, or a caller could make the proxy's words unreadable with its own.
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    let texts: Vec<_> = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    for hop in texts.iter().flat_map(|text| text.rsplit(',')) {
        if !is_trusted(client, trusted) {
            break;
        }
        let Some(address) = address(hop.trim()) else { break };
        client = address.to_canonical();
    }
    client
}

/// An address as proxies write it: alone or with a port, one of IPv6 with or without brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn seen(peer: &str, lines: &[&[u8]]) -> IpAddr {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", HeaderValue::from_bytes(line).unwrap());
        }
        client_address(ip(peer), &headers, &["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()])
    }

    #[test]
    fn the_first_address_from_the_right_that_is_no_proxys_is_the_callers() {
        for (peer, lines, client) in [
            (PROXY, &[][..], PROXY),
            ("192.0.2.1", &[&b"203.0.113.9"[..]][..], "192.0.2.1"),
            (PROXY, &[b"203.0.113.9"], "203.0.113.9"),
            (PROXY, &[b"198.51.100.1, 203.0.113.9, 10.0.0.7"], "203.0.113.9"),
            (PROXY, &[b"198.51.100.1", b"203.0.113.9", b"10.0.0.7"], "203.0.113.9"),
            (PROXY, &[b"198.51.100.1", b"nonsense"], PROXY),
            (PROXY, &[b"198.51.100.1, nonsense, 10.0.0.7"], "10.0.0.7"),
            (PROXY, &[b"198.51.100.1", b"\xff\xfe, 203.0.113.9"], "203.0.113.9"),
            (PROXY, &[b"198.51.100.1", b"203.0.113.9\xff"], PROXY),
            (PROXY, &[b"198.51.100.1", b""], PROXY),
            (PROXY, &[b"10.0.0.2, 10.0.0.3"], "10.0.0.2"),
            (PROXY, &[b"203.0.113.9:443"], "203.0.113.9"),
            (PROXY, &[b"[2001:db8::1]:443"], "2001:db8::1"),
            (PROXY, &[b"[2001:db8::1]"], "2001:db8::1"),
            (PROXY, &[b"2001:db8::1, fd00::1"], "2001:db8::1"),
            ("::ffff:10.0.0.1", &[b"::ffff:203.0.113.9"], "203.0.113.9"),
        ] {
            assert_eq!(seen(peer, lines), ip(client), "{peer} {lines:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_caller_sends_hides_the_address_that_its_proxy_saw(
            lines in prop::collection::vec(prop::collection::vec(0x20_u8..=0xff, 0..40), 0..4),
            is_a_line_of_its_own: bool,
        ) {
            let mut lines: Vec<Vec<u8>> = lines;
            lines.iter_mut().flatten().filter(|byte| **byte == 0x7f).for_each(|byte| *byte = b',');
            match lines.last_mut() {
                Some(last) if !is_a_line_of_its_own => last.extend(b", 203.0.113.9"),
                _ => lines.push(b"203.0.113.9".to_vec()),
            }
            let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(seen(PROXY, &lines), ip("203.0.113.9"));
            prop_assert_eq!(seen("192.0.2.1", &lines), ip("192.0.2.1"));
        }
    }
}
