//! Media files: content made on the fly from (seed, file, offset), and the `sdkfileid` that names one.

use std::fmt;

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};
use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{
    GeneralPurpose, GeneralPurposeConfig, STANDARD as BASE64, URL_SAFE_NO_PAD as URL_BASE64,
};
use md5::{Digest, Md5};

use crate::random::{Random, mix, word_at};
use crate::sealing::{push_varint, take_varint};

/// What one call of `GetMediaData` brings at most.
pub const CHUNK_BYTES: u64 = 512 * 1024;

/// The vendor's files come enciphered, in blocks of so many bytes: AES-128 in ECB, PKCS#7 padding at the file's end (measured).
pub const CIPHER_BLOCK_BYTES: u64 = 16;

/// What `GetMediaData` brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub data: Vec<u8>,
    /// Empty at the end of the file.
    pub next_index: Vec<u8>,
    pub is_finish: bool,
}

impl Chunk {
    /// A piece of a file, and where in the enciphered file the next one begins. The last one has no next.
    pub fn new(data: Vec<u8>, next: Option<u64>) -> Self {
        let index = |next: u64| format!("Range:bytes={next}-{}", next.saturating_add(CHUNK_BYTES - 1)).into_bytes();
        Self { data, next_index: next.map(index).unwrap_or_default(), is_finish: next.is_none() }
    }
}

/// The key of a file, which stands in its `sdkfileid` in hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileKey([u8; 16]);

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey")
    }
}

impl FileKey {
    /// Reads a key of 32 hexadecimal digits.
    pub fn read(digits: &str) -> Option<Self> {
        let number = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32)?;
        Some(Self(number.to_be_bytes()))
    }

    /// Enciphers a part of a file: whole blocks, or, where it is the last part, any bytes, which are padded.
    pub fn encipher(&self, mut part: Vec<u8>, is_last: bool) -> Vec<u8> {
        if is_last {
            let padding = CIPHER_BLOCK_BYTES as usize - part.len() % CIPHER_BLOCK_BYTES as usize;
            part.resize(part.len() + padding, padding as u8);
        }
        let cipher = UnboundCipherKey::new(&AES_128, &self.0).and_then(EncryptingKey::ecb);
        cipher.and_then(|cipher| cipher.encrypt(&mut part)).expect("whole blocks");
        part
    }

    /// Deciphers a part of a file; of the last one, takes the padding off by its last byte. None where that is none of a padding,
    /// or where the part is not of whole blocks.
    pub fn decipher(&self, mut part: Vec<u8>, is_last: bool) -> Option<Vec<u8>> {
        let cipher = UnboundCipherKey::new(&AES_128, &self.0).and_then(DecryptingKey::ecb).ok()?;
        cipher.decrypt(&mut part, DecryptionContext::None).ok()?;
        if is_last {
            let padding =
                part.last().copied().filter(|padding| (1..=CIPHER_BLOCK_BYTES).contains(&u64::from(*padding)))?;
            part.truncate(part.len() - usize::from(padding));
        }
        Some(part)
    }
}

/// The real format of a file, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Format {
    Binary,
    Jpeg,
    Png,
    Gif,
    Amr,
    Mp4,
    Pdf,
    Zip,
    Text,
}

impl Format {
    const ALL: [Self; 9] =
        [Self::Binary, Self::Jpeg, Self::Png, Self::Gif, Self::Amr, Self::Mp4, Self::Pdf, Self::Zip, Self::Text];

    fn magic(self) -> &'static [u8] {
        match self {
            Self::Binary | Self::Text => b"",
            Self::Jpeg => b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00",
            Self::Png => b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR",
            Self::Gif => b"GIF89a\x22\x01\x22\x01\xf7\x00\x00",
            Self::Amr => b"#!AMR\n",
            Self::Mp4 => b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom",
            Self::Pdf => b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
            Self::Zip => b"PK\x03\x04\x14\x00\x00\x00\x08\x00",
        }
    }
}

/// A file: what its content follows from, beside the corp's seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MediaFile {
    pub number: u64,
    pub format: Format,
    pub size_bytes: u64,
}

/// Hashes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    pub md5: String,
    pub sha256: String,
}

impl MediaFile {
    /// The size of the enciphered file: padding takes a byte at least.
    pub fn enciphered_bytes(&self) -> u64 {
        (self.size_bytes / CIPHER_BLOCK_BYTES + 1) * CIPHER_BLOCK_BYTES
    }

    /// The bytes from `offset` on, at most `length` of them.
    pub fn read(&self, seed: u64, offset: u64, length: u64) -> Vec<u8> {
        let end = offset.saturating_add(length).min(self.size_bytes);
        if offset >= end {
            return Vec::new();
        }
        let seed = mix(seed ^ mix(self.number));
        let first_word = offset / 8;
        let mut bytes: Vec<u8> =
            (first_word..end.div_ceil(8)).flat_map(|position| word_at(seed, position).to_le_bytes()).collect();
        bytes.truncate((end - first_word * 8) as usize);
        bytes.drain(..(offset - first_word * 8) as usize);
        if self.format == Format::Text {
            bytes.iter_mut().for_each(|byte| *byte = b' ' + (*byte & 0x3f));
        }
        let magic = self.format.magic();
        if offset < magic.len() as u64 {
            let magic = &magic[offset as usize..];
            let covered = magic.len().min(bytes.len());
            bytes[..covered].copy_from_slice(&magic[..covered]);
        }
        bytes
    }

    /// The md5 of the whole content, in hexadecimal. Costs a pass over the content.
    pub fn md5(&self, seed: u64) -> String {
        let mut md5 = Md5::new();
        self.chunks(seed).for_each(|chunk| md5.update(chunk));
        hexadecimal(&md5.finalize())
    }

    /// All hashes of the content. Costs a pass over the content.
    pub fn hashes(&self, seed: u64) -> Hashes {
        let mut md5 = Md5::new();
        let mut sha256 = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for chunk in self.chunks(seed) {
            md5.update(&chunk);
            sha256.update(&chunk);
        }
        Hashes { md5: hexadecimal(&md5.finalize()), sha256: hexadecimal(sha256.finish().as_ref()) }
    }

    fn chunks(&self, seed: u64) -> impl Iterator<Item = Vec<u8>> {
        (0..self.size_bytes).step_by(CHUNK_BYTES as usize).map(move |offset| self.read(seed, offset, CHUNK_BYTES))
    }
}

/// The bytes as hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

/// What stands in the way of a file, by design of the scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Obstacle {
    None,
    Expired,
    Gone,
    Undecryptable,
}

impl Obstacle {
    const ALL: [Self; 4] = [Self::None, Self::Expired, Self::Gone, Self::Undecryptable];
}

/// What an `sdkfileid` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// Which corp the id belongs to: see [`crate::corp::Corp::tag`].
    pub corp_tag: u64,
    /// The message that the id stands in.
    pub seq: u64,
    /// Tells the ids in one message apart.
    pub ordinal: u16,
    pub obstacle: Obstacle,
    pub file: MediaFile,
}

/// What an `sdkfileid` is on its way: a protocol buffer as base64 (measured), of which the API is told all but the key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parcel {
    pub file: String,
    pub authkey: String,
    /// Hexadecimal digits.
    pub key: String,
}

/// The vendor's library takes base64 with or without padding.
const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Parcel {
    /// The `sdkfileid`.
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(900);
        for (number, text) in (1_u8..).zip([&self.file, &self.authkey, &self.key]) {
            bytes.push(number << 3 | 2);
            push_varint(&mut bytes, text.len());
            bytes.extend_from_slice(text.as_bytes());
        }
        BASE64.encode(bytes)
    }

    /// Reads an id, whoever made it; none if it is malformed.
    pub fn decode(text: &[u8]) -> Option<Self> {
        let bytes = LENIENT_BASE64.decode(text).ok()?;
        let mut parcel = Self::default();
        let mut rest = bytes.as_slice();
        while let Some((tag, behind)) = rest.split_first() {
            rest = behind;
            let length = usize::try_from(take_varint(&mut rest)?).ok()?;
            let (field, behind) = rest.split_at_checked(length)?;
            rest = behind;
            let field = String::from_utf8(field.to_vec()).ok()?;
            match tag {
                0x0a => parcel.file = field,
                0x12 => parcel.authkey = field,
                0x1a => parcel.key = field,
                _ => return None,
            }
        }
        Some(parcel)
    }
}

/// All ids begin with the same bytes, as the vendor's do.
const PREFIX: &str = "*1*simulated-archive-media*";
const FIELDS_BYTES: usize = 8 + 8 + 2 + 1 + 1 + 8 + 8;

impl FileId {
    /// The id as text: 300 to 1,100 characters of base64.
    pub fn encode(&self) -> String {
        let fields = self.fields();
        let sum = checksum(&fields).to_le_bytes();
        let filler = self.filler();
        Parcel {
            file: format!("{PREFIX}{}", URL_BASE64.encode([&fields[..], &sum].concat())),
            authkey: URL_BASE64.encode(&filler),
            key: hexadecimal(&filler[..16]),
        }
        .encode()
    }

    /// The key that the id has, which the API is not told.
    pub fn key(&self) -> FileKey {
        let filler = self.filler();
        FileKey(*filler.first_chunk().expect("100 bytes"))
    }

    fn fields(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIELDS_BYTES + 8);
        for number in [self.corp_tag, self.seq, self.file.number, self.file.size_bytes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.ordinal.to_le_bytes());
        bytes.extend_from_slice(&[self.obstacle as u8, self.file.format as u8]);
        bytes
    }

    /// 100 to 500 bytes that are no other id's.
    fn filler(&self) -> Vec<u8> {
        let mut random = Random::new(checksum(&self.fields()), "sdkfileid", u64::from(self.ordinal));
        let mut filler = vec![0; random.between(100, 500) as usize];
        random.fill(&mut filler);
        filler
    }

    /// Reads an id; none if it is malformed.
    pub fn decode(text: &[u8]) -> Option<Self> {
        Self::of_file(&Parcel::decode(text)?.file)
    }

    /// Reads what the API is told of an id.
    pub fn of_file(file: &str) -> Option<Self> {
        let bytes = URL_BASE64.decode(file.strip_prefix(PREFIX)?).ok()?;
        let (fields, sum) = bytes.split_at_checked(FIELDS_BYTES)?;
        if sum != checksum(fields).to_le_bytes() {
            return None;
        }
        let number = |position: usize| fields[position..position + 8].try_into().map(u64::from_le_bytes).ok();
        Some(Self {
            corp_tag: number(0)?,
            seq: number(8)?,
            file: MediaFile {
                number: number(16)?,
                size_bytes: number(24)?,
                format: *Format::ALL.get(usize::from(fields[35]))?,
            },
            ordinal: u16::from_le_bytes([fields[32], fields[33]]),
            obstacle: *Obstacle::ALL.get(usize::from(fields[34]))?,
        })
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0x5d6b_6e1f_0b7c_9a21, |sum, byte| mix(sum ^ u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However a file is cut, its bytes are the same, and the first ones tell its format.
    #[test]
    fn content_does_not_depend_on_the_cut() {
        let sizes = [0, 1, 7, 8, 9, 1_000, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 5];
        for (number, (size_bytes, format)) in sizes.into_iter().zip(Format::ALL).enumerate() {
            let file = MediaFile { number: number as u64, format, size_bytes };
            let whole = file.read(7, 0, u64::MAX);
            assert_eq!(whole.len() as u64, size_bytes);
            assert!(whole.starts_with(format.magic()) || size_bytes < 40);
            for step in [1_usize, 3, 8, 1_021, CHUNK_BYTES as usize]
                .into_iter()
                .filter(|step| size_bytes / (*step as u64) < 9_000)
            {
                let cut = (0..size_bytes).step_by(step).flat_map(|offset| file.read(7, offset, step as u64));
                assert!(cut.eq(whole.iter().copied()), "{size_bytes} bytes in steps of {step}");
            }
            assert_eq!(file.hashes(7).md5, hexadecimal(&Md5::digest(&whole)));
            assert_eq!(file.hashes(7).md5, file.md5(7));
        }
    }

    #[test]
    fn an_sdkfileid_is_read_back_and_a_changed_one_is_not() {
        let file = MediaFile { number: u64::MAX, format: Format::Mp4, size_bytes: 1 << 40 };
        let id = FileId { corp_tag: 3, seq: 1 << 50, ordinal: 300, obstacle: Obstacle::Gone, file };
        let text = id.encode();
        assert!((300..=1_100).contains(&text.len()), "{}", text.len());
        assert_eq!(FileId::decode(text.as_bytes()), Some(id));
        let mut changed = text.into_bytes();
        changed[60] ^= 1;
        assert_eq!(FileId::decode(&changed), None);
        assert_eq!(FileId::decode(b"no id"), None);
        assert_eq!(FileId::decode(b""), None);
    }
}
