//! Where the worker answers HTTP, and to whom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use secrecy::SecretString;

use super::problem::Warning;
use super::values::{Checked, Values};

const ADDRESS: &str = "listeners";
const CERTIFICATE: &str = "listeners.https.ssl.certificate.location";
const KEY: &str = "listeners.https.ssl.key.location";
const TOKEN: &str = "rest.bearer.token.file";
const CREDENTIALS: &str = "rest.basic.credentials";
const INSECURE: &str = "rest.insecure";

/// A checked listener: on an address that others reach, it asks who they are, or is told not to.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Port 0 is any free one. `[::]` is every address of both families.
    pub address: SocketAddr,
    /// Certificate chain and private key, as PEM files; `None` is HTTP in the clear.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// File with the token that lets a client in.
    pub bearer_token_file: Option<PathBuf>,
    /// `user:password` that lets a client in.
    pub basic_credentials: Option<SecretString>,
}

impl Listener {
    /// Adds what is wrong between the keys, each of which is right for itself.
    pub(super) fn check(values: &mut Values) {
        let Some((scheme, address)) = values.text(ADDRESS).and_then(|text| parse(text).ok()) else { return };
        let has = |key| values.text(key).is_some();
        let (certificate, key, is_guarded) = (has(CERTIFICATE), has(KEY), has(TOKEN) || has(CREDENTIALS));
        let is_insecure = values.text(INSECURE).is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let is_https = scheme == Scheme::Https;
        for (name, given) in [(CERTIFICATE, certificate), (KEY, key)] {
            if is_https && !given {
                values
                    .problems
                    .push(super::Problem::hidden(name, "is required for an https:// listener; name a PEM file"));
            } else if given && !is_https {
                values.problem(name, "has no use with http://; write https:// in listeners");
            }
        }
        if !address.ip().is_loopback() && !is_guarded && !is_insecure {
            values.problem(
                ADDRESS,
                format!(
                    "can be reached from other machines, and would tell everybody there of metrics, connectors and errors; listen on \
                     127.0.0.1, or set {TOKEN} or {CREDENTIALS}, or accept it with {INSECURE}=true"
                ),
            );
        }
        if !address.ip().is_loopback() && is_guarded && !is_https && !is_insecure {
            let message = format!(
                "is http://: what lets a client in goes over the network in the clear; write https:// and set {CERTIFICATE} and {KEY}"
            );
            values.warnings.push(Warning { key: ADDRESS.to_owned(), message });
        }
    }

    /// What the keys say, once they are right; `None` where there is to be no listener.
    pub(super) fn of(values: &Checked<'_>) -> Option<Self> {
        let (scheme, address) = parse(values.optional(ADDRESS)?).ok()?;
        let tls = values.optional_path(CERTIFICATE).zip(values.optional_path(KEY));
        Some(Self {
            address,
            tls: tls.filter(|_| scheme == Scheme::Https),
            bearer_token_file: values.optional_path(TOKEN),
            basic_credentials: values.optional(CREDENTIALS).map(SecretString::from),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

pub(super) fn check_address(text: &str) -> Result<(), String> {
    parse(text).map(|_| ())
}

pub(super) fn check_credentials(text: &str) -> Result<(), String> {
    match text.split_once(':') {
        Some((user, password)) if !user.is_empty() && !password.is_empty() => Ok(()),
        _ => Err("must be user:password".to_owned()),
    }
}

fn parse(text: &str) -> Result<(Scheme, SocketAddr), String> {
    if text.contains(',') {
        return Err("must be one address; put a proxy before it for more".to_owned());
    }
    let (scheme, address) = match text.split_once("://") {
        Some(("http", address)) => (Scheme::Http, address),
        Some(("https", address)) => (Scheme::Https, address),
        _ => return Err("must be http://host:port or https://host:port".to_owned()),
    };
    let address = address.strip_suffix('/').unwrap_or(address);
    if let Ok(address) = address.parse() {
        return Ok((scheme, address));
    }
    match address.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some(("", Ok(port))) => Ok((scheme, SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))),
        Some(("localhost", Ok(port))) => Ok((scheme, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))),
        _ => Err(
            "must be http://host:port or https://host:port with an IP address or localhost, and a port from 0 to 65535"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::WorkerConfig;

    const TOKEN: (&str, &str) = ("rest.bearer.token.file", "/t");
    const CREDENTIALS: (&str, &str) = ("rest.basic.credentials", "prometheus:Sesame");
    const CERTIFICATE: (&str, &str) = ("listeners.https.ssl.certificate.location", "/c.pem");
    const KEY: (&str, &str) = ("listeners.https.ssl.key.location", "/k.pem");
    const INSECURE: (&str, &str) = ("rest.insecure", "true");

    #[test]
    fn a_listener_is_on_loopback_or_asks_or_is_told_not_to() {
        // Address, further keys; the address that comes of it, or the key that is wrong; warnings.
        type Row = (&'static str, &'static [(&'static str, &'static str)], Result<&'static str, &'static str>, usize);
        let rows: &[Row] = &[
            ("", &[], Ok(""), 0),
            ("http://127.0.0.1:0", &[], Ok("127.0.0.1:0"), 0),
            ("http://127.8.0.1:0", &[], Ok("127.8.0.1:0"), 0),
            ("http://localhost:1/", &[], Ok("127.0.0.1:1"), 0),
            ("http://[::1]:8083", &[], Ok("[::1]:8083"), 0),
            ("127.0.0.1:8083", &[], Err("listeners"), 0),
            ("http://kafka.example:8083", &[], Err("listeners"), 0),
            ("http://127.0.0.1:99999", &[], Err("listeners"), 0),
            ("http://127.0.0.1:1,http://127.0.0.1:2", &[], Err("listeners"), 0),
            ("http://:8083", &[], Err("listeners"), 0),
            ("http://10.0.0.1:8083", &[], Err("listeners"), 0),
            ("http://[::]:8083", &[], Err("listeners"), 0),
            ("http://:8083", &[("rest.insecure", "false")], Err("listeners"), 0),
            ("http://:8083", &[INSECURE], Ok("[::]:8083"), 0),
            ("http://0.0.0.0:8083", &[INSECURE], Ok("0.0.0.0:8083"), 0),
            ("http://:8083", &[TOKEN], Ok("[::]:8083"), 1),
            ("http://:8083", &[CREDENTIALS], Ok("[::]:8083"), 1),
            ("http://:8083", &[("rest.basic.credentials", "prometheus")], Err("rest.basic.credentials"), 0),
            ("https://:8083", &[TOKEN, CERTIFICATE, KEY], Ok("[::]:8083"), 0),
            ("https://:8083", &[CERTIFICATE, KEY], Err("listeners"), 0),
            ("https://127.0.0.1:8083", &[CERTIFICATE, KEY], Ok("127.0.0.1:8083"), 0),
            ("https://127.0.0.1:8083", &[KEY], Err(CERTIFICATE.0), 0),
            ("http://127.0.0.1:8083", &[CERTIFICATE, KEY], Err(CERTIFICATE.0), 0),
        ];
        for (address, more, expected, warnings) in rows {
            let pairs = [("bootstrap.servers", "a:1"), ("listeners", address)];
            let map = pairs.iter().chain(*more).map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            let result = WorkerConfig::from_map(&map);
            match (expected, result) {
                (Ok(expected), Ok((config, warned))) => {
                    let listener = config.listener;
                    let found = listener.as_ref().map_or_else(String::new, |listener| listener.address.to_string());
                    assert_eq!((found.as_str(), warned.len()), (*expected, *warnings), "{address} {more:?}");
                    assert!(!format!("{listener:?}").contains("Sesame"));
                }
                (Err(key), Err(errors)) => {
                    assert!(errors.problems.iter().any(|problem| problem.key.as_deref() == Some(key)), "{errors}");
                }
                (expected, result) => panic!("{address} {more:?}: {expected:?}, {result:?}"),
            }
        }
    }
}
