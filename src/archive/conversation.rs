//! Which conversation a message belongs to, and whether it goes beyond the corp.

use serde::Serialize;

/// Stands between the two ids of a pair. A userid has only letters, digits and `_-@.`, and WeCom's own interfaces list ids with
/// `|` between them, so that no id has it.
const PAIR_SEPARATOR: &str = "|";

/// A longer id is none of WeCom's, whose ids have up to 64 bytes. It stands in each request for a file of the message, and must not
/// multiply there.
const ID_BYTES_MAX: usize = 512;

/// The conversation of a message. Its id is the key of the message's record, so that Kafka keeps the order within it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conversation {
    /// The `roomid`; or the two ids of a single chat, the smaller first, with `|` between; or the corp's id.
    pub id: String,
    pub kind: ConversationKind,
    pub scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConversationKind {
    Group,
    Single,
    /// None of the two: nobody is named, or several without a room.
    Corp,
}

/// Whether somebody outside the corp takes part. Told by the shapes of ids, which is a judgement: see [`Scope::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Internal,
    External,
    /// The message names nobody.
    Unknown,
}

impl Conversation {
    /// - A `roomid`: that group.
    /// - Else, a sender and one other: that pair, whichever way the message went. Who writes to himself is a pair with himself.
    /// - Else the corp, also for several receivers without a room: calls and document shares come so, and a key of all their
    ///   ids would have no bound. And the corp where an id has more than 512 bytes.
    pub fn of<S: AsRef<str>>(corp_id: &str, msgid: &str, from: Option<&str>, to: &[S], room_id: Option<&str>) -> Self {
        let from = from.filter(|id| !id.is_empty());
        let to = || to.iter().map(AsRef::as_ref).filter(|id| !id.is_empty());
        let scope = Scope::of(msgid, from.into_iter().chain(to()));
        let of_corp = || Self { id: corp_id.to_owned(), kind: ConversationKind::Corp, scope };
        if let Some(room_id) = room_id.filter(|id| !id.is_empty()) {
            if room_id.len() > ID_BYTES_MAX {
                return of_corp();
            }
            return Self { id: room_id.to_owned(), kind: ConversationKind::Group, scope };
        }
        if let Some(from) = from
            && to().next().is_some()
        {
            let other = to().find(|id| *id != from).unwrap_or(from);
            if from.len().max(other.len()) <= ID_BYTES_MAX && to().all(|id| id == from || id == other) {
                let id = [from.min(other), PAIR_SEPARATOR, from.max(other)].concat();
                return Self { id, kind: ConversationKind::Single, scope };
            }
        }
        of_corp()
    }
}

impl Scope {
    /// External where the `msgid` says so (`_external`; `_updown_stream`: another corp of a supply chain), or else where an id
    /// looks like an external contact's: `wo` or `wm`, at least 24 characters of base64url, a capital among them. Those ids have
    /// 32 characters. A member's userid is the corp's to choose, and may begin with `wo` too, but is hardly ever that long with
    /// capitals and without a dot. Older msgids have no suffix, so that its absence says nothing. Robots (`wb`) are at home in the
    /// corp.
    fn of<'a>(msgid: &str, mut ids: impl Iterator<Item = &'a str>) -> Self {
        if msgid.ends_with("_external") || msgid.ends_with("_updown_stream") {
            return Self::External;
        }
        match ids.next() {
            None => Self::Unknown,
            Some(first) if looks_external(first) || ids.any(looks_external) => Self::External,
            Some(_) => Self::Internal,
        }
    }
}

fn looks_external(id: &str) -> bool {
    (id.starts_with("wo") || id.starts_with("wm"))
        && id.len() >= 24
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && id.bytes().any(|byte| byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_are_told_by_room_pair_or_corp() {
        use ConversationKind::{Corp, Group, Single};
        use Scope::{External, Internal, Unknown};
        const CUSTOMER: &str = "wmGAgeDQAAvQeaTqWwkMTxGMkvI7OOuQ";
        type Row = (
            &'static str,
            Option<&'static str>,
            &'static [&'static str],
            Option<&'static str>,
            &'static str,
            ConversationKind,
            Scope,
        );
        let rows: &[Row] = &[
            ("1_1", Some("anna"), &["bert"], None, "anna|bert", Single, Internal),
            ("1_1", Some("bert"), &["anna"], Some(""), "anna|bert", Single, Internal),
            ("1_1", Some("bert"), &["anna", "bert", ""], None, "anna|bert", Single, Internal),
            ("1_1", Some("anna"), &["anna"], None, "anna|anna", Single, Internal),
            ("1_1", Some("anna"), &["bert"], Some("wrErxtDgAA0jgXE5"), "wrErxtDgAA0jgXE5", Group, Internal),
            ("1_1", Some("anna"), &["bert", CUSTOMER], Some("wr1"), "wr1", Group, External),
            ("1_1", Some("anna"), &["bert", "carl"], None, "ww1", Corp, Internal),
            ("1_1", Some("anna"), &[], None, "ww1", Corp, Internal),
            ("1_1", None, &["anna"], None, "ww1", Corp, Internal),
            ("1_1", None, &[], None, "ww1", Corp, Unknown),
            ("1_1", Some(CUSTOMER), &["anna"], None, "anna|wmGAgeDQAAvQeaTqWwkMTxGMkvI7OOuQ", Single, External),
            ("1_1_external", Some("anna"), &["bert"], None, "anna|bert", Single, External),
            ("1_1_updown_stream", Some("anna"), &["bert"], None, "anna|bert", Single, External),
            ("1_1", Some("wolfgang"), &["wb1"], None, "wb1|wolfgang", Single, Internal),
            (
                "1_1",
                Some("wolfgang_amadeus_mozart_77"),
                &["wb1"],
                None,
                "wb1|wolfgang_amadeus_mozart_77",
                Single,
                Internal,
            ),
            (
                "1_1",
                Some("wolfgang.Amadeus.Mozart.1756"),
                &["wb1"],
                None,
                "wb1|wolfgang.Amadeus.Mozart.1756",
                Single,
                Internal,
            ),
        ];
        for (msgid, from, to, room_id, id, kind, scope) in rows {
            let conversation = Conversation::of("ww1", msgid, *from, to, *room_id);
            assert_eq!(conversation, Conversation { id: (*id).into(), kind: *kind, scope: *scope });
        }
    }
}
