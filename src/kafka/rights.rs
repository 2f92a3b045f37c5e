//! What the principal may do with a topic, by the broker's own answer. rdkafka does not have this call, so it is made directly.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka_sys as ffi;

use super::client::TopicReader;

/// What a connector does with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    Read,
    Write,
}

impl Right {
    fn code(self) -> i32 {
        use ffi::rd_kafka_AclOperation_t as Operation;
        match self {
            Self::Read => Operation::RD_KAFKA_ACL_OPERATION_READ as i32,
            Self::Write => Operation::RD_KAFKA_ACL_OPERATION_WRITE as i32,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
        }
    }
}

/// Those of `wanted` that the principal does not have on a topic that is there. None where the broker does not tell. Blocks.
///
/// # Errors
/// Why there was no answer, in librdkafka's words.
pub fn missing(reader: &TopicReader, topic: &str, wanted: &[Right], timeout: Duration) -> Result<Vec<Right>, String> {
    let name = CString::new(topic).map_err(|error| error.to_string())?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let client = reader.client().native_ptr();
    let mut names = [name.as_ptr()];
    // SAFETY: the client is alive through the call, and so is the name, which librdkafka copies. What is made here is destroyed here,
    // once: the options and the names after the request was handed over, the queue and the event after the last look at the answer.
    unsafe {
        let options =
            ffi::rd_kafka_AdminOptions_new(client, ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let refused = ffi::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        if !refused.is_null() {
            ffi::rd_kafka_error_destroy(refused);
        }
        ffi::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, ptr::null_mut(), 0);
        let topics = ffi::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let queue = ffi::rd_kafka_queue_new(client);
        ffi::rd_kafka_DescribeTopics(client, topics, options, queue);
        ffi::rd_kafka_TopicCollection_destroy(topics);
        ffi::rd_kafka_AdminOptions_destroy(options);
        let event = ffi::rd_kafka_queue_poll(queue, timeout_ms);
        let granted = granted(event);
        if !event.is_null() {
            ffi::rd_kafka_event_destroy(event);
        }
        ffi::rd_kafka_queue_destroy(queue);
        let granted = granted?;
        // A broker without this answer gives no operation at all.
        let is_missing = |right: &Right| !granted.is_empty() && !granted.contains(&right.code());
        Ok(wanted.iter().copied().filter(is_missing).collect())
    }
}

/// The operations that the answer grants, as librdkafka numbers them.
///
/// # Safety
/// `event` is null, or an event that outlives the call.
unsafe fn granted(event: *mut ffi::rd_kafka_event_t) -> Result<Vec<i32>, String> {
    if event.is_null() {
        return Err("no answer".into());
    }
    // SAFETY: what the event holds lives as long as it. An array has as many elements as its count says; its numbers are read as
    // numbers, for the broker may know operations that this library has no name for.
    unsafe {
        if ffi::rd_kafka_event_error(event) != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(CStr::from_ptr(ffi::rd_kafka_event_error_string(event)).to_string_lossy().into_owned());
        }
        let result = ffi::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err("an answer to another question".into());
        }
        let mut count = 0;
        let topics = ffi::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if topics.is_null() || count == 0 {
            return Ok(Vec::new());
        }
        let operations = ffi::rd_kafka_TopicDescription_authorized_operations(*topics, &mut count);
        if operations.is_null() {
            return Ok(Vec::new());
        }
        Ok(std::slice::from_raw_parts(operations.cast::<i32>(), count).to_vec())
    }
}
