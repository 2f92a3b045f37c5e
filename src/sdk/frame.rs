//! What worker and SDK host say to each other: frames of a 4-byte big-endian length and a `postcard` body, over a socket pair.
//! Both ends are always the same binary, so there is no version to negotiate.

use std::fmt;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The longest frame. A page is some 50 MB at the most by the vendor's own estimate; an answer's length is an `int`.
pub const FRAME_BYTES_MAX: usize = 1 << 30;

/// Whose archive a host reads, and how it reaches the vendor. The secret goes over the socket only, never on a command line or
/// in the environment.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Account {
    pub corp_id: String,
    pub secret: String,
    /// Path of the library, `None` for its usual names on the loader's path.
    pub library: Option<std::path::PathBuf>,
    pub proxy: String,
    pub proxy_password: String,
    /// The loopback port of the egress guard, where one stands before the library: then `proxy` is the guard, and the host can do
    /// without names, certificates and every other address.
    pub guard_port: Option<u16>,
    /// Time limit handed to the library for each call that uses the network, in seconds.
    pub timeout_s: i32,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("corp_id", &self.corp_id)
            .field("library", &self.library)
            .finish_non_exhaustive()
    }
}

/// One record's ciphertext with its unwrapped key.
#[derive(Clone, Serialize, Deserialize)]
pub struct SealedMessage {
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    pub message: String,
}

impl fmt::Debug for SealedMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedMessage").field("message_bytes", &self.message.len()).finish_non_exhaustive()
    }
}

/// Worker to host.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request<'a> {
    /// First of all; loads the library and makes the sdk object.
    Open(Account),
    /// Asks for a sign of life. It is answered at once, whatever the library does.
    Ping,
    /// Makes a new sdk object, with a new token. Calls under way end on the old one.
    Renew,
    GetChatData {
        seq: u64,
        limit: u32,
    },
    GetMediaData {
        sdkfileid: &'a str,
        #[serde(with = "serde_bytes")]
        index: &'a [u8],
    },
    /// Answered by one [`Response::Decrypted`] a message, in order, each sent before the next is touched: the message that
    /// kills the host is the first unanswered one.
    #[serde(borrow)]
    Decrypt(Vec<SealedRef<'a>>),
}

impl Request<'_> {
    /// How many answers it gets, at least 1.
    pub fn answers(&self) -> usize {
        if let Self::Decrypt(messages) = self { messages.len().max(1) } else { 1 }
    }
}

/// [`SealedMessage`], borrowed.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct SealedRef<'a> {
    #[serde(with = "serde_bytes")]
    pub key: &'a [u8],
    pub message: &'a str,
}

impl fmt::Debug for SealedRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedRef").field("message_bytes", &self.message.len()).finish_non_exhaustive()
    }
}

impl<'a> From<&'a SealedMessage> for SealedRef<'a> {
    fn from(sealed: &'a SealedMessage) -> Self {
        Self { key: &sealed.key, message: &sealed.message }
    }
}

/// Host to worker.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// The library is loaded, from this path, and its sdk object made; or renewed.
    Opened {
        library: String,
        /// What keeps the library in and could not be had here: a sentence each.
        unconfined: Vec<String>,
    },
    Pong,
    /// The library cannot be loaded or is not the vendor's: a sentence that says what to do.
    CannotOpen {
        reason: String,
        /// Whether it is this machine that lacks something for the moment, and not the library that is wrong.
        is_passing: bool,
    },
    ChatData(#[serde(with = "serde_bytes")] Vec<u8>),
    Media {
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        #[serde(with = "serde_bytes")]
        next_index: Vec<u8>,
        is_finish: bool,
    },
    Decrypted(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The library's return code, not 0. Inside a decryption it answers one message.
    Failed {
        code: i32,
    },
}

/// A request or response with the call it belongs to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Frame<T> {
    pub call: u64,
    pub body: T,
}

/// A frame as bytes on the wire, length included.
pub fn encode<T: Serialize>(call: u64, body: T) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(&Frame { call, body }, vec![0; 4]).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a frame of {length} bytes is too long")));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// The frame in `bytes` (without its length).
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<Frame<T>> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes one encoded frame whole.
pub fn write(mut writer: impl Write, frame: &[u8]) -> io::Result<()> {
    writer.write_all(frame)
}

/// Reads the body of the next frame into `buffer`; `false` at the end of the stream between two frames.
pub fn read(mut reader: impl Read, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; 4];
    match reader.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        result => result?,
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes is too long")));
    }
    // Not allocated at once: a garbled length must not cost a gigabyte.
    buffer.clear();
    let taken = reader.take(length as u64).read_to_end(buffer)?;
    if taken < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_frame_comes_back_as_it_went(call: u64, key: Vec<u8>, message: String, data: Vec<u8>) {
            let sealed = SealedRef { key: &key, message: &message };
            let mut wire = encode(call, Request::Decrypt(vec![sealed])).expect("encodes");
            wire.extend(encode(call, Response::Decrypted(data.clone())).expect("encodes"));
            let (mut stream, mut buffer) = (wire.as_slice(), Vec::new());
            prop_assert!(read(&mut stream, &mut buffer).expect("reads"));
            let frame: Frame<Request<'_>> = decode(&buffer).expect("decodes");
            prop_assert_eq!(frame.call, call);
            let Request::Decrypt(messages) = frame.body else { panic!("another request") };
            prop_assert_eq!((messages[0].key, messages[0].message), (&key[..], &message[..]));
            prop_assert!(read(&mut stream, &mut buffer).expect("reads"));
            prop_assert_eq!(decode::<Response>(&buffer).expect("decodes").body, Response::Decrypted(data));
            prop_assert!(!read(&mut stream, &mut buffer).expect("ends"));
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>) {
            let mut buffer = Vec::new();
            if let Ok(true) = read(bytes.as_slice(), &mut buffer) {
                let _ = decode::<Request<'_>>(&buffer);
                let _ = decode::<Response>(&buffer);
            }
        }
    }
}
