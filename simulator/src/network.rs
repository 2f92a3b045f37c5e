//! The library on the wire: what the vendor's sends, and what it makes of the answers (measured).
//!
//! A call is a TCP connection of its own, through a proxy where there is one; TLS, whose certificate has to be for the host but
//! may come from anybody; one HTTP/1.0 request.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, PROXY_AUTHORIZATION, RANGE};
use hyper::{Method, Request, Response, Version};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::io::InspectReader;

use crate::api::{FILES, PAGES, TOKENS};
use crate::code::{Code, NETWORK, NOT_DECRYPTED, SYSTEM};
use crate::media::{Chunk, FileKey, Parcel};
use crate::scenario::Network;
use crate::sdk::refuse_token;

/// How a call reaches the vendor, as the caller says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Via<'a> {
    /// `http://host:port`, or `host:port`; empty where none is told.
    pub proxy: &'a [u8],
    /// `user:password`; empty where the proxy needs none.
    pub password: &'a [u8],
    /// In seconds. None where it is not above 0.
    pub timeout_s: i32,
}

impl Via<'_> {
    /// The proxy's scheme, in lower case, and its address. A scheme that no proxy has is refused.
    pub fn scheme(&self) -> Result<(String, String), Code> {
        let proxy = String::from_utf8_lossy(self.proxy);
        scheme(&proxy)
    }

    /// The proxy, and the user and password that it is given. The environment has one for whoever is told none.
    fn proxy(&self) -> Result<Option<(String, Option<String>)>, Code> {
        let told = String::from_utf8_lossy(self.proxy).into_owned();
        let variable = |name: &str| std::env::var_os(name)?.into_string().ok();
        let proxy = Some(told).into_iter().chain(["https_proxy", "HTTPS_PROXY"].into_iter().filter_map(variable));
        let Some(proxy) = proxy.into_iter().find(|proxy| !proxy.is_empty()) else { return Ok(None) };
        let (scheme, address) = scheme(&proxy)?;
        if scheme != "http" {
            eprintln!("wecom-simulator: it goes through proxies of HTTP alone, not of {scheme}");
            return Err(NETWORK);
        }
        let (user, address) = match address.rsplit_once('@') {
            Some((user, address)) => (Some(user.to_owned()), address.to_owned()),
            None => (None, address),
        };
        let password = String::from_utf8_lossy(self.password).into_owned();
        let user = if password.is_empty() { user } else { Some(password) };
        Ok(Some((address, user)))
    }
}

fn scheme(proxy: &str) -> Result<(String, String), Code> {
    let (scheme, address) = proxy.split_once("://").unwrap_or(("http", proxy));
    let scheme = scheme.to_ascii_lowercase();
    let address = address.trim_end_matches('/').to_owned();
    match scheme.as_str() {
        "http" | "https" | "socks4" | "socks5" | "socks5h" => Ok((scheme, address)),
        _ => Err(NETWORK),
    }
}

impl Network {
    /// Host and port of [`Network::api`].
    pub fn address(&self) -> Option<(&str, u16)> {
        let (host, port) = self.api.rsplit_once(':')?;
        Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
    }

    /// Gets a token for an sdk object.
    pub fn token(&self, corp_id: &str, secret: &str, via: &Via<'_>) -> Result<String, Code> {
        let request = Request::get(format!("{TOKENS}?corpid={corp_id}&corpsecret={secret}"));
        let answer = self.ask(request.body(Full::default()), via)?.into_body();
        let token = serde_json::from_slice::<Value>(&answer).ok();
        let token = token.as_ref().and_then(|answer| answer["access_token"].as_str()).filter(|token| !token.is_empty());
        token.map(ToOwned::to_owned).ok_or_else(|| refuse_token(&answer))
    }

    /// Pulls a page. Whatever comes is handed over as it is.
    pub fn page(&self, token: &str, seq: u64, limit: u32, via: &Via<'_>) -> Result<Vec<u8>, Code> {
        // The vendor's library signs its requests, in a way that is its own.
        let body = format!(r#"{{"seq":{seq},"limit":{limit},"version":3,"encrypt_sign":"0"}}"#);
        let request = Request::post(format!("{PAGES}?access_token={token}")).header(CONTENT_TYPE, FORM);
        Ok(self.ask(request.body(body.into()), via)?.into_body().into())
    }

    /// Asks for the bytes of a file from `start` to `end`.
    pub fn chunk(&self, token: &str, parcel: &Parcel, (start, end): (u64, u64), via: &Via<'_>) -> Result<Chunk, Code> {
        let text = |text: &str| Value::from(text).to_string();
        let (file, authkey) = (text(&parcel.file), text(&parcel.authkey));
        let body = format!(r#"{{"fileid":{file},"authkey":{authkey},"version":3}}"#);
        let request = Request::post(format!("{FILES}?access_token={token}"))
            .header(RANGE, format!("bytes={start}-{end}"))
            .header(CONTENT_TYPE, FORM);
        let answer = self.ask(request.body(body.into()), via)?;
        let next = answer.extensions().get::<RawHead>().and_then(RawHead::next);
        let answer: Value = serde_json::from_slice(answer.body()).map_err(|_| SYSTEM)?;
        if let Some(errcode) = answer["errcode"].as_i64().filter(|errcode| *errcode != 0) {
            return Err(Code::of_media_errcode(i32::try_from(errcode).unwrap_or(-1)));
        }
        let part = answer["content"].as_str().and_then(|content| BASE64.decode(content).ok()).ok_or(SYSTEM)?;
        let part =
            FileKey::read(&parcel.key).and_then(|key| key.decipher(part, next.is_none())).ok_or(NOT_DECRYPTED)?;
        Ok(Chunk::new(part, next))
    }

    /// Sends one request, and takes the whole answer of it, whose status is one of success.
    fn ask(&self, request: hyper::http::Result<Request<Full<Bytes>>>, via: &Via<'_>) -> Result<Response<Bytes>, Code> {
        // A secret that can't stand in an address can't be sent.
        let request = request.map_err(|_| NETWORK)?;
        let proxy = via.proxy()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|_| NETWORK)?;
        let timeout = u64::try_from(via.timeout_s).ok().filter(|timeout_s| *timeout_s > 0).map(Duration::from_secs);
        let answer = runtime.block_on(async {
            let exchange = self.exchange(request, proxy);
            match timeout {
                Some(timeout) => tokio::time::timeout(timeout, exchange).await.ok()?,
                None => exchange.await,
            }
        });
        // A name that is being looked up is not waited for.
        runtime.shutdown_background();
        answer.filter(|answer| answer.status().is_success()).ok_or(NETWORK)
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        proxy: Option<(String, Option<String>)>,
    ) -> Option<Response<Bytes>> {
        let (host, _) = self.address()?;
        let name = ServerName::try_from(host.to_owned()).ok()?;
        let tls = TlsConnector::from(tls());
        *request.version_mut() = Version::HTTP_10;
        request.headers_mut().insert(HOST, host.parse().ok()?);
        request.headers_mut().insert(ACCEPT, "*/*".parse().ok()?);
        let answer = match proxy {
            None => send(tls.connect(name, TcpStream::connect(&self.api).await.ok()?).await.ok()?, request).await?,
            Some((address, user)) => {
                let mut connect = Request::builder().method(Method::CONNECT).uri(&self.api).header(HOST, &self.api);
                if let Some(user) = user {
                    connect = connect.header(PROXY_AUTHORIZATION, format!("Basic {}", BASE64.encode(user)));
                }
                let opened = send(TcpStream::connect(address).await.ok()?, connect.body(Full::default()).ok()?).await?;
                let tunnel = hyper::upgrade::on(opened).await.ok()?;
                send(tls.connect(name, TokioIo::new(tunnel)).await.ok()?, request).await?
            }
        };
        let (head, body) = answer.into_parts();
        Some(Response::from_parts(head, body.collect().await.ok()?.to_bytes()))
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

/// An answer's head as it came over the wire.
#[derive(Debug, Clone)]
struct RawHead(Arc<Mutex<Vec<u8>>>);

impl RawHead {
    /// Where the next part of the file begins, unless this was the last: by the bytes `CONTENT-RANGE` and ` BYTES a-b/total`, in no
    /// other spelling (measured).
    fn next(&self) -> Option<u64> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        let (head, _) = text.split_once("\r\n\r\n")?;
        let (_, range) = head.split_once("CONTENT-RANGE")?.1.split_once(" BYTES ")?;
        let (range, total) = range.lines().next()?.split_once('/')?;
        let next = range.split_once('-')?.1.parse::<u64>().ok()?.checked_add(1)?;
        (next != total.trim().parse::<u64>().ok()?).then_some(next)
    }
}

/// The head of the answer, if it is one. What it looks like on the wire is in its extensions.
async fn send<Stream>(stream: Stream, request: Request<Full<Bytes>>) -> Option<Response<Incoming>>
where
    Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let raw = RawHead(Arc::default());
    let seen = raw.clone();
    let stream = InspectReader::new(stream, move |bytes: &[u8]| {
        let mut head = seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        if head.len() < RAW_HEAD_BYTES_MAX {
            head.extend_from_slice(bytes);
        }
    });
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection.with_upgrades());
    let mut response = sender.send_request(request).await.ok()?;
    response.extensions_mut().insert(raw);
    Some(response)
}

const RAW_HEAD_BYTES_MAX: usize = 64 << 10;

/// TLS as the vendor's library speaks it: it takes a certificate of the right name from whoever made it (measured).
pub fn tls() -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider's own versions");
    let verifier = Arc::new(NameAlone(provider));
    Arc::new(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct NameAlone(Arc<CryptoProvider>);

impl ServerCertVerifier for NameAlone {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
