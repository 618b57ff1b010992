//! The kernel's requests on one side, the tree on the other.
//!
//! `attach` mounts, `fuse` translates, `pages` hands decoded bytes to the kernel ahead of its asking, but not while the
//! kernel waits for the same (`unanswered`), `status` tells what it all cost, and this file puts them together and
//! unmounts.

mod attach;
mod fuse;
mod killed;
mod pages;
mod status;
mod unanswered;

use fuser::{BackgroundSession, SessionACL};
use nix::mount::MntFlags;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tokio::runtime::Handle;

use crate::image::Image;
use crate::layer::{LayerEvent, Listener};
use crate::tree::{Opened, Tree};
use pages::Pages;

pub use status::{LayerReport, MountReport, StatusReport};

/// The name of the extended attribute of the mount's root in which `peelfs status` finds its report.
pub const STATUS_XATTR: &str = "user.peelfs.status";

/// The file system type that `mount` and `findmnt` show.
pub const FS_TYPE: &str = "fuse.peelfs";

/// Why something could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// An earlier daemon died there.
    #[error("{0} is a dead mount, whose daemon has ended without unmounting it; run 'peelfs umount {0}' and try again")]
    Stale(PathBuf),
    /// There is no directory to mount on.
    #[error("cannot mount on {path}: {cause}")]
    Mountpoint {
        /// What was given.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// Something else is there, or nothing.
    #[error("{0} is not a peelfs mount; 'peelfs status' shows those that are")]
    NotAMount(PathBuf),
    /// A mount option that is not known, or contradicts what a read-only image is.
    #[error("mount option '{0}' is not supported; see 'peelfs mount --help'")]
    Option(String),
    /// fusermount3 needs it so.
    #[error("mount option 'auto_unmount' works only together with 'allow_other'; add it, or leave both out")]
    AutoUnmount,
    /// The kernel or fusermount3 refused.
    #[error("cannot mount on {path}: {reason}")]
    Kernel {
        /// Where.
        path: PathBuf,
        /// What is missing, and what to do.
        reason: String,
        /// What failed.
        #[source]
        cause: io::Error,
    },
    /// Not unmounted.
    #[error("cannot unmount {path}: {reason}")]
    Unmount {
        /// Where.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// How to mount.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// Options as `mount -o` takes them.
    pub options: Vec<String>,
}

/// A mount that is there.
#[derive(Debug)]
pub struct Mount {
    session: BackgroundSession,
    place: Place,
}

/// Where a mount is, and which one it is: another one may come to be on top of it, or in its place.
#[derive(Debug, Clone)]
pub struct Place {
    /// An absolute path.
    pub mountpoint: PathBuf,
    /// Its device number; none if that could not be told.
    device: Option<u64>,
}

impl Place {
    /// Unmounts it, at once or lazily, unless something else is there by now.
    ///
    /// # Errors
    /// [`MountError::Unmount`], in words.
    pub fn unmount(&self) -> Result<(), MountError> {
        let there = fs::metadata(&self.mountpoint).map(|metadata| metadata.dev()).ok();
        if self.device.is_some() && there != self.device {
            return Ok(());
        }
        unmount(&self.mountpoint, Unmount::Unused).or_else(|_| unmount(&self.mountpoint, Unmount::Lazily))
    }
}

/// Mounts an image. It answers when this returns.
///
/// # Errors
/// [`MountError`], before anything is mounted.
pub fn mount(
    opened: &Opened,
    mountpoint: &Path,
    options: &MountOptions,
    log: Option<PathBuf>,
    runtime: Handle,
) -> Result<Mount, MountError> {
    let mountpoint = check_mountpoint(mountpoint)?;
    let options = parse(&opened.image, options)?;
    let reporter = status::Reporter::new(opened, mountpoint.clone(), log);
    let fs = fuse::Fs::new(
        opened.tree.clone(),
        reporter,
        runtime.clone(),
        options.default_permissions,
    );
    let pages = fs.pages();
    let kernel = |cause| MountError::Kernel {
        path: mountpoint.clone(),
        reason: attach::reason(&cause, attach::open_device().err().as_ref()),
        cause,
    };
    // Before the first request, which may already start a scan.
    let (tree, told, spawner) = (opened.tree.clone(), pages.clone(), runtime.clone());
    opened.workshop.listen(Listener(Box::new(move |event| match event {
        LayerEvent::Changed(layer, changes) => told.changed(layer, changes),
        LayerEvent::Ahead(span) => told.offer(span),
        LayerEvent::Failed(layer) => told.failed(layer),
        LayerEvent::Complete(_) => settle(&tree, &told, &spawner),
    })));
    let session = attach::attach(fs, &mountpoint, &options)
        .map_err(kernel)?
        .spawn()
        .map_err(kernel)?;
    raise_readahead(&mountpoint);
    pages.start(session.notifier()).map_err(kernel)?;
    settle(&opened.tree, &pages, &runtime);
    let device = fs::metadata(&mountpoint).map(|metadata| metadata.dev()).ok();
    Ok(Mount {
        session,
        place: Place { mountpoint, device },
    })
}

/// If all layers are known, settles what depends on all of them, and tells the kernel.
fn settle(tree: &Arc<Tree>, pages: &Pages, runtime: &Handle) {
    if tree.layers().iter().any(|layer| layer.index().is_none()) {
        return;
    }
    let (tree, pages) = (tree.clone(), pages.clone());
    runtime.spawn(async move {
        if let Err(error) = tree.count_links().await {
            tracing::warn!("cannot count hard links between layers: {error}");
        }
        pages.all_known();
    });
}

impl Mount {
    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Waits until it is unmounted, by whomever.
    ///
    /// # Errors
    /// If reading the kernel's requests failed.
    pub fn wait(self) -> io::Result<()> {
        self.session.join()
    }
}

/// The mount point as an absolute path, if something can be mounted there.
fn check_mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let problem = |cause| MountError::Mountpoint {
        path: path.to_owned(),
        cause,
    };
    // Of a dead mount the kernel may still know the root's attributes; statvfs asks the daemon.
    let alive = nix::sys::statvfs::statvfs(path).map_err(io::Error::from);
    match alive.and_then(|_| fs::metadata(path)) {
        Err(error) if is_stale(&error) => Err(MountError::Stale(path.to_owned())),
        Err(error) => Err(problem(error)),
        Ok(metadata) if !metadata.is_dir() => Err(problem(io::ErrorKind::NotADirectory.into())),
        Ok(_) => path.canonicalize().map_err(problem),
    }
}

fn is_stale(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTCONN)
}

/// What the options given come to. An image is untrusted and never changes, so `ro`, `nosuid` and `nodev` hold unless
/// the last two are taken back.
fn parse(image: &Image, options: &MountOptions) -> Result<attach::Options, MountError> {
    let mut parsed = attach::Options {
        fsname: image.reference.clone(),
        suid: false,
        dev: false,
        exec: true,
        noatime: false,
        default_permissions: false,
        auto_unmount: false,
        acl: SessionACL::Owner,
    };
    for option in options
        .options
        .iter()
        .flat_map(|list| list.split(','))
        .filter(|option| !option.is_empty())
    {
        match option {
            "ro" | "defaults" | "async" | "relatime" | "noauto" | "user" | "_netdev" | "nofail" => {}
            "suid" => parsed.suid = true,
            "nosuid" => parsed.suid = false,
            "dev" => parsed.dev = true,
            "nodev" => parsed.dev = false,
            "exec" => parsed.exec = true,
            "noexec" => parsed.exec = false,
            "noatime" => parsed.noatime = true,
            "allow_other" => parsed.acl = SessionACL::All,
            "default_permissions" => parsed.default_permissions = true,
            "auto_unmount" => parsed.auto_unmount = true,
            _ => match option.strip_prefix("fsname=") {
                Some(name) if !name.is_empty() => parsed.fsname = name.to_owned(),
                _ => return Err(MountError::Option(option.to_owned())),
            },
        }
    }
    if parsed.auto_unmount && parsed.acl == SessionACL::Owner {
        return Err(MountError::AutoUnmount);
    }
    Ok(parsed)
}

/// Lets the kernel ask for 1 MiB at once where that is permitted (root); elsewhere it asks for 128 KiB.
fn raise_readahead(mountpoint: &Path) {
    let Ok(metadata) = fs::metadata(mountpoint) else { return };
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let _ = fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), "1024");
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Only if nobody uses it.
    Unused,
    /// It vanishes at once, and ends when nobody uses it any more.
    Lazily,
    /// It vanishes and ends at once, even if its daemon does not answer: whoever uses it gets errors.
    ByForce,
}

/// Unmounts the image at `path`, whether or not its daemon lives.
///
/// # Errors
/// [`MountError::Unmount`], in words.
pub fn unmount(path: &Path, how: Unmount) -> Result<(), MountError> {
    let failed = |reason: String| MountError::Unmount {
        path: path.to_owned(),
        reason,
    };
    let mounts = mounted().map_err(|error| failed(error.to_string()))?;
    let target = absolute(path);
    let Some(mounted) = mounts.into_iter().rfind(|mounted| mounted.mountpoint == target) else {
        return Err(failed("no peelfs image is mounted there".into()));
    };
    let path = target.as_path();
    let flags = match how {
        Unmount::Unused => MntFlags::empty(),
        Unmount::Lazily => MntFlags::MNT_DETACH,
        Unmount::ByForce => {
            // Its owner may end a connection here. Root can do without: MNT_FORCE ends it as well.
            let _ = fs::write(format!("/sys/fs/fuse/connections/{}/abort", mounted.connection), "1");
            MntFlags::MNT_FORCE | MntFlags::MNT_DETACH
        }
    };
    let lazy = how != Unmount::Unused;
    match nix::mount::umount2(path, flags) {
        Ok(()) => return Ok(()),
        Err(nix::errno::Errno::EPERM) => {}
        Err(nix::errno::Errno::EBUSY) => {
            return Err(failed(
                "it is in use; end what uses it ('fuser -vm' shows it), or add --lazy".into(),
            ));
        }
        Err(nix::errno::Errno::EINVAL) => return Err(failed("nothing is mounted there".into())),
        Err(error) => return Err(failed(error.desc().into())),
    }
    // Only root may call the kernel; for everybody else fusermount3 does it.
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(path);
    let output = command
        .output()
        .map_err(|error| failed(format!("cannot run fusermount3: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// The path without symlinks before its last name, as the kernel lists it. Nothing is asked of the mount itself, which
/// may be dead.
fn absolute(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if let Ok(real) = whole.canonicalize() {
        return real;
    }
    match (whole.parent().map(Path::canonicalize), whole.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => whole,
    }
}

/// The mount points of all peelfs mounts that this process can see.
///
/// # Errors
/// If the kernel's list cannot be read.
pub fn mounts() -> io::Result<Vec<PathBuf>> {
    let mountpoints = mounted()?.into_iter().map(|mounted| mounted.mountpoint);
    Ok(mountpoints.collect())
}

/// A line of the kernel's list of mounts.
#[derive(Debug, PartialEq)]
struct Mounted {
    mountpoint: PathBuf,
    /// The number of its FUSE connection: its device's minor one.
    connection: u32,
}

fn mounted() -> io::Result<Vec<Mounted>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(mounted_peelfs).collect())
}

/// What a line of mountinfo says, if it is about a peelfs mount.
fn mounted_peelfs(line: &[u8]) -> Option<Mounted> {
    use std::os::unix::ffi::OsStringExt;
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let mountpoint = fields.nth(1)?;
    fields.find(|field| *field == b"-")?;
    (fields.next()? == FS_TYPE.as_bytes()).then_some(Mounted {
        mountpoint: std::ffi::OsString::from_vec(unescape(mountpoint)).into(),
        connection: device.split_once(':')?.1.parse().ok()?,
    })
}

/// Undoes the octal escapes of `/proc/self/mountinfo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// The report of the mount at `mountpoint`.
///
/// # Errors
/// [`MountError::Stale`], or [`MountError::NotAMount`].
pub fn report(mountpoint: &Path) -> Result<MountReport, MountError> {
    let problem = |cause| MountError::Mountpoint {
        path: mountpoint.to_owned(),
        cause,
    };
    match status::read_xattr(mountpoint, STATUS_XATTR) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| problem(error.into())),
        Err(error) if is_stale(&error) => Err(MountError::Stale(mountpoint.to_owned())),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => {
            Err(MountError::NotAMount(mountpoint.to_owned()))
        }
        // Without a mount, only the name tells what the error is about.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MountError::NotAMount(mountpoint.to_owned())),
        Err(error) => Err(problem(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_understood() {
        let line = b"36 35 0:47 / /mnt/a\\040b rw,noatime master:1 - fuse.peelfs debian:12 rw";
        let expected = Mounted {
            mountpoint: PathBuf::from("/mnt/a b"),
            connection: 47,
        };
        assert_eq!(mounted_peelfs(line), Some(expected));
        assert_eq!(mounted_peelfs(b"36 35 98:0 / /mnt rw - ext4 /dev/sda rw"), None);
        assert_eq!(mounted_peelfs(b""), None);
    }
}
