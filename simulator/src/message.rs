//! The messages of a corp: (seed, seq) gives the message, in whatever process.

pub mod conversation;
pub mod kind;

mod content;
mod json;
mod nested;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::corp::Corp;
use crate::media::{FileId, MediaFile, Obstacle};
use crate::random::{ALPHANUMERIC, Random, hash, word_at};
use conversation::Conversation;
use json::Object;
use kind::{MessageKind, Oddity};

/// A decrypted message, and what a reader is to find in it.
#[derive(Debug, Clone)]
pub struct Message {
    pub seq: u64,
    pub msgid: String,
    pub kind: MessageKind,
    pub action: &'static str,
    /// None in a `switch` log.
    pub from: Option<String>,
    pub to: Vec<String>,
    /// None where the member is absent or empty.
    pub room_id: Option<String>,
    /// As it stands in the message; none in a `switch` log.
    pub msgtime_ms: Option<i64>,
    pub odd: Option<Oddity>,
    pub media: Vec<MediaReference>,
    /// JSON, but for raw control bytes and bytes that are not UTF-8 where `odd` says so.
    pub plaintext: Vec<u8>,
}

/// An `sdkfileid` in a message.
#[derive(Debug, Clone)]
pub struct MediaReference {
    /// Where it stands: a JSON pointer, for which JSON in strings counts as if it stood there itself.
    pub path: String,
    pub sdkfileid: String,
    pub file: MediaFile,
    pub odd: Option<Oddity>,
}

/// What is known of a message without its content.
#[derive(Debug)]
struct Head {
    msgid: String,
    kind: MessageKind,
    odd: Option<Oddity>,
    conversation_number: u64,
    conversation: Conversation,
    archived_ms: i64,
}

impl Head {
    fn of(corp: &Corp, seq: u64) -> Self {
        let mut random = corp.random("head", seq);
        let archived_ms = corp.archived_ms(corp.index_after(seq).saturating_sub(1));
        let odd = corp.odd(seq);
        // A few conversations have most of the messages.
        let conversation_number = (random.fraction().powi(2) * corp.scenario.conversations as f64) as u64;
        let conversation = match odd {
            Some(Oddity::LongTolist) => Conversation::crowd(corp, conversation_number),
            _ => Conversation::of(corp, conversation_number),
        };
        let kind = corp.pinned(seq).map_or_else(|| weighted(corp, &mut random), |pinned| pinned.msgtype);
        let kind = odd.map_or(kind, |odd| odd.type_for(kind));
        let msgid = msgid(&mut random, seq, archived_ms, conversation.is_external);
        Self { msgid, kind, odd, conversation_number, conversation, archived_ms }
    }
}

fn weighted(corp: &Corp, random: &mut Random) -> MessageKind {
    let mix = &corp.scenario.mix;
    let mut rest = random.below(mix.values().sum());
    let chosen = mix.iter().find(|(_, weight)| {
        let found = rest < **weight;
        rest = rest.saturating_sub(**weight);
        found
    });
    chosen.map_or(MessageKind::Text, |(kind, _)| *kind)
}

/// The shapes that msgids came in over the years. Odd numbers times the seq: no two of a corp are the same.
fn msgid(random: &mut Random, seq: u64, archived_ms: i64, is_external: bool) -> String {
    let number = 1_000_000_000_000_000_000 + word_at(random.word() & 0xff, seq) % 8_000_000_000_000_000_000;
    let suffix = if is_external { "_external" } else { "" };
    match random.below(20) {
        0 => format!("{number}_{}{suffix}", archived_ms / 1_000),
        1 => {
            let mut bytes = [0; 20];
            random.fill(&mut bytes);
            bytes[..8].copy_from_slice(&seq.to_be_bytes());
            format!("CAQQ{}", BASE64.encode(bytes))
        }
        2 => format!("{number}_{archived_ms}_updown_stream"),
        _ => format!("{number}_{archived_ms}{suffix}"),
    }
}

/// Stands for bytes that no JSON writer would write; replaced at the end.
const MARKS: [(char, &[u8]); 4] = [
    ('\u{e000}', b"\x11\x14\x02\x1f"),
    ('\u{e001}', b"\0"),
    ('\u{e002}', b"\xff\xfe\x80\xc3("),
    // Escaped in the outer string: a raw control byte where the string holds JSON again.
    ('\u{e003}', b"\\u0011"),
];

/// The message of a seq. The seq must be one that the corp has, or will have.
pub fn compose(corp: &Corp, seq: u64) -> Message {
    let head = Head::of(corp, seq);
    let mut composer = Composer {
        corp,
        seq,
        random: corp.random("content", seq),
        size_bytes: corp.pinned(seq).and_then(|pinned| pinned.size_bytes),
        mark: None,
        pending: head.odd,
        media: Vec::new(),
        head,
    };
    composer.mark = match composer.head.odd {
        Some(Oddity::ControlBytes) => Some(MARKS[0].0),
        Some(Oddity::NulByte) => Some(MARKS[1].0),
        Some(Oddity::NotUtf8) => Some(MARKS[2].0),
        _ => None,
    };
    composer.compose()
}

/// A message in the making.
struct Composer<'a> {
    corp: &'a Corp,
    seq: u64,
    head: Head,
    random: Random,
    /// The size of the first media file, where the scenario tells it.
    size_bytes: Option<u64>,
    /// Put into the next text.
    mark: Option<char>,
    /// Applied to the first media file.
    pending: Option<Oddity>,
    media: Vec<MediaReference>,
}

impl Composer<'_> {
    fn compose(mut self) -> Message {
        if self.head.kind == MessageKind::Switch {
            return self.switch();
        }
        let kind = self.head.kind;
        let delay_ms = if self.random.chance(0.005) { 7_200_000 } else { 15_000 };
        let msgtime_ms = match self.head.odd {
            Some(Oddity::MsgtimeZero) => 0,
            Some(Oddity::MsgtimeFuture) => self.head.archived_ms + 3 * 86_400_000,
            Some(Oddity::MsgtimePast) => 1_262_304_000_000,
            _ => self.head.archived_ms - self.random.below(delay_ms).cast_signed(),
        };
        let from = self.sender();
        let to: Vec<String> = self.head.conversation.people.iter().filter(|person| **person != from).cloned().collect();
        // The vendor's own samples of these have no room.
        let without_room = matches!(kind, MessageKind::MeetingVoiceCall | MessageKind::VoipDocShare);
        let room_id = self.head.conversation.room_id.clone().filter(|_| !without_room);
        let action = if kind == MessageKind::Revoke { "recall" } else { "send" };

        let mut envelope = Object::new()
            .string("msgid", &self.head.msgid)
            .string("action", action)
            .string("from", &from)
            .strings("tolist", &to);
        envelope = match &room_id {
            Some(room_id) => envelope.string("roomid", room_id),
            None if without_room || self.random.chance(0.5) => envelope,
            None => envelope.string("roomid", ""),
        };
        envelope = envelope.json("msgtime", msgtime_ms).string("msgtype", kind.msgtype().unwrap_or_default());
        if self.head.odd == Some(Oddity::ExactNumbers) {
            let exact = Object::new()
                .json("ratio", "1.10")
                .json("id", u64::MAX)
                .json("longer", "123456789012345678901234567890")
                .json("power", "1e2")
                .json("nothing", "-0")
                .json("url", r#""https:\/\/work.weixin.qq.com\/a\u002fb\/\u4f60\u597D""#);
            envelope = envelope.object("exact", exact);
        }
        let payload = self.payload(kind);
        let text = envelope.with(payload).finish();
        let Self { seq, head, media, .. } = self;
        let plaintext = replace_marks(text, head.odd);
        Message {
            seq,
            msgid: head.msgid,
            kind,
            action,
            from: Some(from),
            to,
            room_id,
            msgtime_ms: Some(msgtime_ms),
            odd: head.odd,
            media,
            plaintext,
        }
    }

    fn switch(mut self) -> Message {
        let user = self.head.conversation.people[0].clone();
        let time_ms = self.head.archived_ms - self.random.below(15_000).cast_signed();
        let log = Object::new()
            .string("msgid", &self.head.msgid)
            .string("action", "switch")
            .json("time", time_ms)
            .string("user", user);
        Message {
            seq: self.seq,
            msgid: self.head.msgid,
            kind: MessageKind::Switch,
            action: "switch",
            from: None,
            to: Vec::new(),
            room_id: None,
            msgtime_ms: None,
            odd: self.head.odd,
            media: Vec::new(),
            plaintext: log.finish().into_bytes(),
        }
    }

    fn sender(&mut self) -> String {
        match self.head.kind {
            // Only somebody from outside is asked for consent, or sends and gets such a red packet.
            MessageKind::Agree | MessageKind::Disagree => {
                self.head.conversation.people[self.head.conversation.people.len() - 1].clone()
            }
            _ => self.head.conversation.somebody(&mut self.random),
        }
    }

    /// The message that a recall takes back: one of the last in the same conversation, or else just one before.
    fn recalled(&self) -> String {
        let index = self.corp.index_after(self.seq).saturating_sub(1);
        let earlier = (index.saturating_sub(40)..index).rev().map(|index| Head::of(self.corp, self.corp.seq(index)));
        let mut fallback = None;
        for head in earlier {
            if head.conversation_number == self.head.conversation_number {
                return head.msgid;
            }
            fallback.get_or_insert(head.msgid);
        }
        fallback.unwrap_or_else(|| format!("{}_1603875615", self.corp.tag()))
    }

    fn identifier(&mut self, prefix: &str, length: usize) -> String {
        format!("{prefix}{}", self.random.text(ALPHANUMERIC, length))
    }
}

fn replace_marks(text: String, odd: Option<Oddity>) -> Vec<u8> {
    if !matches!(odd, Some(Oddity::ControlBytes | Oddity::NulByte | Oddity::NotUtf8)) {
        return text.into_bytes();
    }
    let mut bytes = Vec::with_capacity(text.len() + 8);
    let mut buffer = [0; 4];
    for character in text.chars() {
        let mark = MARKS.iter().find(|(mark, _)| *mark == character);
        bytes.extend_from_slice(mark.map_or_else(|| character.encode_utf8(&mut buffer).as_bytes(), |(_, bytes)| bytes));
    }
    bytes
}

impl Composer<'_> {
    /// A media file of the message, which stands at `path`.
    fn file(&mut self, path: &str, format: crate::media::Format) -> Attachment {
        let ordinal = self.media.len() as u16;
        let odd = self.pending.take();
        let sizes = &self.corp.scenario.media;
        let is_large = sizes.large_share > 0.0 && self.random.chance(sizes.large_share);
        let [low, high] = if is_large { sizes.large_size_bytes } else { sizes.size_bytes };
        let drawn = log_uniform(&mut self.random, low, high);
        let mut file =
            MediaFile { number: self.random.word(), format, size_bytes: self.size_bytes.take().unwrap_or(drawn) };
        let mut obstacle = Obstacle::None;
        let mut declared_size_bytes = None;
        let mut md5 = None;
        match odd {
            Some(Oddity::Duplicate) => {
                // One of eight contents; their size is theirs, whoever sends them.
                file.number = hash("duplicate") ^ self.random.below(8);
                file.size_bytes = log_uniform(&mut Random::new(file.number, "duplicate", 0), low, high);
            }
            Some(Oddity::ZeroBytes) => file.size_bytes = 0,
            Some(Oddity::Expired) => obstacle = Obstacle::Expired,
            Some(Oddity::Gone) => obstacle = Obstacle::Gone,
            Some(Oddity::Undecryptable) => obstacle = Obstacle::Undecryptable,
            Some(Oddity::EmptyMd5) => md5 = Some(String::new()),
            Some(Oddity::WrongMd5) => md5 = Some(self.random.text(crate::random::HEXADECIMAL, 32)),
            Some(Oddity::WrongSize) => declared_size_bytes = Some(file.size_bytes + 1 + self.random.below(999)),
            _ => {}
        }
        let id = FileId { corp_tag: self.corp.tag(), seq: self.seq, ordinal, obstacle, file };
        let mut sdkfileid = id.encode();
        if odd == Some(Oddity::BadSdkfileid) {
            sdkfileid.insert(40, '*');
        }
        self.media.push(MediaReference { path: format!("{path}/sdkfileid"), sdkfileid: sdkfileid.clone(), file, odd });
        Attachment {
            sdkfileid,
            md5: md5.unwrap_or_else(|| self.corp.md5(&file)),
            size_bytes: declared_size_bytes.unwrap_or(file.size_bytes),
            has_hostile_name: odd == Some(Oddity::HostileName),
        }
    }
}

fn log_uniform(random: &mut Random, low: u64, high: u64) -> u64 {
    let (from, to) = ((low.max(1) as f64).ln(), (high.max(1) as f64).ln());
    ((from + (to - from) * random.fraction()).exp() as u64).clamp(low, high)
}

/// A media file as its message declares it.
struct Attachment {
    sdkfileid: String,
    md5: String,
    size_bytes: u64,
    has_hostile_name: bool,
}
