//! The way to a store whose certificate a private authority has signed.

use std::path::Path;

use opendal::HttpTransporter;
use opendal_http_transport_reqwest::ReqwestTransport;
use reqwest::{Certificate, Client};

use super::StorageError;

/// An HTTP client that trusts the certificates in the PEM file beside the system's: a service of the cloud can stand
/// beside the store, for its keys.
pub fn trusting(file: &Path) -> Result<HttpTransporter, StorageError> {
    let error = |reason: String| {
        StorageError::configuration("ca", format!("{}: {reason}; correct storage.ca.file", file.display()))
    };
    let pem = std::fs::read(file).map_err(|cause| error(cause.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|cause| error(cause.to_string()))?;
    if certificates.is_empty() {
        return Err(error("it has no certificate in it".to_owned()));
    }
    let client = Client::builder().tls_certs_merge(certificates).build().map_err(|cause| error(cause.to_string()))?;
    Ok(HttpTransporter::new(ReqwestTransport::new(client)))
}
