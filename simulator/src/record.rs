//! Chat records: messages sealed as `GetChatData` gives them out, and the way back that `DecryptData` goes.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::corp::Corp;
use crate::keys::PublicKeys;
use crate::message::{self, Message};
use crate::random::ALPHANUMERIC;
use crate::scenario::BadRecord;

/// The shortest `encrypt_msg` that `DecryptData` survives.
pub const ENCRYPT_MSG_BYTES_MIN: usize = 13;

/// Begins each ciphertext, before the corp's tag and the seq.
const MAGIC: &[u8; 4] = b"WSM1";
const HEADER_BYTES: usize = 4 + 8 + 8;
const RANDOM_KEY_BYTES: usize = 32;

/// What a ciphertext says of itself, so that a fault can be aimed at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub corp_tag: u64,
    pub seq: u64,
}

/// The key that seals the message: what comes out of `encrypt_random_key`.
pub fn random_key(corp: &Corp, seq: u64) -> String {
    corp.random("random_key", seq).text(ALPHANUMERIC, RANDOM_KEY_BYTES)
}

/// The same, sealed. The heavy part of a record: kept once it is made.
pub fn sealed_key(corp: &Corp, keys: &PublicKeys, seq: u64) -> Option<Vec<u8>> {
    let index = corp.index_after(seq).saturating_sub(1);
    Some(keys.seal(corp.key_version(seq), index, random_key(corp, seq).as_bytes())?.to_vec())
}

/// What is sealed for a seq: the message, or what stands in its place.
pub fn plaintext(corp: &Corp, message: &Message, bad: Option<BadRecord>) -> Vec<u8> {
    if bad != Some(BadRecord::NotJson) {
        return message.plaintext.clone();
    }
    match corp.random("not_json", message.seq).below(4) {
        0 => message.plaintext[..message.plaintext.len() / 2].to_vec(),
        1 => "这不是一条消息".as_bytes().to_vec(),
        2 => Vec::new(),
        _ => vec![0xff, 0x00, 0xfe, 0x7b, 0x22],
    }
}

/// The chat record of a seq, as JSON.
pub fn seal(corp: &Corp, keys: &PublicKeys, seq: u64) -> String {
    let message = message::compose(corp, seq);
    let bad = corp.bad(seq);
    let mut random = corp.random("bad_record", seq);
    let key = random_key(corp, seq);
    let mut version = corp.key_version(seq);
    let mut encrypt_random_key = match bad {
        Some(BadRecord::WrongKey) => {
            // Below any modulus of 2,048 bits, and no padding comes out.
            let mut noise = [0; 256];
            random.fill(&mut noise[1..]);
            BASE64.encode(noise)
        }
        _ => sealed_key(corp, keys, seq).map(|sealed| BASE64.encode(sealed)).unwrap_or_default(),
    };
    let encrypt_chat_msg = match bad {
        Some(BadRecord::GarbageCiphertext) => {
            let mut noise = [0; 96];
            random.fill(&mut noise);
            BASE64.encode([&header(corp, seq)[..], &noise[..]].concat())
        }
        Some(BadRecord::ShortCiphertext) => random.text(ALPHANUMERIC, (seq % ENCRYPT_MSG_BYTES_MIN as u64) as usize),
        _ => encrypt(corp, seq, &key, &plaintext(corp, &message, bad)),
    };
    if bad == Some(BadRecord::UnknownKeyVersion) {
        version += 1_000;
    }
    if bad == Some(BadRecord::BadBase64) {
        encrypt_random_key.replace_range(10..12, "*%");
    }
    let mut members = vec![
        format!(r#""seq":{seq}"#),
        format!(r#""msgid":"{}""#, message.msgid),
        format!(r#""publickey_ver":{version}"#),
        format!(r#""encrypt_random_key":"{encrypt_random_key}""#),
        format!(r#""encrypt_chat_msg":"{encrypt_chat_msg}""#),
    ];
    if bad == Some(BadRecord::MissingFields) {
        let place = random.between(1, 4) as usize;
        match random.below(3) {
            0 => members[2] = format!(r#""publickey_ver":"version {version}""#),
            1 => members[4] = r#""encrypt_chat_msg":null"#.to_owned(),
            _ => _ = members.remove(place),
        }
    }
    format!("{{{}}}", members.join(","))
}

fn header(corp: &Corp, seq: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(MAGIC);
    header[4..12].copy_from_slice(&corp.tag().to_le_bytes());
    header[12..].copy_from_slice(&seq.to_le_bytes());
    header
}

/// Each record has a key of its own, so a nonce that follows from the record is used once with it.
fn cipher(key: &[u8], header: &[u8; HEADER_BYTES]) -> Option<(LessSafeKey, Nonce)> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
    let nonce = Nonce::try_assume_unique_for_key(header.get(HEADER_BYTES - 12..)?).ok()?;
    Some((key, nonce))
}

fn encrypt(corp: &Corp, seq: u64, key: &str, plaintext: &[u8]) -> String {
    let header = header(corp, seq);
    let mut sealed = Vec::with_capacity(HEADER_BYTES + plaintext.len() + 16);
    sealed.extend_from_slice(plaintext);
    let Some((cipher, nonce)) = cipher(key.as_bytes(), &header) else { return String::new() };
    if cipher.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).is_err() {
        return String::new();
    }
    sealed.splice(..0, header);
    BASE64.encode(sealed)
}

/// The ciphertext's bytes and what they say of themselves; none if it is none of ours.
pub fn read(encrypt_msg: &[u8]) -> Option<(Origin, Vec<u8>)> {
    let sealed = BASE64.decode(encrypt_msg).ok()?;
    let number = |position: usize| Some(u64::from_le_bytes(sealed.get(position..position + 8)?.try_into().ok()?));
    let origin = Origin { corp_tag: number(4)?, seq: number(12)? };
    sealed.starts_with(MAGIC).then_some((origin, sealed))
}

/// Opens what [`read`] read; none with a wrong key or with changed bytes.
pub fn open(key: &[u8], mut sealed: Vec<u8>) -> Option<Vec<u8>> {
    let header: [u8; HEADER_BYTES] = sealed.get(..HEADER_BYTES)?.try_into().ok()?;
    let (cipher, nonce) = cipher(key, &header)?;
    let length = cipher.open_within(nonce, Aad::from(header), &mut sealed, HEADER_BYTES..).ok()?.len();
    sealed.truncate(length);
    Some(sealed)
}
