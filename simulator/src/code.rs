//! The library's return codes.

/// A return code other than 0, in the vendor's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32);

pub const BAD_ARGUMENT: Code = Code(10_000);
pub const NETWORK: Code = Code(10_001);
pub const UNREADABLE_ANSWER: Code = Code(10_002);
pub const SYSTEM: Code = Code(10_003);
pub const BAD_FILE_ID: Code = Code(10_005);
pub const NOT_DECRYPTED: Code = Code(10_006);
pub const BAD_KEY: Code = Code(10_008);
pub const ADDRESS_NOT_ALLOWED: Code = Code(10_009);
pub const EXPIRED: Code = Code(10_010);
