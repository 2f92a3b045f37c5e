//! The socket that HTTP clients come to.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait until they are accepted.
const BACKLOG: i32 = 1024;

/// Listens on an address. `[::]` stands for every address of both families, whatever the system's default
/// (`net.ipv6.bindv6only`) is; where there is no IPv6, for every IPv4 address.
///
/// # Errors
/// The system's.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let is_any = address.is_ipv6() && address.ip().is_unspecified();
    match bind(address) {
        Err(error) if is_any && is_for_want_of_ipv6(&error) => bind((Ipv4Addr::UNSPECIFIED, address.port()).into()),
        other => other,
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Connections of a predecessor that are not yet forgotten hold nobody up.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Without IPv6 in the kernel (EAFNOSUPPORT), or with it switched off (EADDRNOTAVAIL).
fn is_for_want_of_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn every_address_is_one_of_both_families() {
        let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        // What is listened on, and which of the loopback addresses lead there.
        for (address, [v4, v6]) in [
            ("[::]:0", [true, true]),
            ("0.0.0.0:0", [true, false]),
            ("127.0.0.1:0", [true, false]),
            ("[::1]:0", [false, true]),
        ] {
            let socket = match listen(address.parse().expect("an address")) {
                Err(error) if is_for_want_of_ipv6(&error) => continue,
                socket => socket.unwrap_or_else(|error| panic!("{address}: {error}")),
            };
            let own = socket.local_addr().expect("an address");
            let expected = if own.is_ipv6() { [v4, v6] } else { [true, false] };
            let mut found = [false; 2];
            for (found, ip) in found.iter_mut().zip(loopbacks) {
                *found = TcpStream::connect((ip, own.port())).await.is_ok();
            }
            assert_eq!(found, expected, "{address}");
        }
    }
}
