//! A Kafka record, before anything of Kafka.

/// Where a record goes. The names of the topics are configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    Messages,
    MediaRequests,
    MediaRetries,
    MediaReferences,
    DeadLetters,
}

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub topic: Topic,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// Milliseconds since the epoch, UTC.
    pub timestamp_ms: i64,
}

impl Record {
    /// An upper bound of the bytes the record takes in a produce request that holds nothing else, uncompressed: what limits of
    /// producer, topic and broker are compared with.
    pub fn bytes_max(&self) -> usize {
        // Record batch version 2: 61 bytes for the batch, at most 36 for the record, and two lengths of at most 5 bytes for
        // each header.
        const BATCH_AND_RECORD: usize = 61 + 36;
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
        BATCH_AND_RECORD + self.key.len() + self.value.len() + headers
    }
}

/// The attributes of a record as a CloudEvent (version 1.0, Kafka binding, binary mode).
#[derive(Debug)]
pub(super) struct CloudEvent<'a> {
    /// Unique within the corp.
    pub id: String,
    pub corp_id: &'a str,
    pub kind: &'static str,
    pub subject: Option<&'a str>,
    pub time_ms: Option<i64>,
    pub schema: Option<&'static str>,
}

impl CloudEvent<'_> {
    pub fn headers(self) -> Vec<(&'static str, Vec<u8>)> {
        let mut headers: Vec<(&'static str, Vec<u8>)> = vec![
            ("ce_specversion", b"1.0".into()),
            ("ce_id", self.id.into()),
            ("ce_source", format!("/wecom/{}", self.corp_id).into()),
            ("ce_type", self.kind.into()),
            ("content-type", b"application/json".into()),
        ];
        // CloudEvents forbids empty attributes.
        let subject = self.subject.filter(|subject| !subject.is_empty()).map(str::to_owned);
        let optional = [
            ("ce_subject", subject),
            ("ce_time", self.time_ms.and_then(rfc3339)),
            ("ce_dataschema", self.schema.map(str::to_owned)),
        ];
        headers.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?.into()))));
        headers
    }
}

/// `2020-10-28T09:00:15.123Z`; nothing for a time that is not positive or that RFC 3339 cannot write.
fn rfc3339(unix_ms: i64) -> Option<String> {
    let timestamp = jiff::Timestamp::from_millisecond(unix_ms).ok().filter(|_| unix_ms > 0)?;
    Some(format!("{timestamp:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_rfc_3339_or_not_at_all() {
        let rows = [
            (1_603_875_615_123, Some("2020-10-28T09:00:15.123Z")),
            (1_603_875_615_000, Some("2020-10-28T09:00:15.000Z")),
            (0, None),
            (-1, None),
            (i64::MAX, None),
        ];
        for (unix_ms, expected) in rows {
            assert_eq!(rfc3339(unix_ms).as_deref(), expected);
        }
    }
}
