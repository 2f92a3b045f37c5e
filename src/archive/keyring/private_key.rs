//! One private key: read from the PEM forms people really have, checked, and ready to decrypt.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rsa::{Pkcs1PrivateDecryptingKey, Pkcs1PublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rsa::pkcs1::{RsaPrivateKey, UintRef};
use rsa::pkcs8::der::Decode;
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, ObjectIdentifier, PrivateKeyInfoRef};

/// What WeCom seals with (doc 91774); a shorter key can only be a mistake.
pub(super) const BITS_MIN: u32 = 2048;

/// More than this aws-lc does not take.
const BITS_MAX: u32 = 8192;

/// A PEM file has a few KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// `rsaEncryption`, RFC 8017.
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// How a private key was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `RSA PRIVATE KEY`.
    Pkcs1,
    /// `PRIVATE KEY`.
    Pkcs8,
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pkcs1 => "PKCS#1",
            Self::Pkcs8 => "PKCS#8",
        })
    }
}

/// Why a key file cannot be used, and what to do. Nothing of the key is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot be read: {0}; check the path, and that this user may read it")]
    Unreadable(#[source] std::io::Error),
    /// Not PEM.
    #[error(
        "is no PEM file (no \"-----BEGIN …-----\" line); for a binary key: openssl pkey -inform DER -in KEY -out KEY.pem"
    )]
    NotPem,
    /// PEM with a damaged body.
    #[error("is PEM, but what stands between its BEGIN and END lines is damaged; copy the file again")]
    Damaged,
    /// The private key is encrypted.
    #[error(
        "is encrypted, and there is nobody to ask for its password; take it off: openssl pkcs8 -in KEY -out KEY.plain.pem, then chmod 600 KEY.plain.pem"
    )]
    Encrypted,
    /// OpenSSH's own format.
    #[error("is in OpenSSH's own format; turn a copy of it into PEM: ssh-keygen -p -m PEM -N '' -f COPY")]
    OpenSsh,
    /// A public key.
    #[error("is a public key; give the private key that belongs to it")]
    PublicKey,
    /// A certificate or a request for one.
    #[error("is a certificate; give the private key")]
    Certificate,
    /// A private key of another kind, such as EC.
    #[error("is no RSA key; WeCom takes RSA of 2,048 bits: wecom-connector keys generate")]
    NotRsa,
    /// Too short.
    #[error("has {0} bits; WeCom takes RSA of 2,048 bits: wecom-connector keys generate")]
    TooSmall(u32),
    /// Too long.
    #[error(
        "has {0} bits; WeCom takes RSA of 2,048 bits, and more than 8,192 cannot be used: wecom-connector keys generate"
    )]
    TooLarge(u32),
    /// The numbers do not make a key.
    #[error("is RSA, but its numbers do not fit together; copy the file again")]
    Invalid,
    /// More than one private key.
    #[error("has more than one private key; give each version a file of its own")]
    Several,
    /// Another file has this version with another key.
    #[error("is a second, different key for version {0}; keep one of them")]
    VersionTwice(u32),
    /// A private key whose file is in use nowhere.
    #[error("has a private key, but its name has no version; {}", super::NAME_ADVICE)]
    NoVersion,
    /// There is no key.
    #[error("has no private key; {}", super::NAME_ADVICE)]
    NoKeys,
}

/// An RSA private key, ready to decrypt. `Debug` shows its fingerprint only.
pub struct PrivateKey {
    decrypting: Pkcs1PrivateDecryptingKey,
    /// SubjectPublicKeyInfo.
    public_der: Vec<u8>,
    bits: u32,
    encoding: Encoding,
}

impl PrivateKey {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::from_pem(&read_file(path).map_err(KeyError::Unreadable)?)
    }

    /// Reads PEM: PKCS#1 or PKCS#8 by what is in it, whatever the label says. CRLF, UTF-16, line breaks written as
    /// `\n`, text before it, and other things beside it (a certificate) do not matter, nor do missing BEGIN and END
    /// lines.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_pem(bytes: &[u8]) -> Result<Self, KeyError> {
        let text = text_of(bytes);
        let blocks = match pem_blocks(&text) {
            Err(KeyError::NotPem) => return Self::from_bare_base64(&text),
            blocks => blocks?,
        };
        let private: Vec<_> = blocks.iter().filter(|(label, _)| label.ends_with("PRIVATE KEY")).collect();
        let (label, body) = match private.as_slice() {
            [one] => one,
            [] => return Err(not_private(blocks.first().map(|(label, _)| *label))),
            _ => return Err(KeyError::Several),
        };
        if label.starts_with("ENCRYPTED") || body.contains("Proc-Type:") {
            return Err(KeyError::Encrypted);
        }
        if label.starts_with("OPENSSH") {
            return Err(KeyError::OpenSsh);
        }
        let body: String = body.split_whitespace().collect();
        Self::from_der(&STANDARD.decode(body).map_err(|_| KeyError::Damaged)?, label)
    }

    /// The body of a PEM file without its BEGIN and END lines.
    fn from_bare_base64(text: &str) -> Result<Self, KeyError> {
        let body: String = text.split_whitespace().collect();
        let der = STANDARD.decode(body).ok().filter(|der| !der.is_empty()).ok_or(KeyError::NotPem)?;
        Self::from_der(&der, "")
            .map_err(|error| if matches!(error, KeyError::Damaged) { KeyError::NotPem } else { error })
    }

    fn from_der(der: &[u8], label: &str) -> Result<Self, KeyError> {
        let (encoding, pkcs1) = match PrivateKeyInfoRef::from_der(der) {
            Ok(info) if info.algorithm.oid != RSA_ENCRYPTION => return Err(KeyError::NotRsa),
            Ok(info) => (Encoding::Pkcs8, info.private_key.as_bytes()),
            Err(_) => (Encoding::Pkcs1, der),
        };
        let parts = RsaPrivateKey::<UintRef<'_>>::from_der(pkcs1).map_err(|_| {
            if label.starts_with("EC ") || label.starts_with("DSA ") { KeyError::NotRsa } else { KeyError::Damaged }
        })?;
        // Before the numbers are checked: the rsa crate takes no key below 1,024 bits.
        let bits = bits_of(parts.modulus.as_bytes());
        if bits < BITS_MIN {
            return Err(KeyError::TooSmall(bits));
        }
        if bits > BITS_MAX {
            return Err(KeyError::TooLarge(bits));
        }
        let key = rsa::PrivateKey::try_from(parts).map_err(|_| KeyError::Invalid)?;
        let private_der = key.to_pkcs8_der().map_err(|_| KeyError::Invalid)?;
        let public_der = key.as_public_key().to_public_key_der().map_err(|_| KeyError::Invalid)?.into_vec();
        let decrypting = PrivateDecryptingKey::from_pkcs8(private_der.as_bytes()).map_err(|_| KeyError::Invalid)?;
        let decrypting = Pkcs1PrivateDecryptingKey::new(decrypting).map_err(|_| KeyError::Invalid)?;
        Ok(Self { decrypting, public_der, bits, encoding })
    }

    /// Decrypts PKCS#1 v1.5; `None` when this key did not seal it, or it is damaged.
    ///
    /// aws-lc answers bad padding with an error, where the `rsa` crate (from 0.10) and OpenSSL (from 3.2) answer random bytes.
    pub fn decrypt(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = vec![0; self.decrypting.min_output_size()];
        let length = self.decrypting.decrypt(sealed, &mut buffer).ok()?.len();
        buffer.truncate(length);
        Some(buffer)
    }

    /// Whether what the public half seals, this opens.
    pub fn round_trip(&self) -> bool {
        const PROBE: &[u8] = b"0123456789abcdef0123456789abcdef";
        let seal = || {
            let public = Pkcs1PublicEncryptingKey::new(PublicEncryptingKey::from_der(&self.public_der).ok()?).ok()?;
            let mut buffer = vec![0; public.ciphertext_size()];
            let length = public.encrypt(PROBE, &mut buffer).ok()?.len();
            buffer.truncate(length);
            Some(buffer)
        };
        seal().and_then(|sealed| self.decrypt(&sealed)).is_some_and(|opened| opened == PROBE)
    }

    /// Length of the modulus.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// How it was written.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// SHA-256 of the public half (DER), in hex: `openssl pkey -pubin -in public.pem -outform DER | sha256sum`.
    pub fn fingerprint(&self) -> String {
        digest(&SHA256, &self.public_der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

fn bits_of(modulus: &[u8]) -> u32 {
    let significant = modulus.iter().skip_while(|&&byte| byte == 0);
    let leading = significant.clone().next().map_or(0, |byte| byte.leading_zeros());
    u32::try_from(significant.count() * 8).unwrap_or(u32::MAX) - leading
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a file says that it has a private key in it, of use or not.
pub(super) fn is_private(path: &Path) -> bool {
    read_file(path).is_ok_and(|bytes| {
        text_of(&bytes).lines().any(|line| line.contains("-----BEGIN") && line.contains("PRIVATE KEY-----"))
    })
}

/// The text of a key file. Notepad writes UTF-16; a key that came through JSON or a variable has `\n` for its line
/// breaks.
fn text_of(bytes: &[u8]) -> String {
    // Without a byte order mark, every second byte of ASCII is zero.
    let encoding = match (encoding_rs::Encoding::for_bom(bytes), bytes) {
        (Some((encoding, _)), _) => encoding,
        (None, [_, 0, ..]) => encoding_rs::UTF_16LE,
        (None, [0, _, ..]) => encoding_rs::UTF_16BE,
        _ => encoding_rs::UTF_8,
    };
    let (text, _) = encoding.decode_with_bom_removal(bytes);
    // No backslash is in a PEM file.
    text.replace("\\r", "\n").replace("\\n", "\n").replace('\\', "")
}

/// Label and body of each PEM block.
fn pem_blocks(text: &str) -> Result<Vec<(&str, &str)>, KeyError> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, after) = after.split_once("-----").ok_or(KeyError::Damaged)?;
        let (body, after) = after.split_once("-----END ").ok_or(KeyError::Damaged)?;
        blocks.push((label.trim(), body));
        rest = after;
    }
    if blocks.is_empty() { Err(KeyError::NotPem) } else { Ok(blocks) }
}

fn not_private(label: Option<&str>) -> KeyError {
    match label {
        Some(label) if label.ends_with("PUBLIC KEY") => KeyError::PublicKey,
        Some(label) if label.contains("CERTIFICATE") => KeyError::Certificate,
        Some("EC PARAMETERS") => KeyError::NotRsa,
        _ => KeyError::NotPem,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::KeySize;
    use rsa::pkcs1::EncodeRsaPrivateKey;
    use rsa::pkcs8::{DecodePrivateKey, LineEnding};

    /// A fresh key of 2,048 bits, as the `rsa` crate has it (which itself needs seconds to make one).
    pub fn fresh_key() -> rsa::PrivateKey {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
        rsa::PrivateKey::from_pkcs8_der(der.as_ref()).unwrap()
    }

    /// Seals with the public half, as WeCom does.
    pub fn seal(key: &rsa::PrivateKey, plain: &[u8]) -> String {
        let public = key.as_public_key().to_public_key_der().unwrap();
        let public = Pkcs1PublicEncryptingKey::new(PublicEncryptingKey::from_der(public.as_bytes()).unwrap()).unwrap();
        let mut buffer = vec![0; public.ciphertext_size()];
        STANDARD.encode(public.encrypt(plain, &mut buffer).unwrap())
    }

    const EC: &str = "-----BEGIN EC PRIVATE KEY-----\n\
        MHcCAQEEIB7Fz0WZ8eJX3xDqAbuBTXcXCLMKBX7cNWeHrbM1sc9doAoGCCqGSM49\n\
        AwEHoUQDQgAEAAAA\n-----END EC PRIVATE KEY-----\n";

    #[test]
    fn every_form_people_have_is_taken() {
        let key = fresh_key();
        let pkcs1 = key.to_pkcs1_pem(LineEnding::LF).unwrap().to_string();
        let pkcs8 = key.to_pkcs8_pem(LineEnding::LF).unwrap().to_string();
        let one_line = |pem: &str| {
            let (head, rest) = pem.split_once('\n').unwrap();
            let (body, end) = rest.split_once("-----END").unwrap();
            format!("{head}\n{}\n-----END{end}", body.replace('\n', ""))
        };
        let rows = [
            (pkcs1.clone(), Encoding::Pkcs1),
            (pkcs8.clone(), Encoding::Pkcs8),
            (pkcs1.replace("RSA PRIVATE", "PRIVATE"), Encoding::Pkcs1),
            (pkcs8.replace("PRIVATE", "RSA PRIVATE"), Encoding::Pkcs8),
            (pkcs8.replace('\n', "\r\n"), Encoding::Pkcs8),
            (format!("\u{feff}Bag Attributes\n  friendlyName: 会话\n{pkcs1}trailing"), Encoding::Pkcs1),
            (one_line(&pkcs8), Encoding::Pkcs8),
            (pkcs8.replace('\n', "\\n"), Encoding::Pkcs8),
            (format!("\"{}\"", pkcs1.replace('\n', "\\\\r\\\\n")), Encoding::Pkcs1),
            (pkcs8.lines().filter(|line| !line.starts_with("-----")).collect(), Encoding::Pkcs8),
            (format!("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{pkcs8}"), Encoding::Pkcs8),
        ];
        let utf16 =
            |text: &str, to_bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(to_bytes).collect::<Vec<u8>>();
        let rows = rows.map(|(pem, encoding)| (pem.into_bytes(), encoding)).into_iter().chain([
            (utf16(&format!("\u{feff}{pkcs8}"), u16::to_le_bytes), Encoding::Pkcs8),
            (utf16(&format!("\u{feff}{pkcs8}"), u16::to_be_bytes), Encoding::Pkcs8),
            (utf16(&pkcs1.replace('\n', "\r\n"), u16::to_le_bytes), Encoding::Pkcs1),
        ]);
        let mut fingerprints = std::collections::BTreeSet::new();
        for (pem, encoding) in rows {
            let shown = String::from_utf8_lossy(&pem);
            let read = PrivateKey::from_pem(&pem).unwrap_or_else(|error| panic!("{error}\n{shown}"));
            assert_eq!((read.encoding(), read.bits()), (encoding, 2048));
            assert!(read.round_trip());
            assert_eq!(format!("{read:?}"), format!("PrivateKey {{ fingerprint: {:?}, .. }}", read.fingerprint()));
            fingerprints.insert(read.fingerprint());
        }
        assert_eq!(fingerprints.len(), 1);
    }

    #[test]
    fn what_is_no_usable_key_is_named() {
        let key = fresh_key();
        let pkcs1 = key.to_pkcs1_pem(LineEnding::LF).unwrap().to_string();
        let pkcs8 = key.to_pkcs8_pem(LineEnding::LF).unwrap().to_string();
        let encrypted = pkcs8.replace("PRIVATE", "ENCRYPTED PRIVATE");
        let public = key.as_public_key().to_public_key_pem(LineEnding::LF).unwrap();
        let small = rsa::PrivateKey::new(&mut getrandom::SysRng, 1024).unwrap().to_pkcs8_pem(LineEnding::LF).unwrap();
        let legacy = pkcs1.replacen('\n', "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n", 1);
        let mut damaged = key.to_pkcs1_der().unwrap().as_bytes().to_vec();
        // In the middle of the modulus: the form stays right and the numbers do not.
        damaged[100] ^= 2;
        let damaged =
            format!("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----\n", STANDARD.encode(damaged));
        let der = key.to_pkcs8_der().unwrap();
        let both = [pkcs1.as_bytes(), pkcs8.as_bytes()].concat();
        let rows: [(&[u8], &str); 17] = [
            (b"", "is no PEM file"),
            (b"PuTTY-User-Key-File-3: ssh-rsa\n", "is no PEM file"),
            (b"AAAA", "is no PEM file"),
            (b"\xfe\xff", "is no PEM file"),
            (der.as_bytes(), "is no PEM file"),
            (pkcs8.as_bytes().split_at(400).0, "is damaged"),
            (b"-----BEGIN PRIVATE KEY-----\nAAAA!\n-----END PRIVATE KEY-----", "is damaged"),
            (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "is damaged"),
            (encrypted.as_bytes(), "openssl pkcs8 -in"),
            (legacy.as_bytes(), "is encrypted"),
            (public.as_bytes(), "is a public key"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "is a certificate"),
            (EC.as_bytes(), "is no RSA key"),
            (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----", "ssh-keygen -p"),
            (small.as_bytes(), "has 1024 bits"),
            (&both, "more than one"),
            (damaged.as_bytes(), "do not fit together"),
        ];
        for (bytes, expected) in rows {
            let message = PrivateKey::from_pem(bytes).unwrap_err().to_string();
            assert!(message.contains(expected), "{expected}: {message}");
        }
        assert!(PrivateKey::read(Path::new("/nonexistent")).unwrap_err().to_string().contains("check the path"));
    }

    /// The keys people have are made by OpenSSL. Where it is not installed, the rows above stand for it.
    #[test]
    fn keys_made_by_openssl_are_judged_alike() {
        let folder = tempfile::tempdir().unwrap();
        let openssl = |line: &str| {
            let command =
                std::process::Command::new("openssl").args(line.split(' ')).current_dir(folder.path()).output();
            command.is_ok_and(|output| output.status.success())
        };
        if !openssl("version") {
            return;
        }
        let rows = [
            ("genrsa -out rsa.pem 2048", "rsa.pem", None),
            ("rsa -in rsa.pem -traditional -out pkcs1.pem", "pkcs1.pem", None),
            ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out big.pem", "big.pem", None),
            ("pkcs8 -topk8 -in rsa.pem -passout pass:x -out enc.pem", "enc.pem", Some("is encrypted")),
            ("rsa -in rsa.pem -traditional -aes128 -passout pass:x -out old.pem", "old.pem", Some("is encrypted")),
            ("pkcs8 -in enc.pem -passin pass:x -out plain.pem", "plain.pem", None),
            ("rsa -in rsa.pem -pubout -out pub.pem", "pub.pem", Some("is a public key")),
            ("ecparam -genkey -name prime256v1 -out ec.pem", "ec.pem", Some("is no RSA key")),
            ("pkcs8 -topk8 -nocrypt -in ec.pem -out ec8.pem", "ec8.pem", Some("is no RSA key")),
            ("genrsa -out small.pem 1024", "small.pem", Some("has 1024 bits")),
            ("genrsa -out tiny.pem 512", "tiny.pem", Some("has 512 bits")),
            ("req -x509 -new -key rsa.pem -subj /CN=x -out cert.pem", "cert.pem", Some("is a certificate")),
        ];
        for (line, file, expected) in rows {
            assert!(openssl(line), "openssl {line}");
            match (PrivateKey::read(&folder.path().join(file)), expected) {
                (Ok(key), None) => assert!(key.round_trip(), "{line}"),
                (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{line}: {error}"),
                (result, _) => panic!("{line}: {result:?}"),
            }
        }
    }
}
