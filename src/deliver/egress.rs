//! Pure: where no endpoint may lead. A name is whoever's who runs its DNS, and a machine in a cloud hands out its own credentials
//! at an address that anybody on it may ask, so the address that is connected to is looked at, not the name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// What is denied by default: link-local addresses, among them those where clouds (169.254.169.254, fd00:ec2::254,
/// 100.100.100.200) say who a machine is. Private addresses are where most endpoints are.
pub(crate) const DENIED: [&str; 4] = ["169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "100.100.100.200/32"];

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn has(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => leading(own.to_bits() ^ other.to_bits()) >= self.bits,
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                u8::try_from((own.to_bits() ^ other.to_bits()).leading_zeros()).is_ok_and(|same| same >= self.bits)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn leading(difference: u32) -> u8 {
    u8::try_from(difference.leading_zeros()).unwrap_or(u8::MAX)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// A text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// It is something else.
    #[error("must be an IP address, alone or with the bits of its network, such as 10.0.0.0/8 or fd00::/8")]
    Form,
    /// Bits of the address stand beyond those of the network.
    #[error("has bits of a single machine in it; the network is {0}")]
    Host(Network),
}

impl FromStr for Network {
    type Err = NetworkError;

    /// An address alone is a network of one. An IPv4 address in IPv6's form is that address, and its network that network.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Form)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let digits = |bits: &str| bits.bytes().all(|b| b.is_ascii_digit()).then(|| bits.parse::<u8>().ok()).flatten();
        let bits = bits.map_or(Some(most), digits).filter(|bits| *bits <= most).ok_or(NetworkError::Form)?;
        let (address, bits) = match (address.to_canonical(), bits.checked_sub(96)) {
            (own @ IpAddr::V4(_), Some(bits)) if address.is_ipv6() => (own, bits),
            _ => (address, bits),
        };
        let network = Self { address: masked(address, bits), bits };
        if network.address == address { Ok(network) } else { Err(NetworkError::Host(network)) }
    }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

/// The networks that are denied. Clones share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    deny: Arc<[Network]>,
}

impl Default for Egress {
    fn default() -> Self {
        Self::denying(DENIED.iter().filter_map(|text| text.parse().ok()))
    }
}

impl Egress {
    /// Denies these.
    pub fn denying(networks: impl IntoIterator<Item = Network>) -> Self {
        Self { deny: networks.into_iter().collect() }
    }

    /// The network that denies an address, in whichever form the address is written.
    pub(crate) fn denies(&self, address: IpAddr) -> Option<Network> {
        let forms = [Some(address), inner(address).map(IpAddr::V4)];
        let denies = |network: &&Network| forms.iter().flatten().any(|address| network.has(*address));
        self.deny.iter().find(denies).copied()
    }
}

impl Egress {
    /// Those of a host's addresses that may be connected to.
    ///
    /// # Errors
    /// When there are none, for that reason alone.
    pub(crate) fn allowed(&self, mut addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Denied> {
        let mut denied = None;
        addresses.retain(|address| {
            let network = self.denies(address.ip());
            denied = denied.or(network.map(|network| Denied { address: address.ip(), network }));
            network.is_none()
        });
        denied.filter(|_| addresses.is_empty()).map_or(Ok(addresses), Err)
    }
}

/// The IPv4 address that an IPv6 address leads to: mapped or compatible (RFC 4291, 2.5.5), by NAT64 (RFC 6052, 2.1; RFC 8215),
/// by 6to4 (RFC 3056, 2), by Teredo (RFC 4380, 4), or by ISATAP (RFC 5214, 6.1).
fn inner(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let [a, b, c, d, e, f, g, h] = address.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff | 0] | [0, 0, 0, 0, 0xffff, 0] => Some(of(g, h)),
        [0x64, 0xff9b, 0, 0, 0, 0] | [0x64, 0xff9b, 1, ..] => Some(of(g, h)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        [0x2001, 0, ..] => Some(of(!g, !h)),
        [_, _, _, _, 0 | 0x200, 0x5efe] => Some(of(g, h)),
        _ => None,
    }
}

/// No endpoint may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host leads to {address}, and egress.deny has {network}")]
pub(crate) struct Denied {
    /// Where it leads.
    pub(crate) address: IpAddr,
    /// What denies it.
    pub(crate) network: Network,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_denied_in_every_form_that_leads_to_it() {
        let egress = Egress::default();
        for address in [
            "169.254.169.254",
            "169.254.0.1",
            "100.100.100.200",
            "fd00:ec2::254",
            "fe80::1",
            "febf::1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:2:3:4:a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "2001:0:1::5601:5601",
            "2620::5efe:169.254.169.254",
            "2620::200:5efe:6464:64c8",
        ] {
            assert!(egress.denies(address.parse().unwrap()).is_some(), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "192.168.1.1",
            "169.253.255.255",
            "100.100.100.201",
            "fd00:ec2::253",
            "fec0::1",
            "::1",
            "64:ff9b::10.0.0.1",
            "2002:0a00:0001::1",
            "2606:4700::1111",
        ] {
            assert_eq!(egress.denies(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn networks_are_read_and_shown_as_they_are_written() {
        for text in DENIED.into_iter().chain(["0.0.0.0/0", "::/0", "10.1.2.3/32", "fd00::/8"]) {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        assert_eq!("10.1.2.3".parse::<Network>().unwrap().to_string(), "10.1.2.3/32");
        assert_eq!("::ffff:10.0.0.0/104".parse::<Network>().unwrap().to_string(), "10.0.0.0/8");
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "localhost", "10.0.0/8"] {
            assert_eq!(text.parse::<Network>(), Err(NetworkError::Form), "{text}");
        }
        let error = "10.1.0.0/8".parse::<Network>().unwrap_err();
        assert_eq!(error.to_string(), "has bits of a single machine in it; the network is 10.0.0.0/8");
        let all = Egress::denying(["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
        assert!(all.denies("8.8.8.8".parse().unwrap()).is_some() && all.denies("::1".parse().unwrap()).is_some());
        assert_eq!(Egress::denying([]).denies("169.254.169.254".parse().unwrap()), None);
    }
}
