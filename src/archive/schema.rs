//! What the published events promise: the ids of their JSON Schemas. The id stands in each event as `schema` and in its
//! `ce_dataschema` header; a change that a reader could trip over gets a new id.

/// A message: see `schemas/message.json`.
pub const MESSAGE: &str = "urn:wecom-connector:message:1";
/// A file to be brought: see `schemas/media-request.json`.
pub const MEDIA_REQUEST: &str = "urn:wecom-connector:media-request:1";
/// What became of a file: see `schemas/media-reference.json`.
pub const MEDIA_REFERENCE: &str = "urn:wecom-connector:media-reference:1";
/// A dead letter: the sealed record, as WeCom gave it out. See `schemas/sealed-record.json`.
pub const SEALED_RECORD: &str = "urn:wecom-connector:sealed-record:1";
/// A dead letter that stands for a record that is too large: see `schemas/oversize-record.json`.
pub const OVERSIZE_RECORD: &str = "urn:wecom-connector:oversize-record:1";

/// Records that may be lost: see `schemas/gap.json`.
pub const GAP: &str = "urn:wecom-connector:gap:1";

/// The text of the schema with this id.
pub fn document(id: &str) -> Option<&'static str> {
    Some(match id {
        MESSAGE => include_str!("../../schemas/message.json"),
        MEDIA_REQUEST => include_str!("../../schemas/media-request.json"),
        MEDIA_REFERENCE => include_str!("../../schemas/media-reference.json"),
        SEALED_RECORD => include_str!("../../schemas/sealed-record.json"),
        OVERSIZE_RECORD => include_str!("../../schemas/oversize-record.json"),
        GAP => include_str!("../../schemas/gap.json"),
        _ => return None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::archive::Record;

    const ALL: [&str; 6] = [MESSAGE, MEDIA_REQUEST, MEDIA_REFERENCE, SEALED_RECORD, OVERSIZE_RECORD, GAP];

    /// Holds the headers of a record against the rules of CloudEvents.
    pub fn check_headers(record: &Record) {
        let names: BTreeSet<&str> = record.headers.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), record.headers.len(), "one stands twice: {:?}", record.headers);
        assert!(record.headers.iter().all(|(name, value)| !name.starts_with("ce_") || !value.is_empty()));
        assert_eq!(header(record, "ce_specversion"), Some("1.0"));
        for name in ["ce_id", "ce_source", "ce_type", "content-type"] {
            assert!(header(record, name).is_some(), "{name} is missing");
        }
        let time = header(record, "ce_time").map(str::parse::<jiff::Timestamp>);
        assert!(time.is_none_or(|time| time.is_ok()));
    }

    fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
        let found = record.headers.iter().find(|(header, _)| *header == name);
        found.map(|(_, value)| std::str::from_utf8(value).unwrap())
    }

    /// Holds a record against its schema and the rules of CloudEvents; gives its value.
    pub fn check(record: &Record) -> Value {
        check_headers(record);
        assert_eq!(header(record, "content-type"), Some("application/json"));
        let value: Value = serde_json::from_slice(&record.value).unwrap();
        if let Some(id) = header(record, "ce_dataschema") {
            let schema = serde_json::from_str(document(id).unwrap()).unwrap();
            let validator = jsonschema::validator_for(&schema).unwrap();
            let errors: Vec<String> =
                validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
            assert!(errors.is_empty(), "{errors:#?} in {value:#}");
            assert!(id == SEALED_RECORD || value["schema"] == id);
        }
        value
    }

    #[test]
    fn each_schema_is_one_and_has_its_id() {
        for id in ALL {
            let schema: Value = serde_json::from_str(document(id).unwrap()).unwrap();
            assert_eq!(schema["$id"], id);
            jsonschema::meta::validate(&schema).unwrap();
        }
        assert_eq!(document("urn:wecom-connector:message:0"), None);
    }
}
