//! Proxies that a user may have before WeCom. Each leads to one place, whatever place it is asked for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub const PASSWORD: &str = "proxy-user:proxy-password";

#[derive(Clone)]
pub enum Kind {
    Http,
    Https(TlsAcceptor),
    Socks,
}

/// A proxy that takes [`PASSWORD`], and how many it has led on.
pub async fn start(kind: Kind, to: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let led = Arc::new(AtomicUsize::new(0));
    let count = led.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (kind, count) = (kind.clone(), count.clone());
            tokio::spawn(async move {
                match kind {
                    Kind::Http => http(stream, to, &count).await,
                    Kind::Https(tls) => http(tls.accept(stream).await?, to, &count).await,
                    Kind::Socks => socks(stream, to, &count).await,
                }
            });
        }
    });
    (address, led)
}

async fn http(mut client: impl AsyncRead + AsyncWrite + Unpin, to: SocketAddr, led: &AtomicUsize) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let password = format!("Basic {}", BASE64_STANDARD.encode(PASSWORD));
    if !head.starts_with("CONNECT ") || !head.contains(&password) {
        return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    }
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    lead(client, to, led).await
}

/// RFC 1928 and 1929.
async fn socks(mut client: TcpStream, to: SocketAddr, led: &AtomicUsize) -> io::Result<()> {
    let (_version, methods) = (client.read_u8().await?, client.read_u8().await?);
    let offered = read(&mut client, methods.into()).await?;
    if !offered.contains(&2) {
        return client.write_all(&[5, 0xff]).await;
    }
    client.write_all(&[5, 2]).await?;
    let (_version, length) = (client.read_u8().await?, client.read_u8().await?);
    let user = read(&mut client, length.into()).await?;
    let length = client.read_u8().await?;
    let password = read(&mut client, length.into()).await?;
    let is_right = [user.as_slice(), password.as_slice()].join(&b':') == PASSWORD.as_bytes();
    client.write_all(&[1, u8::from(!is_right)]).await?;
    if !is_right {
        return Ok(());
    }
    let head = read(&mut client, 4).await?;
    let length = match head[3] {
        1 => 4,
        3 => client.read_u8().await?,
        _ => 16,
    };
    read(&mut client, usize::from(length) + 2).await?;
    client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0]).await?;
    lead(client, to, led).await
}

async fn lead(mut client: impl AsyncRead + AsyncWrite + Unpin, to: SocketAddr, led: &AtomicUsize) -> io::Result<()> {
    led.fetch_add(1, Ordering::Relaxed);
    let mut server = TcpStream::connect(to).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

async fn read(client: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}
