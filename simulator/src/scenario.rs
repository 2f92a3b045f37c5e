//! The scenario file: which corps there are, what they said, and what goes wrong.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::fault::Fault;
use crate::message::kind::{MessageKind, Oddity};

/// Environment variable that names the scenario file.
pub const SCENARIO_VARIABLE: &str = "WECOM_SIMULATOR_SCENARIO";
/// Environment variable that takes the place of the scenario's `state_dir`.
pub const STATE_DIR_VARIABLE: &str = "WECOM_SIMULATOR_STATE_DIR";

/// The greatest number of anything that is counted; far beyond any archive, and no sum of such numbers overflows.
pub const COUNT_MAX: u64 = 1 << 40;
/// The greatest number that a count is multiplied with.
const FACTOR_MAX: u64 = 1 << 20;
/// About the year 2286.
const TIME_MS_MAX: i64 = 10_000_000_000_000;

/// Why a scenario can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("{SCENARIO_VARIABLE} is not set: let it name a scenario file, such as simulator/scenarios/demo.toml")]
    NotNamed,
    #[error("can't read the scenario {path}: {source}. Check the path and its permissions")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the scenario {path} is not valid: {source}")]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    #[error("the scenario {path} is not valid: {problem}")]
    Invalid { path: PathBuf, problem: String },
    #[error("can't use the state folder {path}: {source}. Set state_dir in the scenario, or {STATE_DIR_VARIABLE}")]
    State { path: PathBuf, source: std::io::Error },
    #[error("can't make or read the key {path}: {problem}. Remove the state folder to have new keys made")]
    Key { path: PathBuf, problem: String },
    #[error("the scenario has no corp {0}")]
    UnknownCorp(String),
}

/// A scenario file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Folder for what outlives a process: keys, fault counters, tokens, base time. Relative to the scenario file; by
    /// default the file's path with `.state` in place of its extension.
    pub state_dir: Option<PathBuf>,
    /// The moment (Unix ms) at which the history ends and live traffic starts. By default the first use of the state folder.
    pub base_time_ms: Option<i64>,
    /// With it, the library goes to an API over the network for all but decryption, as the vendor's does.
    pub network: Option<Network>,
    #[serde(rename = "corp")]
    pub corps: Vec<CorpScenario>,
    #[serde(rename = "fault", default)]
    pub faults: Vec<Fault>,
}

/// The way to an API that answers for the scenario.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// `host:port`. Its certificate has to be for the host; who made it is not looked at.
    pub api: String,
}

/// One corp of a scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpScenario {
    pub id: String,
    pub secret: String,
    /// Everything about the corp follows from this and the seq.
    #[serde(default)]
    pub seed: u64,
    /// Messages that are there at `base_time_ms`.
    #[serde(default = "default_messages")]
    pub messages: u64,
    /// The time over which they were archived, evenly, up to `base_time_ms`. What is older than the window is not given out.
    #[serde(default = "default_history_hours")]
    pub history_hours: f64,
    /// Messages a second from `base_time_ms` on.
    #[serde(default)]
    pub live_per_second: f64,
    /// Live traffic ends after so many messages; without it, never.
    pub live_messages: Option<u64>,
    #[serde(default = "default_first_seq")]
    pub first_seq: u64,
    /// After so many messages the seq jumps; 0 = never.
    #[serde(default)]
    pub seq_gap_every: u64,
    /// By how much it jumps.
    #[serde(default)]
    pub seq_gap: u64,
    #[serde(default = "default_conversations")]
    pub conversations: u64,
    /// Share of conversations that are groups, 0.0 to 1.0.
    #[serde(default = "default_group_share")]
    pub group_share: f64,
    /// Share of conversations with somebody from outside, 0.0 to 1.0.
    #[serde(default = "default_external_share")]
    pub external_share: f64,
    /// How long the archive keeps a message and its media.
    #[serde(default = "default_window_hours")]
    pub window_hours: f64,
    #[serde(default = "default_token_life_seconds")]
    pub token_life_seconds: u64,
    /// Calls of `GetChatData` a minute before errcode 45009; 0 = no bound.
    #[serde(default = "default_calls_per_minute")]
    pub calls_per_minute: u64,
    /// Weights of the message types; by default all types, text above all.
    #[serde(default = "default_mix")]
    pub mix: BTreeMap<MessageKind, u64>,
    /// Put into every text, title and file name, so that they are found wherever they should not be.
    #[serde(default)]
    pub marker: String,
    #[serde(default)]
    pub media: MediaSizes,
    #[serde(rename = "key", default = "default_keys")]
    pub keys: Vec<KeyVersion>,
    #[serde(rename = "pinned", default)]
    pub pinned: Vec<Pinned>,
    #[serde(rename = "odd", default = "default_oddities")]
    pub odd: Vec<Selection<Oddity>>,
    #[serde(rename = "bad", default)]
    pub bad: Vec<Selection<BadRecord>>,
}

/// Sizes of media in bytes. Small ones are more frequent than big ones (log-uniform).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MediaSizes {
    pub size_bytes: [u64; 2],
    /// Share of media that take their size from `large_size_bytes`, 0.0 to 1.0.
    pub large_share: f64,
    pub large_size_bytes: [u64; 2],
}

impl Default for MediaSizes {
    fn default() -> Self {
        Self { size_bytes: [200, 64 << 10], large_share: 0.0, large_size_bytes: [1 << 20, 8 << 20] }
    }
}

/// A version of the corp's public key, and the seq from which it seals.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyVersion {
    pub version: u32,
    #[serde(default)]
    pub from_seq: u64,
}

/// A message whose type, and size if it has media, is told.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    pub seq: u64,
    pub msgtype: MessageKind,
    pub size_bytes: Option<u64>,
}

/// Which messages are of a kind: those with a seq in the list, and a share of all.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection<Kind> {
    pub kind: Kind,
    #[serde(default)]
    pub seq: BTreeSet<u64>,
    #[serde(default)]
    pub share: f64,
}

/// A record that can't become a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BadRecord {
    /// `publickey_ver` is a version that the corp never had.
    UnknownKeyVersion,
    /// `encrypt_random_key` is not base64.
    BadBase64,
    /// `encrypt_random_key` was made with another key.
    WrongKey,
    /// `encrypt_chat_msg` is noise: `DecryptData` returns 10008.
    GarbageCiphertext,
    /// `encrypt_chat_msg` is shorter than 13 bytes: `DecryptData` aborts the process.
    ShortCiphertext,
    /// What comes out of `DecryptData` is not JSON.
    NotJson,
    /// The record lacks a field, or has one of a wrong type.
    MissingFields,
}

impl Scenario {
    /// Reads the file that [`SCENARIO_VARIABLE`] names.
    pub fn from_environment() -> Result<Self, ScenarioError> {
        Self::load(Path::new(&std::env::var_os(SCENARIO_VARIABLE).ok_or(ScenarioError::NotNamed)?))
    }

    /// Reads and checks a scenario file. The state folder in the answer is settled: the environment's, the file's, or the default.
    pub fn load(path: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ScenarioError::Unreadable { path: path.to_owned(), source })?;
        let mut scenario = Self::parse(path, &text)?;
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        scenario.state_dir = Some(match (std::env::var_os(STATE_DIR_VARIABLE), &scenario.state_dir) {
            (Some(named), _) => named.into(),
            (None, Some(named)) => folder.join(named),
            (None, None) => path.with_extension("state"),
        });
        Ok(scenario)
    }

    /// Reads and checks the text of a scenario file. `path` is for errors alone.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)
            .map_err(|source| ScenarioError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        scenario.check().map_err(|problem| ScenarioError::Invalid { path: path.to_owned(), problem })?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), String> {
        if self.corps.is_empty() {
            return Err("there is no [[corp]]".to_owned());
        }
        if self.base_time_ms.is_some_and(|time_ms| !(0..=TIME_MS_MAX).contains(&time_ms)) {
            return Err(format!("base_time_ms lies between 0 and {TIME_MS_MAX}"));
        }
        if self.network.as_ref().is_some_and(|network| network.address().is_none()) {
            return Err("network.api is host:port, such as qyapi.weixin.qq.com:443".to_owned());
        }
        let mut ids = BTreeSet::new();
        for corp in &self.corps {
            corp.check().map_err(|problem| format!("corp {:?}: {problem}", corp.id))?;
            if !ids.insert(corp.id.as_str()) {
                return Err(format!("two corps have the id {:?}", corp.id));
            }
        }
        for (number, fault) in self.faults.iter().enumerate() {
            fault.check(&ids).map_err(|problem| format!("fault {}: {problem}", number + 1))?;
        }
        Ok(())
    }
}

impl CorpScenario {
    fn check(&self) -> Result<(), String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if self.id.is_empty() || !self.id.bytes().all(plain) {
            return Err("id must be letters, digits, _ and -".to_owned());
        }
        if self.secret.is_empty() {
            return Err("secret is empty".to_owned());
        }
        if self.first_seq == 0 || self.conversations == 0 {
            return Err("first_seq and conversations start at 1".to_owned());
        }
        let counts = [
            self.messages,
            self.live_messages.unwrap_or(0),
            self.first_seq,
            self.seq_gap_every,
            self.token_life_seconds,
        ];
        if counts.into_iter().any(|count| count > COUNT_MAX) {
            return Err(format!(
                "messages, live_messages, first_seq, seq_gap_every and token_life_seconds are at most {COUNT_MAX}"
            ));
        }
        if self.seq_gap > FACTOR_MAX || self.mix.values().any(|weight| *weight > FACTOR_MAX) {
            return Err(format!("seq_gap and the weights of mix are at most {FACTOR_MAX}"));
        }
        if (self.seq_gap_every == 0) != (self.seq_gap == 0) {
            return Err("seq_gap and seq_gap_every go together".to_owned());
        }
        let shares = [self.group_share, self.external_share, self.media.large_share];
        let shares =
            shares.into_iter().chain(self.odd.iter().map(|odd| odd.share)).chain(self.bad.iter().map(|bad| bad.share));
        if shares.into_iter().any(|share| !(0.0..=1.0).contains(&share)) {
            return Err("a share lies between 0.0 and 1.0".to_owned());
        }
        if [self.history_hours, self.live_per_second, self.window_hours]
            .iter()
            .any(|number| !(0.0..1e9).contains(number))
        {
            return Err("history_hours, live_per_second and window_hours must not be negative".to_owned());
        }
        if self.mix.values().sum::<u64>() == 0 {
            return Err("mix has no weight above 0".to_owned());
        }
        if [self.media.size_bytes, self.media.large_size_bytes].iter().any(|[low, high]| low > high) {
            return Err("a size range is [smallest, largest]".to_owned());
        }
        if self.keys.first().is_none_or(|key| key.from_seq > self.first_seq) {
            return Err("the first key must apply from first_seq or before".to_owned());
        }
        if self.keys.windows(2).any(|pair| pair[0].from_seq >= pair[1].from_seq || pair[0].version >= pair[1].version) {
            return Err("keys must stand in rising order of version and from_seq".to_owned());
        }
        Ok(())
    }
}

fn default_messages() -> u64 {
    1_000
}

fn default_history_hours() -> f64 {
    24.0
}

fn default_first_seq() -> u64 {
    1
}

fn default_conversations() -> u64 {
    200
}

fn default_group_share() -> f64 {
    0.5
}

fn default_external_share() -> f64 {
    0.3
}

fn default_window_hours() -> f64 {
    120.0
}

fn default_token_life_seconds() -> u64 {
    7_200
}

fn default_calls_per_minute() -> u64 {
    600
}

fn default_keys() -> Vec<KeyVersion> {
    vec![KeyVersion { version: 1, from_seq: 0 }]
}

fn default_mix() -> BTreeMap<MessageKind, u64> {
    MessageKind::ALL.iter().map(|kind| (*kind, kind.usual_weight())).collect()
}

/// What is odd but harmless: a corp without `[[corp.odd]]` has a little of each.
fn default_oddities() -> Vec<Selection<Oddity>> {
    let harmless = Oddity::ALL.iter().filter(|kind| kind.is_harmless());
    harmless.map(|kind| Selection { kind: *kind, seq: BTreeSet::new(), share: 0.002 }).collect()
}
