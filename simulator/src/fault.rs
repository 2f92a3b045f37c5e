//! Faults that a scenario scripts: which call is hit, and what happens to it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::probe::Attempt;
use crate::random::{Random, hash};

/// A function that a fault can hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Function {
    Init,
    GetChatData,
    DecryptData,
    GetMediaData,
}

/// One `[[fault]]`: of the calls that fit the selectors, from the `call`-th on, with `probability`, at most `times` are hit.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Names the fault's counter in the state folder. By default it follows from what the fault says.
    pub name: Option<String>,
    pub function: Function,
    /// Only calls for this corp.
    pub corp: Option<String>,
    /// Only calls about one of these: the page has the record, the record is decrypted, the media belongs to the message.
    #[serde(default)]
    pub seq: BTreeSet<u64>,
    /// Only `GetChatData` with a higher limit.
    pub limit_above: Option<u32>,
    /// The first fitting call that is hit, counted from 1.
    #[serde(default = "one")]
    pub call: u64,
    #[serde(default)]
    pub times: Times,
    #[serde(default = "always")]
    pub probability: f64,
    /// Seed of `probability`.
    #[serde(default)]
    pub seed: u64,

    /// Return this code.
    pub code: Option<i32>,
    /// Return code 0 and a body with this errcode; 40014 also revokes the corp's token. In `GetMediaData`, as the vendor does:
    /// 10009 for 301042, 10010 for 301048, 10002 for any other.
    pub errcode: Option<i32>,
    /// Return code 0 and this body. In `GetMediaData`: 10003, as the vendor does.
    pub body: Option<Body>,
    /// The API answers this HTTP status and no body: 10001.
    pub status: Option<u16>,
    /// The connection ends in the middle of the API's answer: 10001.
    #[serde(default)]
    pub cut: bool,
    /// The vendor refuses to give out a token: 10001 and noise on stdout.
    #[serde(default)]
    pub refuse_token: bool,
    /// Never return.
    #[serde(default)]
    pub hang: bool,
    /// Abort the process.
    #[serde(default)]
    pub abort: bool,
    /// Kill the process, as the system does that has no memory left.
    #[serde(default)]
    pub kill: bool,
    /// Stop the process, as somebody outside can: it goes on where it was when it is told to.
    #[serde(default)]
    pub stop: bool,
    /// `GetChatData`: try all of this, and answer with what came of it in place of a page. For tests of whoever keeps the library in.
    #[serde(default)]
    pub probe: Vec<Attempt>,
    /// Media: bring only so many bytes; the next index goes on behind them, so nothing is lost.
    pub short_chunk_bytes: Option<u64>,
    /// Media: leave out the last bytes of the chunk; the next index goes on behind them, so they are lost.
    pub lose_bytes: Option<u64>,
    /// Media: one bit of the chunk is wrong.
    #[serde(default)]
    pub corrupt: bool,
    /// Wait so long first; 10001 where that is longer than the call's time-out. Goes with each of the others, or alone.
    #[serde(default)]
    pub slow_ms: u64,
    /// Print this on stdout, and bytes that are not UTF-8; `{secret}` becomes the corp's secret. Goes with each of the others, or alone.
    pub stdout: Option<String>,
    /// The same on stderr.
    pub stderr: Option<String>,
}

/// How often a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Times {
    Count(u64),
    Always(AlwaysWord),
}

/// The word `"always"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlwaysWord {
    Always,
}

impl Default for Times {
    fn default() -> Self {
        Self::Count(1)
    }
}

/// A body that is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// Noise.
    Garbage,
    /// Nothing at all.
    Empty,
    /// The true body with a NUL byte behind it.
    Nul,
    /// An HTML page, as a proxy gives.
    Html,
    /// The first half of the true body.
    Truncated,
    /// JSON, but its members have other types than they should.
    WrongTypes,
    /// 64 MiB of JSON without a record.
    Huge,
}

fn one() -> u64 {
    1
}

fn always() -> f64 {
    1.0
}

/// A call, as far as a fault can select it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    pub function: Function,
    pub corp_id: &'a str,
    /// The records that the call is about: from the first to the last.
    pub seqs: Option<(u64, u64)>,
    pub limit: Option<u32>,
}

impl Fault {
    /// Whether the selectors fit the call.
    pub fn selects(&self, call: &Call<'_>) -> bool {
        let holds = |(first, last): (u64, u64)| first <= last && self.seq.range(first..=last).next().is_some();
        self.function == call.function
            && self.corp.as_deref().is_none_or(|corp| corp == call.corp_id)
            && (self.seq.is_empty() || call.seqs.is_some_and(holds))
            && self.limit_above.is_none_or(|bound| call.limit.is_some_and(|limit| limit > bound))
    }

    /// Whether a fitting call is hit: the `matched`-th one, after `fired` hits.
    pub fn fires(&self, matched: u64, fired: u64) -> bool {
        matched >= self.call
            && self.times != Times::Count(fired)
            && (self.probability >= 1.0 || Random::new(self.seed, "fault", matched).chance(self.probability))
    }

    /// Whether every fitting call is hit, for ever.
    pub fn is_permanent(&self) -> bool {
        self.call <= 1 && self.probability >= 1.0 && matches!(self.times, Times::Always(_))
    }

    /// Whether it is the library that fails, and not the vendor's answer.
    pub fn is_of_library(&self) -> bool {
        matches!(self.function, Function::Init | Function::DecryptData)
            || self.code.is_some()
            || self.hang
            || self.abort
            || self.kill
            || self.stop
            || self.stdout.is_some()
            || self.stderr.is_some()
    }

    /// Whether a call that is hit does not bring what it should.
    pub fn answers_falsely(&self) -> bool {
        self.code.is_some()
            || self.errcode.is_some()
            || self.body.is_some()
            || self.status.is_some()
            || self.cut
            || self.refuse_token
            || self.hang
            || self.abort
            || self.kill
            || !self.probe.is_empty()
            || self.lose_bytes.is_some()
            || self.corrupt
    }

    /// Whether `GetMediaData` answers with 10001 to 10003, after which a later call may fare better, or by the file's age.
    pub fn is_passing(&self) -> bool {
        let code_passes = self.code.is_some_and(|code| (10_001..=10_003).contains(&code));
        code_passes || self.errcode.is_some() || self.body.is_some() || self.breaks_answer() || self.refuse_token
    }

    /// Whether the call gets no whole answer of HTTP, or none of success.
    pub fn breaks_answer(&self) -> bool {
        self.status.is_some() || self.cut
    }

    /// The name of the fault's counter.
    pub fn key(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => format!("{:016x}", hash(&format!("{self:?}"))),
        }
    }

    /// What is wrong with the fault, if something is.
    pub(crate) fn check(&self, corps: &BTreeSet<&str>) -> Result<(), String> {
        let media_only = self.short_chunk_bytes.is_some() || self.lose_bytes.is_some() || self.corrupt;
        let answers = [
            self.code.is_some(),
            self.errcode.is_some(),
            self.body.is_some(),
            self.status.is_some(),
            self.cut,
            self.refuse_token,
            self.hang,
            self.abort,
            self.kill,
            self.stop,
            !self.probe.is_empty(),
            self.short_chunk_bytes.is_some(),
            self.lose_bytes.is_some(),
            self.corrupt,
        ];
        let aside = self.slow_ms > 0 || self.stdout.is_some() || self.stderr.is_some();
        match answers.iter().filter(|present| **present).count() {
            0 if !aside => {
                return Err(
                    "it does nothing: give one of code, errcode, body, status, cut, hang, abort, kill, slow_ms, …"
                        .to_owned(),
                );
            }
            0 | 1 => {}
            _ => return Err("it does several things at once: give one effect a fault".to_owned()),
        }
        if media_only && self.function != Function::GetMediaData {
            return Err("short_chunk_bytes, lose_bytes and corrupt are for GetMediaData".to_owned());
        }
        let without_answer = matches!(self.function, Function::Init | Function::DecryptData);
        if without_answer && (self.errcode.is_some() || self.breaks_answer() || self.refuse_token) {
            return Err("errcode, status, cut and refuse_token are for GetChatData and GetMediaData".to_owned());
        }
        if self.body.is_some() && self.function == Function::Init {
            return Err("Init has no body".to_owned());
        }
        if !self.probe.is_empty() && self.function != Function::GetChatData {
            return Err("probe is for GetChatData".to_owned());
        }
        if self.limit_above.is_some() && self.function != Function::GetChatData {
            return Err("limit_above is for GetChatData".to_owned());
        }
        if self.function == Function::Init && !self.seq.is_empty() {
            return Err("Init knows no seq".to_owned());
        }
        if let Some(corp) = &self.corp
            && !corps.contains(corp.as_str())
        {
            return Err(format!("there is no corp {corp:?}"));
        }
        if !(0.0..=1.0).contains(&self.probability) {
            return Err("probability lies between 0.0 and 1.0".to_owned());
        }
        if self.call == 0 {
            return Err("call counts from 1".to_owned());
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if self.name.as_deref().is_some_and(|name| name.is_empty() || !name.bytes().all(plain)) {
            return Err("name must be letters, digits, _ and -".to_owned());
        }
        Ok(())
    }
}
