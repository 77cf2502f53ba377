//! Which addresses a route serves: the `allow_ips` and `deny_ips` of a step.

use ipnet::IpNet;
use std::net::IpAddr;

/// An allow list and a deny list of addresses and subnets, IPv4 and IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acl {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

/// Why a list cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is neither an IP address nor a subnet; a comma-separated list like 10.0.0.0/8,192.0.2.1,2001:db8::/32 is allowed"
)]
pub struct AclError(String);

impl Acl {
    /// Reads the two comma-separated lists; a missing list is empty.
    pub fn parse(allow: Option<&str>, deny: Option<&str>) -> Result<Self, AclError> {
        Ok(Acl { allow: parse_list(allow)?, deny: parse_list(deny)? })
    }

    /// Whether an address is allowed by name: by an allow list, which there must be.
    pub fn lists(&self, address: IpAddr) -> bool {
        !self.allow.is_empty() && self.permits(address)
    }

    /// Whether an address is served: not denied, and allowed if there is an allow list. An IPv4-mapped IPv6 address is the
    /// IPv4 address.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let listed = |list: &[IpNet]| list.iter().any(|net| net.contains(&address));
        !listed(&self.deny) && (self.allow.is_empty() || listed(&self.allow))
    }
}

fn parse_list(text: Option<&str>) -> Result<Vec<IpNet>, AclError> {
    let items = text.unwrap_or_default().split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| {
            let address = item.parse::<IpAddr>().map(|ip| IpNet::from(ip.to_canonical()));
            address.or_else(|_| item.parse::<IpNet>()).map_err(|_| AclError(item.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(allow: &str, deny: &str, address: &str) -> bool {
        Acl::parse(Some(allow), Some(deny)).unwrap().permits(address.parse().unwrap())
    }

    #[test]
    fn lists_of_addresses_and_subnets_decide() {
        assert!(permits("", "", "192.0.2.1"));
        assert!(permits("10.0.0.0/8,::1", "", "10.2.3.4"));
        assert!(permits("10.0.0.0/8, ::1", "", "::1"));
        assert!(permits("10.0.0.0/8", "", "::ffff:10.2.3.4"));
        assert!(!permits("10.0.0.0/8", "", "11.0.0.1"));
        assert!(!permits("10.0.0.0/8", "10.1.0.0/16", "10.1.0.1"), "deny wins");
        assert!(!permits("", "2001:db8::/32", "2001:db8::7"));
        assert!(permits("", "2001:db8::/32", "2001:db9::7"));
        let lists = |allow| Acl::parse(Some(allow), None).unwrap().lists([10, 0, 0, 1].into());
        assert!(lists("10.0.0.0/8") && !lists("11.0.0.0/8") && !lists(""));
    }

    #[test]
    fn what_is_no_address_is_named() {
        let error = Acl::parse(Some("10.0.0.1,nonsense"), None).unwrap_err();
        assert!(error.to_string().contains("'nonsense'"), "{error}");
        assert!(Acl::parse(None, Some("10.0.0.0/33")).is_err());
    }
}
