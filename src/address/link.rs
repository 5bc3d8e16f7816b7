//! Pure: how far the way to a database is protected, and what may go over it.
//!
//! A password in clear, or its MD5 hash, is enough to log in with for whoever reads it on the way or answers in the server's
//! place. So off this machine they go only to a server that has proved who it is. SCRAM gives neither away.

use std::net::IpAddr;

use super::{AuthMethod, AuthMethods, Host, PgAddress, SslMode};

/// How far the way to a server is protected, by what the address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// It does not leave the machine.
    Local,
    /// TLS, and the server proves who it is: for this host, or only that an authority knows it.
    Verified { name: bool },
    /// TLS with whoever answers.
    Encrypted,
    /// TLS if the server, or whoever answers in its place, has it.
    Maybe,
    /// In clear.
    Plain,
}

impl Link {
    /// As a part of a sentence.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Local => "on this machine",
            Self::Verified { name: true } => "TLS, the server's certificate and name verified",
            Self::Verified { name: false } => "TLS, the server's certificate verified, its name not",
            Self::Encrypted => "TLS, but not verified who answers",
            Self::Maybe => "TLS only if whoever answers offers it, and not verified who that is",
            Self::Plain => "not encrypted",
        }
    }

    /// Whoever is on the way can read, or change, what goes over it.
    pub(crate) fn is_open(self) -> bool {
        match self {
            Self::Local | Self::Verified { .. } => false,
            Self::Encrypted | Self::Maybe | Self::Plain => true,
        }
    }
}

impl PgAddress {
    /// To one of its servers.
    pub(crate) fn link(&self, host: &Host) -> Link {
        match self.sslmode {
            _ if host.is_here() => Link::Local,
            SslMode::Disable => Link::Plain,
            SslMode::Allow | SslMode::Prefer => Link::Maybe,
            SslMode::Require | SslMode::VerifyCa if self.sslrootcert.is_some() => Link::Verified { name: false },
            SslMode::VerifyFull => Link::Verified { name: true },
            SslMode::Require | SslMode::VerifyCa => Link::Encrypted,
        }
    }

    /// The least protected one.
    pub(crate) fn weakest_link(&self) -> Link {
        let links = self.hosts.iter().map(|host| self.link(host));
        links
            .max_by_key(|link| match link {
                Link::Local => 0,
                Link::Verified { name: true } => 1,
                Link::Verified { name: false } => 2,
                Link::Encrypted => 3,
                Link::Maybe => 4,
                Link::Plain => 5,
            })
            .unwrap_or(Link::Plain)
    }

    /// By which methods a server may have us prove who we are; `None`: by any that walhook knows. `is_here`: it is on this
    /// machine.
    pub(crate) fn auth_methods(&self, is_here: bool) -> Option<AuthMethods> {
        let is_verified = self.sslrootcert.is_some() && self.sslmode >= SslMode::Require;
        let safe = || AuthMethods::all_but(&[AuthMethod::Password, AuthMethod::Md5]);
        self.require_auth.or_else(|| (!is_here && !is_verified).then(safe))
    }
}

impl Host {
    /// Whether it is this machine by what is written. Of names only `localhost` is: any other may lead anywhere.
    fn is_here(&self) -> bool {
        match self {
            Self::Unix { .. } => true,
            Self::Tcp { address: Some(address), .. } => is_loopback(*address),
            Self::Tcp { name, .. } => match name.parse() {
                Ok(address) => is_loopback(address),
                Err(_) => name.eq_ignore_ascii_case("localhost"),
            },
        }
    }
}

/// An IPv4 address in IPv6's form is that address.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> PgAddress {
        PgAddress::parse(text).unwrap()
    }

    #[test]
    fn a_password_goes_off_the_machine_only_to_a_server_that_has_proved_who_it_is() {
        let root = "sslrootcert=/etc/ca.pem";
        for (settings, is_here, password, md5) in [
            ("", false, false, false),
            ("", true, true, true),
            ("sslmode=disable", false, false, false),
            ("sslmode=disable", true, true, true),
            ("sslmode=require", false, false, false),
            (root, false, true, true),
            (&format!("sslmode=require&{root}"), false, true, true),
            (&format!("sslmode=verify-ca&{root}"), false, true, true),
            ("sslmode=verify-full&sslrootcert=system", false, true, true),
            ("require_auth=md5", false, false, true),
            ("require_auth=password,md5", false, true, true),
            ("require_auth=scram-sha-256", true, false, false),
        ] {
            let methods = address(&format!("postgres://u:p@db/app?{settings}")).auth_methods(is_here);
            let has = |method| methods.is_none_or(|methods| methods.has(method));
            assert_eq!((has(AuthMethod::Password), has(AuthMethod::Md5)), (password, md5), "{settings} {is_here}");
        }
        let plain = address("postgres://u:p@db/app").auth_methods(false).unwrap();
        assert!(plain.has(AuthMethod::ScramSha256) && plain.has(AuthMethod::None));
    }

    #[test]
    fn the_weakest_of_several_links_counts() {
        let root = "sslrootcert=/etc/ca.pem";
        for (text, link) in [
            ("postgres://u@localhost/app", Link::Local),
            ("postgres://u@LOCALHOST,127.0.0.2,[::1]/app", Link::Local),
            ("postgres://u@[::ffff:127.0.0.1]/app", Link::Local),
            ("host=/run/postgresql user=u", Link::Local),
            ("host=db hostaddr=127.0.0.1 user=u", Link::Local),
            ("postgres://u@localhost,db/app", Link::Maybe),
            ("postgres://u@db/app?sslmode=disable", Link::Plain),
            ("postgres://u@db/app?sslmode=require", Link::Encrypted),
            (&format!("postgres://u@db/app?{root}"), Link::Verified { name: true }),
            (&format!("postgres://u@db,localhost/app?sslmode=verify-ca&{root}"), Link::Verified { name: false }),
        ] {
            assert_eq!(address(text).weakest_link(), link, "{text}");
        }
    }
}
