//! `keys generate` and `keys check`: RSA key pairs for the chat archive.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};

use crate::archive::keyring::{self, KeyError, PrivateKey};
use crate::config::{self, Providers};

/// Length of the keys WeCom takes (doc 91774).
const BITS: usize = 2048;

/// Make an RSA key pair for the chat archive.
///
/// WeCom seals every message with a public key you give it; only the private key opens it. This writes both halves:
/// `private_key_N.pem` (mode 0600, for the connector) and `public_key_N.pem` (to paste into the admin console).
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// Folder for the two files; made if missing, readable by you only
    #[arg(long, value_name = "DIR", default_value = "keys")]
    pub out: PathBuf,

    /// Version the admin console will give the public key (it counts 1, 2, 3, …); default: one more than the highest in DIR
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub key_version: Option<u32>,
}

/// Check private keys: which versions are there, and is each usable?
///
/// Reads the keys as the connector does and seals and opens a probe with each. Compare the fingerprint with that of the public
/// key in the admin console: openssl pkey -pubin -in public_key_1.pem -outform DER | sha256sum
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Key files, or folders of files whose names end in their version
    #[arg(required_unless_present = "config", value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Check the keys that this connector file names
    #[arg(long, value_name = "FILE", conflicts_with = "paths")]
    pub config: Option<PathBuf>,
}

/// Makes a key pair and writes to `out` what to do with it.
///
/// # Errors
/// When a file of that version is there already, or cannot be written. Nothing is ever overwritten.
pub fn generate(args: &GenerateArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let folder = &args.out;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let version = match args.key_version {
        Some(version) => version,
        None => keyring::files_of(folder)?
            .last()
            .map_or(Some(1), |(version, _)| version.checked_add(1))
            .context("the folder has the highest version there can be; give --key-version")?,
    };
    let private_path = folder.join(format!("private_key_{version}.pem"));
    let public_path = folder.join(format!("public_key_{version}.pem"));
    for path in [&private_path, &public_path] {
        if path.symlink_metadata().is_ok() {
            bail!("{} is there already and is not overwritten; take another --key-version or --out", path.display());
        }
    }

    let key = rsa::PrivateKey::new(&mut getrandom::SysRng, BITS).context("cannot make a key")?;
    let private_pem = key.to_pkcs8_pem(LineEnding::LF).context("cannot write the private key as PEM")?;
    let public_pem =
        key.as_public_key().to_public_key_pem(LineEnding::LF).context("cannot write the public key as PEM")?;
    write_new(&private_path, 0o600, private_pem.as_bytes())?;
    write_new(&public_path, 0o644, public_pem.as_bytes())?;
    let fingerprint = PrivateKey::read(&private_path)?.fingerprint();

    write!(
        out,
        "Made an RSA key pair of {BITS} bits, version {version}, fingerprint {fingerprint}\n\n\
         \x20 private  {private}   (mode 0600; keep it secret, keep a copy in a safe place)\n\
         \x20 public   {public}\n\n\
         What to do now:\n\
         \x20 1. Open the WeCom admin console: 管理工具 → 会话内容存档 → 消息加密公钥, and paste the public key below, all of it.\n\
         \x20 2. The console shows a version for it. If that is not {version}, rename both files to the version it shows:\n\
         \x20    the connector finds the key by the number its file name ends in.\n\
         \x20 3. Tell the connector where the private keys are:  wecom.private.keys.dir={dir}\n\
         \x20    A running connector finds a new file in that folder by itself.\n\
         \x20 4. Keep the private keys of older versions: what was sealed with them stays so. WeCom hands out messages for\n\
         \x20    five days; dead letters and backups need the old keys for ever.\n\n\
         {public_pem}",
        private = private_path.display(),
        public = public_path.display(),
        dir = std::path::absolute(folder).unwrap_or_else(|_| folder.clone()).display(),
    )?;
    Ok(())
}

/// Writes a file that was not there before, and makes sure of it: a lost private key is lost messages.
fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a table of the keys to `out`; true when there is at least one and all are usable.
///
/// # Errors
/// When the connector file is not valid, or a folder cannot be listed.
pub fn check(args: &CheckArgs, out: &mut impl Write) -> anyhow::Result<bool> {
    let mut rows: Vec<(Option<u32>, PathBuf)> = Vec::new();
    let mut paths = args.paths.clone();
    if let Some(file) = &args.config {
        let (connector, _) = config::load_connector(file, Providers::default())?;
        rows.extend(connector.private_keys.into_iter().map(|(version, path)| (Some(version), path)));
        paths.extend(connector.private_keys_dir);
    }
    for path in paths {
        if path.is_dir() {
            rows.extend(keyring::files_of(&path)?.into_iter().map(|(version, file)| (Some(version), file)));
        } else {
            rows.push((keyring::version_of(&path), path));
        }
    }
    if rows.is_empty() {
        writeln!(out, "no key: {}", KeyError::NoKeys)?;
        return Ok(false);
    }
    let mut first: std::collections::BTreeMap<u32, String> = std::collections::BTreeMap::new();
    let mut all_usable = true;
    writeln!(out, "{:>7}  {:<6}  {:>5}  {:<6}  {:<64}  FILE", "VERSION", "FORMAT", "BITS", "USABLE", "FINGERPRINT")?;
    for (version, path) in rows {
        let shown = version.map_or_else(|| "?".to_owned(), |version| version.to_string());
        let file = path.display();
        let key = PrivateKey::read(&path).and_then(|key| match version {
            Some(version) if *first.entry(version).or_insert_with(|| key.fingerprint()) != key.fingerprint() => {
                Err(KeyError::VersionTwice(version))
            }
            _ => Ok(key),
        });
        match key {
            Ok(key) => {
                let usable = key.round_trip();
                all_usable &= usable;
                let (format, bits, fingerprint) = (key.encoding().to_string(), key.bits(), key.fingerprint());
                let usable = if usable { "yes" } else { "NO" };
                writeln!(out, "{shown:>7}  {format:<6}  {bits:>5}  {usable:<6}  {fingerprint:<64}  {file}")?;
                if version.is_none() {
                    writeln!(out, "         note: the file name has no version; give it as wecom.private.keys=N:path")?;
                }
                if path.metadata().is_ok_and(|it| it.mode() & 0o077 != 0) {
                    writeln!(out, "         note: others may read the file; chmod 600 {file}")?;
                }
            }
            Err(error) => {
                all_usable = false;
                writeln!(out, "{shown:>7}  {:<6}  {:>5}  {:<6}  {:<64}  {file}", "–", "–", "NO", "–")?;
                writeln!(out, "         {error}")?;
            }
        }
    }
    Ok(all_usable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsa::pkcs8::DecodePublicKey;

    fn generated(out: &Path, key_version: Option<u32>) -> anyhow::Result<String> {
        let mut text = Vec::new();
        generate(&GenerateArgs { out: out.to_path_buf(), key_version }, &mut text)?;
        Ok(String::from_utf8(text)?)
    }

    #[test]
    fn a_generated_pair_is_private_never_overwritten_and_found_usable() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        let text = generated(&keys, None).unwrap();
        let private = keys.join("private_key_1.pem");
        assert_eq!(private.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(keys.metadata().unwrap().mode() & 0o777, 0o700);
        let public = std::fs::read_to_string(keys.join("public_key_1.pem")).unwrap();
        assert!(public.starts_with("-----BEGIN PUBLIC KEY-----\n") && text.ends_with(&public));
        rsa::PublicKey::from_public_key_pem(&public).unwrap();
        assert!(text.contains("会话内容存档") && !text.contains("PRIVATE KEY"), "{text}");

        let before = std::fs::read(&private).unwrap();
        assert!(generated(&keys, Some(1)).unwrap_err().to_string().contains("is not overwritten"));
        assert_eq!(std::fs::read(&private).unwrap(), before);
        assert!(generated(&keys, None).unwrap().contains("version 2"));

        let mut table = Vec::new();
        let check_keys = |table: &mut Vec<u8>| check(&CheckArgs { paths: vec![keys.clone()], config: None }, table);
        assert!(check_keys(&mut table).unwrap());
        let table = String::from_utf8(table).unwrap();
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(table.lines().nth(1).unwrap().trim_start().starts_with("1  PKCS#8   2048  yes"), "{table}");

        std::fs::write(keys.join("3.pem"), public).unwrap();
        let mut table = Vec::new();
        assert!(!check_keys(&mut table).unwrap());
        assert!(String::from_utf8(table).unwrap().contains("is a public key; give the private key"));
    }

    #[test]
    fn the_keys_of_a_connector_file_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        generated(folder.path(), Some(7)).unwrap();
        let file = folder.path().join("connector.properties");
        let keys = folder.path().display();
        std::fs::write(
            &file,
            format!("name=n\ntopic=t\nwecom.corp.id=ww\nwecom.secret=s\nwecom.private.keys.dir={keys}\nwecom.private.keys=8:/none\n"),
        )
        .unwrap();
        let mut table = Vec::new();
        assert!(!check(&CheckArgs { paths: vec![], config: Some(file) }, &mut table).unwrap());
        let table = String::from_utf8(table).unwrap();
        let row = |start: &str| table.lines().any(|line| line.trim_start().starts_with(start));
        assert!(row("7  PKCS#8") && row("8  –") && row("cannot be read"), "{table}");
    }
}
