//! `require_auth`: by which methods a server may have us prove who we are. Pure.

/// One method, as libpq names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthMethod {
    /// The password in clear.
    Password,
    Md5,
    /// Kerberos.
    Gss,
    Sspi,
    ScramSha256,
    OAuth,
    /// The server asks for nothing.
    None,
}

const NAMES: [(&str, AuthMethod); 7] = [
    ("password", AuthMethod::Password),
    ("md5", AuthMethod::Md5),
    ("gss", AuthMethod::Gss),
    ("sspi", AuthMethod::Sspi),
    ("scram-sha-256", AuthMethod::ScramSha256),
    ("oauth", AuthMethod::OAuth),
    ("none", AuthMethod::None),
];

/// Those that are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthMethods(u8);

impl AuthMethods {
    /// A list with commas; with `!` before each, all but these. `None`: it is neither, or names one twice.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let negated = text.trim_start().starts_with('!');
        let mut named = 0;
        for word in text.split(',').map(str::trim) {
            let name = if negated { word.strip_prefix('!')? } else { word };
            let (_, method) = NAMES.iter().find(|(known, _)| *known == name)?;
            if named & bit(*method) != 0 {
                return None;
            }
            named |= bit(*method);
        }
        Some(Self(if negated { !named } else { named }))
    }

    /// All but these.
    pub(crate) fn all_but(methods: &[AuthMethod]) -> Self {
        Self(!methods.iter().fold(0, |bits, method| bits | bit(*method)))
    }

    pub(crate) fn has(self, method: AuthMethod) -> bool {
        self.0 & bit(method) != 0
    }
}

fn bit(method: AuthMethod) -> u8 {
    match method {
        AuthMethod::Password => 1,
        AuthMethod::Md5 => 2,
        AuthMethod::Gss => 4,
        AuthMethod::Sspi => 8,
        AuthMethod::ScramSha256 => 16,
        AuthMethod::OAuth => 32,
        AuthMethod::None => 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_allows_what_it_names_or_all_but_that() {
        for (text, allowed) in [
            ("scram-sha-256", &["scram-sha-256"][..]),
            ("md5,scram-sha-256", &["md5", "scram-sha-256"]),
            ("none", &["none"]),
            ("!password", &["md5", "gss", "sspi", "scram-sha-256", "oauth", "none"]),
            ("!password,!md5, !none", &["gss", "sspi", "scram-sha-256", "oauth"]),
        ] {
            let methods = AuthMethods::parse(text).unwrap();
            let found: Vec<&str> =
                NAMES.iter().filter(|(_, method)| methods.has(*method)).map(|(name, _)| *name).collect();
            assert_eq!(found, allowed, "{text}");
        }
        for text in ["", "scram", "md5,!password", "!md5,password", "md5,md5", "!md5,!md5", "md5,", "SCRAM-SHA-256"] {
            assert_eq!(AuthMethods::parse(text), None, "{text}");
        }
    }
}
