//! The 17 functions as C programs call them. Lengths, NULs and answers to null pointers are as measured on the vendor's library.

#![allow(non_snake_case, reason = "the names are the vendor's")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};
use std::ptr;
use std::sync::{Arc, OnceLock};

use crate::archive::Archive;
use crate::code::{BAD_ARGUMENT, BAD_KEY, Code};
use crate::media::Chunk;
use crate::network::Via;
use crate::scenario::Scenario;
use crate::sdk::Sdk;

/// `Slice_t`: bytes that the library owns, with a NUL behind them that does not count.
#[derive(Debug)]
#[repr(C)]
pub struct Slice {
    buf: *mut c_char,
    len: c_int,
}

/// `MediaData_t`: a piece of a media file.
#[derive(Debug)]
#[repr(C)]
pub struct MediaData {
    outindexbuf: *mut c_char,
    out_len: c_int,
    data: *mut c_char,
    data_len: c_int,
    is_finish: c_int,
}

/// By this symbol a program can tell the simulator from the vendor's library.
#[unsafe(no_mangle)]
pub static WECOM_SIMULATOR: c_int = 1;

/// One archive a process, as the scenario says at the first use. A scenario that can't be used is told on stderr.
fn archive() -> Option<Arc<Archive>> {
    static ARCHIVE: OnceLock<Option<Arc<Archive>>> = OnceLock::new();
    let open = || Scenario::from_environment().and_then(Archive::open).map(Arc::new);
    ARCHIVE.get_or_init(|| open().inspect_err(|error| eprintln!("wecom-simulator: {error}")).ok()).clone()
}

/// What the accessors give for nothing.
fn empty() -> *mut c_char {
    c"".as_ptr().cast_mut()
}

/// A C string's bytes; none for a null pointer.
///
/// # Safety
/// `text` is null or points to bytes with a NUL at their end, which stay as they are for `'a`.
unsafe fn bytes<'a>(text: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: not null, and the caller vouches for the rest.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// # Safety
/// As for [`bytes`].
unsafe fn via<'a>(proxy: *const c_char, passwd: *const c_char, timeout_s: c_int) -> Via<'a> {
    // SAFETY: the caller vouches for the pointers.
    let (proxy, password) = unsafe { (bytes(proxy), bytes(passwd)) };
    Via { proxy: proxy.unwrap_or_default(), password: password.unwrap_or_default(), timeout_s }
}

/// Hands bytes over to C. Their length, and so the allocation, is told again to [`take_back`].
fn hand_over(mut bytes: Vec<u8>) -> (*mut c_char, c_int) {
    let Ok(length) = c_int::try_from(bytes.len()) else { return (ptr::null_mut(), 0) };
    if length == 0 {
        return (ptr::null_mut(), 0);
    }
    bytes.push(0);
    (Box::into_raw(bytes.into_boxed_slice()).cast(), length)
}

/// Frees what [`hand_over`] gave.
///
/// # Safety
/// `buffer` and `length` come from one call of [`hand_over`] and are given back once.
unsafe fn take_back(buffer: *mut c_char, length: c_int) {
    if !buffer.is_null() {
        let bytes = ptr::slice_from_raw_parts_mut(buffer.cast::<u8>(), length.unsigned_abs() as usize + 1);
        // SAFETY: `hand_over` made the box with this length and one byte more.
        drop(unsafe { Box::from_raw(bytes) });
    }
}

fn code(result: Result<(), Code>) -> c_int {
    result.map_or_else(|code| code.0, |()| 0)
}

/// Puts the answer into the slice, in place of what was there.
///
/// # Safety
/// `slice` is null or comes from [`NewSlice`], and no other thread uses it.
unsafe fn fill(slice: *mut Slice, answer: Result<Vec<u8>, Code>) -> c_int {
    // SAFETY: the caller vouches for the pointer.
    match (answer, unsafe { slice.as_mut() }) {
        (Err(code), _) => code.0,
        (Ok(_), None) => BAD_ARGUMENT.0,
        (Ok(bytes), Some(slice)) => {
            // SAFETY: the slice holds nothing or what `hand_over` gave.
            unsafe { take_back(slice.buf, slice.len) };
            (slice.buf, slice.len) = hand_over(bytes);
            0
        }
    }
}

/// Makes an sdk object. It is freed by [`DestroySdk`].
#[unsafe(no_mangle)]
pub extern "C" fn NewSdk() -> *mut Sdk {
    Box::into_raw(Box::new(Sdk::new(archive())))
}

/// Sets the corp's id and secret. Always 0 when both are there: that they are right shows at the first `GetChatData`.
///
/// # Safety
/// `sdk` is null or comes from [`NewSdk`]; the strings are null or end with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn Init(sdk: *mut Sdk, corpid: *const c_char, secret: *const c_char) -> c_int {
    // SAFETY: the caller vouches for the pointers.
    let (sdk, corpid, secret) = unsafe { (sdk.as_ref(), bytes(corpid), bytes(secret)) };
    match (sdk, corpid, secret) {
        (Some(sdk), Some(corpid), Some(secret)) => code(sdk.init(corpid, secret)),
        _ => BAD_ARGUMENT.0,
    }
}

/// Brings the records behind `seq`, at most `limit` (1..=1000) of them, as JSON.
///
/// # Safety
/// `sdk` and `chat_datas` are null or come from [`NewSdk`] and [`NewSlice`]; the strings are null or end with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetChatData(
    sdk: *mut Sdk,
    seq: c_ulonglong,
    limit: c_uint,
    proxy: *const c_char,
    passwd: *const c_char,
    timeout: c_int,
    chat_datas: *mut Slice,
) -> c_int {
    // SAFETY: the caller vouches for the pointers.
    let (sdk, via) = unsafe { (sdk.as_ref(), via(proxy, passwd, timeout)) };
    match sdk {
        Some(sdk) if !chat_datas.is_null() => {
            let answer = sdk.get_chat_data(seq, limit, &via);
            // SAFETY: as above.
            unsafe { fill(chat_datas, answer) }
        }
        _ => BAD_ARGUMENT.0,
    }
}

/// Decrypts one message. Aborts the process when `encrypt_msg` is shorter than 13 bytes.
///
/// # Safety
/// The strings are null or end with a NUL; `msg` is null or comes from [`NewSlice`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn DecryptData(encrypt_key: *const c_char, encrypt_msg: *const c_char, msg: *mut Slice) -> c_int {
    // SAFETY: the caller vouches for the pointers.
    let (Some(key), Some(encrypt_msg)) = (unsafe { (bytes(encrypt_key), bytes(encrypt_msg)) }) else {
        return BAD_ARGUMENT.0;
    };
    let answer = archive().ok_or(BAD_KEY).and_then(|archive| archive.decrypt(key, encrypt_msg));
    // SAFETY: as above.
    unsafe { fill(msg, answer) }
}

/// Brings a piece of a media file: at most 512 KiB, and the index of the next one.
///
/// # Safety
/// `sdk` and `media_data` are null or come from [`NewSdk`] and [`NewMediaData`]; the strings are null or end with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetMediaData(
    sdk: *mut Sdk,
    indexbuf: *const c_char,
    sdk_file_id: *const c_char,
    proxy: *const c_char,
    passwd: *const c_char,
    timeout: c_int,
    media_data: *mut MediaData,
) -> c_int {
    // SAFETY: the caller vouches for the pointers.
    let (sdk, index, file_id) = unsafe { (sdk.as_ref(), bytes(indexbuf), bytes(sdk_file_id)) };
    // SAFETY: as above.
    let via = unsafe { via(proxy, passwd, timeout) };
    let Some(sdk) = sdk else { return BAD_ARGUMENT.0 };
    let index = index.unwrap_or_default();
    match sdk.get_media_data(index, file_id.unwrap_or_default(), &via) {
        // SAFETY: as above.
        Ok(chunk) => unsafe { fill_media(media_data, chunk) },
        Err(code) => code.0,
    }
}

/// # Safety
/// `media_data` is null or comes from [`NewMediaData`], and no other thread uses it.
unsafe fn fill_media(media_data: *mut MediaData, chunk: Chunk) -> c_int {
    // SAFETY: the caller vouches for the pointer.
    let Some(media_data) = (unsafe { media_data.as_mut() }) else { return BAD_ARGUMENT.0 };
    // SAFETY: both hold nothing or what `hand_over` gave.
    unsafe {
        take_back(media_data.outindexbuf, media_data.out_len);
        take_back(media_data.data, media_data.data_len);
    }
    (media_data.outindexbuf, media_data.out_len) = hand_over(chunk.next_index);
    (media_data.data, media_data.data_len) = hand_over(chunk.data);
    media_data.is_finish = c_int::from(chunk.is_finish);
    0
}

/// Frees an sdk object. While a call is inside it, the vendor's library crashes now and then; this one always does.
///
/// # Safety
/// `sdk` is null or comes from [`NewSdk`] and is destroyed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn DestroySdk(sdk: *mut Sdk) {
    if sdk.is_null() {
        return;
    }
    // SAFETY: the caller vouches for the pointer.
    let sdk = unsafe { Box::from_raw(sdk) };
    if sdk.is_busy() {
        eprintln!("wecom-simulator: DestroySdk while a call is inside the object");
        std::process::abort();
    }
}

/// Makes an empty slice. It is freed by [`FreeSlice`].
#[unsafe(no_mangle)]
pub extern "C" fn NewSlice() -> *mut Slice {
    Box::into_raw(Box::new(Slice { buf: ptr::null_mut(), len: 0 }))
}

/// Frees a slice and its bytes.
///
/// # Safety
/// `slice` is null or comes from [`NewSlice`] and is freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FreeSlice(slice: *mut Slice) {
    if !slice.is_null() {
        // SAFETY: the caller vouches for the pointer; the bytes come from `hand_over`.
        unsafe {
            let slice = Box::from_raw(slice);
            take_back(slice.buf, slice.len);
        }
    }
}

/// The slice's bytes; never null.
///
/// # Safety
/// `slice` is null or comes from [`NewSlice`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetContentFromSlice(slice: *mut Slice) -> *mut c_char {
    // SAFETY: the caller vouches for the pointer.
    let slice = unsafe { slice.as_ref() };
    slice.map(|slice| slice.buf).filter(|buffer| !buffer.is_null()).unwrap_or_else(empty)
}

/// The number of the slice's bytes.
///
/// # Safety
/// `slice` is null or comes from [`NewSlice`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetSliceLen(slice: *mut Slice) -> c_int {
    // SAFETY: the caller vouches for the pointer.
    unsafe { slice.as_ref() }.map_or(0, |slice| slice.len)
}

/// Makes an empty piece of media. It is freed by [`FreeMediaData`].
#[unsafe(no_mangle)]
pub extern "C" fn NewMediaData() -> *mut MediaData {
    Box::into_raw(Box::new(MediaData {
        outindexbuf: ptr::null_mut(),
        out_len: 0,
        data: ptr::null_mut(),
        data_len: 0,
        is_finish: 0,
    }))
}

/// Frees a piece of media.
///
/// # Safety
/// `media_data` is null or comes from [`NewMediaData`] and is freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FreeMediaData(media_data: *mut MediaData) {
    if !media_data.is_null() {
        // SAFETY: the caller vouches for the pointer; index and data come from `hand_over`.
        unsafe {
            let media_data = Box::from_raw(media_data);
            take_back(media_data.outindexbuf, media_data.out_len);
            take_back(media_data.data, media_data.data_len);
        }
    }
}

/// The index of the next piece; never null.
///
/// # Safety
/// `media_data` is null or comes from [`NewMediaData`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetOutIndexBuf(media_data: *mut MediaData) -> *mut c_char {
    // SAFETY: the caller vouches for the pointer.
    let media_data = unsafe { media_data.as_ref() };
    media_data.map(|media_data| media_data.outindexbuf).filter(|buffer| !buffer.is_null()).unwrap_or_else(empty)
}

/// The bytes of the piece; never null.
///
/// # Safety
/// `media_data` is null or comes from [`NewMediaData`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetData(media_data: *mut MediaData) -> *mut c_char {
    // SAFETY: the caller vouches for the pointer.
    let media_data = unsafe { media_data.as_ref() };
    media_data.map(|media_data| media_data.data).filter(|buffer| !buffer.is_null()).unwrap_or_else(empty)
}

/// The number of bytes of the next piece's index.
///
/// # Safety
/// `media_data` is null or comes from [`NewMediaData`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetIndexLen(media_data: *mut MediaData) -> c_int {
    // SAFETY: the caller vouches for the pointer.
    unsafe { media_data.as_ref() }.map_or(0, |media_data| media_data.out_len)
}

/// The number of bytes of the piece.
///
/// # Safety
/// `media_data` is null or comes from [`NewMediaData`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetDataLen(media_data: *mut MediaData) -> c_int {
    // SAFETY: the caller vouches for the pointer.
    unsafe { media_data.as_ref() }.map_or(0, |media_data| media_data.data_len)
}

/// 1 when the piece is the last; also for a null pointer.
///
/// # Safety
/// `media_data` is null or comes from [`NewMediaData`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn IsMediaDataFinish(media_data: *mut MediaData) -> c_int {
    // SAFETY: the caller vouches for the pointer.
    unsafe { media_data.as_ref() }.map_or(1, |media_data| media_data.is_finish)
}
