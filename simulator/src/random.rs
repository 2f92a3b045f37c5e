//! Numbers that look random and are the same in every process: a stream, or one word, by (seed, domain, position).

/// Spreads the bits of `word` over the whole word (the finaliser of SplitMix64).
pub fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The word at `position` of the sequence that `seed` starts: any position at the same cost.
pub fn word_at(seed: u64, position: u64) -> u64 {
    mix(seed.wrapping_add(position.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// A number for `text` that stays the same in every version of the program (FNV-1a, then spread).
pub fn hash(text: &str) -> u64 {
    mix(text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of numbers.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    position: u64,
}

impl Random {
    /// The stream of `seed` for one use (`domain`) and one thing of that use (`number`).
    pub fn new(seed: u64, domain: &str, number: u64) -> Self {
        Self { seed: word_at(seed ^ hash(domain), number), position: 0 }
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.position += 1;
        word_at(self.seed, self.position)
    }

    /// A number in `0..bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.word()) * u128::from(bound);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// A number in `0.0..1.0`.
    pub fn fraction(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True with the probability `share`.
    pub fn chance(&mut self, share: f64) -> bool {
        self.fraction() < share
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
    }

    /// `length` characters out of `alphabet`, which must be ASCII.
    pub fn text(&mut self, alphabet: &[u8], length: usize) -> String {
        (0..length).map(|_| char::from(*self.pick(alphabet))).collect()
    }
}

/// Letters and digits.
pub const ALPHANUMERIC: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// The digits of a hexadecimal number.
pub const HEXADECIMAL: &[u8] = b"0123456789abcdef";
