//! The directory of one digest's extents: all that blocks the thread, and hence runs on one that may be blocked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::digest::Digest;
use crate::range::ByteRange;
use crate::regular_file;

use super::extent_file::{self, ExtentHeader, ExtentName, MAX_LEN, ReadError};
use super::extents::{Extents, Listed, Place};
use super::lock;
use super::store::create_private_dir;

/// A directory's time advances in steps of a clock tick; a listing younger than this may have missed a file.
const TICK: Duration = Duration::from_millis(50);

/// How old an extent's last use on record may be: to write it down at each use would cost more than it tells.
const TOUCH_AFTER: Duration = Duration::from_secs(60);

impl Extents {
    /// The extent on disk that reaches furthest from `at` on.
    pub(super) fn on_disk_at(&self, at: u64) -> Option<ExtentName> {
        let state = lock(&self.state);
        let reaching = state.map.range((at.saturating_sub(MAX_LEN), 0)..=(at, u64::MAX));
        let on_disk = reaching.filter(|((start, len), place)| matches!(place, Place::Disk) && start + len > at);
        let (start, len) = *on_disk.max_by_key(|((start, len), _)| start + len)?.0;
        Some(ExtentName {
            kind: self.kind,
            start,
            len,
        })
    }

    /// Reads `wanted` from a file; a file that cannot be used is removed and no longer known.
    pub(super) fn read_file(&self, name: ExtentName, wanted: ByteRange) -> Option<Bytes> {
        let path = self.dir.as_ref()?.join(name.to_string());
        if let Ok(bytes) = read_and_touch(&path, name, &self.digest, wanted) {
            return Some(bytes);
        }
        // Another reader may have found the same, and what was fetched anew may be here by now, or come any moment.
        let _commit = lock(&self.commit);
        match read_and_touch(&path, name, &self.digest, wanted) {
            Ok(bytes) => return Some(bytes),
            // Evicted by another process: nothing to tell.
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!("will not use {}: {error}", path.display());
                let damaged = match error {
                    ReadError::Damaged(_) => true,
                    ReadError::Io(error) => error.kind() == io::ErrorKind::UnexpectedEof,
                };
                // It may be another process's good file by now; then that is fetched once more, no harm done. What
                // cannot be read at all may be good and stays, as when the process has too many open files.
                if damaged && fs::remove_file(&path).is_ok() {
                    self.store.shrunk(name.file_len());
                } else {
                    // Or else each listing would bring it back.
                    lock(&self.state).unusable.insert((name.start, name.len));
                }
            }
        }
        self.lost(&name);
        None
    }

    pub(super) fn list(&self) {
        let Some(dir) = &self.dir else { return };
        let state = lock(&self.state);
        let (listed, epoch, forgetting) = (state.listed, state.epoch, state.forgetting);
        drop(state);
        if forgetting > 0 {
            return;
        }
        let asked_at = SystemTime::now();
        let modified = fs::metadata(dir).and_then(|metadata| metadata.modified()).ok();
        if listed == Listed::At(modified) {
            return;
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            names.extend(entry.file_name().to_str().and_then(ExtentName::parse));
        }
        let certain = modified.is_none_or(|at| asked_at.duration_since(at).is_ok_and(|age| age > TICK));
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            return;
        }
        for name in names.into_iter().filter(|name| name.kind == self.kind) {
            let key = (name.start, name.len);
            if !state.unusable.contains(&key) {
                state.map.entry(key).or_insert(Place::Disk);
            }
        }
        state.listed = if certain {
            Listed::At(modified)
        } else {
            Listed::Uncertain
        };
    }

    pub(super) fn write_file(&self, dir: &Path, epoch: u64, header: &ExtentHeader, parts: &[Bytes]) -> Written {
        let range = header.range();
        let name = ExtentName {
            kind: self.kind,
            start: range.start(),
            len: range.len(),
        };
        if lock(&self.state).forgetting > 0 || !self.store.make_room(name.file_len()) {
            return Written::NoRoom;
        }
        let temporary = dir.join(self.store.temporary_name());
        if let Err(error) = write_new(dir, &temporary, header, parts) {
            let _ = fs::remove_file(&temporary);
            return Written::Failed(error);
        }
        let committed = {
            let _commit = lock(&self.commit);
            self.commit(epoch, name, &temporary, &dir.join(name.to_string()))
        };
        match committed {
            Ok(()) => {
                self.store.grown(name.file_len());
                Written::Done
            }
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Written::Failed(error)
            }
        }
    }

    /// Gives a file its name, unless all was forgotten since it was begun.
    fn commit(&self, epoch: u64, name: ExtentName, temporary: &Path, path: &Path) -> io::Result<()> {
        if self.epoch() != epoch {
            return fs::remove_file(temporary);
        }
        fs::rename(temporary, path)?;
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            drop(state);
            return fs::remove_file(path);
        }
        let key = (name.start, name.len);
        state.unusable.remove(&key);
        let before = state.map.insert(key, Place::Disk);
        drop(state);
        if let Some(Place::Memory(_)) = before {
            self.store.memory().remove(&self.memory_key(key));
        }
        Ok(())
    }

    /// Removes the files that were there when all was forgotten, and not those that were written since.
    pub(super) fn remove_forgotten(&self) {
        let _commit = lock(&self.commit);
        for entry in self.dir.iter().flat_map(fs::read_dir).flatten().flatten() {
            let name = entry.file_name().to_str().and_then(ExtentName::parse);
            let Some(name) = name.filter(|name| name.kind == self.kind) else {
                continue;
            };
            let key = (name.start, name.len);
            if lock(&self.state).map.contains_key(&key) {
                continue;
            }
            match fs::remove_file(entry.path()) {
                Ok(()) => self.store.shrunk(name.file_len()),
                // The next listing must not bring it back.
                Err(_) => drop(lock(&self.state).unusable.insert(key)),
            }
        }
        lock(&self.state).forgetting -= 1;
    }
}

/// How the writing of a file ended.
pub(super) enum Written {
    /// It is there, or is not wanted any more.
    Done,
    /// Everything that could make room is in use.
    NoRoom,
    Failed(io::Error),
}

fn read_and_touch(path: &Path, name: ExtentName, digest: &Digest, wanted: ByteRange) -> Result<Bytes, ReadError> {
    let file = regular_file::open_to_read(path)?;
    let metadata = file.metadata()?;
    let bytes = extent_file::read_part(&file, metadata.len(), name, digest, wanted)?;
    let now = SystemTime::now();
    let used = metadata.modified()?;
    if now.duration_since(used).is_ok_and(|age| age > TOUCH_AFTER) {
        let _ = file.set_modified(now);
    }
    Ok(bytes)
}

fn write_new(dir: &Path, path: &Path, header: &ExtentHeader, parts: &[Bytes]) -> io::Result<()> {
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file: File = match create() {
        // New, or emptied and removed by an eviction just now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_private_dir(dir)?;
            create()?
        }
        other => other?,
    };
    // What comes from the network may be many small parts.
    let mut file = BufWriter::with_capacity(64 << 10, file);
    file.write_all(&header.encode())?;
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.flush()
}
