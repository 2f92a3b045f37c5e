//! Objects that reference events speak of: are they there, and are they what the event says?

use std::collections::HashMap;

use aws_lc_rs::digest;
use futures::{StreamExt, stream};
use md5::{Digest as _, Md5};
use tokio::runtime::Runtime;

use super::CannotLook;
use super::findings::{Findings, Kind, Place, Promise};
use super::record::{ReferenceValue, Status};
use crate::storage::{StorageError, Store};

/// Objects that are looked at side by side.
const CONCURRENCY: usize = 16;
const BATCH: usize = 256;

/// Contents that are remembered: the same picture is often in many messages.
const REMEMBERED_MAX: usize = 100_000;

/// Looks at objects, some at a time.
#[derive(Debug)]
pub struct Objects {
    /// None: objects are not looked at.
    store: Option<Store>,
    with_hashes: bool,
    runtime: Runtime,
    batch: Vec<Wanted>,
    known: HashMap<String, Option<Content>>,
}

/// What an event says of an object.
#[derive(Debug)]
struct Wanted {
    key: String,
    uri: String,
    seq: Option<u64>,
    place: Place,
    size: Option<u64>,
    md5: Option<String>,
    sha256: Option<String>,
}

/// An object as it is.
#[derive(Debug, Clone)]
struct Content {
    size: u64,
    /// MD5 and SHA-256, where they were asked for.
    hashes: Option<(String, String)>,
}

impl Objects {
    pub fn new(store: Option<Store>, with_hashes: bool, runtime: Runtime) -> Self {
        Self { store, with_hashes, runtime, batch: Vec::new(), known: HashMap::new() }
    }

    /// Takes what a reference says.
    pub fn push(
        &mut self,
        reference: &ReferenceValue<'_>,
        place: &Place,
        findings: &mut Findings,
    ) -> Result<(), CannotLook> {
        let Some(uri) = &reference.uri else {
            if reference.status == Status::Stored {
                findings.add(Kind::ObjectMissing, Some(reference.seq), || {
                    format!("seq {} ({place}): the reference says stored, and not where", reference.seq)
                });
            }
            return Ok(());
        };
        let (size, md5, sha256) = (reference.size, reference.md5.clone(), reference.sha256.clone());
        self.take(
            Wanted {
                key: String::new(),
                uri: uri.clone(),
                seq: Some(reference.seq),
                place: place.clone(),
                size,
                md5,
                sha256,
            },
            findings,
        )
    }

    /// Takes the body of a record that does not fit into Kafka.
    pub fn push_body(
        &mut self,
        uri: &str,
        seq: Option<u64>,
        place: &Place,
        findings: &mut Findings,
    ) -> Result<(), CannotLook> {
        let (key, uri, place) = (String::new(), uri.to_owned(), place.clone());
        self.take(Wanted { key, uri, seq, place, size: None, md5: None, sha256: None }, findings)
    }

    fn take(&mut self, mut wanted: Wanted, findings: &mut Findings) -> Result<(), CannotLook> {
        let Some(store) = &self.store else { return Ok(()) };
        findings.checked(Promise::Objects);
        match store.key(&wanted.uri) {
            Some(key) => wanted.key = key,
            None => {
                findings.add(Kind::ObjectElsewhere, wanted.seq, || {
                    format!("{}: {} does not lie in the store of the connector's file", wanted.place, wanted.uri)
                });
                return Ok(());
            }
        }
        self.batch.push(wanted);
        if self.batch.len() >= BATCH { self.flush(findings) } else { Ok(()) }
    }

    /// Looks at what was taken.
    pub fn flush(&mut self, findings: &mut Findings) -> Result<(), CannotLook> {
        let batch = std::mem::take(&mut self.batch);
        if self.known.len() > REMEMBERED_MAX {
            self.known.clear();
        }
        let Some(store) = &self.store else { return Ok(()) };
        let with_hashes = self.with_hashes;
        let unknown: Vec<&str> =
            batch.iter().map(|wanted| wanted.key.as_str()).filter(|key| !self.known.contains_key(*key)).collect();
        let looks = unknown.into_iter().map(|key| async move { (key, look(store, key, with_hashes).await) });
        let found: Vec<_> = self.runtime.block_on(stream::iter(looks).buffer_unordered(CONCURRENCY).collect());
        for (key, content) in found {
            let content = content.map_err(|error| CannotLook(error.to_string()))?;
            self.known.insert(key.to_owned(), content);
        }
        for wanted in batch {
            judge(&wanted, self.known.get(&wanted.key).and_then(Option::as_ref), findings);
        }
        Ok(())
    }
}

async fn look(store: &Store, key: &str, with_hashes: bool) -> Result<Option<Content>, StorageError> {
    if !with_hashes {
        return Ok(store.length(key).await?.map(|size| Content { size, hashes: None }));
    }
    let (mut md5, mut sha256) = (Md5::new(), digest::Context::new(&digest::SHA256));
    let size = store
        .read(key, |bytes| {
            md5.update(bytes);
            sha256.update(bytes);
        })
        .await?;
    let hashes = (hex(&md5.finalize()), hex(sha256.finish().as_ref()));
    Ok(size.map(|size| Content { size, hashes: Some(hashes) }))
}

fn judge(wanted: &Wanted, content: Option<&Content>, findings: &mut Findings) {
    let Wanted { uri, seq, place, .. } = wanted;
    let Some(content) = content else {
        return findings.add(Kind::ObjectMissing, *seq, || format!("{place}: nothing is at {uri}"));
    };
    let hashes = content.hashes.as_ref();
    let differs = |said: &Option<String>, is: Option<&String>| said.is_some() && is.is_some() && said.as_ref() != is;
    if wanted.size.is_some_and(|size| size != content.size)
        || differs(&wanted.md5, hashes.map(|(md5, _)| md5))
        || differs(&wanted.sha256, hashes.map(|(_, sha256)| sha256))
    {
        findings.add(Kind::ObjectDiffers, *seq, || {
            let is = hashes.map(|(md5, sha256)| format!(", md5 {md5}, sha256 {sha256}")).unwrap_or_default();
            format!(
                "{place}: {uri} has {} bytes{is}; the reference says {} bytes, md5 {}, sha256 {}",
                content.size,
                wanted.size.unwrap_or_default(),
                wanted.md5.as_deref().unwrap_or("none"),
                wanted.sha256.as_deref().unwrap_or("none")
            )
        });
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
