//! The types of messages, and what can be odd about one.

use serde::{Deserialize, Serialize};

/// A type of message, by its name in a scenario: the `msgtype`, and four more that have none of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    Text,
    Image,
    Revoke,
    Agree,
    Disagree,
    Voice,
    Video,
    Card,
    Location,
    Emotion,
    File,
    Link,
    Weapp,
    Chatrecord,
    Todo,
    Vote,
    Collect,
    Redpacket,
    ExternalRedpacket,
    Meeting,
    MeetingNotification,
    Docmsg,
    Markdown,
    News,
    Calendar,
    Mixed,
    MeetingVoiceCall,
    VoipDocShare,
    Sphfeed,
    Voiptext,
    Qydiskfile,
    Chain,
    Note,
    /// The log of a member who changed the current corp: action `switch`, no msgtype.
    Switch,
    /// A msgtype that no document names, with a media file in it.
    Unknown,
    /// A text that says only 【未知消息类型】.
    UnknownText,
    /// A text that quotes another.
    Quote,
}

impl MessageKind {
    /// Every type.
    pub const ALL: [Self; 37] = [
        Self::Text,
        Self::Image,
        Self::Revoke,
        Self::Agree,
        Self::Disagree,
        Self::Voice,
        Self::Video,
        Self::Card,
        Self::Location,
        Self::Emotion,
        Self::File,
        Self::Link,
        Self::Weapp,
        Self::Chatrecord,
        Self::Todo,
        Self::Vote,
        Self::Collect,
        Self::Redpacket,
        Self::ExternalRedpacket,
        Self::Meeting,
        Self::MeetingNotification,
        Self::Docmsg,
        Self::Markdown,
        Self::News,
        Self::Calendar,
        Self::Mixed,
        Self::MeetingVoiceCall,
        Self::VoipDocShare,
        Self::Sphfeed,
        Self::Voiptext,
        Self::Qydiskfile,
        Self::Chain,
        Self::Note,
        Self::Switch,
        Self::Unknown,
        Self::UnknownText,
        Self::Quote,
    ];

    /// The `msgtype` in the message; none in a `switch` log.
    pub fn msgtype(self) -> Option<&'static str> {
        Some(match self {
            Self::Text | Self::UnknownText | Self::Quote => "text",
            Self::Image => "image",
            Self::Revoke => "revoke",
            Self::Agree => "agree",
            Self::Disagree => "disagree",
            Self::Voice => "voice",
            Self::Video => "video",
            Self::Card => "card",
            Self::Location => "location",
            Self::Emotion => "emotion",
            Self::File => "file",
            Self::Link => "link",
            Self::Weapp => "weapp",
            Self::Chatrecord => "chatrecord",
            Self::Todo => "todo",
            Self::Vote => "vote",
            Self::Collect => "collect",
            Self::Redpacket => "redpacket",
            Self::ExternalRedpacket => "external_redpacket",
            Self::Meeting => "meeting",
            Self::MeetingNotification => "meeting_notification",
            Self::Docmsg => "docmsg",
            Self::Markdown => "markdown",
            Self::News => "news",
            Self::Calendar => "calendar",
            Self::Mixed => "mixed",
            Self::MeetingVoiceCall => "meeting_voice_call",
            Self::VoipDocShare => "voip_doc_share",
            Self::Sphfeed => "sphfeed",
            Self::Voiptext => "voiptext",
            Self::Qydiskfile => "qydiskfile",
            Self::Chain => "chain",
            Self::Note => "note",
            Self::Unknown => "interactive_card",
            Self::Switch => return None,
        })
    }

    /// The weight of the type in a corp without a `mix`.
    pub fn usual_weight(self) -> u64 {
        match self {
            Self::Text => 600,
            Self::Image => 100,
            Self::File | Self::Link | Self::Mixed | Self::Voice => 25,
            Self::Video | Self::Emotion | Self::Quote | Self::Chatrecord | Self::Revoke => 15,
            _ => 5,
        }
    }

    /// Whether each message of the type has at least one media file whose md5 and size it declares.
    pub fn declares_media(self) -> bool {
        matches!(
            self,
            Self::Image | Self::Voice | Self::Video | Self::Emotion | Self::File | Self::VoipDocShare | Self::Unknown
        )
    }

    /// Whether each message of the type has a text in which odd bytes can stand.
    pub fn has_text(self) -> bool {
        matches!(
            self,
            Self::Text
                | Self::Link
                | Self::Todo
                | Self::Markdown
                | Self::Mixed
                | Self::Chatrecord
                | Self::Weapp
                | Self::News
        )
    }
}

/// What is odd about a message that is none the less to be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oddity {
    /// Bytes below 0x20 stand raw in a JSON string.
    ControlBytes,
    /// A NUL byte stands raw in a JSON string.
    NulByte,
    /// A JSON string has bytes that are not UTF-8.
    NotUtf8,
    /// Numbers and escapes that change when they are parsed and printed again.
    ExactNumbers,
    /// `msgtime` is 0.
    MsgtimeZero,
    /// `msgtime` lies three days ahead.
    MsgtimeFuture,
    /// `msgtime` lies years back.
    MsgtimePast,
    /// A group of 4,000.
    LongTolist,
    /// More than 1 MiB of text.
    LargeMessage,
    /// `md5sum` is empty.
    EmptyMd5,
    /// `md5sum` is not the content's.
    WrongMd5,
    /// The declared size is not the content's.
    WrongSize,
    /// The same content as others, under an `sdkfileid` of its own.
    Duplicate,
    /// A file name that would lead astray if it were used as a path.
    HostileName,
    /// A file of 0 bytes.
    ZeroBytes,
    /// The file is gone before its time: `GetMediaData` returns 10010.
    Expired,
    /// The vendor answers an errcode that says nothing of the file's age: `GetMediaData` returns 10002, which nobody can tell from
    /// trouble that passes.
    Gone,
    /// `GetMediaData` returns 10006.
    Undecryptable,
    /// `sdkfileid` is malformed: `GetMediaData` returns 10005.
    BadSdkfileid,
}

impl Oddity {
    /// Every oddity.
    pub const ALL: [Self; 19] = [
        Self::ControlBytes,
        Self::NulByte,
        Self::NotUtf8,
        Self::ExactNumbers,
        Self::MsgtimeZero,
        Self::MsgtimeFuture,
        Self::MsgtimePast,
        Self::LongTolist,
        Self::LargeMessage,
        Self::EmptyMd5,
        Self::WrongMd5,
        Self::WrongSize,
        Self::Duplicate,
        Self::HostileName,
        Self::ZeroBytes,
        Self::Expired,
        Self::Gone,
        Self::Undecryptable,
        Self::BadSdkfileid,
    ];

    /// Whether a message with it is delivered like others, its media too, and is not huge.
    pub fn is_harmless(self) -> bool {
        use Oddity::*;
        !matches!(
            self,
            LongTolist | LargeMessage | WrongMd5 | WrongSize | Expired | Gone | Undecryptable | BadSdkfileid
        )
    }

    /// The type that a message of `kind` takes so that the oddity can show: its own where it can.
    pub fn type_for(self, kind: MessageKind) -> MessageKind {
        use Oddity::*;
        match self {
            ControlBytes | NulByte | NotUtf8 if !kind.has_text() => MessageKind::Text,
            LargeMessage => MessageKind::Text,
            HostileName => MessageKind::File,
            LongTolist if kind == MessageKind::Switch || kind == MessageKind::Revoke => MessageKind::Text,
            MsgtimeZero | MsgtimeFuture | MsgtimePast | ExactNumbers if kind == MessageKind::Switch => {
                MessageKind::Text
            }
            EmptyMd5 | WrongMd5 | WrongSize | Duplicate | ZeroBytes | Expired | Gone | Undecryptable | BadSdkfileid
                if !kind.declares_media() =>
            {
                MessageKind::Image
            }
            _ => kind,
        }
    }
}
