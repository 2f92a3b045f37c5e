//! How the vendor seals a message, as its own library opens it (measured, version 3, x86-64).
//!
//! - A *box* is `base64(iv ‖ AES-256-CBC(key, iv, PKCS#7(data)))`; a key that is shorter than 32 bytes is filled with zero bytes.
//! - `encrypt_chat_msg` is 13 characters of anything, the outer key, `before` characters of anything, the message's box under the
//!   inner key, and `after` characters of anything. `inserted` characters of anything stand in the box, at position `inserted`.
//! - The key that is handed to `DecryptData` is the box, under the outer key, of a protocol buffer: inner key, `before`, `after`,
//!   `inserted`.
//!
//! In production the vendor's library opens records, whatever it does inside: this is for the simulator and for tests.

use std::fmt;

use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::code::{BAD_KEY, Code, MALFORMED, NOT_DECRYPTED};
use crate::random::{ALPHANUMERIC, Random};

/// Characters before the outer key: nobody knows what for. `DecryptData` aborts the process where there are fewer.
pub const HEAD_LENGTH: usize = 13;
pub const KEY_LENGTH: usize = 32;
const IV_BYTES: usize = 16;

/// The keys and lengths that seal one message.
#[derive(Clone)]
pub struct Seal {
    pub outer_key: String,
    pub inner_key: Vec<u8>,
    pub before: usize,
    pub after: usize,
    /// At least 1.
    pub inserted: usize,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("before", &self.before).field("after", &self.after).finish_non_exhaustive()
    }
}

/// Why a message does not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotOpened {
    Code(Code),
    /// An uncaught exception of C++: what the library says before it aborts the process.
    Abort(String),
}

impl From<Code> for NotOpened {
    fn from(code: Code) -> Self {
        Self::Code(code)
    }
}

impl Seal {
    /// A seal out of `random`, whose message has at least `after_min` characters of anything at its end.
    pub fn draw(random: &mut Random, after_min: usize) -> Self {
        Self {
            outer_key: random.text(ALPHANUMERIC, KEY_LENGTH),
            // Text: with other bytes the library prints a line to stderr for each message (measured).
            inner_key: random.text(ALPHANUMERIC, KEY_LENGTH).into_bytes(),
            before: random.between(0, 40) as usize,
            after: after_min + random.between(0, 40) as usize,
            inserted: random.between(1, 20) as usize,
        }
    }

    /// The key for `DecryptData`: what RSA wraps as `encrypt_random_key`.
    pub fn key(&self, random: &mut Random) -> String {
        let mut parameters = vec![0x0a];
        push_varint(&mut parameters, self.inner_key.len());
        parameters.extend_from_slice(&self.inner_key);
        for (tag, length) in [(0x10, self.before), (0x18, self.after), (0x20, self.inserted)] {
            parameters.push(tag);
            push_varint(&mut parameters, length);
        }
        self.close(&parameters, random)
    }

    /// The box of anything under the outer key.
    pub fn close(&self, parameters: &[u8], random: &mut Random) -> String {
        close_box(self.outer_key.as_bytes(), parameters, random)
    }

    /// The sealed message: `encrypt_chat_msg`.
    pub fn message(&self, plaintext: &[u8], random: &mut Random) -> String {
        let sealed = close_box(&self.inner_key, plaintext, random);
        let mut anything = |length| random.text(ALPHANUMERIC, length);
        let (start, rest) = sealed.split_at(self.inserted.min(sealed.len()));
        [
            &anything(HEAD_LENGTH),
            self.outer_key.as_str(),
            &anything(self.before),
            start,
            &anything(self.inserted),
            rest,
            &anything(self.after),
        ]
        .concat()
    }
}

/// What `DecryptData` makes of a key and a sealed message: the plaintext, or what the vendor's library does in its place.
pub fn open(key: &[u8], message: &[u8]) -> Result<Vec<u8>, NotOpened> {
    let Some((_, rest)) = message.split_at_checked(HEAD_LENGTH) else {
        return Err(out_of_range("basic_string::basic_string", HEAD_LENGTH, message.len()));
    };
    let (outer_key, rest) = rest.split_at(rest.len().min(KEY_LENGTH));
    let parameters = open_box(outer_key, key).ok_or(BAD_KEY)?;
    let Parameters { inner_key, before, after, inserted } = Parameters::read(&parameters).ok_or(MALFORMED)?;
    if inserted == 0 || inserted.saturating_mul(2) >= message.len() {
        return Err(MALFORMED.into());
    }
    let rest = rest.get(before..).ok_or(MALFORMED)?;
    let Some((start, end)) = rest.split_at_checked(inserted) else {
        return Err(out_of_range("basic_string::erase", inserted, rest.len()));
    };
    let sealed = [start, end.get(inserted..).unwrap_or_default()].concat();
    let sealed = sealed.len().checked_sub(after).map(|length| &sealed[..length]).ok_or(MALFORMED)?;
    Ok(open_box(inner_key, sealed).ok_or(NOT_DECRYPTED)?)
}

fn out_of_range(function: &str, position: usize, length: usize) -> NotOpened {
    NotOpened::Abort(format!(
        "terminate called after throwing an instance of 'std::out_of_range'\n  what():  {function}: __pos (which is \
         {position}) > this->size() (which is {length})"
    ))
}

/// What the unwrapped key says, as a protocol buffer.
#[derive(Default)]
struct Parameters<'a> {
    inner_key: &'a [u8],
    before: usize,
    after: usize,
    inserted: usize,
}

impl<'a> Parameters<'a> {
    fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let mut parameters = Self::default();
        while let Some((tag, rest)) = bytes.split_first() {
            bytes = rest;
            let number = usize::try_from(take_varint(&mut bytes)?).ok()?;
            match tag {
                0x0a => (parameters.inner_key, bytes) = bytes.split_at_checked(number)?,
                0x10 => parameters.before = number,
                0x18 => parameters.after = number,
                0x20 => parameters.inserted = number,
                _ => return None,
            }
        }
        Some(parameters)
    }
}

/// Appends a number as protocol buffers have it.
pub fn push_varint(bytes: &mut Vec<u8>, mut number: usize) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes a number off the front, as protocol buffers have it.
pub fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let (mut number, mut shift) = (0_u64, 0);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
}

fn key_bytes(key: &[u8]) -> [u8; KEY_LENGTH] {
    let mut filled = [0; KEY_LENGTH];
    let length = key.len().min(KEY_LENGTH);
    filled[..length].copy_from_slice(&key[..length]);
    filled
}

fn close_box(key: &[u8], data: &[u8], random: &mut Random) -> String {
    let mut iv = [0; IV_BYTES];
    random.fill(&mut iv);
    let mut sealed = data.to_vec();
    let cipher = UnboundCipherKey::new(&AES_256, &key_bytes(key)).and_then(PaddedBlockEncryptingKey::cbc_pkcs7);
    let context = EncryptionContext::Iv128(FixedLength::from(iv));
    cipher.and_then(|cipher| cipher.less_safe_encrypt(&mut sealed, context)).expect("AES takes a key of 32 bytes");
    BASE64.encode([&iv[..], &sealed].concat())
}

fn open_box(key: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let bytes = BASE64.decode(text).ok()?;
    let (iv, sealed) = bytes.split_first_chunk::<IV_BYTES>()?;
    let cipher = UnboundCipherKey::new(&AES_256, &key_bytes(key)).and_then(PaddedBlockDecryptingKey::cbc_pkcs7).ok()?;
    let mut plaintext = sealed.to_vec();
    let context = DecryptionContext::Iv128(FixedLength::from(*iv));
    Some(cipher.decrypt(&mut plaintext, context).ok()?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens() {
        let mut random = Random::new(1, "sealing", 0);
        for length in [0, 1, 15, 16, 17, 100_000] {
            let mut plaintext = vec![0; length];
            random.fill(&mut plaintext);
            let seal = Seal::draw(&mut random, 26);
            let (key, message) = (seal.key(&mut random), seal.message(&plaintext, &mut random));
            assert_eq!(open(key.as_bytes(), message.as_bytes()), Ok(plaintext));
        }
    }
}
