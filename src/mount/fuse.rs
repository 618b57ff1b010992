//! The kernel's requests, translated one by one.
//!
//! No thread of the session ever waits for the network, the disk or an inflater: a request that can be answered from
//! memory is answered on the spot, any other goes on as a task and takes its reply along.

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use super::STATUS_XATTR;
use super::killed::killed;
use super::pages::{Known, Pages};
use super::status::Reporter;
use super::unanswered::Unanswered;
use crate::index::Kind;
use crate::range::ByteRange;
use crate::tree::{Attr, Ino, Seek, Tree, TreeError};

/// The image never changes, so neither does an answer: some 136 years.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How long the kernel may believe what the rest of a layer can still change.
const PROVISIONAL: Duration = Duration::from_secs(1);

/// Bytes of a read request, the most that Linux sends.
const MAX_READ: u32 = 1 << 20;

/// Bytes of a name, as in every layer.
const NAME_MAX: usize = 255;

/// The attribute that is a file's access control list.
const ACL: &[u8] = b"system.posix_acl_access";

const GENERATION: Generation = Generation(0);

/// The file system as the kernel sees it.
pub(super) struct Fs {
    shared: Arc<Shared>,
    runtime: Handle,
    /// Whether the kernel checks permissions.
    checked: bool,
    /// Attributes that this mount does not support, as no file has them. Who is told so of one file asks for no other,
    /// where he would ask for each to be told that it has none: half of the requests of `ls -l`. That holds for as long
    /// as the mount does, so it is not found out later of layers that are not known when it begins.
    unsupported: Vec<&'static [u8]>,
    /// Whether user 0 of a request is root. The root of another user namespace may not read what is for root only.
    knows_root: bool,
}

struct Shared {
    tree: Arc<Tree>,
    reporter: Reporter,
    known: Arc<Known>,
    unanswered: Arc<Unanswered>,
    pages: Pages,
}

impl Fs {
    pub(super) fn new(tree: Arc<Tree>, reporter: Reporter, runtime: Handle, checked: bool) -> Fs {
        let (known, unanswered) = (Arc::new(Known::default()), Arc::new(Unanswered::default()));
        let pages = Pages::new(tree.clone(), known.clone(), unanswered.clone());
        Fs {
            unsupported: tree.xattrs_of_none(),
            shared: Arc::new(Shared {
                tree,
                reporter,
                known,
                unanswered,
                pages,
            }),
            runtime,
            checked,
            knows_root: in_initial_user_namespace(),
        }
    }

    pub(super) fn pages(&self) -> Pages {
        self.shared.pages.clone()
    }

    /// Lists a directory: on this thread only what was listed a moment ago, as it takes time to put a large one together.
    fn serve_listing(&self, directory: INodeNo, answer: impl Future<Output = ()> + Send + 'static) {
        if self.shared.tree.has_listed(Ino(directory.0)) {
            self.serve(answer);
        } else {
            self.runtime.spawn(answer);
        }
    }

    /// Answers on this thread if nothing has to be waited for, else in a task.
    fn serve(&self, answer: impl Future<Output = ()> + Send + 'static) {
        let _runtime = self.runtime.enter();
        let mut answer = Box::pin(answer);
        if answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
        {
            self.runtime.spawn(answer);
        }
    }
}

impl Shared {
    /// The errno for an error. What lies behind an EIO was logged where it happened, and is shown by `peelfs status`.
    fn errno(&self, error: &TreeError) -> Errno {
        tracing::debug!("{error}");
        match error {
            TreeError::Layer(_) | TreeError::TooManyNames { .. } => Errno::EIO,
            TreeError::Stale(_) => Errno::ESTALE,
            TreeError::NotADirectory(_) => Errno::ENOTDIR,
            TreeError::NotAFile(_) => Errno::EISDIR,
            TreeError::NotASymlink(_) => Errno::EINVAL,
        }
    }

    /// What `answer` gives, or an errno. A caller that is killed meanwhile does not wait to the end.
    async fn wait<T>(&self, pid: u32, answer: impl Future<Output = Result<T, TreeError>>) -> Result<T, Errno> {
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|error| self.errno(&error)),
            () = killed(pid) => Err(Errno::EINTR),
        }
    }

    /// Notes that the kernel is given an inode.
    fn hand_out(&self, attr: &Attr) {
        self.tree.hold(attr);
        if attr.kind == Kind::File {
            self.known.insert(attr.ino);
        }
    }

    fn take_back(&self, ino: INodeNo, times: u64) {
        self.tree.release(Ino(ino.0), times);
        self.known.remove(Ino(ino.0));
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>, TreeError> {
        if ino == Ino::ROOT && name == STATUS_XATTR.as_bytes() {
            return Ok(Some(self.reporter.report_json()));
        }
        self.tree.xattr(ino, name)
    }
}

/// Whether this process is in the namespace that all others are made from: there users are mapped to themselves.
fn in_initial_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]))
}

fn ttl(attr: &Attr) -> Duration {
    if attr.settled { FOREVER } else { PROVISIONAL }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        // The tree follows hard links before it hands anything out.
        Kind::File | Kind::Hardlink => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    second
        .and_then(|second| second.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// Why access(2) is refused to anyone who may enter the mount. He may read; but nobody can run what nobody may, and
/// write only what is not in the image: to what reads from a pipe, or to a device.
fn refusal(kind: Kind, mode: u16, wanted: AccessFlags) -> Option<Errno> {
    let outside = matches!(kind, Kind::Fifo | Kind::CharDevice | Kind::BlockDevice);
    if wanted.contains(AccessFlags::W_OK) && !outside {
        return Some(Errno::EROFS);
    }
    let runs = kind == Kind::Directory || mode & 0o111 != 0;
    (wanted.contains(AccessFlags::X_OK) && !runs).then_some(Errno::EACCES)
}

/// A device number as FUSE wants it: Linux's own encoding of 32 bits.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major << 8) & 0xfff00) | ((minor & !0xff) << 12)
}

fn file_attr(attr: &Attr) -> FileAttr {
    let mtime = time(attr.mtime, attr.mtime_nsec);
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_device(attr.major, attr.minor),
        blksize: 4096,
        flags: 0,
    }
}

/// What a lookup answers for a name that certainly does not exist: inode 0, to be remembered.
fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn reply_xattr(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Fs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            // Always, not FUSE_READDIRPLUS_AUTO: with that only the first names of a directory come with their attributes, and
            // whoever lists a large one before he looks at what is in it (find -ls, tar, rsync) asks for each of the others.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_ASYNC_DIO,
        ];
        for flag in wanted {
            // An older kernel works without.
            let _ = config.add_capabilities(flag);
        }
        if self.checked && !self.unsupported.contains(&ACL) {
            // A mode without its ACL gives a group more than the file does. This turns the checks on, so it is not for
            // mounts without them.
            let _ = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
        }
        let _ = config.set_max_write(MAX_READ);
        if let Err(most) = config.set_max_readahead(MAX_READ) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(64);
        let _ = config.set_congestion_threshold(48);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // The kernel itself refuses only far longer ones.
        if name.len() > NAME_MAX {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let (shared, name, pid) = (self.shared.clone(), name.as_bytes().to_vec(), req.pid());
        self.serve(async move {
            match shared.wait(pid, shared.tree.lookup(Ino(parent.0), &name)).await {
                Ok(Some(attr)) => {
                    shared.hand_out(&attr);
                    let name = if attr.lasting { FOREVER } else { PROVISIONAL };
                    reply.entry_with_ttls(&ttl(&attr), &name, &file_attr(&attr), GENERATION);
                }
                Ok(None) => reply.entry(&FOREVER, &nothing(), GENERATION),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.shared.take_back(ino, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.shared.tree.getattr(Ino(ino.0)) {
            Ok(attr) => reply.attr(&ttl(&attr), &file_attr(&attr)),
            Err(error) => reply.error(self.shared.errno(&error)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.shared.tree.readlink(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.shared.errno(&error)),
        }
    }

    fn access(&self, _req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        match self.shared.tree.getattr(Ino(ino.0)) {
            Ok(attr) => match refusal(attr.kind, attr.mode, mask) {
                Some(errno) => reply.error(errno),
                None => reply.ok(),
            },
            Err(error) => reply.error(self.shared.errno(&error)),
        }
    }

    // Nothing has to be said when something is opened or closed: after this answer the kernel no longer asks, and
    // keeps what it has cached of the file or directory.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (shared, pid) = (self.shared.clone(), req.pid());
        let waiting = shared.unanswered.begin(Ino(ino.0), ByteRange::at(offset, size.into()));
        self.serve(async move {
            match shared
                .wait(pid, shared.tree.read(Ino(ino.0), offset, size as usize))
                .await
            {
                Ok(content) => {
                    reply.data(&content.bytes);
                    drop(waiting);
                    let answer = ByteRange::at(offset, content.bytes.len() as u64);
                    shared.pages.answered(Ino(ino.0), answer, content.spans);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let (shared, pid) = (self.shared.clone(), req.pid());
        self.serve_listing(ino, async move {
            match shared.wait(pid, shared.tree.list(Ino(ino.0))).await {
                Ok(listing) => {
                    let from = usize::try_from(offset).unwrap_or(usize::MAX);
                    for i in from..listing.len() {
                        let Some(listed) = listing.get(i) else { break };
                        let kind = file_type(listed.kind);
                        if reply.add(
                            INodeNo(listed.ino.0),
                            i as u64 + 1,
                            kind,
                            OsStr::from_bytes(listed.name),
                        ) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let (shared, pid) = (self.shared.clone(), req.pid());
        self.serve_listing(ino, async move {
            let directory = Ino(ino.0);
            let listing = match shared.wait(pid, shared.tree.list(directory)).await {
                Ok(listing) => listing,
                Err(errno) => return reply.error(errno),
            };
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            for i in from..listing.len() {
                let Some(listed) = listing.get(i) else { break };
                let next = i as u64 + 1;
                let name = OsStr::from_bytes(listed.name);
                if i < 2 {
                    // `.` and `..` are not looked up: the kernel wants only their numbers.
                    let attr = FileAttr {
                        ino: INodeNo(listed.ino.0),
                        kind: FileType::Directory,
                        ..nothing()
                    };
                    if reply.add(INodeNo(0), next, name, &Duration::ZERO, &attr, GENERATION) {
                        break;
                    }
                    continue;
                }
                let attr = match shared.wait(pid, shared.tree.listed_attr(directory, &listed)).await {
                    Ok(Some(attr)) => attr,
                    // It is gone since, or cannot be told: whoever wants to know looks it up by itself.
                    Ok(None) => continue,
                    // What was added is handed out already; who asks for the rest meets the error again.
                    Err(_) if i > from => break,
                    Err(errno) => return reply.error(errno),
                };
                if reply.add(
                    INodeNo(attr.ino.0),
                    next,
                    name,
                    &ttl(&attr),
                    &file_attr(&attr),
                    GENERATION,
                ) {
                    break;
                }
                shared.hand_out(&attr);
            }
            reply.ok();
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 4096;
        let (bytes, entries) = self.shared.reporter.extent();
        reply.statfs(
            bytes.div_ceil(BLOCK.into()),
            0,
            0,
            entries,
            0,
            BLOCK,
            NAME_MAX as u32,
            BLOCK,
        );
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.shared.xattr(Ino(ino.0), name.as_bytes()) {
            Ok(Some(value)) => reply_xattr(reply, &value, size),
            Ok(None) if self.unsupported.contains(&name.as_bytes()) => reply.error(Errno::EOPNOTSUPP),
            Ok(None) => reply.error(Errno::ENODATA),
            Err(error) => reply.error(self.shared.errno(&error)),
        }
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        // Nobody else may read these, which the kernel sees to.
        let root = self.knows_root && req.uid() == 0;
        let hidden = |name: &[u8]| name.starts_with(b"trusted.") && !root;
        match self.shared.tree.xattr_names(Ino(ino.0)) {
            Ok(names) => {
                let names = names.into_iter().filter(|name| !hidden(name));
                let list: Vec<u8> = names.flat_map(|name| name.into_iter().chain([0])).collect();
                reply_xattr(reply, &list, size);
            }
            Err(error) => reply.error(self.shared.errno(&error)),
        }
    }

    // The kernel asks only for what it cannot know: where data and holes are.
    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        match self.shared.tree.seek(Ino(ino.0), offset, what) {
            Ok(Some(found)) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(self.shared.errno(&error)),
        }
    }

    // The mount is read-only, so the kernel refuses all of these by itself; unless somebody remounts it.

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &std::path::Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_refused_where_nobody_has_it() {
        for (kind, mode, read, write, run) in [
            (Kind::File, 0o666, None, Some(libc::EROFS), Some(libc::EACCES)),
            (Kind::File, 0o001, None, Some(libc::EROFS), None),
            (Kind::Directory, 0o600, None, Some(libc::EROFS), None),
            (Kind::Fifo, 0o666, None, None, Some(libc::EACCES)),
            (Kind::CharDevice, 0o666, None, None, Some(libc::EACCES)),
        ] {
            let wanted = [AccessFlags::R_OK, AccessFlags::W_OK, AccessFlags::X_OK];
            let got = wanted.map(|wanted| refusal(kind, mode, wanted).map(|errno| errno.code()));
            assert_eq!(got, [read, write, run], "{kind:?} {mode:o}");
        }
    }

    #[test]
    fn device_numbers_are_encoded_as_linux_does() {
        assert_eq!(encode_device(1, 3), 0x103);
        assert_eq!(encode_device(8, 257), (1 << 20) | (8 << 8) | 1);
        assert_eq!(encode_device(0xfff, 0xfffff), 0xffffffff);
    }

    #[test]
    fn times_before_the_epoch_keep_their_nanoseconds() {
        assert_eq!(time(-1, 500_000_000), UNIX_EPOCH - Duration::from_millis(500));
        assert_eq!(time(1, 1), UNIX_EPOCH + Duration::new(1, 1));
        assert!(time(i64::MIN, 0) <= UNIX_EPOCH);
    }
}
