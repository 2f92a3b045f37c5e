//! `probe`: whether the worker of this machine lives, for a container's HEALTHCHECK.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::config;
use crate::worker::exit::Exit;

/// For each step of the way.
const TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Ask the worker that runs on this machine with this file whether it lives: for a container's HEALTHCHECK.
///
/// Asks `/livez` at the address in `listeners`, over TLS where it says so. No token is needed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code: 0 yes; 64 the file is wrong; 69 no, or nobody answers")]
pub struct ProbeArgs {
    /// Worker file
    #[arg(value_name = "WORKER")]
    worker: PathBuf,

    /// Ask whether it is ready (`/readyz`): every task is past its start
    #[arg(long)]
    ready: bool,
}

/// Asks, and writes the answer.
///
/// # Errors
/// When the file is not valid, or `out` cannot be written.
pub fn probe(args: &ProbeArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    let (worker, _) = config::load_worker(&args.worker)?;
    let Some(listener) = worker.listener.filter(|listener| listener.address.port() != 0) else {
        eprintln!("listeners names no port in {}: there is nobody to ask", args.worker.display());
        return Ok(Exit::Usage);
    };
    let path = if args.ready { "/readyz" } else { "/livez" };
    match ask(listener.address, listener.tls.is_some(), path) {
        Ok((200, answer)) => {
            write!(out, "{answer}")?;
            Ok(Exit::Success)
        }
        Ok((_, answer)) => {
            eprint!("{answer}");
            Ok(Exit::Unavailable)
        }
        Err(error) => {
            eprintln!("{} does not answer: {error}", listener.address);
            Ok(Exit::Unavailable)
        }
    }
}

/// Status and body of a GET.
fn ask(mut address: SocketAddr, with_tls: bool, path: &str) -> std::io::Result<(u16, String)> {
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let answer = if with_tls {
        let client = ClientConnection::new(Arc::new(tls()?), ServerName::IpAddress(address.ip().into()));
        exchange(StreamOwned::new(client.map_err(std::io::Error::other)?, stream), &request)?
    } else {
        exchange(stream, &request)?
    };
    let no_http = || std::io::Error::other("what came is no HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(no_http)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(no_http)?;
    Ok((status, body.to_owned()))
}

fn exchange(mut stream: impl Read + Write, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn tls() -> std::io::Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let config = config.map_err(std::io::Error::other)?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))).with_no_client_auth())
}

/// The worker's certificate is for the name that others know it by, and not for this machine's loopback. Nothing secret is sent.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
