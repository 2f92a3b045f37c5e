//! The private keys of a corp by version, and the one heavy step of a record: unwrapping its random key.
//!
//! Each upload of a public key in the admin console raises the version; a record names the version it was sealed with
//! (`publickey_ver`, doc 91774), so old keys stay in use. The ring reads its files again when a version is missing: a new key
//! needs no restart. This is the one part of `archive` that touches files and the clock.

mod private_key;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::os::unix::fs::MetadataExt;
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

/// What is remembered of what was logged.
const TOLD_MAX: usize = 1_000;

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
    warnings: Vec<KeyFileWarning>,
    missing: Mutex<Missing>,
}

#[derive(Default)]
struct Missing {
    /// When each missing version was last looked for.
    looked: HashMap<u32, Instant>,
    /// What was logged of files that are not usable or odd, so that each is logged once.
    told: BTreeSet<String>,
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

/// A key file that can be used, or is none, and that somebody should look at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {warning}", path.display())]
pub struct KeyFileWarning {
    /// The file.
    pub path: PathBuf,
    /// What is odd, and what to do.
    pub warning: KeyWarning,
}

/// What is odd about a key file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyWarning {
    /// A private key in the folder whose name is of none of the forms that have a version.
    #[error("has a private key and is not used, as its name has no version; {NAME_ADVICE}")]
    NoVersion,
    /// Not the user and the group alone may open it.
    #[error("other users may read the private key, or change it; chmod 600 the file")]
    Exposed,
    /// Longer than what WeCom documents.
    #[error(
        "has {0} bits, and WeCom documents 2,048: it is used, but opening a record takes more work (4,096 bits: \
         {LARGE_KEY_COST} times)"
    )]
    Large(u32),
}

/// How a key file has to be named.
const NAME_ADVICE: &str = "name it private_key_N.pem, vN.pem or N.pem, where N is the version that the admin console shows for its public key";

/// Unwrapping with 4,096 bits against 2,048 bits, on one core.
const LARGE_KEY_COST: u32 = 15;

impl KeyRing {
    /// Loads the keys in `files` (version and path) and in `folder`, by the versions in the names of its files
    /// ([`version_of`]).
    ///
    /// # Errors
    /// Any file that cannot be used, a version that comes twice with different keys, or no key at all.
    pub fn load(files: &[(u32, PathBuf)], folder: Option<&Path>) -> Result<Self, KeyRingError> {
        let Found { keys, mut faults, warnings } = read(files, folder);
        if keys.is_empty() && faults.is_empty() {
            let nameless = warnings.iter().filter(|it| it.warning == KeyWarning::NoVersion);
            faults.extend(nameless.map(|it| KeyFileError { path: it.path.clone(), error: KeyError::NoVersion }));
        }
        if keys.is_empty() && faults.is_empty() {
            let path = folder.map(Path::to_path_buf).unwrap_or_default();
            faults.push(KeyFileError { path, error: KeyError::NoKeys });
        }
        if !faults.is_empty() {
            return Err(KeyRingError(faults));
        }
        let told = warnings.iter().map(ToString::to_string).collect();
        Ok(Self {
            files: files.to_vec(),
            folder: folder.map(Path::to_path_buf),
            keys: RwLock::new(Arc::new(keys)),
            warnings,
            missing: Mutex::new(Missing { told, ..Missing::default() }),
        })
    }

    /// What is odd about the key files, as they were when they were loaded. Whoever loads them says it.
    pub fn warnings(&self) -> &[KeyFileWarning] {
        &self.warnings
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
            missing.looked.retain(|_, looked| now.saturating_duration_since(*looked) < RELOAD_INTERVAL);
            if !missing.looked.contains_key(&version) && missing.looked.len() < MISSING_VERSIONS_MAX {
                missing.looked.insert(version, now);
                self.reload(&mut missing.told);
            }
        }
        drop(missing);
        let keys = self.keys();
        let unknown = || UnwrapError::UnknownVersion { version, known: keys.keys().copied().collect() };
        keys.get(&version).cloned().ok_or_else(unknown)
    }

    /// Reads all files again. What cannot be read is logged and leaves the key that was there.
    fn reload(&self, told: &mut BTreeSet<String>) {
        let found = read(&self.files, self.folder.as_deref());
        let faults = found.faults.iter().map(|fault| format!("key file is not usable, keys in use stay: {fault}"));
        for text in faults.chain(found.warnings.iter().map(ToString::to_string)) {
            if told.len() < TOLD_MAX && told.insert(text.clone()) {
                tracing::warn!("{text}");
            }
        }
        let mut keys = BTreeMap::clone(&self.keys());
        for (version, key) in found.keys {
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

    fn missing(&self) -> MutexGuard<'_, Missing> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("versions", &self.versions()).finish_non_exhaustive()
    }
}

/// The key files of a folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeyFolder {
    /// Those whose names have a version, in order of version.
    pub versioned: Vec<(u32, PathBuf)>,
    /// Private keys whose names have none.
    pub nameless: Vec<PathBuf>,
}

impl KeyFolder {
    /// Lists a folder. Hidden files are passed over, and so are public keys.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn list(folder: &Path) -> Result<Self, KeyFileError> {
        let failed = |error| KeyFileError { path: folder.to_path_buf(), error: KeyError::Unreadable(error) };
        let mut listed = Self::default();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // Not the entry's own type: a mounted secret is a link.
            if !path.is_file() || is_passed_over(&path) {
                continue;
            }
            match version_of(&path) {
                Some(version) => listed.versioned.push((version, path)),
                None if private_key::is_private(&path) => listed.nameless.push(path),
                None => {}
            }
        }
        listed.versioned.sort();
        listed.nameless.sort();
        Ok(listed)
    }
}

fn is_passed_over(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    name.starts_with('.') || name.contains("public") || name.ends_with(".pub")
}

/// The version in a file's name: `3`, `v3` or `private_key_3`, with `.pem`, `.key` or nothing behind it. A number in
/// any other name means something else: `private_key_pkcs8.pem`, `rsa-2048.pem`.
pub fn version_of(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(".pem").or_else(|| name.strip_suffix(".key")).unwrap_or(name);
    let digits = stem.strip_prefix("private_key_").or_else(|| stem.strip_prefix('v')).unwrap_or(stem);
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&version| is_number && version > 0)
}

/// What the key files have.
#[derive(Default)]
struct Found {
    keys: BTreeMap<u32, Arc<PrivateKey>>,
    faults: Vec<KeyFileError>,
    warnings: Vec<KeyFileWarning>,
}

/// Reads every key there is.
fn read(files: &[(u32, PathBuf)], folder: Option<&Path>) -> Found {
    let mut found = Found::default();
    let mut all = files.to_vec();
    match folder.map(KeyFolder::list) {
        Some(Ok(listed)) => {
            all.extend(listed.versioned);
            let nameless = listed.nameless.into_iter();
            found.warnings.extend(nameless.map(|path| KeyFileWarning { path, warning: KeyWarning::NoVersion }));
        }
        Some(Err(fault)) => found.faults.push(fault),
        None => {}
    }
    for (version, path) in all {
        match PrivateKey::read(&path) {
            Err(error) => found.faults.push(KeyFileError { path, error }),
            Ok(key) => {
                let warnings = warnings_of(&path, &key);
                found.warnings.extend(warnings.map(|warning| KeyFileWarning { path: path.clone(), warning }));
                match found.keys.get(&version) {
                    Some(other) if other.fingerprint() != key.fingerprint() => {
                        found.faults.push(KeyFileError { path, error: KeyError::VersionTwice(version) });
                    }
                    _ => {
                        found.keys.insert(version, Arc::new(key));
                    }
                }
            }
        }
    }
    found
}

/// What is odd about a key that can be used. A group may read it: that is how secrets are mounted for a pod.
pub fn warnings_of(path: &Path, key: &PrivateKey) -> impl Iterator<Item = KeyWarning> {
    let is_exposed = path.metadata().is_ok_and(|it| it.mode() & 0o027 != 0);
    let exposed = is_exposed.then_some(KeyWarning::Exposed);
    exposed.into_iter().chain((key.bits() > private_key::BITS_MIN).then_some(KeyWarning::Large(key.bits())))
}

#[cfg(test)]
mod tests {
    use super::private_key::tests::{fresh_key, seal};
    use super::*;
    use rsa::pkcs8::{EncodePrivateKey, LineEnding};
    use std::os::unix::fs::PermissionsExt;

    fn write(folder: &Path, name: &str, key: &rsa::PrivateKey) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, key.to_pkcs8_pem(LineEnding::LF).unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
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
            ("v4.key", Some(4)),
            ("5", Some(5)),
            ("007.pem", Some(7)),
            ("private_key_pkcs8.pem", None),
            ("private_key_v3.pem", None),
            ("rsa2048.pem", None),
            ("key-20261127.pem", None),
            ("corp2-4.key", None),
            ("v.pem", None),
            ("+3.pem", None),
            ("", None),
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
        assert!(load().contains("has no private key; name it private_key_N.pem"));
        write(folder.path(), "private_key_pkcs8.pem", &fresh_key());
        let text = load();
        assert!(text.contains("private_key_pkcs8.pem: has a private key, but its name has no version"), "{text}");
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
    fn what_is_odd_about_key_files_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let key = fresh_key();
        // A file's name, its mode, and what is said of it.
        let rows = [
            ("1.pem", 0o600, None),
            ("v2.pem", 0o440, None),
            ("private_key_3.pem", 0o666, Some("other users may read")),
            ("4", 0o460, Some("chmod 600")),
            ("private_key_pkcs8.pem", 0o600, Some("is not used, as its name has no version")),
            (".5.pem", 0o666, None),
            ("public_key_6.pem", 0o666, None),
        ];
        for (name, mode, _) in rows {
            let path = write(folder.path(), name, &key);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::write(folder.path().join("readme.txt"), "where PRIVATE KEY files lie").unwrap();
        let ring = KeyRing::load(&[], Some(folder.path())).unwrap();
        assert_eq!(ring.versions(), [1, 2, 3, 4]);
        let found: Vec<String> = ring.warnings().iter().map(ToString::to_string).collect();
        for (name, _, expected) in rows {
            let said = found.iter().find(|text| text.starts_with(&format!("{}: ", folder.path().join(name).display())));
            assert_eq!(said.is_some(), expected.is_some(), "{name}: {found:?}");
            assert!(expected.is_none_or(|words| said.is_some_and(|said| said.contains(words))), "{name}: {found:?}");
        }
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
