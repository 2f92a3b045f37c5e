//! The private keys of a corp by version, and the one heavy step of a record: unwrapping its random key.
//!
//! Each upload of a public key in the admin console raises the version; a record names the version it was sealed with
//! (`publickey_ver`, doc 91774), so old keys stay in use. The ring reads its files again when a version is missing: a new key
//! needs no restart. This is the one part of `archive` that touches files and the clock.

mod private_key;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

pub use private_key::{Encoding, KeyError, PrivateKey};

/// A version that is missing is looked for on disk no more often than this.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Versions looked for within one interval. A corp has a handful of keys: more than this is garbage, not rotation.
const MISSING_VERSIONS_MAX: usize = 32;

/// WeCom's base64 has its padding; a record that lost it in a copy can still be opened.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Private keys by version. Shared by all threads; `Debug` shows versions only.
pub struct KeyRing {
    files: Vec<(u32, PathBuf)>,
    folder: Option<PathBuf>,
    keys: RwLock<Arc<BTreeMap<u32, Arc<PrivateKey>>>>,
    /// When each missing version was last looked for.
    missing: Mutex<HashMap<u32, Instant>>,
}

/// Why a random key could not be unwrapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnwrapError {
    /// No key of that version; `known` are the versions there are.
    #[error(
        "no private key of version {version}, there are {known:?}; add the key that belongs to that public key version"
    )]
    UnknownVersion {
        /// The version the record names.
        version: u32,
        /// The versions in the ring.
        known: Vec<u32>,
    },
    /// The random key is not base64.
    #[error("encrypt_random_key is not base64; the record is damaged")]
    Base64,
    /// RSA failed: another key sealed this, or the record is damaged.
    #[error(
        "the private key of version {version} does not open this record; check with `wecom-connector keys check` that its \
         fingerprint is that of the public key the admin console shows as version {version}"
    )]
    Rsa {
        /// The version the record names.
        version: u32,
    },
}

/// Why a ring could not be loaded: every fault of its files, at least one.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct KeyRingError(pub Vec<KeyFileError>);

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub struct KeyFileError {
    /// The file or folder.
    pub path: PathBuf,
    /// Why not.
    pub error: KeyError,
}

impl KeyRing {
    /// Loads the keys in `files` (version and path) and in `folder`, where a file's name ends in its version (`3.pem`,
    /// `v3.pem`, `private_key_3.pem`).
    ///
    /// # Errors
    /// Any file that cannot be used, a version that comes twice with different keys, or no key at all.
    pub fn load(files: &[(u32, PathBuf)], folder: Option<&Path>) -> Result<Self, KeyRingError> {
        let (keys, mut faults) = read(files, folder);
        if keys.is_empty() && faults.is_empty() {
            let path = folder.map(Path::to_path_buf).unwrap_or_default();
            faults.push(KeyFileError { path, error: KeyError::NoKeys });
        }
        if !faults.is_empty() {
            return Err(KeyRingError(faults));
        }
        Ok(Self {
            files: files.to_vec(),
            folder: folder.map(Path::to_path_buf),
            keys: RwLock::new(Arc::new(keys)),
            missing: Mutex::new(HashMap::new()),
        })
    }

    /// The versions in the ring, in order.
    pub fn versions(&self) -> Vec<u32> {
        self.keys().keys().copied().collect()
    }

    /// Unwraps a record's random key (base64 of RSA PKCS#1 v1.5) with the key of a version. About 0.25 ms of one core
    /// for a 2,048-bit key; reads the files again, and so may block, when the version is missing.
    ///
    /// # Errors
    /// [`UnwrapError`]. A wrong key is an error but for one case in some tens of thousands, where the padding happens to
    /// look right; the record then fails at decryption.
    pub fn unwrap(&self, version: u32, encrypt_random_key: &str) -> Result<Vec<u8>, UnwrapError> {
        let sealed = BASE64.decode(encrypt_random_key.trim()).map_err(|_| UnwrapError::Base64)?;
        let key = self.key(version, Instant::now())?;
        key.decrypt(&sealed).ok_or(UnwrapError::Rsa { version })
    }

    fn key(&self, version: u32, now: Instant) -> Result<Arc<PrivateKey>, UnwrapError> {
        if let Some(key) = self.keys().get(&version) {
            return Ok(Arc::clone(key));
        }
        // Threads that miss the same version wait here for the one that reads, and then find the key.
        let mut missing = self.missing();
        if !self.keys().contains_key(&version) {
            missing.retain(|_, looked| now.saturating_duration_since(*looked) < RELOAD_INTERVAL);
            if !missing.contains_key(&version) && missing.len() < MISSING_VERSIONS_MAX {
                missing.insert(version, now);
                self.reload();
            }
        }
        drop(missing);
        let keys = self.keys();
        let unknown = || UnwrapError::UnknownVersion { version, known: keys.keys().copied().collect() };
        keys.get(&version).cloned().ok_or_else(unknown)
    }

    /// Reads all files again. What cannot be read is logged and leaves the key that was there.
    fn reload(&self) {
        let (fresh, faults) = read(&self.files, self.folder.as_deref());
        for fault in faults {
            tracing::warn!("key file is not usable, keys in use stay: {fault}");
        }
        let mut keys = BTreeMap::clone(&self.keys());
        for (version, key) in fresh {
            if !keys.contains_key(&version) {
                tracing::info!(version, "private key found");
            }
            keys.insert(version, key);
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    fn keys(&self) -> Arc<BTreeMap<u32, Arc<PrivateKey>>> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn missing(&self) -> MutexGuard<'_, HashMap<u32, Instant>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("versions", &self.versions()).finish_non_exhaustive()
    }
}

/// The key files of a folder with their versions, in order of version; files whose names end in no version, hidden ones and
/// public keys are passed over.
///
/// # Errors
/// When the folder cannot be listed.
pub fn files_of(folder: &Path) -> Result<Vec<(u32, PathBuf)>, KeyFileError> {
    let failed = |error| KeyFileError { path: folder.to_path_buf(), error: KeyError::Unreadable(error) };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // Not the entry's own type: a mounted secret is a link.
        if path.is_file()
            && let Some(version) = version_of(&path)
        {
            files.push((version, path));
        }
    }
    files.sort();
    Ok(files)
}

/// The version a file's name ends in; none for hidden files and public keys.
pub fn version_of(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    if name.starts_with('.') || name.to_ascii_lowercase().contains("public") || name.ends_with(".pub") {
        return None;
    }
    let stem = name.strip_suffix(".pem").or_else(|| name.strip_suffix(".key")).unwrap_or(name);
    let digits = stem.len() - stem.bytes().rev().take_while(u8::is_ascii_digit).count();
    stem[digits..].parse().ok().filter(|&version| version > 0)
}

/// Reads every key there is, and says which files could not be used.
fn read(files: &[(u32, PathBuf)], folder: Option<&Path>) -> (BTreeMap<u32, Arc<PrivateKey>>, Vec<KeyFileError>) {
    let mut faults = Vec::new();
    let mut all = files.to_vec();
    match folder.map(files_of) {
        Some(Ok(found)) => all.extend(found),
        Some(Err(fault)) => faults.push(fault),
        None => {}
    }
    let mut keys: BTreeMap<u32, Arc<PrivateKey>> = BTreeMap::new();
    for (version, path) in all {
        match PrivateKey::read(&path) {
            Err(error) => faults.push(KeyFileError { path, error }),
            Ok(key) => match keys.get(&version) {
                Some(other) if other.fingerprint() != key.fingerprint() => {
                    faults.push(KeyFileError { path, error: KeyError::VersionTwice(version) });
                }
                _ => {
                    keys.insert(version, Arc::new(key));
                }
            },
        }
    }
    (keys, faults)
}

#[cfg(test)]
mod tests {
    use super::private_key::tests::{fresh_key, seal};
    use super::*;
    use rsa::pkcs8::{EncodePrivateKey, LineEnding};

    fn write(folder: &Path, name: &str, key: &rsa::PrivateKey) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, key.to_pkcs8_pem(LineEnding::LF).unwrap()).unwrap();
        path
    }

    #[test]
    fn a_record_is_opened_by_its_version_only() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (fresh_key(), fresh_key());
        let path = write(folder.path(), "anything.pem", &one);
        let ring = KeyRing::load(&[(1, path)], None).unwrap();
        let sealed = seal(&one, b"random key");
        assert_eq!(ring.unwrap(1, &sealed).unwrap(), b"random key");
        assert_eq!(ring.unwrap(1, &format!(" {}\n", sealed.trim_end_matches('='))).unwrap(), b"random key");

        let mut damaged = sealed.clone().into_bytes();
        damaged[100] = if damaged[100] == b'A' { b'B' } else { b'A' };
        let rows = [
            (2, sealed.clone(), UnwrapError::UnknownVersion { version: 2, known: vec![1] }),
            (1, "no base64!".to_owned(), UnwrapError::Base64),
            (1, String::new(), UnwrapError::Rsa { version: 1 }),
            (1, "AAAA".to_owned(), UnwrapError::Rsa { version: 1 }),
            (1, String::from_utf8(damaged).unwrap(), UnwrapError::Rsa { version: 1 }),
            (1, seal(&two, b"random key"), UnwrapError::Rsa { version: 1 }),
        ];
        for (version, text, expected) in rows {
            assert_eq!(ring.unwrap(version, &text).unwrap_err(), expected);
        }
        assert_eq!(format!("{ring:?}"), "KeyRing { versions: [1], .. }");
    }

    #[test]
    fn file_names_carry_the_version() {
        let rows = [
            ("3.pem", Some(3)),
            ("v3.pem", Some(3)),
            ("private_key_12.pem", Some(12)),
            ("corp2-4.key", Some(4)),
            ("5", Some(5)),
            ("private.pem", None),
            ("public_key_3.pem", None),
            ("3.pem.bak", None),
            (".3.pem", None),
            ("0.pem", None),
            ("99999999999.pem", None),
        ];
        for (name, expected) in rows {
            assert_eq!(version_of(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_used_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let load = || KeyRing::load(&[], Some(folder.path())).unwrap_err().to_string();
        assert!(load().contains("must end in its version"));
        write(folder.path(), "1.pem", &fresh_key());
        write(folder.path(), "v1.pem", &fresh_key());
        std::fs::write(folder.path().join("2.pem"), "no key").unwrap();
        let text = load();
        assert!(text.contains("v1.pem: is a second, different key for version 1"), "{text}");
        assert!(text.contains("2.pem: is no PEM file"), "{text}");
        let text = KeyRing::load(&[], Some(&folder.path().join("none"))).unwrap_err().to_string();
        assert!(text.contains("none: cannot be read"), "{text}");
    }

    #[test]
    fn a_missing_version_is_looked_for_on_disk_but_not_all_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two, three) = (fresh_key(), fresh_key(), fresh_key());
        write(folder.path(), "1.pem", &one);
        let ring = KeyRing::load(&[], Some(folder.path())).unwrap();
        let start = Instant::now();
        let known = |version, after: Duration| ring.key(version, start + after).is_ok();

        assert!(!known(2, Duration::ZERO));
        write(folder.path(), "2.pem", &two);
        assert!(!known(2, RELOAD_INTERVAL - Duration::from_millis(1)), "looked again too soon");
        assert!(known(2, RELOAD_INTERVAL));

        // A file that cannot be read leaves what was there, and does not hide the good one beside it.
        std::fs::write(folder.path().join("1.pem"), "half a key").unwrap();
        write(folder.path(), "3.pem", &three);
        assert!(known(3, RELOAD_INTERVAL));
        assert_eq!(ring.unwrap(1, &seal(&one, b"x")).unwrap(), b"x");

        // A flood of made-up versions uses up the looks of an interval, and only of that one.
        let flood = RELOAD_INTERVAL * 3;
        for version in 100..100 + MISSING_VERSIONS_MAX as u32 {
            assert!(!known(version, flood));
        }
        write(folder.path(), "4.pem", &two);
        assert!(!known(4, flood), "looked more often than the bound");
        assert!(known(4, flood + RELOAD_INTERVAL));
    }

    #[test]
    fn all_cores_may_use_one_ring_while_it_reads() {
        use rayon::prelude::*;
        let folder = tempfile::tempdir().unwrap();
        let key = fresh_key();
        write(folder.path(), "1.pem", &key);
        let ring = KeyRing::load(&[], Some(folder.path())).unwrap();
        write(folder.path(), "2.pem", &key);
        let sealed = seal(&key, b"x");
        // Version 2 is found by whichever thread comes first; none of the others is told that it is unknown.
        (0..64).into_par_iter().for_each(|index| {
            assert_eq!(ring.unwrap(1 + index % 2, &sealed).unwrap(), b"x");
        });
    }
}
