//! Messages in messages: JSON in the strings of JSON.

use super::Composer;
use super::json::Object;
use super::kind::{MessageKind, Oddity};

/// How deep forwarded records nest at most.
const DEPTH_MAX: u32 = 4;

impl Composer<'_> {
    /// Text and other things in one bubble.
    pub(super) fn mixed(&mut self, path: &str) -> Object {
        self.mark_nested();
        let kinds = [
            (MessageKind::Text, "text"),
            (MessageKind::Image, "image"),
            (MessageKind::Image, "image"),
            (MessageKind::File, "file"),
            (MessageKind::Link, "link"),
            (MessageKind::Emotion, "emotion"),
        ];
        let count = self.random.between(1, 4);
        let items = (0..count)
            .map(|place| {
                // The first is a text: it comes before the media, so that a reader who stumbles over it misses them.
                let (kind, name) = if place == 0 { kinds[0] } else { *self.random.pick(&kinds) };
                let content = self.object(kind, &format!("{path}/item/{place}/content"));
                self.embed(Object::new().string("type", name), content)
            })
            .collect();
        Object::new().objects("item", items)
    }

    /// A forwarded chat, which may hold forwarded chats.
    pub(super) fn chatrecord(&mut self, path: &str, depth: u32) -> Object {
        self.mark_nested();
        let kinds = [
            (MessageKind::Text, "ChatRecordText"),
            (MessageKind::Image, "ChatRecordImage"),
            (MessageKind::File, "ChatRecordFile"),
            (MessageKind::Video, "ChatRecordVideo"),
            (MessageKind::Link, "ChatRecordLink"),
            (MessageKind::Location, "ChatRecordLocation"),
            (MessageKind::Voice, "ChatRecordVoice"),
            (MessageKind::Card, "ChatRecordCard"),
            (MessageKind::Emotion, "ChatRecordEmotion"),
            (MessageKind::Weapp, "ChatRecordWeapp"),
            (MessageKind::Mixed, "ChatRecordMixed"),
            (MessageKind::Chatrecord, "ChatRecordChatRecord"),
        ];
        let count = self.random.between(1, 3);
        let items = (0..count)
            .map(|place| {
                let choices = if depth + 1 < DEPTH_MAX { &kinds[..] } else { &kinds[..10] };
                let (kind, name) = if place == 0 && depth == 0 { kinds[0] } else { *self.random.pick(choices) };
                let path = format!("{path}/item/{place}/content");
                let content = match kind {
                    MessageKind::Mixed => self.mixed(&path),
                    MessageKind::Chatrecord => self.chatrecord(&path, depth + 1),
                    _ => self.object(kind, &path),
                };
                // Seconds, says the vendor; milliseconds, say some who read it.
                let time_s = self.head.archived_ms / 1_000 - 60;
                let time = if self.random.chance(0.1) { time_s * 1_000 } else { time_s };
                let item = self.embed(Object::new().string("type", name).json("msgtime", time), content);
                item.json("from_chatroom", self.random.chance(0.5))
            })
            .collect();
        Object::new().string("title", "群聊的聊天记录").objects("item", items)
    }

    /// Most often as JSON in a string, at times as an object.
    fn embed(&mut self, item: Object, content: Object) -> Object {
        if self.random.chance(0.15) {
            item.object("content", content)
        } else {
            item.string("content", content.finish())
        }
    }

    /// A control byte can also be well escaped outside, and raw only in the JSON inside.
    fn mark_nested(&mut self) {
        if self.head.odd == Some(Oddity::ControlBytes) && self.mark.is_some() && self.random.chance(0.5) {
            self.mark = Some('\u{e003}');
        }
    }
}
