//! Attaching a FUSE device to a directory.
//!
//! Root does it alone, with mount(2); everybody else needs fusermount3. fuser can do both, but for root it leaves out the
//! subtype, by which `mount`, `findmnt` and `peelfs status` tell a peelfs mount from any other.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use fuser::{Config, Filesystem, MountOption, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

use super::FS_TYPE;

/// What the options of a mount come to.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// What is shown as the device.
    pub fsname: String,
    pub suid: bool,
    pub dev: bool,
    pub exec: bool,
    pub noatime: bool,
    pub default_permissions: bool,
    pub auto_unmount: bool,
    pub acl: SessionACL,
}

/// Mounts `fs` on `mountpoint`. The session has answered the kernel's first request when this returns.
pub(super) fn attach<FS: Filesystem>(fs: FS, mountpoint: &Path, options: &Options) -> io::Result<Session<FS>> {
    // What fusermount3 unmounts when the daemon dies, only it can mount.
    if !options.auto_unmount
        && let Some(device) = mount(mountpoint, options)?
    {
        let session = Session::from_fd(fs, device, options.acl, config(options));
        if session.is_err() {
            let _ = nix::mount::umount2(mountpoint, MntFlags::MNT_DETACH);
        }
        return session;
    }
    Session::new(fs, mountpoint, &config(options))
}

/// Mounts by the system call; None if only fusermount3 may.
fn mount(mountpoint: &Path, options: &Options) -> io::Result<Option<OwnedFd>> {
    let device = match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut flags = MsFlags::MS_RDONLY;
    for (unset, flag) in [
        (options.suid, MsFlags::MS_NOSUID),
        (options.dev, MsFlags::MS_NODEV),
        (options.exec, MsFlags::MS_NOEXEC),
        (!options.noatime, MsFlags::MS_NOATIME),
    ] {
        if !unset {
            flags |= flag;
        }
    }
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let mut data = OsString::from(format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid}",
        device.as_raw_fd()
    ));
    if options.default_permissions {
        data.push(",default_permissions");
    }
    if options.acl != SessionACL::Owner {
        data.push(",allow_other");
    }
    match nix::mount::mount(
        Some(options.fsname.as_str()),
        mountpoint,
        Some(FS_TYPE),
        flags,
        Some(data.as_os_str()),
    ) {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::EPERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn config(options: &Options) -> Config {
    let mut mount_options = vec![
        // fusermount3 takes its options as one list.
        MountOption::FSName(options.fsname.replace('\\', "\\\\").replace(',', "\\,")),
        MountOption::Subtype("peelfs".into()),
        MountOption::RO,
        if options.suid {
            MountOption::Suid
        } else {
            MountOption::NoSuid
        },
        if options.dev {
            MountOption::Dev
        } else {
            MountOption::NoDev
        },
        if options.exec {
            MountOption::Exec
        } else {
            MountOption::NoExec
        },
    ];
    if options.noatime {
        mount_options.push(MountOption::NoAtime);
    }
    if options.default_permissions {
        mount_options.push(MountOption::DefaultPermissions);
    }
    if options.auto_unmount {
        mount_options.push(MountOption::AutoUnmount);
    }
    let mut config = Config::default();
    config.mount_options = mount_options;
    config.acl = options.acl;
    config.n_threads = Some(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)));
    config.clone_fd = true;
    config
}
