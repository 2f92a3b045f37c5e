//! The vendor's side: all corps of a scenario, what they remember, and what a reader is answered.

use std::io::Write;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Signal, getpid, kill_process};

use crate::code::{Code, NETWORK, SYSTEM};
use crate::corp::Corp;
use crate::fault::{Body, Call, Fault, Function};
use crate::keys::PublicKeys;
use crate::media::{CHUNK_BYTES, CIPHER_BLOCK_BYTES, FileId, Obstacle};
use crate::record;
use crate::scenario::{CorpScenario, Network, Scenario, ScenarioError};
use crate::sealing::{self, NotOpened};
use crate::state::{State, Token};

/// The errcode for a file that the archive no longer keeps.
const FILE_EXPIRED: i32 = 301_048;
/// One for a file that was never there.
const NO_SUCH_FILE: i32 = 40_007;

/// All corps of a scenario, and what they remember.
#[derive(Debug)]
pub struct Archive {
    accounts: Vec<Account>,
    faults: Vec<(String, Fault)>,
    state: State,
    /// Where the library goes, in place of answering itself.
    network: Option<Network>,
}

/// A corp, with its public keys once they are needed.
#[derive(Debug)]
pub struct Account {
    pub corp: Corp,
    keys: OnceLock<Option<PublicKeys>>,
}

/// A piece of a file. Positions and sizes are those of the enciphered file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// In the clear.
    pub data: Vec<u8>,
    /// Where the next piece begins.
    pub next: u64,
    /// The size of the whole file in bytes.
    pub size_bytes: u64,
}

impl Piece {
    pub fn is_last(&self) -> bool {
        self.next >= self.size_bytes
    }
}

/// What comes in place of a file's piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPiece {
    Errcode(i32),
    Body(Vec<u8>),
    /// The file ends before.
    OutOfRange,
}

impl Archive {
    /// Opens the scenario with its state folder.
    pub fn open(scenario: Scenario) -> Result<Self, ScenarioError> {
        let folder = scenario.state_dir.unwrap_or_else(|| "simulator.state".into());
        let failed = |source| ScenarioError::State { path: folder.clone(), source };
        let state = State::open(&folder).map_err(failed)?;
        let base_time_ms = match scenario.base_time_ms {
            Some(base_time_ms) => base_time_ms,
            None => state.base_time_ms(now_ms()).map_err(failed)?,
        };
        let account = |corp| Account { corp: Corp::new(corp, base_time_ms), keys: OnceLock::new() };
        let accounts = scenario.corps.into_iter().map(account).collect();
        let faults = scenario.faults.into_iter().map(|fault| (fault.key(), fault)).collect();
        Ok(Self { accounts, faults, state, network: scenario.network })
    }

    /// The corps in the scenario's order.
    pub fn corps(&self) -> impl Iterator<Item = &Corp> {
        self.accounts.iter().map(|account| &account.corp)
    }

    /// The corp with this id.
    pub fn corp(&self, id: &str) -> Result<&Corp, ScenarioError> {
        self.corps().find(|corp| corp.scenario.id == id).ok_or_else(|| ScenarioError::UnknownCorp(id.to_owned()))
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Where the library goes, in place of answering itself.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The corp that has this id and secret. The vendor gives no token to others.
    pub fn account(&self, corp_id: &str, secret: &str) -> Option<&Account> {
        let known = |corp: &CorpScenario| corp.id == corp_id && corp.secret == secret;
        self.accounts.iter().find(|account| known(&account.corp.scenario))
    }

    /// The corp's token; a new one where that has come to its end.
    pub fn token(&self, corp: &Corp) -> Result<String, Code> {
        let now_ms = now_ms();
        let number = self.state.token(&corp.scenario.id, |token| {
            if token.number == 0 || has_expired(corp, token.issued_ms, now_ms) {
                (token.number, token.issued_ms) = (token.number + 1, now_ms);
            }
            token.number
        });
        // As long as the vendor's.
        number.map(|number| format!("{number:04}.{}.{}", corp.scenario.id, "t0kenT0KEN".repeat(20))).map_err(|_| SYSTEM)
    }

    /// Whose token it is, of the corps that there are.
    pub fn account_of_token(&self, token: &str) -> Option<&Account> {
        let corp_id = token.split('.').nth(1)?;
        self.accounts.iter().find(|account| account.corp.scenario.id == corp_id)
    }

    /// The token's corp has another one from now on. Who holds the old one goes on to use it, in vain.
    pub fn revoke_token(&self, token: &str) {
        let Some(Account { corp, .. }) = self.account_of_token(token) else { return };
        let revoke = |token: &mut Token| (token.number, token.issued_ms) = (token.number + 1, now_ms());
        if let Err(error) = self.state.token(&corp.scenario.id, revoke) {
            eprintln!("wecom-simulator: the token of {} can't be revoked: {error}", corp.scenario.id);
        }
    }

    /// What the vendor answers to a pull: the records behind `seq`, or an errcode, as JSON.
    pub fn page(&self, account: &Account, token: &str, pull: &Pull, fault: Option<&Fault>) -> Result<Vec<u8>, Code> {
        let Account { corp, keys } = account;
        let Pull { seq, indices, now_ms } = pull;
        if let Some(errcode) = fault.and_then(|fault| fault.errcode) {
            if errcode == 40_014 {
                self.revoke_token(token);
            }
            return Ok(refusal(errcode));
        }
        if let Some(errcode) = self.stale(corp, token, *now_ms)? {
            return Ok(refusal(errcode));
        }
        let calls_per_minute = corp.scenario.calls_per_minute;
        if calls_per_minute > 0 && self.state.call(&corp.scenario.id, *now_ms).map_err(|_| SYSTEM)? > calls_per_minute {
            return Ok(refusal(45_009));
        }
        let keys = keys.get_or_init(|| load_keys(&self.state, corp)).as_ref().ok_or(SYSTEM)?;
        let mut body = String::from(r#"{"errcode":0,"errmsg":"ok""#);
        // A drained archive has an empty member or none at all: readers meet both.
        if !indices.is_empty() || seq % 2 == 1 {
            body.push_str(r#","chatdata":["#);
            for index in indices.clone() {
                body.push_str(if index > indices.start { "," } else { "" });
                body.push_str(&record::seal(corp, keys, corp.seq(index)));
            }
            body.push(']');
        }
        body.push('}');
        Ok(match fault.and_then(|fault| fault.body) {
            Some(distortion) => distort(distortion, body.as_bytes()),
            None => body.into_bytes(),
        })
    }

    /// What the vendor answers to a request for the bytes of an enciphered file from `start` to `end`.
    pub fn piece(
        &self,
        corp: &Corp,
        token: &str,
        id: &FileId,
        (start, end): (u64, u64),
        fault: Option<&Fault>,
    ) -> Result<Piece, NoPiece> {
        let now_ms = now_ms();
        let stale = self.stale(corp, token, now_ms).unwrap_or(Some(-1));
        if let Some(errcode) = fault.and_then(|fault| fault.errcode).or(stale) {
            return Err(NoPiece::Errcode(errcode));
        }
        if let Some(body) = fault.and_then(|fault| fault.body) {
            return Err(NoPiece::Body(distort(body, b"")));
        }
        let index = corp.index(id.seq).filter(|_| id.corp_tag == corp.tag()).ok_or(NoPiece::Errcode(NO_SUCH_FILE))?;
        match id.obstacle {
            Obstacle::None if corp.is_out_of_window(index, now_ms) => return Err(NoPiece::Errcode(FILE_EXPIRED)),
            Obstacle::None | Obstacle::Undecryptable => {}
            Obstacle::Expired => return Err(NoPiece::Errcode(FILE_EXPIRED)),
            Obstacle::Gone => return Err(NoPiece::Errcode(NO_SUCH_FILE)),
        }
        let size_bytes = id.file.enciphered_bytes();
        if start >= size_bytes {
            return Err(NoPiece::OutOfRange);
        }
        // What is not the last part is of whole blocks.
        let blocks = |bytes: u64| bytes - bytes % CIPHER_BLOCK_BYTES;
        let short = fault.and_then(|fault| fault.short_chunk_bytes);
        let length_max = short.map_or(CHUNK_BYTES, |short| blocks(short).clamp(CIPHER_BLOCK_BYTES, CHUNK_BYTES));
        let next = size_bytes.min(start.saturating_add(length_max)).min(end + 1);
        let mut data = id.file.read(corp.scenario.seed, start, next - start);
        if let Some(fault) = fault {
            if let Some(lost) = fault.lose_bytes {
                let left = (data.len() as u64).saturating_sub(lost);
                data.truncate(if next < size_bytes { blocks(left) } else { left } as usize);
            }
            if let Some(byte) = data.last_mut().filter(|_| fault.corrupt) {
                *byte ^= 1;
            }
        }
        Ok(Piece { data, next, size_bytes })
    }

    /// The errcode that a token earns: 40014 when it was revoked, 42001 when it is too old.
    fn stale(&self, corp: &Corp, token: &str, now_ms: i64) -> Result<Option<i32>, Code> {
        let number = token.split('.').next().and_then(|number| number.parse().ok());
        let token = self.state.token(&corp.scenario.id, |token| *token).map_err(|_| SYSTEM)?;
        Ok(if number != Some(token.number) {
            Some(40_014)
        } else if has_expired(corp, token.issued_ms, now_ms) {
            Some(42_001)
        } else {
            None
        })
    }

    /// `DecryptData`: opens `encrypt_msg`. Aborts the process where the vendor's library does.
    pub fn decrypt(&self, key: &[u8], encrypt_msg: &[u8]) -> Result<Vec<u8>, Code> {
        let origin = record::Origin::read(encrypt_msg);
        let corp = self.corps().find(|corp| Some(corp.tag()) == origin.map(|origin| origin.corp_tag));
        let corp = corp.map(|corp| &corp.scenario);
        let call = Call {
            function: Function::DecryptData,
            corp_id: corp.map_or("", |corp| &corp.id),
            seqs: origin.map(|origin| (origin.seq, origin.seq)),
            limit: None,
        };
        let body = match self.fault(&call, |_| true) {
            Some(fault) => {
                self.strike(fault, corp.map_or("", |corp| &corp.secret), 0)?;
                fault.body
            }
            None => None,
        };
        match sealing::open(key, encrypt_msg) {
            Ok(plaintext) => Ok(body.map_or_else(|| plaintext.clone(), |body| distort(body, &plaintext))),
            Err(NotOpened::Code(code)) => Err(code),
            Err(NotOpened::Abort(words)) => {
                eprintln!("{words}");
                std::process::abort();
            }
        }
    }

    /// The first of some faults that hits this call. All of them that fit it count it.
    pub fn fault(&self, call: &Call<'_>, is_ours: impl Fn(&Fault) -> bool) -> Option<&Fault> {
        let mut hit = None;
        for (key, fault) in self.faults.iter().filter(|(_, fault)| is_ours(fault) && fault.selects(call)) {
            let fires = self.state.strike(key, |strikes| hit.is_none() && fault.fires(strikes.matched, strikes.fired));
            match fires {
                Ok(true) => hit = Some(fault),
                Ok(false) => {}
                Err(error) => eprintln!("wecom-simulator: the counter of fault {key} can't be used: {error}"),
            }
        }
        hit
    }

    /// What a fault does before, or in place of, an answer.
    pub fn strike(&self, fault: &Fault, secret: &str, timeout_s: i32) -> Result<(), Code> {
        let noise = |text: &str| [text.replace("{secret}", secret).as_bytes(), b" \xff\xfe\x80\n"].concat();
        if let Some(text) = &fault.stdout {
            print_raw(&mut std::io::stdout(), &noise(text));
        }
        if let Some(text) = &fault.stderr {
            print_raw(&mut std::io::stderr(), &noise(text));
        }
        if fault.abort {
            std::process::abort();
        }
        if fault.kill {
            // A process can always signal itself.
            let _ = kill_process(getpid(), Signal::KILL);
        }
        if fault.stop {
            let _ = kill_process(getpid(), Signal::STOP);
        }
        if fault.hang {
            loop {
                std::thread::park();
            }
        }
        let slow = Duration::from_millis(fault.slow_ms);
        let timeout = u64::try_from(timeout_s).ok().filter(|timeout_s| *timeout_s > 0).map(Duration::from_secs);
        match timeout {
            Some(timeout) if timeout < slow => {
                std::thread::sleep(timeout);
                return Err(NETWORK);
            }
            _ => std::thread::sleep(slow),
        }
        let broken = fault.breaks_answer().then_some(NETWORK);
        fault.code.map(Code).or(broken).map_or(Ok(()), Err)
    }
}

/// A pull, as the archive looks at it at one moment.
#[derive(Debug)]
pub struct Pull {
    seq: u64,
    /// Of the messages in the page.
    indices: Range<u64>,
    now_ms: i64,
}

impl Pull {
    pub fn new(corp: &Corp, seq: u64, limit: u32) -> Self {
        let now_ms = now_ms();
        let start = corp.index_after(seq).max(corp.window_start(now_ms));
        let end = corp.archived(now_ms).min(start.saturating_add(u64::from(limit))).max(start);
        Self { seq, indices: start..end, now_ms }
    }

    /// The first and the last record of the page.
    pub fn seqs(&self, corp: &Corp) -> Option<(u64, u64)> {
        (!self.indices.is_empty()).then(|| (corp.seq(self.indices.start), corp.seq(self.indices.end - 1)))
    }
}

fn has_expired(corp: &Corp, issued_ms: i64, now_ms: i64) -> bool {
    now_ms - issued_ms >= i64::try_from(corp.scenario.token_life_seconds).unwrap_or(i64::MAX / 1_000) * 1_000
}

fn load_keys(state: &State, corp: &Corp) -> Option<PublicKeys> {
    PublicKeys::load(state, &corp.scenario).inspect_err(|error| eprintln!("wecom-simulator: {error}")).ok()
}

/// Nobody may be listening: then the noise is lost.
pub fn print_raw(output: &mut impl Write, bytes: &[u8]) {
    let _ = output.write_all(bytes).and_then(|()| output.flush());
}

/// An answer that is an errcode.
pub fn refusal(errcode: i32) -> Vec<u8> {
    let message = match errcode {
        -1 => "system busy",
        40_001 => "invalid credential",
        40_013 => "invalid corpid",
        40_014 => "invalid access_token",
        42_001 => "access_token expired",
        45_009 => "api freq out of limit",
        45_033 => "concurrent call out of limit",
        60_020 => "not allow to access from your ip",
        301_042 => "ip not in the list",
        301_052 => "msgaudit expired",
        301_058 => "response too large",
        _ => "refused",
    };
    format!(r#"{{"errcode":{errcode},"errmsg":"{message}"}}"#).into_bytes()
}

fn distort(body: Body, truth: &[u8]) -> Vec<u8> {
    match body {
        Body::Garbage => b"\x1f\x8b\x08\x00\xff\xfe garbage \x80".to_vec(),
        Body::Empty => Vec::new(),
        Body::Nul => [truth, b"\0"].concat(),
        Body::Html => b"<html><body><h1>502 Bad Gateway</h1></body></html>".to_vec(),
        Body::Truncated => truth[..truth.len() / 2].to_vec(),
        Body::WrongTypes => br#"{"errcode":0,"errmsg":"ok","chatdata":{"seq":"one"}}"#.to_vec(),
        Body::Huge => [b"{\"errcode\":0,\"errmsg\":\"", &[b'x'; 64 << 20][..], b"\"}"].concat(),
    }
}

/// The present moment (Unix ms).
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
