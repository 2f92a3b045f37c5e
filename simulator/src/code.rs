//! The library's return codes.

/// A return code other than 0, in the vendor's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32);

pub const BAD_ARGUMENT: Code = Code(10_000);
pub const NETWORK: Code = Code(10_001);
pub const UNREADABLE_ANSWER: Code = Code(10_002);
pub const SYSTEM: Code = Code(10_003);
/// An `sdkfileid`, or what a sealed message says of itself.
pub const MALFORMED: Code = Code(10_005);
pub const NOT_DECRYPTED: Code = Code(10_006);
pub const BAD_KEY: Code = Code(10_008);
pub const ADDRESS_NOT_ALLOWED: Code = Code(10_009);
pub const EXPIRED: Code = Code(10_010);

impl Code {
    /// What the library makes of an errcode in place of a file: most are one to it.
    pub fn of_media_errcode(errcode: i32) -> Self {
        match errcode {
            301_042 => ADDRESS_NOT_ALLOWED,
            301_048 => EXPIRED,
            _ => UNREADABLE_ANSWER,
        }
    }
}
