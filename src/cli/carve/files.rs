//! Files of an image on this machine's disk, none of them outside of the directory that was chosen.
//!
//! Names come from a stranger. Everything is done relative to an open directory, one name at a time, and no symlink is
//! ever followed: neither one that was carved before nor one that somebody put there meanwhile.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::{Failure, os, pour};
use crate::index::Kind;
use crate::inspect::{Node, View};
use crate::tree::Attr;

const DIRECTORY: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_RDONLY);

/// What only the system needs to be told to run a file as its owner.
const SETUID: u16 = 0o6000;

/// A directory that entries of an image are written to.
pub(super) struct Target {
    root: OwnedFd,
    setuid: bool,
    /// The directory that was written to last: the next entry is most likely in it too.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Directories get mode and time when nothing more is written to them.
    directories: Vec<(Vec<u8>, u16, TimeSpec)>,
    /// Whether it was made for this, so that it is the image's too.
    made: bool,
}

impl Target {
    /// The directory `path`, made if it is not there.
    pub(super) fn open(path: &Path, setuid: bool) -> Result<Target, Failure> {
        let open = || {
            // Nobody else looks into it before it has its mode.
            let made = match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                made => made.map(|()| true)?,
            };
            Ok((open_directory(path)?, made))
        };
        let (root, made) = open().map_err(Failure::io(format!("cannot write to {}", path.display())))?;
        Ok(Target {
            root,
            made,
            setuid,
            last: None,
            directories: Vec::new(),
        })
    }

    /// Writes `node` as `path` in the target, of a directory only itself; gives how many bytes of content it has.
    pub(super) async fn add(&mut self, view: &View, node: &Arc<Node>, path: &[u8]) -> Result<u64, Failure> {
        let failed = |error: Errno| Failure::io(format!("cannot write {}", os(path).display()))(error.into());
        let attr = &node.attr;
        if path.is_empty() {
            if self.made {
                self.directories.push((Vec::new(), attr.mode, time(attr)));
            }
            return Ok(0);
        }
        let (parent, name) = split(path);
        check(name).map_err(failed)?;
        let parent = self.directory(parent).map_err(failed)?;
        match attr.kind {
            Kind::Directory => {
                match mkdirat(parent, name, Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(failed(error)),
                }
                // It may be something else that is there: that is met when it is entered, or at the end.
                self.directories.push((path.to_vec(), attr.mode, time(attr)));
                Ok(0)
            }
            Kind::File => {
                let mut file = NewFile::in_directory(parent, name).map_err(failed)?;
                let size = pour(view, node, async |bytes| file.write(&bytes)).await?;
                file.finish(attr, self.setuid)?;
                Ok(size)
            }
            Kind::Symlink => {
                let target = view.tree().readlink(attr.ino)?;
                make_symlink(parent, name, &target, attr).map_err(failed)?;
                Ok(0)
            }
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice | Kind::Hardlink => {
                tracing::warn!("{} is left out: it is no file; a tar can have it", os(path).display());
                Ok(0)
            }
        }
    }

    /// Gives the directories their modes and times.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        if self.made && !self.directories.iter().any(|(path, ..)| path.is_empty()) {
            let mode = Mode::from_bits_truncate(0o777) & !umask();
            let failed = Failure::io("cannot set the mode of the directory");
            fchmod(&self.root, mode).map_err(|error| failed(error.into()))?;
        }
        let kept = if self.setuid { 0o7777 } else { 0o7777 & !SETUID };
        // What is below a directory before the directory itself.
        for (path, mode, time) in std::mem::take(&mut self.directories).into_iter().rev() {
            let settle = |target: &mut Target| -> Result<(), Errno> {
                let directory = target.directory(&path)?;
                futimens(directory, &TimeSpec::UTIME_OMIT, &time)?;
                fchmod(directory, Mode::from_bits_truncate(u32::from(mode & kept)))
            };
            let failed = Failure::io(format!("cannot set the mode of {}", os(&path).display()));
            settle(&mut self).map_err(|error| failed(error.into()))?;
            // It may be closed to us from now on.
            self.last = None;
        }
        Ok(())
    }

    /// The directory at `path` in the target, which must be there.
    fn directory(&mut self, path: &[u8]) -> Result<&OwnedFd, Errno> {
        if path.is_empty() {
            return Ok(&self.root);
        }
        let known = self.last.as_ref().is_some_and(|(last, _)| last == path);
        if !known {
            let within = |last: &[u8]| path.strip_prefix(last)?.strip_prefix(b"/").map(<[u8]>::to_vec);
            let near = self.last.take();
            let near = near.and_then(|(last, directory)| Some((within(&last)?, directory)));
            let (rest, mut at) = match near {
                Some((rest, directory)) => (rest, directory),
                None => (path.to_vec(), self.root.try_clone().map_err(|_| Errno::EMFILE)?),
            };
            for name in rest.split(|byte| *byte == b'/') {
                check(name)?;
                at = openat(&at, name, DIRECTORY, Mode::empty())?;
            }
            self.last = Some((path.to_vec(), at));
        }
        match &self.last {
            Some((_, directory)) => Ok(directory),
            None => Ok(&self.root),
        }
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    // Whatever else is there is not waited for, as a named pipe would have it.
    let flags = OFlag::O_DIRECTORY.bits();
    Ok(File::options().read(true).custom_flags(flags).open(path)?.into())
}

fn umask() -> Mode {
    let umask = nix::sys::stat::umask(Mode::empty());
    nix::sys::stat::umask(umask);
    umask
}

/// Refuses what is not the name of one entry in a directory. The index has no such names; a damaged one might.
fn check(name: &[u8]) -> Result<(), Errno> {
    match matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        true => Err(Errno::EINVAL),
        false => Ok(()),
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn time(attr: &Attr) -> TimeSpec {
    TimeSpec::new(attr.mtime, i64::from(attr.mtime_nsec))
}

/// A name that nothing has yet.
fn temporary() -> Vec<u8> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos();
    format!(".peelfs-{}-{number}-{now:x}.tmp", std::process::id()).into_bytes()
}

fn make_symlink(parent: &OwnedFd, name: &[u8], target: &[u8], attr: &Attr) -> Result<(), Errno> {
    let temporary = temporary();
    symlinkat(target, parent, temporary.as_slice())?;
    let flags = UtimensatFlags::NoFollowSymlink;
    let made = utimensat(parent, temporary.as_slice(), &TimeSpec::UTIME_OMIT, &time(attr), flags)
        .and_then(|()| renameat(parent, temporary.as_slice(), parent, name));
    if made.is_err() {
        let _ = unlinkat(parent, temporary.as_slice(), UnlinkatFlags::NoRemoveDir);
    }
    made
}

/// A file that appears under its name when it is complete, and not at all if that does not come to pass.
pub(super) struct NewFile {
    parent: OwnedFd,
    name: Vec<u8>,
    /// What it is called meanwhile; none for a device or a pipe that was there, which is written to as it is.
    temporary: Option<Vec<u8>>,
    file: File,
}

impl NewFile {
    /// The file `path`, where a user wants it. A file that is there now is replaced, not written to.
    pub(super) fn beside(path: &Path) -> Result<NewFile, Failure> {
        let failed = || Failure::io(format!("cannot write {}", path.display()));
        let Some(name) = path.file_name() else {
            return Err(failed()(io::ErrorKind::IsADirectory.into()));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent = open_directory(parent).map_err(failed())?;
        // /dev/null, or a pipe to another program.
        let there = std::fs::metadata(path).map(|there| there.file_type());
        if there.is_ok_and(|there| !there.is_file() && !there.is_dir()) {
            return Ok(NewFile {
                parent,
                name: name.as_bytes().to_vec(),
                temporary: None,
                file: File::options().write(true).open(path).map_err(failed())?,
            });
        }
        NewFile::in_directory(&parent, name.as_bytes()).map_err(|error| failed()(error.into()))
    }

    fn in_directory(parent: &OwnedFd, name: &[u8]) -> Result<NewFile, Errno> {
        let parent = parent.try_clone().map_err(|_| Errno::EMFILE)?;
        // Said now rather than when everything has been fetched.
        let there = fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        if there.is_ok_and(|there| there.st_mode & libc::S_IFMT == libc::S_IFDIR) {
            return Err(Errno::EISDIR);
        }
        let temporary = temporary();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&parent, temporary.as_slice(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(NewFile {
            parent,
            name: name.to_vec(),
            temporary: Some(temporary),
            file: file.into(),
        })
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> Failure + use<> {
        Failure::io(format!("cannot write {}", os(&self.name).display()))
    }

    /// Writes what comes next.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = tokio::task::block_in_place(|| self.file.write_all(bytes));
        written.map_err(self.failed())
    }

    /// Gives the file mode, time and name.
    pub(super) fn finish(self, attr: &Attr, setuid: bool) -> Result<(), Failure> {
        if self.temporary.is_none() {
            return Ok(());
        }
        let mode = if setuid { attr.mode } else { attr.mode & !SETUID };
        let settled = fchmod(&self.file, Mode::from_bits_truncate(u32::from(mode)))
            .and_then(|()| futimens(&self.file, &TimeSpec::UTIME_OMIT, &time(attr)));
        settled.map_err(|error| self.failed()(error.into()))?;
        self.appear()
    }

    /// Gives a file that is nobody's in the image the mode of any new file, and its name.
    pub(super) fn finish_plain(self) -> Result<(), Failure> {
        if self.temporary.is_none() {
            return Ok(());
        }
        let mode = Mode::from_bits_truncate(0o666) & !umask();
        fchmod(&self.file, mode).map_err(|error| self.failed()(error.into()))?;
        self.appear()
    }

    /// Gives the file its name.
    fn appear(mut self) -> Result<(), Failure> {
        let Some(temporary) = &self.temporary else {
            return Ok(());
        };
        renameat(
            self.parent.as_fd(),
            temporary.as_slice(),
            self.parent.as_fd(),
            self.name.as_slice(),
        )
        .map_err(|error| self.failed()(error.into()))?;
        self.temporary = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = unlinkat(self.parent.as_fd(), temporary.as_slice(), UnlinkatFlags::NoRemoveDir);
        }
    }
}
