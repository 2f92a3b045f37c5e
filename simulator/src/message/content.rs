//! What each type of message carries.

use super::json::Object;
use super::kind::{MessageKind, Oddity};
use super::{Attachment, Composer};
use crate::media::Format;

const PHRASES: &[&str] = &[
    "好的，收到",
    "明天上午十点开会，请准时参加。",
    "@张伟 这个需求今天能上线吗？",
    "报价单已发邮箱，请查收 👍",
    "Could you share the latest contract?",
    "客户说下周一签约",
    "链接在这里 https://work.weixin.qq.com/wework_admin/frame#profile?a=1&b=2",
    "\"引号\"、\\反斜杠\\ 和 <标签>",
    "第一行\n第二行\t制表",
    "辛苦了！🎉🎉",
    "周报\r\n1. 完成对账\r\n2. 处理工单 #4711",
    "OK",
    "[微笑][强]",
    "Zürich, naïve café, ﷽, 𠮷野家",
    "请看附件，有问题随时联系我",
    "合计：12,345.60 元",
];

const HOSTILE_NAMES: &[&str] = &[
    "../../etc/passwd",
    "..\\..\\windows\\system32\\config",
    "/absolute/path.pdf",
    "名字 with spaces & 'quotes'.pdf",
    "no-extension",
    ".hidden",
    "double.tar.gz",
    "new\nline.txt",
    "very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name-very-long-name.docx",
    "evil.pdf/../../../x",
    "question?.png#fragment",
    "con",
    "%2e%2e%2f%2e%2e%2fescape",
    "",
];

impl Composer<'_> {
    /// A text; the first one of a message also has the odd bytes that it is to have.
    pub(super) fn phrase(&mut self) -> String {
        let mut text = (*self.random.pick(PHRASES)).to_owned();
        while self.random.chance(0.25) {
            text.push_str(self.random.pick::<&str>(PHRASES));
        }
        text.push_str(&self.corp.scenario.marker);
        if let Some(mark) = self.mark.take() {
            text.insert(text.chars().next().map_or(0, char::len_utf8), mark);
        }
        text
    }

    fn words(&mut self) -> String {
        let words = ["产品周会", "报名统计", "Q3 计划", "团建投票", "合同审批", "Release notes", "客户回访"];
        [*self.random.pick(&words), &self.corp.scenario.marker].concat()
    }

    fn url(&mut self) -> String {
        format!("https://example.com/{}?id={}", self.words(), self.random.below(1 << 40))
    }

    fn time_s(&self) -> i64 {
        self.head.archived_ms / 1_000
    }

    /// The members of the message beside its envelope.
    pub(super) fn payload(&mut self, kind: MessageKind) -> Object {
        let outside = Object::new();
        match kind {
            MessageKind::Switch => outside,
            MessageKind::Text => {
                let text = self.text();
                outside.object("text", Object::new().string("content", text))
            }
            MessageKind::UnknownText => outside.object("text", Object::new().string("content", "【未知消息类型】")),
            MessageKind::Quote => {
                let (quoted, answer) = (self.phrase(), self.phrase());
                let text = if self.random.chance(0.5) {
                    format!("这是一条引用/回复消息：\n\"李娜：\n{quoted}\"\n------\n{answer}")
                } else {
                    format!("「李娜：{quoted}」\n- - - - - - - - - - - - - - -\n{answer}")
                };
                outside.object("text", Object::new().string("content", text))
            }
            MessageKind::Revoke => {
                let recalled = self.recalled();
                outside.object("revoke", Object::new().string("pre_msgid", recalled))
            }
            MessageKind::Agree => {
                let user = self.head.conversation.people[0].clone();
                outside.object("agree", Object::new().string("userid", user).json("agree_time", self.head.archived_ms))
            }
            MessageKind::Disagree => {
                let user = self.head.conversation.people[0].clone();
                let member = *self.random.pick(&["disagree", "agree"]);
                let time = *self.random.pick(&["disagree_time", "agree_time"]);
                outside.object(member, Object::new().string("userid", user).json(time, self.head.archived_ms))
            }
            MessageKind::Vote => {
                let vote = self.vote();
                if self.random.chance(0.5) { outside.object("vote", vote) } else { outside.with(vote) }
            }
            MessageKind::MeetingVoiceCall => {
                let call = self.meeting_voice_call();
                let id = self.random.text(crate::random::HEXADECIMAL, 32);
                outside.string("voiceid", format!("gr{id}")).object("meeting_voice_call", call)
            }
            MessageKind::VoipDocShare => {
                let attachment = self.file("/voip_doc_share", Format::Pdf);
                let document = Object::new()
                    .string("filename", "欢迎使用微盘.pdf.pdf")
                    .string("md5sum", &attachment.md5)
                    .json("filesize", attachment.size_bytes)
                    .string("sdkfileid", attachment.sdkfileid);
                let id = self.random.text(crate::random::HEXADECIMAL, 32);
                outside.string("voipid", format!("gr{id}")).object("voip_doc_share", document)
            }
            MessageKind::Unknown => {
                let attachment = self.file("/interactive_card/cover", Format::Png);
                let cover = Object::new().with(attachment.declared("filesize"));
                let card = Object::new().string("title", self.words()).object("cover", cover).json("schema", 3);
                outside.object("interactive_card", card)
            }
            _ => {
                // The member's name is not always the msgtype's.
                let member = match kind {
                    MessageKind::Docmsg => "doc",
                    MessageKind::Markdown
                    | MessageKind::News
                    | MessageKind::Voiptext
                    | MessageKind::Qydiskfile
                    | MessageKind::MeetingNotification => "info",
                    MessageKind::ExternalRedpacket => "redpacket",
                    _ => kind.msgtype().unwrap_or_default(),
                };
                let payload = self.object(kind, &format!("/{member}"));
                outside.object(member, payload)
            }
        }
    }

    /// The object of a type that stands in one, also when it is nested; `path` is where it stands.
    pub(super) fn object(&mut self, kind: MessageKind, path: &str) -> Object {
        let object = Object::new();
        match kind {
            MessageKind::Image => {
                let format = *self.random.pick(&[Format::Jpeg, Format::Jpeg, Format::Jpeg, Format::Png, Format::Gif]);
                object.with(self.file(path, format).declared("filesize"))
            }
            MessageKind::Voice => {
                let attachment = self.file(path, Format::Amr);
                object.with(attachment.declared("voice_size")).json("play_length", self.random.between(1, 60))
            }
            MessageKind::Video => {
                let attachment = self.file(path, Format::Mp4);
                object.with(attachment.declared("filesize")).json("play_length", self.random.between(1, 600))
            }
            MessageKind::Emotion => {
                let is_gif = self.random.chance(0.6);
                let attachment = self.file(path, if is_gif { Format::Gif } else { Format::Png });
                let head = object.json("type", if is_gif { 1 } else { 2 }).json("width", 290).json("height", 290);
                head.with(attachment.declared("imagesize"))
            }
            MessageKind::File => self.document(path),
            MessageKind::Card => {
                let user = self.identifier("wm", 30);
                object.string("corpname", "微信联系人").string("userid", user)
            }
            MessageKind::Location => object
                .json(
                    "longitude",
                    format_args!("{}.{}0", self.random.between(73, 134), self.random.between(10_000, 99_999)),
                )
                .json(
                    "latitude",
                    format_args!("{}.{}0", self.random.between(18, 53), self.random.between(10_000, 99_999)),
                )
                .string("address", "北京市西城区复兴门内大街1号")
                .string("title", "西单大悦城(西城区)")
                .json("zoom", 15),
            MessageKind::Link => object
                .string("title", self.phrase())
                .string("description", self.phrase())
                .string("link_url", self.url())
                .string("image_url", "https://wwcdn.weixin.qq.com/node/wework/images/a.png"),
            MessageKind::Weapp => {
                let app = object
                    .string("title", self.phrase())
                    .string("description", self.phrase())
                    .string("username", "xxx@app")
                    .string("displayname", self.words());
                let appid = self.random.text(crate::random::HEXADECIMAL, 16);
                if self.random.chance(0.5) {
                    app.string("appid", format!("wx{appid}")).string("pagepath", "pages/index?x=1&y=2")
                } else {
                    app
                }
            }
            MessageKind::Todo => object.string("title", self.words()).string("content", self.phrase()),
            MessageKind::Collect => {
                let details = (0..self.random.between(1, 4))
                    .map(|_| {
                        let id = u64::MAX - self.random.below(1 << 62);
                        let kind = *self.random.pick(&["Text", "Number", "Date", "Time"]);
                        Object::new().json("id", id).string("ques", self.words()).string("type", kind)
                    })
                    .collect();
                object
                    .string("room_name", self.words())
                    .string("creator", self.head.conversation.people[0].as_str())
                    .string("create_time", "2026-01-12 15:34:21")
                    .string("title", self.words())
                    .objects("details", details)
            }
            MessageKind::Redpacket | MessageKind::ExternalRedpacket => object
                .json("type", self.random.between(1, if kind == MessageKind::Redpacket { 3 } else { 2 }))
                .string("wish", "恭喜发财，大吉大利")
                .json("totalcnt", self.random.between(1, 100))
                .json("totalamount", self.random.between(1, 20_000)),
            MessageKind::Meeting => {
                let is_handling = self.random.chance(0.5);
                let meeting = object
                    .string("topic", self.words())
                    .json("starttime", self.time_s() + 3_600)
                    .json("endtime", self.time_s() + 7_200)
                    .string("address", "")
                    .string("remarks", self.phrase())
                    .json("meetingtype", if is_handling { 102 } else { 101 })
                    .json("meetingid", self.random.word());
                if is_handling { meeting.json("status", self.random.between(1, 7)) } else { meeting }
            }
            MessageKind::MeetingNotification => {
                let id = self.random.word();
                let info = if self.random.chance(0.5) {
                    object.json("meeting_id", id)
                } else {
                    object.string("meeting_id", id.to_string())
                };
                info.json("notification_type", self.random.between(1, 6))
            }
            MessageKind::Docmsg => object
                .string("title", self.words())
                .string("link_url", self.url())
                .string("doc_creator", self.head.conversation.people[0].as_str()),
            MessageKind::Markdown => {
                object.string("content", format!("# {}\n> **{}**\n[go]({})", self.words(), self.phrase(), self.url()))
            }
            MessageKind::News => {
                let is_flat = self.random.chance(0.2);
                let count = if is_flat { 1 } else { self.random.between(1, 3) };
                let mut items: Vec<Object> = (0..count)
                    .map(|_| {
                        let item = Object::new().string("title", self.phrase()).string("description", self.phrase());
                        item.string("url", self.url()).string("picurl", "https://example.com/pic.png")
                    })
                    .collect();
                match items.pop() {
                    Some(only) if is_flat => object.with(only),
                    last => object.objects("item", items.into_iter().chain(last).collect()),
                }
            }
            MessageKind::Calendar => {
                let attendees = self.head.conversation.people.clone();
                object
                    .string("title", self.words())
                    .string("creatorname", self.head.conversation.people[0].as_str())
                    .strings("attendeename", &attendees)
                    .json("starttime", self.time_s() + 86_400)
                    .json("endtime", self.time_s() + 90_000)
                    .string("place", "12F 会议室")
                    .string("remarks", self.phrase())
            }
            MessageKind::Sphfeed => object
                .json("feed_type", *self.random.pick(&[2, 4, 9]))
                .string("sph_name", "云游天地旅行家")
                .string("feed_desc", self.phrase()),
            MessageKind::Voiptext => {
                object.json("callduration", self.random.below(3_600)).json("invitetype", self.random.between(1, 4))
            }
            MessageKind::Qydiskfile => object.string("filename", "年度预算.xlsx"),
            MessageKind::Chain => {
                let people = self.head.conversation.people.clone();
                object.string("title", self.words()).strings("entries", &people)
            }
            MessageKind::Note => {
                let picture =
                    Object::new().with(self.file(&format!("{path}/pictures/0"), Format::Jpeg).declared("filesize"));
                object.string("content", self.phrase()).objects("pictures", vec![picture])
            }
            MessageKind::Mixed => self.mixed(path),
            MessageKind::Chatrecord => self.chatrecord(path, 0),
            _ => object.string("content", self.phrase()),
        }
    }

    fn text(&mut self) -> String {
        let mut text = self.phrase();
        if self.head.odd == Some(Oddity::LargeMessage) {
            let length = self.random.between((1 << 20) + 1, 3 << 19) as usize;
            let more = self.phrase();
            text.push_str(&more.repeat(length / more.len() + 1));
        }
        text
    }

    fn document(&mut self, path: &str) -> Object {
        let names = [
            ("合同.pdf", "pdf", Format::Pdf),
            ("报表.xlsx", "xlsx", Format::Zip),
            ("notes.txt", "txt", Format::Text),
            ("archive.zip", "zip", Format::Zip),
            ("data.bin", "", Format::Binary),
            ("README", "", Format::Text),
        ];
        let (name, extension, format) = *self.random.pick(&names);
        let attachment = self.file(path, format);
        let (name, extension) = if attachment.has_hostile_name {
            (
                *self.random.pick(HOSTILE_NAMES),
                *self.random.pick(&["pdf", "", "../x", "e\u{0}xe", "TAR.GZ", "a/b", "扩展名"]),
            )
        } else {
            (name, extension)
        };
        Object::new()
            .string("md5sum", &attachment.md5)
            .string("filename", [&self.corp.scenario.marker, name].concat())
            .string("fileext", extension)
            .json("filesize", attachment.size_bytes)
            .string("sdkfileid", attachment.sdkfileid)
    }

    fn vote(&mut self) -> Object {
        let options: Vec<String> = (0..self.random.between(2, 4)).map(|_| self.words()).collect();
        let id = self.random.text(crate::random::ALPHANUMERIC, 24);
        Object::new()
            .string("votetitle", self.words())
            .strings("voteitem", &options)
            .json("votetype", self.random.between(101, 102))
            .string("voteid", id)
    }

    /// The sample has neither md5 nor size.
    fn meeting_voice_call(&mut self) -> Object {
        let attachment = self.file("/meeting_voice_call", Format::Mp4);
        let (start, end) = (self.time_s() - 600, self.time_s());
        let person = self.head.conversation.people[0].clone();
        let file = Object::new().string("filename", "欢迎使用微盘.pdf").string("demooperator", &person);
        let screen = Object::new().string("share", &person);
        Object::new()
            .json("endtime", end)
            .string("sdkfileid", attachment.sdkfileid)
            .objects("demofiledata", vec![file.json("starttime", start).json("endtime", end)])
            .objects("sharescreendata", vec![screen.json("starttime", start).json("endtime", end)])
    }
}

impl Attachment {
    fn declared(self, size_name: &str) -> Object {
        let object = Object::new().string("md5sum", &self.md5).json(size_name, self.size_bytes);
        object.string("sdkfileid", self.sdkfileid)
    }
}
