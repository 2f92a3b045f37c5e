//! The chain of records: each says which one stood before it in the archive, so that a reader can tell that none is missing.
//!
//! WeCom's `seq` has gaps that are no loss (doc 91774 promises order alone), so that positions themselves prove nothing.

/// Where a record stands among those that were pulled: written into the headers of messages and dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The record before it; 0 before the first.
    pub previous_seq: u64,
    /// How often the source offset was moved by hand. Each time begins a chain of its own.
    pub epoch: u64,
    /// Whether an earlier epoch has published this record already.
    pub is_republished: bool,
}

impl Link {
    pub fn headers(self) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
        let epoch = (self.epoch > 0).then(|| ("wecom.epoch", self.epoch.to_string().into_bytes()));
        let republished = self.is_republished.then(|| ("wecom.republished", b"true".to_vec()));
        [("wecom.previous_seq", self.previous_seq.to_string().into_bytes())].into_iter().chain(epoch).chain(republished)
    }
}
