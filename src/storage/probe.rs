//! Whether the store can be used: by a small object that is written and read.

use opendal::options::WriteOptions;

use super::error::Asked;
use super::{Placed, StorageError, Store};

/// What is written to see whether the store can be used.
const PROBE: &[u8] = b"wecom-connector";

/// How often a probe is looked for that somebody else takes away.
const PROBES_MAX: u32 = 3;

impl Store {
    /// Writes a small object where there is none and reads it back, so that a wrong bucket, wrong keys or missing
    /// rights are seen.
    ///
    /// It has one name and stays: nothing needs the right to delete, and where nothing can be deleted nothing piles up.
    /// Only a store that refuses to write over it, and does not say that it is there, is given another one: such a
    /// refusal looks like a right that is missing.
    pub async fn check(&self) -> Result<(), StorageError> {
        // In a folder nothing piles up.
        self.probe(self.folder.is_some()).await.map(|_| ())
    }

    /// As [`Store::check`], and writes over what is there, so that a store that is full is seen, too.
    pub async fn check_room(&self) -> Result<(), StorageError> {
        self.probe(true).await.map(|_| ())
    }

    /// See [`Store::check`]. Gives whether there was no probe before.
    pub(super) async fn probe(&self, writes_over: bool) -> Result<bool, StorageError> {
        let key = self.probe_key();
        let mut probes = 0;
        loop {
            probes += 1;
            let placed = self.put_new(&key, PROBE.into(), "text/plain").await?;
            let is_new = placed == Placed::New;
            if placed == Placed::Kept {
                self.probe_elsewhere(&key).await?;
                return Ok(false);
            }
            if writes_over && !is_new {
                self.put(&key, PROBE.into(), "text/plain").await?;
            }
            match self.get(&key, PROBE.len() as u64).await? {
                Some(read) if read == PROBE => return Ok(is_new),
                // Somebody who tries the store out has taken it away.
                None if !is_new && probes < PROBES_MAX => {}
                _ => return Err(StorageError::unavailable(&self.name, "what was written cannot be read back")),
            }
        }
    }

    /// Writes a probe under a name that nobody has, and takes it away again if the store lets.
    async fn probe_elsewhere(&self, key: &str) -> Result<(), StorageError> {
        let mut random = [0; 8];
        let made = aws_lc_rs::rand::fill(&mut random);
        made.map_err(|_| StorageError::unavailable(&self.name, "the system gives no random numbers"))?;
        let key = format!("{key}-{:016x}", u64::from_ne_bytes(random));
        let options = WriteOptions { content_type: self.content_type("text/plain"), ..WriteOptions::default() };
        self.write(&key, PROBE.into(), options).await.map_err(|error| self.error(Asked::Write, &error))?;
        let _ = self.operator.delete(&key).await;
        Ok(())
    }

    pub(super) fn probe_key(&self) -> String {
        if self.prefix.is_empty() { ".probe".to_owned() } else { format!("{}/.probe", self.prefix) }
    }
}
