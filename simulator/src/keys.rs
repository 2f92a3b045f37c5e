//! A corp's RSA keys: made once into the state folder, one pair a version.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, Pkcs1PublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey};
use rsa::PrivateKey;
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};

use crate::scenario::{CorpScenario, ScenarioError};
use crate::state::State;

/// What an RSA key of 2,048 bits makes of anything.
const SEALED_BYTES: usize = 256;

/// The public keys of a corp, by version.
#[derive(Debug)]
pub struct PublicKeys(BTreeMap<u32, SealingKey>);

/// A public key, and what it sealed so far.
#[derive(Debug)]
struct SealingKey {
    public: Pkcs1PublicEncryptingKey,
    sealed: File,
}

impl PublicKeys {
    /// Loads the keys of all the corp's versions; makes those that are not there yet (tenths of a second each).
    pub fn load(state: &State, corp: &CorpScenario) -> Result<Self, ScenarioError> {
        let load = |version: u32| -> Result<SealingKey, String> {
            let private = private_key(state, corp, version).map_err(|error| error.to_string())?;
            let der = private.to_public_key().to_public_key_der().map_err(|error| error.to_string())?;
            let public = PublicEncryptingKey::from_der(der.as_bytes()).map_err(|error| error.to_string())?;
            let public = Pkcs1PublicEncryptingKey::new(public).map_err(|error| error.to_string())?;
            let sealed = state.sealed_keys(&corp.id, version).map_err(|error| error.to_string())?;
            Ok(SealingKey { public, sealed })
        };
        let keys = corp.keys.iter().map(|key| {
            let path = state.private_key_path(&corp.id, key.version);
            load(key.version)
                .map(|public| (key.version, public))
                .map_err(|problem| ScenarioError::Key { path, problem })
        });
        Ok(Self(keys.collect::<Result<_, _>>()?))
    }

    /// The random key of the message at `index`, sealed with the key of `version`, PKCS#1 v1.5. The padding is random, so it is
    /// sealed once and kept in the state folder: each later pull of the record gives the same, as the vendor's archive does.
    pub fn seal(&self, version: u32, index: u64, random_key: &[u8]) -> Option<[u8; SEALED_BYTES]> {
        let key = self.0.get(&version)?;
        let mut sealed = [0; SEALED_BYTES];
        let position = index * SEALED_BYTES as u64;
        if key.sealed.read_exact_at(&mut sealed, position).is_err() || sealed == [0; SEALED_BYTES] {
            key.public.encrypt(random_key, &mut sealed).ok()?;
            key.sealed.write_all_at(&sealed, position).ok()?;
        }
        Some(sealed)
    }
}

/// Writes the private keys of a corp into `folder` as `<version>.pem`, odd versions in PKCS#1, even ones in PKCS#8.
pub fn export(state: &State, corp: &CorpScenario, folder: &Path) -> Result<(), ScenarioError> {
    let failed = |path: &Path, problem: String| ScenarioError::Key { path: path.to_owned(), problem };
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error.to_string()))?;
    for key in &corp.keys {
        let path = folder.join(format!("{}.pem", key.version));
        let private = private_key(state, corp, key.version)?;
        let pem = if key.version % 2 == 1 {
            private.to_pkcs1_pem(LineEnding::LF).map_err(|error| error.to_string())
        } else {
            private.to_pkcs8_pem(LineEnding::LF).map_err(|error| error.to_string())
        };
        let pem = pem.map_err(|problem| failed(&path, problem))?;
        write_secret(&path, pem.as_bytes()).map_err(|error| failed(&path, error.to_string()))?;
    }
    Ok(())
}

fn private_key(state: &State, corp: &CorpScenario, version: u32) -> Result<PrivateKey, ScenarioError> {
    let failed = |problem: String| ScenarioError::Key { path: state.private_key_path(&corp.id, version), problem };
    let pem = state.private_key(&corp.id, version, generate).map_err(|error| failed(error.to_string()))?;
    PrivateKey::from_pkcs8_pem(&pem).map_err(|error| failed(error.to_string()))
}

/// A new key, as PEM of PKCS#8; empty if none could be made, which no reader takes for a key.
fn generate() -> String {
    let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).ok();
    let der: Option<Pkcs8V1Der<'_>> = key.and_then(|key| key.as_der().ok());
    let key = der.and_then(|der| PrivateKey::from_pkcs8_der(der.as_ref()).ok());
    let pem = key.and_then(|key| key.to_pkcs8_pem(LineEnding::LF).ok());
    pem.map(|pem| pem.to_string()).unwrap_or_default()
}

fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}
