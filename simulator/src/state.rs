//! What outlives a process: the state folder, shared by several processes under file locks.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The state folder of a scenario.
#[derive(Debug, Clone)]
pub struct State {
    folder: PathBuf,
}

/// A token that the vendor gave out for a corp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Token {
    /// Rises with each new token; 0 = none was given out yet.
    pub number: u64,
    pub issued_ms: i64,
}

/// How often a fault was up, and how often it struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strikes {
    /// Calls that the fault's selectors fit.
    pub matched: u64,
    /// Calls that it changed.
    pub fired: u64,
}

impl State {
    /// Uses `folder`, and makes it if it is missing.
    pub fn open(folder: &Path) -> io::Result<Self> {
        for part in ["faults", "tokens", "calls", "keys", "sealed"] {
            std::fs::create_dir_all(folder.join(part))?;
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// The moment at which the folder was first used, unless it is told another by its first user.
    pub fn base_time_ms(&self, now_ms: i64) -> io::Result<i64> {
        self.numbers("base_time_ms", |[base_time]: &mut [i64; 1]| {
            if *base_time == 0 {
                *base_time = now_ms;
            }
            *base_time
        })
    }

    /// Counts a call that the fault `key` fits; `fires` says whether it strikes.
    pub fn strike(&self, key: &str, fires: impl FnOnce(Strikes) -> bool) -> io::Result<bool> {
        self.numbers(&format!("faults/{key}"), |[matched, fired]: &mut [i64; 2]| {
            *matched += 1;
            let strikes = Strikes { matched: matched.unsigned_abs(), fired: fired.unsigned_abs() };
            let struck = fires(strikes);
            *fired += i64::from(struck);
            struck
        })
    }

    /// Gives the corp's token to `change`, which may give out a new one.
    pub fn token<Answer>(&self, corp_id: &str, change: impl FnOnce(&mut Token) -> Answer) -> io::Result<Answer> {
        self.numbers(&format!("tokens/{corp_id}"), |[number, issued_ms]: &mut [i64; 2]| {
            let mut token = Token { number: number.unsigned_abs(), issued_ms: *issued_ms };
            let answer = change(&mut token);
            (*number, *issued_ms) = (token.number.cast_signed(), token.issued_ms);
            answer
        })
    }

    /// Counts a call in the minute of `now_ms` and tells how many there were in it.
    pub fn call(&self, corp_id: &str, now_ms: i64) -> io::Result<u64> {
        self.numbers(&format!("calls/{corp_id}"), |[minute, calls]: &mut [i64; 2]| {
            let this_minute = now_ms.div_euclid(60_000);
            *calls = if *minute == this_minute { *calls + 1 } else { 1 };
            *minute = this_minute;
            calls.unsigned_abs()
        })
    }

    /// The private key of a version as it is stored; `make` makes it when it is not there yet.
    pub fn private_key(&self, corp_id: &str, version: u32, make: impl FnOnce() -> String) -> io::Result<String> {
        let (file, mut text) = self.locked(&format!("keys/{corp_id}-{version}.pem"))?;
        if text.is_empty() {
            text = make();
            file.write_all_at(text.as_bytes(), 0)?;
        }
        Ok(text)
    }

    /// Where [`Self::private_key`] keeps a key.
    pub fn private_key_path(&self, corp_id: &str, version: u32) -> PathBuf {
        self.folder.join(format!("keys/{corp_id}-{version}.pem"))
    }

    /// The random keys that were sealed with a version of the corp's key, one after the other by the messages' index.
    pub fn sealed_keys(&self, corp_id: &str, version: u32) -> io::Result<File> {
        let path = self.folder.join(format!("sealed/{corp_id}-{version}"));
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
    }

    /// Changes the numbers in the file `name` while no other process or thread can. A number is written in a fixed width, so that
    /// a process that dies here leaves the old numbers or the new ones.
    fn numbers<const COUNT: usize, Answer>(
        &self,
        name: &str,
        change: impl FnOnce(&mut [i64; COUNT]) -> Answer,
    ) -> io::Result<Answer> {
        let (file, text) = self.locked(name)?;
        let mut numbers = [0_i64; COUNT];
        for (number, word) in numbers.iter_mut().zip(text.split_whitespace()) {
            *number =
                word.parse().map_err(|_| io::Error::other(format!("{name} holds something that is no number")))?;
        }
        let before = numbers;
        let answer = change(&mut numbers);
        if numbers != before || text.is_empty() {
            let line: String = numbers.iter().map(|number| format!("{number:20} ")).collect();
            file.write_all_at(line.trim_end().as_bytes(), 0)?;
        }
        Ok(answer)
    }

    /// The lock ends with the file.
    fn locked(&self, name: &str) -> io::Result<(File, String)> {
        let path = self.folder.join(name);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok((file, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Several holders of the folder, as processes are, lose no count.
    #[test]
    fn counts_are_shared() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let state = State::open(folder.path()).unwrap();
                    (0..50).for_each(|_| assert!(state.strike("a", |strikes| strikes.matched > 0).unwrap()));
                });
            }
        });
        let state = State::open(folder.path()).unwrap();
        state
            .strike("a", |strikes| {
                assert_eq!(strikes, Strikes { matched: 201, fired: 200 });
                false
            })
            .unwrap();
        state
            .strike("a", |strikes| {
                assert_eq!(strikes, Strikes { matched: 202, fired: 200 });
                false
            })
            .unwrap();
        assert_eq!(state.base_time_ms(5).unwrap(), 5);
        assert_eq!(State::open(folder.path()).unwrap().base_time_ms(6).unwrap(), 5);
    }

    #[test]
    fn calls_are_counted_by_the_minute() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path()).unwrap();
        let calls = [(0, 1), (59_999, 2), (60_000, 1), (60_001, 2)];
        for (now_ms, count) in calls {
            assert_eq!(state.call("corp", now_ms).unwrap(), count);
        }
    }
}
