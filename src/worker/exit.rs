//! How the program ends, by cause. The numbers are those of sysexits(3) where it has one; they are part of the interface.

use std::process::ExitCode;

/// The causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done; after SIGTERM: everything in flight is committed.
    Success = 0,
    /// `verify`: something that is promised does not hold.
    Findings = 1,
    /// `verify`: nothing is broken, but it is announced that records are lost at the source or were skipped by hand.
    Incomplete = 2,
    /// The command line or a configuration file is wrong, or no connector can use its keys and storage.
    Usage = 64,
    /// A record is bad and `errors.tolerance=none`; of a replay: a dead letter stays one.
    BadRecord = 65,
    /// Something the worker cannot start without cannot be had: a port, a file, Kafka. `validate --connect`: what may
    /// pass by itself.
    Unavailable = 69,
    /// A defect of this program.
    Internal = 70,
    /// Left before what was in flight was committed: a second signal, or the time to leave was over. Starting again is safe.
    Interrupted = 75,
    /// Another worker has taken over every connector.
    Fenced = 77,
}

impl Exit {
    /// Why, as a clause for the log.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Success => "it was told to end, and everything in flight is committed",
            Self::Findings | Self::Incomplete => "something was found",
            Self::Usage => "no connector can use its keys and storage",
            Self::BadRecord => "a record is bad and errors.tolerance=none",
            Self::Unavailable => "something it needs to start cannot be had",
            Self::Internal => "of a defect of this program",
            Self::Interrupted => "it was told to end before what was in flight was committed, which is pulled again",
            Self::Fenced => "another worker has taken over, or the offset was moved by hand",
        }
    }
}

/// Shown below `--help`.
pub const HELP: &str = "\
Exit codes:
   0  done; after SIGTERM, everything in flight is committed
   1  verify: findings
   2  verify: nothing is broken, but records are lost at the source or were skipped by hand
  64  the command line or a configuration file is wrong, or no connector can use its keys and storage
  65  a record is bad and errors.tolerance=none; dlq replay: a dead letter stays one
  69  something needed to start cannot be had (a port, a file, Kafka); verify: something could not be looked at;
      validate --connect: trouble that may pass by itself, with nothing to change in the files
  70  a defect of this program
  75  left before what was in flight was committed; starting again is safe
  77  fenced: another worker has taken over";

/// Whether all is well.
impl From<bool> for Exit {
    fn from(is_well: bool) -> Self {
        if is_well { Self::Success } else { Self::Usage }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
