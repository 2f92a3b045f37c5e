//! What is said of each file in several topics, brought together without holding it all: rows go to many files by their id, and
//! one file after the other is sorted.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

/// With a hundred million rows a file has twenty megabytes.
const BUCKETS: usize = 128;
const ROW_BYTES: usize = 25;

/// One thing said of a file, or of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The media id, or a hash of the dead letter's place.
    pub id: u128,
    pub fact: Fact,
    pub seq: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fact {
    /// A message names it.
    Named,
    /// It is asked for, and the media tasks are done with the request.
    Requested,
    /// It is asked for, and the media tasks have not come to the request yet.
    RequestedOpen,
    /// It is to be tried again, and the media tasks have not come to that yet.
    RetryOpen,
    /// A reference says what became of it.
    Referenced,
    /// It is a dead letter.
    DeadLetter,
    /// A message was replayed from the dead letter that the id names.
    Replayed,
    /// The same, where it was in a topic that is not looked at.
    ReplayedElsewhere,
}

impl Fact {
    const ALL: [Self; 8] = [
        Self::Named,
        Self::Requested,
        Self::RequestedOpen,
        Self::RetryOpen,
        Self::Referenced,
        Self::DeadLetter,
        Self::Replayed,
        Self::ReplayedElsewhere,
    ];
}

/// Rows on disk. The files have no names: they are gone with the process, however it ends.
#[derive(Debug)]
pub struct Join {
    buckets: Vec<BufWriter<File>>,
}

impl Join {
    /// Makes the files, in the folder for temporary ones (`TMPDIR`).
    pub fn new() -> io::Result<Self> {
        let buckets = (0..BUCKETS).map(|_| tempfile::tempfile().map(BufWriter::new)).collect::<io::Result<_>>()?;
        Ok(Self { buckets })
    }

    pub fn push(&mut self, row: Row) -> io::Result<()> {
        let mut bytes = [0; ROW_BYTES];
        bytes[..16].copy_from_slice(&row.id.to_be_bytes());
        bytes[16] = row.fact as u8;
        bytes[17..].copy_from_slice(&row.seq.to_be_bytes());
        // Ids are hashes: any byte of them is as good as another.
        self.buckets[usize::from(bytes[0]) % BUCKETS].write_all(&bytes)
    }

    /// Gives all rows of each id, sorted.
    pub fn groups(self, mut each: impl FnMut(&[Row])) -> io::Result<()> {
        for bucket in self.buckets {
            let mut file = bucket.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.rewind()?;
            let mut rows = read(BufReader::new(file))?;
            rows.sort_unstable();
            rows.chunk_by(|one, other| one.id == other.id).for_each(&mut each);
        }
        Ok(())
    }
}

fn read(mut file: impl Read) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut bytes = [0; ROW_BYTES];
    loop {
        match file.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(rows),
            Err(error) => return Err(error),
        }
        let (id, rest) = bytes.split_first_chunk().unwrap_or((&[0; 16], &[]));
        let (fact, seq) = rest.split_first().unwrap_or((&0, &[]));
        rows.push(Row {
            id: u128::from_be_bytes(*id),
            fact: Fact::ALL.get(usize::from(*fact)).copied().unwrap_or(Fact::Named),
            seq: u64::from_be_bytes(*seq.first_chunk().unwrap_or(&[0; 8])),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_comes_back_with_those_of_its_id(rows in prop::collection::vec((0..9_u128, 0..8_usize, any::<u64>()), 0..200)) {
            let mut expected: BTreeMap<u128, Vec<Row>> = BTreeMap::new();
            let mut join = Join::new().unwrap();
            for (number, fact, seq) in rows {
                let row = Row { id: number.wrapping_mul(u128::MAX / 8), fact: Fact::ALL[fact], seq };
                expected.entry(row.id).or_default().push(row);
                join.push(row).unwrap();
            }
            let mut found = BTreeMap::new();
            join.groups(|rows| assert!(found.insert(rows[0].id, rows.to_vec()).is_none())).unwrap();
            expected.values_mut().for_each(|rows| rows.sort_unstable());
            prop_assert_eq!(found, expected);
        }
    }
}
