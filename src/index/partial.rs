//! The log of a scan that is not complete: what makes a killed scan go on where it stood.
//!
//! One record is appended at each checkpoint: the checkpoint, the caller's hashers as they were there, how far headers
//! have been read, and the members read since the record before. Taken up again, the members go through the very rules
//! that they went through before; headers are read on from where they were, decompression begins at the last checkpoint
//! that is not behind that place.
//!
//! ```text
//! magic, version, layer digest | record | record | ...      record: length, CRC-32, then
//! ordinal of the checkpoint | digest of the span before it | checkpoint | next group | hashers | members
//! ```
//!
//! A record that is torn or damaged, and whatever follows it, is cut off. A scan that is taken up before the last
//! checkpoint records some again: an ordinal that is not the next one replaces those from it on.
//!
//! The log is a help, never a need: if it cannot be written, or another process has it, the scan goes on without.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::digest::Digest;
use crate::regular_file;
use crate::stream::Checkpoint;

use super::fields::{Fields, put_block};
use super::spans::Mark;
use super::{GrowingIndex, Member, TarScanner};

const MAGIC: &[u8; 8] = b"peellog\n";
const VERSION: u32 = 2;
/// Largest record that is read: the members between two checkpoints, as many as the index keeps, and a little more.
const MAX_RECORD: u32 = 80 << 20;

/// The state of what the caller computes along with the scan, as it is at a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanState {
    /// The hasher of the blob, having taken in all bytes before [`Checkpoint::compressed`].
    pub blob: Vec<u8>,
    /// The hasher of the stream, having taken in all bytes before [`Checkpoint::decompressed`].
    pub diff_id: Vec<u8>,
    /// Whatever else there is.
    pub other: Vec<u8>,
}

/// Where a scan begins, or goes on.
pub struct Start {
    /// The index as far as it is known.
    pub index: GrowingIndex,
    /// To be fed with the stream from `checkpoint` on.
    pub scanner: TarScanner,
    /// Where to begin to decompress: the last checkpoint in `index`.
    pub checkpoint: Checkpoint,
    /// The state that was recorded at that checkpoint; `None` at the beginning of the layer.
    pub state: Option<ScanState>,
}

impl Start {
    /// The beginning of a layer.
    pub fn fresh() -> Start {
        Start {
            index: GrowingIndex::new(),
            scanner: TarScanner::new(),
            checkpoint: Checkpoint {
                compressed: 0,
                bits: 0,
                decompressed: 0,
                window: Box::default(),
            },
            state: None,
        }
    }
}

/// The log of the scan of one layer.
pub struct PartialLog {
    path: PathBuf,
    /// `None` if nothing is recorded.
    file: Option<Flock<File>>,
}

impl PartialLog {
    /// Opens the log of the layer `digest`, or makes it, and tells where its scan goes on. If the log cannot be had,
    /// because another process writes it or because of an error, which is logged, that is the beginning, and nothing
    /// is recorded. The index in [`Start`] is the one to go on with.
    pub fn create_or_resume(path: &Path, digest: &Digest) -> (PartialLog, Start) {
        let mut log = PartialLog {
            path: path.to_owned(),
            file: None,
        };
        let mut start = None;
        match locked(path) {
            Ok(Some(file)) => match taken_up(&file, digest) {
                Ok(found) => {
                    start = found;
                    log.file = Some(file);
                }
                Err(error) => log.gave_up(&error),
            },
            Ok(None) => {}
            Err(error) => log.gave_up(&error),
        }
        let mut start = start.unwrap_or_else(Start::fresh);
        if log.file.is_some() {
            start.index.keep_journal();
        }
        (log, start)
    }

    /// A log that records nothing.
    pub fn none() -> PartialLog {
        PartialLog {
            path: PathBuf::new(),
            file: None,
        }
    }

    /// Whether anything is recorded.
    pub fn is_recording(&self) -> bool {
        self.file.is_some()
    }

    /// Records the last checkpoint of `index`, right after it was added, with the members since the one before.
    /// `next_group` is what the scanner says ([`TarScanner::next_group`]) having been fed up to that checkpoint,
    /// `state` what the caller had there. An error is logged and ends the recording.
    pub fn append(&mut self, index: &mut GrowingIndex, next_group: u64, state: &ScanState) {
        let Some(file) = &mut self.file else { return };
        let Some(members) = index.take_journal() else {
            // Too many members between two checkpoints to hold them: from here on there would be a gap.
            self.file = None;
            return;
        };
        let [.., closed, mark] = index.marks().all() else {
            return;
        };
        let ordinal = index.marks().all().len() - 1;
        let mut record = vec![0; 8];
        record.extend_from_slice(&(ordinal as u32).to_le_bytes());
        record.extend_from_slice(&closed.digest.unwrap_or_default());
        record.push(mark.bits);
        for word in [mark.compressed, mark.decompressed, next_group] {
            record.extend_from_slice(&word.to_le_bytes());
        }
        for block in [
            &mark.window,
            state.blob.as_slice(),
            &state.diff_id,
            &state.other,
            &members,
        ] {
            put_block(&mut record, block);
        }
        let payload = record.get(8..).unwrap_or_default();
        let head = [
            (payload.len() as u32).to_le_bytes(),
            crc32fast::hash(payload).to_le_bytes(),
        ]
        .concat();
        if let Some(place) = record.get_mut(..8) {
            place.copy_from_slice(&head);
        }
        if let Err(error) = file.write_all(&record) {
            self.gave_up(&error);
        }
    }

    /// Removes the log: the scan is complete, or what it found is not to be believed.
    pub fn remove(self) {
        // Still locked, so it is our own file that goes.
        if self.file.is_some()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(
                "cannot remove the log of a finished scan, {}: {error}",
                self.path.display()
            );
        }
    }

    fn gave_up(&mut self, error: &io::Error) {
        self.file = None;
        let path = self.path.display();
        tracing::warn!("a scan that is interrupted now will begin anew: cannot use its log {path}: {error}");
    }
}

/// Opens the log with its lock; `None` if another process has that.
fn locked(path: &Path) -> io::Result<Option<Flock<File>>> {
    // Whoever had the lock may have removed the file meanwhile. That it happens time and again means that others are
    // at this layer, and done with it faster than we look.
    for _ in 0..5 {
        let mut options = OpenOptions::new();
        let file = regular_file::open(path, options.read(true).append(true).create(true).mode(0o600))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => return Err(error.into()),
        };
        if file.metadata()?.nlink() > 0 {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Reads the log, and cuts off what cannot be used: all of it, unless it tells where to go on.
fn taken_up(file: &File, digest: &Digest) -> io::Result<Option<Start>> {
    let header = header(digest);
    let mut input = BufReader::new(file);
    let mut found = vec![0; header.len()];
    let mut good = 0;
    let start = match input.read_exact(&mut found) {
        Ok(()) if found == header => {
            let mut replay = Replay::default();
            good = header.len() as u64;
            let total = file.metadata()?.len();
            while let Some(record) = next_record(&mut input, total - good)? {
                match replay.take(&record) {
                    Taken::Whole => good += 8 + record.len() as u64,
                    Taken::Damaged => break,
                    Taken::Contradiction => {
                        replay = Replay::default();
                        break;
                    }
                }
            }
            replay.start()
        }
        Ok(()) => None,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
        Err(error) => return Err(error),
    };
    drop(input);
    if start.is_some() {
        file.set_len(good)?;
    } else {
        file.set_len(0)?;
        let mut file = file;
        file.write_all(&header)?;
    }
    Ok(start)
}

fn header(digest: &Digest) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&VERSION.to_le_bytes());
    put_block(&mut header, digest.to_string().as_bytes());
    header
}

/// The next record, of which there can be `left` bytes; `None` if it is torn or damaged.
fn next_record(input: &mut impl Read, left: u64) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 8];
    if left < 8 {
        return Ok(None);
    }
    input.read_exact(&mut head)?;
    let mut head = Fields(&head);
    let (Some(len), Some(crc)) = (head.u32(), head.u32()) else {
        return Ok(None);
    };
    if len > MAX_RECORD || u64::from(len) > left - 8 {
        return Ok(None);
    }
    let mut record = vec![0; len as usize];
    input.read_exact(&mut record)?;
    Ok((crc32fast::hash(&record) == crc).then_some(record))
}

enum Taken {
    Whole,
    /// Nothing of it was taken.
    Damaged,
    /// It cannot follow what was before it: nothing can be relied on.
    Contradiction,
}

/// The scan as the records so far tell it.
#[derive(Default)]
struct Replay {
    index: GrowingIndex,
    /// The state at each checkpoint but the first.
    states: Vec<ScanState>,
    next_group: u64,
}

/// A record taken apart.
struct Parts {
    ordinal: usize,
    digest: [u8; 32],
    mark: Mark,
    next_group: u64,
    state: ScanState,
    members: Vec<Member>,
}

impl Parts {
    fn of(record: &[u8]) -> Option<Parts> {
        let mut fields = Fields(record);
        let ordinal = usize::try_from(fields.u32()?).ok()?;
        let digest = fields.array()?;
        let bits = fields.u8()?;
        let (compressed, decompressed, next_group) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let window = fields.block()?.into();
        let state = ScanState {
            blob: fields.block()?.to_vec(),
            diff_id: fields.block()?.to_vec(),
            other: fields.block()?.to_vec(),
        };
        let mut encoded = Fields(fields.block()?);
        let mut members = Vec::new();
        while !encoded.0.is_empty() {
            members.push(Member::decode(&mut encoded)?);
        }
        let mark = Mark {
            compressed,
            bits,
            decompressed,
            window,
            digest: None,
        };
        Some(Parts {
            ordinal,
            digest,
            mark,
            next_group,
            state,
            members,
        })
    }
}

impl Replay {
    fn take(&mut self, record: &[u8]) -> Taken {
        let Some(parts) = Parts::of(record) else {
            return Taken::Damaged;
        };
        if parts.ordinal == 0 || parts.ordinal > self.index.marks().all().len() || parts.next_group < self.next_group {
            return Taken::Damaged;
        }
        self.index.marks_mut().truncate(parts.ordinal);
        self.states.truncate(parts.ordinal - 1);
        if self.index.marks_mut().push(parts.digest, parts.mark).is_err() {
            return Taken::Contradiction;
        }
        self.states.push(parts.state);
        self.next_group = parts.next_group;
        for member in &parts.members {
            if self.index.add(member).is_err() {
                return Taken::Contradiction;
            }
        }
        Taken::Whole
    }

    /// Where to go on; `None` if that is the beginning.
    fn start(mut self) -> Option<Start> {
        let marks = self.index.marks_mut();
        let usable = marks.all().partition_point(|mark| mark.decompressed <= self.next_group);
        let checkpoint = marks.all().get(usable.checked_sub(1)?)?.checkpoint()?;
        let state = self.states.into_iter().nth(usable.checked_sub(2)?)?;
        marks.truncate(usable);
        // Nobody has seen anything yet that could have changed.
        self.index.drain_changes();
        Some(Start {
            scanner: TarScanner::at(checkpoint.decompressed, self.next_group),
            index: self.index,
            checkpoint,
            state: Some(state),
        })
    }
}

#[cfg(test)]
mod tests;
