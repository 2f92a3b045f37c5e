//! A client of the guard's that goes as far as the vendor's library does, with TLS as that has it.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wecom_connector::egress::{HOST, Pass, proxy_password};
use wecom_simulator::network;

/// All that comes back for these bytes within TLS.
pub async fn ask(pass: &Pass, request: &[u8]) -> String {
    let mut tcp = TcpStream::connect(pass.address()).await.expect("the guard's port");
    let password = BASE64_STANDARD.encode(proxy_password(1, pass.password()));
    let connect = format!("CONNECT {HOST}:443 HTTP/1.0\r\nproxy-authorization: Basic {password}\r\n\r\n");
    tcp.write_all(connect.as_bytes()).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.expect("an answer to CONNECT"));
    }
    assert!(String::from_utf8_lossy(&head).contains(" 200 "));
    let connector = TlsConnector::from(network::tls());
    let mut tls = connector.connect(ServerName::try_from(HOST).expect("a name"), tcp).await.expect("TLS");
    // It may be answered, and hung up on, before all of it is sent.
    let _ = tls.write_all(request).await;
    let _ = tls.flush().await;
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
