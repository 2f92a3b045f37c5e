#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wecom_connector_fuzz::scenario(input));
