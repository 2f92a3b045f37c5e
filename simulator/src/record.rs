//! Chat records: messages sealed as `GetChatData` gives them out, and the way back that `DecryptData` goes.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as URL_BASE64};

use crate::code::BAD_KEY;
use crate::corp::Corp;
use crate::keys::PublicKeys;
use crate::message::{self, Message};
use crate::random::ALPHANUMERIC;
use crate::scenario::BadRecord;
use crate::sealing::{self, HEAD_LENGTH, NotOpened, Seal};

/// Begins what each sealed message ends in, before the corp's tag and the seq. The vendor's library does not look at it.
const MAGIC: &str = "WSM1";
/// Length of that end: 4 characters, and 16 bytes as base64.
const ORIGIN_LENGTH: usize = 4 + 22;

/// What a sealed message says of itself, so that a fault can be aimed at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub corp_tag: u64,
    pub seq: u64,
}

impl Origin {
    fn encode(&self) -> String {
        let bytes = [self.corp_tag.to_le_bytes(), self.seq.to_le_bytes()].concat();
        format!("{MAGIC}{}", URL_BASE64.encode(bytes))
    }

    /// The end of a sealed message; none if the message is none of ours.
    pub fn read(message: &[u8]) -> Option<Self> {
        let end = &message[message.len().checked_sub(ORIGIN_LENGTH)?..];
        let bytes = URL_BASE64.decode(end.strip_prefix(MAGIC.as_bytes())?).ok()?;
        let (corp_tag, seq) = bytes.split_first_chunk()?;
        Some(Self { corp_tag: u64::from_le_bytes(*corp_tag), seq: u64::from_le_bytes(seq.try_into().ok()?) })
    }
}

/// The key that opens the message: what comes out of `encrypt_random_key`.
pub fn random_key(corp: &Corp, seq: u64) -> String {
    seal_of(corp, seq).key(&mut corp.random("random_key", seq))
}

fn seal_of(corp: &Corp, seq: u64) -> Seal {
    Seal::draw(&mut corp.random("seal", seq), ORIGIN_LENGTH)
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
        Some(BadRecord::GarbageCiphertext) => loop {
            let noise = with_origin(random.text(ALPHANUMERIC, 150), corp, seq);
            // With one noise in 256 the padding looks right by chance, and the library answers 10005.
            if sealing::open(key.as_bytes(), noise.as_bytes()) == Err(NotOpened::Code(BAD_KEY)) {
                break noise;
            }
        },
        Some(BadRecord::ShortCiphertext) => random.text(ALPHANUMERIC, (seq % HEAD_LENGTH as u64) as usize),
        _ => {
            let plaintext = plaintext(corp, &message, bad);
            with_origin(seal_of(corp, seq).message(&plaintext, &mut corp.random("message", seq)), corp, seq)
        }
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

fn with_origin(mut message: String, corp: &Corp, seq: u64) -> String {
    let origin = Origin { corp_tag: corp.tag(), seq };
    message.replace_range(message.len() - ORIGIN_LENGTH.., &origin.encode());
    message
}
