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

pub(super) fn open_device() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/fuse")
}

/// Why mounting failed with `cause`, and what to do. `device` is what opening /dev/fuse fails with, if it fails.
pub(super) fn reason(cause: &io::Error, device: Option<&io::Error>) -> String {
    const CONTAINER: &str = "a container needs --device /dev/fuse --cap-add SYS_ADMIN";
    match device.map(|error| (error.kind(), error.raw_os_error())) {
        Some((io::ErrorKind::NotFound, _)) => {
            return format!("there is no /dev/fuse; try 'modprobe fuse' as root, and {CONTAINER}");
        }
        Some((_, Some(libc::ENODEV | libc::ENXIO))) => {
            return format!(
                "/dev/fuse is there, but no FUSE in the kernel; try 'modprobe fuse' as root, and {CONTAINER}"
            );
        }
        Some((io::ErrorKind::PermissionDenied, _)) => {
            return format!(
                "/dev/fuse may not be opened; root can permit it with 'chmod 666 /dev/fuse', and {CONTAINER}"
            );
        }
        Some(_) | None => {}
    }
    // fusermount3 ends what it says with the line.
    let text = cause.to_string();
    let text = text.trim_end();
    if cause.kind() == io::ErrorKind::NotFound {
        format!(
            "fusermount3 is missing, and mounting without it is not permitted; install the package fuse3 (as root, {CONTAINER})"
        )
    } else if text.contains("not permitted") {
        format!("{text}; {CONTAINER}")
    } else {
        text.to_owned()
    }
}

/// Mounts by the system call; None if only fusermount3 may.
fn mount(mountpoint: &Path, options: &Options) -> io::Result<Option<OwnedFd>> {
    let device = match open_device() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_and_what_to_do() {
        let os = |errno: Errno| io::Error::from(errno);
        let said = |text: &str| io::Error::other(text.to_owned());
        let table = [
            (os(Errno::ENOENT), Some(os(Errno::ENOENT)), "there is no /dev/fuse; try"),
            (
                said("fuse: device not found"),
                Some(os(Errno::ENODEV)),
                "no FUSE in the kernel",
            ),
            (os(Errno::EPERM), Some(os(Errno::EPERM)), "/dev/fuse may not be opened"),
            (os(Errno::ENOENT), None, "fusermount3 is missing, and"),
            (
                said("fusermount3: mount failed: Operation not permitted\n"),
                None,
                "Operation not permitted; a container needs --device /dev/fuse --cap-add SYS_ADMIN",
            ),
        ];
        for (cause, device, expected) in table {
            let reason = reason(&cause, device.as_ref());
            assert!(reason.contains(expected), "{cause}, {device:?}: {reason}");
            assert!(!reason.contains('\n'));
        }
        assert_eq!(reason(&said("it is busy"), None), "it is busy");
    }
}
