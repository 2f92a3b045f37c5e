//! Whom the guard believes: certificates of WeCom, and of a proxy that speaks TLS.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::upstream::SettingsError;

/// Of a name in a certificate, which somebody else wrote.
const NAME_LENGTH_MAX: usize = 200;

/// A certificate that is not believed, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the certificate shown for {host} is not trusted ({reason}); it is of {subject}, issued by {issuer}. Nothing was sent. Somebody \
     is on the way to WeCom: if it is a proxy of your own, give its CA as sdk.egress.ca.file"
)]
pub struct Untrusted {
    pub host: String,
    pub reason: String,
    pub subject: String,
    pub issuer: String,
}

/// TLS as a client: 1.2 at least, names and certificates verified by the system's roots, or by those of `ca_file`.
pub fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, SettingsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = match ca_file {
        Some(path) => of_file(path)?,
        None => of_system()?,
    };
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| SettingsError::Tls(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| SettingsError::Tls(error.to_string()))?
        .dangerous()
        // It verifies all that the usual one does, for it asks that one, and says more of a refusal.
        .with_custom_certificate_verifier(Arc::new(Verifier { inner, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn of_file(path: &Path) -> Result<RootCertStore, SettingsError> {
    let error = |reason: String| SettingsError::CaFile { path: PathBuf::from(path), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|cause| error(cause.to_string()))? {
        let certificate = certificate.map_err(|cause| error(cause.to_string()))?;
        roots.add(certificate).map_err(|cause| error(cause.to_string()))?;
    }
    if roots.is_empty() {
        return Err(error("it has no certificate in it".to_owned()));
    }
    Ok(roots)
}

fn of_system() -> Result<RootCertStore, SettingsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() { Err(SettingsError::NoRoots) } else { Ok(roots) }
}

/// The usual verifier, which on a refusal tells whose certificate it was.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now).map_err(|error| {
            let reason = match &error {
                rustls::Error::InvalidCertificate(reason) => words(reason),
                other => shown(other),
            };
            let (subject, issuer) = names(end_entity);
            let host = server_name.to_str().into_owned();
            let untrusted = Untrusted { host, reason, subject, issuer };
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(untrusted))))
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn words(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "its issuer is unknown".to_owned(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another name".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet: is this machine's clock right?".to_owned()
        }
        other => shown(other),
    }
}

/// Subject and issuer.
fn names(certificate: &CertificateDer<'_>) -> (String, String) {
    match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => (shown(certificate.subject()), shown(certificate.issuer())),
        Err(_) => ("an unreadable name".to_owned(), "an unreadable name".to_owned()),
    }
}

/// A stranger's text, fit for a log.
fn shown(text: &impl fmt::Display) -> String {
    let text: String =
        text.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).take(NAME_LENGTH_MAX).collect();
    if text.is_empty() { "nobody".to_owned() } else { text }
}
