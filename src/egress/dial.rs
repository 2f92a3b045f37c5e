//! TCP connections to a host that may have several addresses.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// An address that has not answered for so long is not waited for alone any more (RFC 8305).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// So many are tried at most: a name with more is a mistake, or somebody's game.
const ADDRESSES_MAX: usize = 16;

/// Which addresses of a host are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AddressFamily {
    #[default]
    Any,
    V4,
    V6,
}

impl AddressFamily {
    fn has(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("its name cannot be resolved: {0}")]
    Name(String),
    #[error("it cannot be reached: {0}")]
    Connect(String),
}

/// A connection to the first address of `host` that answers before `deadline`. The next one is tried as soon as one
/// fails, and after a quarter of a second anyway (RFC 8305).
pub async fn dial(host: &str, port: u16, family: AddressFamily, deadline: Instant) -> Result<TcpStream, DialError> {
    let bare = host.trim_matches(['[', ']']);
    let found = match tokio::time::timeout_at(deadline, tokio::net::lookup_host((bare, port))).await {
        Ok(found) => found.map_err(|error| DialError::Name(name_error(&error)))?,
        Err(_) => return Err(DialError::Name("the name server does not answer".to_owned())),
    };
    let all: Vec<SocketAddr> = found.map(canonical).collect();
    let addresses = in_turns(all.iter().copied().filter(|address| family.has(address.ip())));
    if addresses.is_empty() {
        let others: Vec<_> = all.iter().map(|address| address.ip().to_string()).collect();
        let of_family = if family == AddressFamily::V4 { "IPv4" } else { "IPv6" };
        return Err(DialError::Name(format!(
            "it has no {of_family} address, which sdk.egress.address.family asks for, but {}",
            if others.is_empty() { "none at all".to_owned() } else { others.join(", ") }
        )));
    }
    race(addresses, deadline).await
}

/// The first of the connections that is made.
async fn race(addresses: Vec<SocketAddr>, deadline: Instant) -> Result<TcpStream, DialError> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut failed: Vec<(SocketAddr, String)> = Vec::new();
    let mut next_at = Instant::now();
    loop {
        if let Some(address) = waiting.next() {
            attempts.push(attempt(address));
            next_at = Instant::now() + ATTEMPT_DELAY;
        }
        let is_last = waiting.len() == 0;
        loop {
            tokio::select! {
                biased;
                Some((address, made)) = attempts.next() => match made {
                    Ok(stream) => return Ok(stream),
                    Err(error) => {
                        failed.push((address, connect_error(&error)));
                        if failed.len() == addresses.len() {
                            return Err(DialError::Connect(told(&failed)));
                        }
                        if !is_last {
                            break;
                        }
                    }
                },
                () = tokio::time::sleep_until(deadline) => {
                    let silent = addresses.iter().filter(|address| failed.iter().all(|(failed, _)| failed != *address));
                    failed.extend(silent.map(|address| (*address, "it does not answer".to_owned())).collect::<Vec<_>>());
                    return Err(DialError::Connect(told(&failed)));
                }
                () = tokio::time::sleep_until(next_at), if !is_last => break,
            }
        }
    }
}

async fn attempt(address: SocketAddr) -> (SocketAddr, io::Result<TcpStream>) {
    (address, TcpStream::connect(address).await)
}

/// IPv4 addresses in the clothes of IPv6 are plain again, for families and for eyes.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Each once, the families in turns, as the resolver prefers them otherwise.
fn in_turns(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    let Some(first) = all.first().copied() else { return all };
    let (preferred, others): (Vec<SocketAddr>, Vec<SocketAddr>) =
        all.iter().partition(|address| address.is_ipv4() == first.is_ipv4());
    let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
    let mut turns = Vec::with_capacity(all.len());
    while turns.len() < all.len().min(ADDRESSES_MAX) {
        turns.extend(preferred.next());
        turns.extend(others.next());
    }
    turns.truncate(ADDRESSES_MAX);
    turns
}

fn told(failed: &[(SocketAddr, String)]) -> String {
    match failed {
        [(_, reason)] => reason.clone(),
        _ => {
            let each: Vec<_> = failed.iter().map(|(address, reason)| format!("{}: {reason}", address.ip())).collect();
            format!("none of its {} addresses answers ({})", failed.len(), each.join("; "))
        }
    }
}

fn connect_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "the connection is refused".to_owned(),
        io::ErrorKind::TimedOut => "it does not answer".to_owned(),
        _ => error.to_string(),
    }
}

/// What the resolver says, without the words that every one of its errors begins with.
fn name_error(error: &io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("failed to lookup address information: ").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream as StdStream};

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// Listens and accepts nothing: once its queue is full, packets are swallowed.
    fn swallowing() -> (Socket, Vec<StdStream>, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let queued = std::iter::from_fn(|| StdStream::connect_timeout(&address, Duration::from_millis(200)).ok());
        let queued = queued.take(8).collect();
        (socket, queued, address)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn every_address_is_tried() {
        let (_socket, _queued, silent) = swallowing();
        let good = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let good = good.local_addr().map(|address| (address, good)).unwrap();
        let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        for before in [vec![], vec![silent], vec![closed], vec![closed, silent, silent, closed]] {
            let addresses = [before, vec![good.0]].concat();
            let made = race(addresses.clone(), soon()).await.unwrap_or_else(|error| panic!("{addresses:?}: {error}"));
            assert_eq!(made.peer_addr().unwrap(), good.0);
        }
        let failed = race(vec![closed], soon()).await.unwrap_err();
        assert_eq!(failed.to_string(), "it cannot be reached: the connection is refused");
        let failed = race(vec![closed, silent], Instant::now() + Duration::from_millis(500)).await.unwrap_err();
        assert_eq!(
            failed.to_string(),
            "it cannot be reached: none of its 2 addresses answers (127.0.0.1: the connection is refused; 127.0.0.1: it does not answer)"
        );
    }

    #[tokio::test]
    async fn a_host_without_an_address_of_the_family_is_told() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        for (host, family) in [("127.0.0.1", AddressFamily::V4), ("[::ffff:127.0.0.1]", AddressFamily::V4)] {
            dial(host, port, family, soon()).await.unwrap_or_else(|error| panic!("{host}: {error}"));
        }
        let error = dial("127.0.0.1", port, AddressFamily::V6, soon()).await.unwrap_err().to_string();
        assert!(error.contains("no IPv6 address") && error.ends_with("but 127.0.0.1"), "{error}");
    }

    #[test]
    fn families_take_turns() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let given = addresses(&["[::1]:1", "[::2]:1", "[::1]:1", "1.1.1.1:1", "[::3]:1", "2.2.2.2:1"]);
        let expected = addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(in_turns(given.into_iter()), expected);
        let many = (0..40).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(in_turns(many).len(), ADDRESSES_MAX);
    }
}
