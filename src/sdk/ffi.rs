//! The vendor's C library, or the simulator that stands in for it, behind safe functions. All `unsafe` of the vendor
//! boundary is in this file.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use libloading::os::unix::{Library as DynamicLibrary, RTLD_LOCAL, RTLD_NOW};

use super::{code, elf};

/// Names tried on the loader's path when no path is configured: the vendor's packages use each of them.
pub const USUAL_NAMES: [&str; 3] =
    ["libWeWorkFinanceSdk_C.so", "libWeWorkFinanceSdk_C_x86.so", "libWeWorkFinanceSdk_C_arm.so"];

unsafe extern "C" {
    /// C's own; the Rust standard library does not use it.
    static stdout: Handle;
    fn setvbuf(stream: Handle, buffer: *mut c_char, mode: c_int, size: usize) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
}

/// The same on x86-64 and ARM64.
const SIGXFSZ: c_int = 25;
const SIG_IGN: usize = 1;

/// How the loader says that there is no file of the name. Of a library that this one needs it says the same, after its name.
const NO_SUCH_FILE: &str = "cannot open shared object file: No such file or directory";

/// How the loader says that the file is there and that the system has no room for it.
const NO_ROOM: [&str; 3] = ["Cannot allocate memory", "Too many open files", "Too many open files in system"];

/// `_IOLBF`, the same in glibc and musl.
const LINE_BUFFERED: c_int = 1;

/// Makes each line that the library prints leave the process at once. Into a pipe C prints in blocks of 4 KiB: the vendor's
/// reason for a refused secret, some 100 bytes, would come forty calls late (measured), or be lost with the process.
///
/// To be called before anything is printed.
pub fn print_by_line() {
    // SAFETY: the stream is C's own and nothing has been printed to it; without a buffer of ours C takes one of its own.
    // Failure leaves the stream as it was.
    unsafe { setvbuf(stdout, std::ptr::null_mut(), LINE_BUFFERED, 0) };
}

/// Makes a write beyond the limit of file sizes fail, in place of ending the process: a library that keeps a log of its
/// own goes on without it.
pub fn outlive_file_size_limit() {
    // SAFETY: the signal is ignored, and no code of ours runs for it.
    unsafe { signal(SIGXFSZ, SIG_IGN) };
}

/// Closes every descriptor but standard input, output and error.
///
/// To be called before this process has opened any of its own.
pub fn close_inherited() -> std::io::Result<()> {
    let folder = Path::new("/proc/self/fd");
    let listed: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?;
    // One of them was the listing's own and is closed by now.
    for name in listed.iter().filter(|name| folder.join(name).is_symlink()) {
        if let Some(number @ 3..) = name.to_str().and_then(|name| name.parse().ok()) {
            // SAFETY: it is open, and nothing in this process owns a descriptor yet.
            unsafe { rustix::io::close(number) };
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "cannot load the vendor's library {path}: {reason}; set wecom.sdk.library to the .so of the vendor's package"
    )]
    Open { path: PathBuf, reason: String },
    #[error(
        "cannot load the vendor's library {path}: {reason}. This machine lacks memory or open files for the moment: raise their limits"
    )]
    NoRoom { path: PathBuf, reason: String },
    #[error(
        "the vendor's library was not found on the loader's path under any usual name ({names}); set wecom.sdk.library to \
         the .so of the vendor's package",
        names = USUAL_NAMES.join(", ")
    )]
    NotFound,
    #[error(
        "{path} is not the vendor's library: it has no function {function}; set wecom.sdk.library to the .so of the vendor's package"
    )]
    MissingFunction { path: PathBuf, function: &'static str },
}

/// A call answered with a return code other than 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReturnCode(pub i32);

/// The library gave no buffer to answer in: the call has not been made. None of the library's own codes is negative.
pub const NO_MEMORY: ReturnCode = ReturnCode(i32::MIN);

/// One answer of `GetMediaData`: at most 512 KiB of the file (measured).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaData {
    pub data: Vec<u8>,
    /// Opaque; to be handed back for the next chunk.
    pub next_index: Vec<u8>,
    pub is_finish: bool,
}

/// Proxy and time limit of the calls that use the network.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// `http://host:port`, `socks5://host:port`, or empty for none.
    pub proxy: CString,
    /// `user:password`, or empty.
    pub proxy_password: CString,
    /// Seconds, as the library wants it.
    pub timeout_s: i32,
}

type Handle = *mut c_void;

macro_rules! functions {
    ($($field:ident = $name:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The 17 functions of the library (header of the C SDK, unchanged from 2020-02 to 2025-02).
        #[derive(Debug, Clone, Copy)]
        struct Functions { $($field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)* }

        /// The names of the 17 functions.
        pub const FUNCTION_NAMES: &[&str] = &[$($name),*];

        impl Functions {
            fn resolve(library: &DynamicLibrary, path: &Path) -> Result<Self, LoadError> {
                Ok(Self { $($field: {
                    // SAFETY: the type is the one of the vendor's header; the pointer is used only while `library`, kept
                    // beside it in `Library`, is loaded.
                    let symbol = unsafe { library.get($name.as_bytes()) };
                    *symbol.map_err(|_| LoadError::MissingFunction { path: path.into(), function: $name })?
                },)* })
            }
        }
    };
}

functions! {
    new_sdk = "NewSdk": fn() -> Handle;
    init = "Init": fn(Handle, *const c_char, *const c_char) -> c_int;
    get_chat_data = "GetChatData":
        fn(Handle, u64, u32, *const c_char, *const c_char, c_int, Handle) -> c_int;
    decrypt_data = "DecryptData": fn(*const c_char, *const c_char, Handle) -> c_int;
    get_media_data = "GetMediaData":
        fn(Handle, *const c_char, *const c_char, *const c_char, *const c_char, c_int, Handle) -> c_int;
    destroy_sdk = "DestroySdk": fn(Handle);
    new_slice = "NewSlice": fn() -> Handle;
    free_slice = "FreeSlice": fn(Handle);
    get_content_from_slice = "GetContentFromSlice": fn(Handle) -> *const c_char;
    get_slice_len = "GetSliceLen": fn(Handle) -> c_int;
    new_media_data = "NewMediaData": fn() -> Handle;
    free_media_data = "FreeMediaData": fn(Handle);
    get_out_index_buf = "GetOutIndexBuf": fn(Handle) -> *const c_char;
    get_data = "GetData": fn(Handle) -> *const c_char;
    get_index_len = "GetIndexLen": fn(Handle) -> c_int;
    get_data_len = "GetDataLen": fn(Handle) -> c_int;
    is_media_data_finish = "IsMediaDataFinish": fn(Handle) -> c_int;
}

/// The loaded library.
#[derive(Debug)]
pub struct Library {
    functions: Functions,
    path: PathBuf,
    /// Never unloaded: the library may have threads and exit handlers of its own.
    library: ManuallyDrop<DynamicLibrary>,
}

impl Library {
    /// Loads the library from `path`, else under its usual names from the loader's path, with local binding: its own
    /// OpenSSL must meet no other one.
    pub fn load(path: Option<&Path>) -> Result<Arc<Self>, LoadError> {
        let (library, path) = match path {
            Some(path) => {
                // A name without a folder is a file here, as all other paths of the configuration are: the loader would look for
                // it on its own path alone.
                let path = if is_bare(path) { Path::new(".").join(path) } else { path.to_path_buf() };
                (Self::open(&path)?, path)
            }
            None => Self::find()?,
        };
        let functions = Functions::resolve(&library, &path)?;
        Ok(Arc::new(Self { functions, path, library: ManuallyDrop::new(library) }))
    }

    /// The first usual name that can be loaded from the loader's path; else why the first one that is there cannot.
    fn find() -> Result<(DynamicLibrary, PathBuf), LoadError> {
        let mut unusable = None;
        for name in USUAL_NAMES {
            // For a file of another CPU the loader looks on, and says in the end that there is none: asked by its path it tells.
            let found = library_folders().map(|folder| folder.join(name)).filter(|path| path.exists());
            for path in [PathBuf::from(name)].into_iter().chain(found) {
                match Self::open(&path) {
                    Ok(library) => return Ok((library, path)),
                    Err(LoadError::Open { reason, .. }) if reason == NO_SUCH_FILE => {}
                    Err(error) => unusable = unusable.or(Some(error)),
                }
            }
        }
        Err(unusable.unwrap_or(LoadError::NotFound))
    }

    fn open(path: &Path) -> Result<DynamicLibrary, LoadError> {
        // SAFETY: loading runs the library's initialisers, which is why this happens in the SDK host only (and in tests).
        unsafe { DynamicLibrary::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
            let misfit = if is_bare(path) { None } else { elf::misfit(path) };
            let reason = misfit.unwrap_or_else(|| describe(path, &error));
            let path = path.into();
            if NO_ROOM.iter().any(|words| reason.ends_with(words)) {
                LoadError::NoRoom { path, reason }
            } else {
                LoadError::Open { path, reason }
            }
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the simulator, which says so by a symbol that the vendor's library has not.
    pub fn is_simulator(&self) -> bool {
        // SAFETY: the symbol is looked for, and not used.
        unsafe { self.library.get::<*const c_void>(b"WECOM_SIMULATOR") }.is_ok()
    }

    /// `DecryptData`: takes no sdk object and uses no network. `key` is the unwrapped `encrypt_random_key`.
    ///
    /// The library aborts the process when `message` is shorter than 13 bytes (measured).
    pub fn decrypt(&self, key: &[u8], message: &str) -> Result<Vec<u8>, ReturnCode> {
        let key = argument(key)?;
        let message = argument(message.as_bytes())?;
        let slice = Slice::new(self)?;
        // SAFETY: both strings end with NUL and live through the call; the slice is the library's own.
        check(unsafe { (self.functions.decrypt_data)(key.as_ptr(), message.as_ptr(), slice.raw.as_ptr()) })?;
        Ok(slice.content())
    }
}

/// A name without a folder, for which the loader looks on its path.
fn is_bare(path: &Path) -> bool {
    path.components().count() == 1
}

/// What the loader says, without the path that it begins with.
fn describe(path: &Path, error: &libloading::Error) -> String {
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    reason.strip_prefix(&format!("{}: ", path.display())).map_or_else(|| reason.clone(), str::to_owned)
}

/// Where the loader looks, but for what its cache (`/etc/ld.so.conf`) adds.
fn library_folders() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.into_iter().chain(["/usr/local/lib", "/usr/lib", "/lib"].map(PathBuf::from))
}

/// What the library would say of a string it cannot take: C strings hold no NUL.
fn argument(bytes: &[u8]) -> Result<CString, ReturnCode> {
    CString::new(bytes).map_err(|_| ReturnCode(code::BAD_ARGUMENT))
}

fn check(code: c_int) -> Result<(), ReturnCode> {
    if code == 0 { Ok(()) } else { Err(ReturnCode(code)) }
}

/// Bytes that the library owns. It reports lengths as `int`; a negative or absurd one reads as empty.
///
/// # Safety
/// `data` must be null or point to `length` readable bytes.
unsafe fn copy(data: *const c_char, length: c_int) -> Vec<u8> {
    match usize::try_from(length) {
        Ok(length) if length > 0 && !data.is_null() => {
            // SAFETY: the caller promises `length` readable bytes.
            unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) }.to_vec()
        }
        _ => Vec::new(),
    }
}

/// One `Slice_t`, freed on every path.
struct Slice<'a> {
    library: &'a Library,
    raw: NonNull<c_void>,
}

impl<'a> Slice<'a> {
    fn new(library: &'a Library) -> Result<Self, ReturnCode> {
        // SAFETY: takes nothing and returns a slice of ours, or null when out of memory.
        let raw = NonNull::new(unsafe { (library.functions.new_slice)() }).ok_or(NO_MEMORY)?;
        Ok(Self { library, raw })
    }

    /// By pointer and length: as a C string the content would end at a NUL byte (measured).
    fn content(&self) -> Vec<u8> {
        let functions = &self.library.functions;
        let raw = self.raw.as_ptr();
        // SAFETY: the slice is alive; the library says how long its buffer is.
        unsafe { copy((functions.get_content_from_slice)(raw), (functions.get_slice_len)(raw)) }
    }
}

impl Drop for Slice<'_> {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { (self.library.functions.free_slice)(self.raw.as_ptr()) }
    }
}

/// One `MediaData_t`, freed on every path.
struct MediaBuffer<'a> {
    library: &'a Library,
    raw: NonNull<c_void>,
}

impl<'a> MediaBuffer<'a> {
    fn new(library: &'a Library) -> Result<Self, ReturnCode> {
        // SAFETY: takes nothing and returns a buffer of ours, or null when out of memory.
        let raw = NonNull::new(unsafe { (library.functions.new_media_data)() }).ok_or(NO_MEMORY)?;
        Ok(Self { library, raw })
    }

    fn content(&self) -> MediaData {
        let functions = &self.library.functions;
        let raw = self.raw.as_ptr();
        // SAFETY: the buffer is alive; the library says how long each of its parts is.
        unsafe {
            MediaData {
                data: copy((functions.get_data)(raw), (functions.get_data_len)(raw)),
                next_index: copy((functions.get_out_index_buf)(raw), (functions.get_index_len)(raw)),
                is_finish: (functions.is_media_data_finish)(raw) != 0,
            }
        }
    }
}

impl Drop for MediaBuffer<'_> {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { (self.library.functions.free_media_data)(self.raw.as_ptr()) }
    }
}

/// One sdk object: a corp and its secret. Concurrent calls on it are safe (measured with five threads; documented since
/// v1.1). Destroyed when dropped, so the last caller has left.
#[derive(Debug)]
pub struct Sdk {
    library: Arc<Library>,
    handle: NonNull<c_void>,
}

// SAFETY: the library's objects may be used from any thread and from several at once (documented, and measured).
unsafe impl Send for Sdk {}
// SAFETY: as above.
unsafe impl Sync for Sdk {}

impl Sdk {
    /// `NewSdk` and `Init`. Success proves nothing of the secret: the library uses no network here (measured).
    pub fn init(library: &Arc<Library>, corp_id: &str, secret: &str) -> Result<Self, ReturnCode> {
        let (corp_id, secret) = (argument(corp_id.as_bytes())?, argument(secret.as_bytes())?);
        // SAFETY: takes nothing and returns an object of ours, or null when out of memory.
        let handle = NonNull::new(unsafe { (library.functions.new_sdk)() }).ok_or(NO_MEMORY)?;
        let sdk = Self { library: library.clone(), handle };
        // SAFETY: the object is alive; both strings end with NUL and live through the call.
        check(unsafe { (library.functions.init)(handle.as_ptr(), corp_id.as_ptr(), secret.as_ptr()) })?;
        Ok(sdk)
    }

    /// `GetChatData`: records with a `seq` greater than the given one, at most `limit` (1..=1000). A return code of 0 is not
    /// success: the answer's own `errcode` has to be read.
    pub fn get_chat_data(&self, seq: u64, limit: u32, network: &Network) -> Result<Vec<u8>, ReturnCode> {
        let slice = Slice::new(&self.library)?;
        // SAFETY: object, strings and slice are alive through the call.
        check(unsafe {
            (self.library.functions.get_chat_data)(
                self.handle.as_ptr(),
                seq,
                limit,
                network.proxy.as_ptr(),
                network.proxy_password.as_ptr(),
                network.timeout_s,
                slice.raw.as_ptr(),
            )
        })?;
        Ok(slice.content())
    }

    /// `GetMediaData`: one chunk. `index` is empty for the first one, then what the answer before gave.
    pub fn get_media_data(&self, sdkfileid: &str, index: &[u8], network: &Network) -> Result<MediaData, ReturnCode> {
        let (index, sdkfileid) = (argument(index)?, argument(sdkfileid.as_bytes())?);
        let buffer = MediaBuffer::new(&self.library)?;
        // SAFETY: object, strings and buffer are alive through the call; the index comes before the file (header).
        check(unsafe {
            (self.library.functions.get_media_data)(
                self.handle.as_ptr(),
                index.as_ptr(),
                sdkfileid.as_ptr(),
                network.proxy.as_ptr(),
                network.proxy_password.as_ptr(),
                network.timeout_s,
                buffer.raw.as_ptr(),
            )
        })?;
        Ok(buffer.content())
    }
}

impl Drop for Sdk {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once, and no call can be under way: each borrows the object.
        unsafe { (self.library.functions.destroy_sdk)(self.handle.as_ptr()) }
    }
}
