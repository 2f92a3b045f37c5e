//! The chat archive as data: pages, keys, messages, media references, events. Pure: no I/O, no clock; only [`keyring`] reads
//! its key files.
//!
//! - [`page`] reads one `GetChatData` answer into sealed records.
//! - [`message`] reads one decrypted message, [`media`] finds the files it refers to.
//! - [`event`], [`reference`], [`dead_letter`] and [`gap`] make the Kafka records that are published; [`record`] is what these
//!   have in common, [`schema`] what they promise, [`chain`] how a reader can tell that none is missing.

pub mod chain;
pub mod conversation;
pub mod dead_letter;
pub mod event;
pub mod gap;
mod json;
pub mod keyring;
pub mod media;
pub mod message;
pub mod page;
pub mod record;
pub mod reference;
pub mod request;
pub mod schema;
pub mod time;
mod walk;

pub use chain::Link;
pub use conversation::{Conversation, ConversationKind, Scope};
pub use dead_letter::{DeadLetterReason, SealedRecord, StrayRecord};
pub use event::{EventContext, MessageEvent};
pub use gap::{Delivered, Gap};
pub use media::MediaReference;
pub use message::NotJson;
pub use page::{ChatRecord, Element, Page, PageError};
pub use record::{Record, Topic};
pub use reference::{MediaOutcome, ReferenceEvent, ReferenceStatus, StoredObject};
pub use request::MediaRequest;
pub use time::{RecordTimestamp, TimestampLimits, Timestamps};

/// How long WeCom keeps messages and their media (doc 91552).
pub const WINDOW_MS: i64 = 5 * 24 * 60 * 60 * 1000;
