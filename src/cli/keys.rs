//! `keys generate` and `keys check`: RSA key pairs for the chat archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};

use crate::archive::keyring::{self, KeyError, KeyFolder, KeyWarning, PrivateKey};
use crate::clock::Clock;
use crate::config::{self, Providers, Purpose};
use crate::task::seen_versions::{Seen, seen_versions};
use crate::worker::exit::Exit;

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
///
/// With --worker, versions are compared with those that the records of the last ten days were sealed with.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Key files, or folders of files named private_key_N.pem, vN.pem or N.pem
    #[arg(required_unless_present = "config", value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Check the keys that this connector file names
    #[arg(long, value_name = "FILE", conflicts_with = "paths")]
    pub config: Option<PathBuf>,

    /// Worker file: compare with the versions in that connector's topics
    #[arg(long, value_name = "FILE", requires = "config")]
    pub worker: Option<PathBuf>,
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
        None => KeyFolder::list(folder)?
            .versioned
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
         \x20    the connector finds the key by that number in its name.\n\
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

/// Writes a table of the keys to `out`, and how they fit the topics. All is well when there is at least one key, all are usable,
/// and none that the topics ask for is missing or another one.
///
/// # Errors
/// When the connector file is not valid, or a folder cannot be listed.
pub fn check(args: &CheckArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    let mut rows: Vec<(Option<u32>, PathBuf)> = Vec::new();
    let mut paths = args.paths.clone();
    if let Some(file) = &args.config {
        let providers = args.worker.as_deref().map(Providers::of_worker).unwrap_or_default();
        let (connector, _) = config::connector_for(file, providers, Purpose::KafkaAndKeys)?;
        rows.extend(connector.private_keys.into_iter().map(|(version, path)| (Some(version), path)));
        paths.extend(connector.private_keys_dir);
    }
    for path in paths {
        if path.is_dir() {
            let listed = KeyFolder::list(&path)?;
            rows.extend(listed.versioned.into_iter().map(|(version, file)| (Some(version), file)));
            rows.extend(listed.nameless.into_iter().map(|file| (None, file)));
        } else {
            rows.push((keyring::version_of(&path), path));
        }
    }
    if rows.is_empty() {
        writeln!(out, "no key: {}", KeyError::NoKeys)?;
        return Ok(Exit::Usage);
    }
    let versions: BTreeSet<u32> = rows.iter().filter_map(|(version, _)| *version).collect();
    let mut first: BTreeMap<u32, String> = BTreeMap::new();
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
                let nameless = version.is_none().then_some(KeyWarning::NoVersion);
                for warning in keyring::warnings_of(&path, &key).chain(nameless) {
                    writeln!(out, "         warning: {warning}")?;
                }
            }
            Err(error) => {
                all_usable = false;
                writeln!(out, "{shown:>7}  {:<6}  {:>5}  {:<6}  {:<64}  {file}", "–", "–", "NO", "–")?;
                writeln!(out, "         {error}")?;
            }
        }
    }
    let fits = match (&args.worker, &args.config) {
        (Some(worker), Some(connector)) => {
            let (worker, connector) = config::load_pair(worker, connector, Purpose::KafkaAndKeys)?;
            match seen_versions(&worker, &connector, Clock::system().now().unix_ms) {
                Ok(seen) => compare(&versions, &seen, out)?,
                Err(error) => {
                    eprintln!("{error}");
                    return Ok(Exit::Unavailable);
                }
            }
        }
        _ => true,
    };
    Ok((all_usable && fits).into())
}

/// Writes how the versions that there are keys of fit those in the topics; true where nothing contradicts.
fn compare(versions: &BTreeSet<u32>, seen: &BTreeMap<u32, Seen>, out: &mut impl Write) -> std::io::Result<bool> {
    let mut fits = true;
    writeln!(out, "\nRecords of the last ten days, by the version that they are sealed with:")?;
    if seen.is_empty() {
        writeln!(out, "  none")?;
        return Ok(true);
    }
    for version in versions.iter().chain(seen.keys().filter(|version| !versions.contains(version))) {
        let Some(Seen { messages, dead_letters }) = seen.get(version) else {
            writeln!(out, "  version {version}: none; is {version} what the admin console shows for the public key?")?;
            continue;
        };
        let reasons: Vec<String> = dead_letters.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let letters: u64 = dead_letters.values().sum();
        let of = |reason: &str| dead_letters.get(reason).copied().unwrap_or_default();
        let verdict = if !versions.contains(version) {
            "there is NO KEY of this version: add it, then replay the dead letters"
        } else if *messages == 0 && of("rsa") + of("decrypt") > 0 {
            "the key of this version does NOT FIT: compare its fingerprint with that of the console's public key"
        } else {
            ""
        };
        fits &= verdict.is_empty();
        let more = if letters > 0 { format!(" ({})", reasons.join(", ")) } else { String::new() };
        let verdict = if verdict.is_empty() { String::new() } else { format!("; {verdict}") };
        writeln!(out, "  version {version}: {messages} messages, {letters} dead letters{more}{verdict}")?;
    }
    Ok(fits)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

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
        let check_keys =
            |table: &mut Vec<u8>| check(&CheckArgs { paths: vec![keys.clone()], config: None, worker: None }, table);
        assert_eq!(check_keys(&mut table).unwrap(), Exit::Success);
        let table = String::from_utf8(table).unwrap();
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(table.lines().nth(1).unwrap().trim_start().starts_with("1  PKCS#8   2048  yes"), "{table}");

        std::fs::write(keys.join("3.pem"), public).unwrap();
        let mut table = Vec::new();
        assert_eq!(check_keys(&mut table).unwrap(), Exit::Usage);
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
            format!(
                "name=n\ntopic=t\nwecom.corp.id=ww\nwecom.secret=${{env:NO_SUCH_VARIABLE}}\nwecom.private.keys.dir={keys}\n\
                 wecom.private.keys=8:/none\n"
            ),
        )
        .unwrap();
        let mut table = Vec::new();
        assert_eq!(
            check(&CheckArgs { paths: vec![], config: Some(file), worker: None }, &mut table).unwrap(),
            Exit::Usage
        );
        let table = String::from_utf8(table).unwrap();
        let row = |start: &str| table.lines().any(|line| line.trim_start().starts_with(start));
        assert!(row("7  PKCS#8") && row("8  –") && row("cannot be read"), "{table}");
    }

    #[test]
    fn versions_are_compared_with_those_in_the_topics() {
        let seen = |messages, dead_letters: &[(&str, u64)]| Seen {
            messages,
            dead_letters: dead_letters.iter().map(|&(reason, count)| (reason.to_owned(), count)).collect(),
        };
        // Versions of keys, what the topics have, whether it fits, and what is said.
        type Row<'a> = (&'a [u32], Vec<(u32, Seen)>, bool, &'a str);
        let rows: [Row<'_>; 6] = [
            (&[8], vec![], true, "  none"),
            (&[3], vec![(3, seen(7, &[]))], true, "version 3: 7 messages, 0 dead letters\n"),
            (
                &[8],
                vec![(3, seen(0, &[("unknown_key_version", 9)]))],
                false,
                "version 3: 0 messages, 9 dead letters (9 unknown_key_version); there is NO KEY",
            ),
            (&[8], vec![(3, seen(0, &[("unknown_key_version", 9)]))], false, "version 8: none; is 8 what"),
            (
                &[3],
                vec![(3, seen(0, &[("decrypt", 1), ("rsa", 8)]))],
                false,
                "(1 decrypt, 8 rsa); the key of this version does NOT FIT",
            ),
            (&[3], vec![(3, seen(7, &[("rsa", 1)]))], true, "version 3: 7 messages, 1 dead letters (1 rsa)\n"),
        ];
        for (versions, seen, fits, words) in rows {
            let mut text = Vec::new();
            let versions = versions.iter().copied().collect();
            assert_eq!(compare(&versions, &seen.into_iter().collect(), &mut text).unwrap(), fits, "{words}");
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
