//! The listener's certificate, which is read again when its files change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Far above any chain.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Certificate and key of the listener.
#[derive(Debug)]
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    /// The last that worked.
    config: Arc<ServerConfig>,
    /// What the files held, or why they could not be read, when they were looked at last.
    seen: Result<Files, String>,
}

/// As read. Compared, so that only a change is looked into.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("chain_bytes", &self.chain.len()).finish_non_exhaustive()
    }
}

impl Certificate {
    /// # Errors
    /// A sentence that says which file to change.
    pub async fn load(chain: PathBuf, key: PathBuf) -> Result<Self, String> {
        let seen = read(&chain, &key).await;
        let config = seen.as_ref().map_err(Clone::clone).and_then(config)?;
        Ok(Self { chain, key, loaded: Mutex::new(Loaded { config, seen }) })
    }

    /// For the next connection. Files that have changed are read anew; where they cannot be used (half of a change is there), the
    /// last that worked stays.
    pub async fn acceptor(&self) -> TlsAcceptor {
        let seen = read(&self.chain, &self.key).await;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.seen != seen {
            match seen.as_ref().map_err(Clone::clone).and_then(config) {
                Ok(config) => {
                    tracing::info!(chain = %self.chain.display(), "the listener has a new certificate");
                    loaded.config = config;
                }
                Err(error) => tracing::warn!("the listener keeps its certificate: {error}"),
            }
            loaded.seen = seen;
        }
        loaded.config.clone().into()
    }
}

async fn read(chain: &Path, key: &Path) -> Result<Files, String> {
    Ok(Files { chain: read_file(chain).await?, key: read_file(key).await? })
}

async fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let read = async {
        if tokio::fs::metadata(path).await?.len() > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        tokio::fs::read(path).await
    };
    read.await.map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

fn config(files: &Files) -> Result<Arc<ServerConfig>, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&files.chain)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("listeners.https.ssl.certificate.location is no PEM: {error}"))?;
    if chain.is_empty() {
        return Err("listeners.https.ssl.certificate.location has no certificate in it".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(&files.key)
        .map_err(|_| "listeners.https.ssl.key.location has no private key in it as PEM, not encrypted".to_owned())?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| format!("certificate and key of listeners.https.ssl do not serve: {error}"))?;
    Ok(Arc::new(config))
}
