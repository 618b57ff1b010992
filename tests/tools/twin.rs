//! One tree twice: on a read-only ext4, and as an image that is mounted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::same::inside;
use crate::support::fixtures::Served;
use crate::support::mount::unmount_by_force;
use crate::support::{ImageBuilder, Layer, Mount, run};

/// The mount and the file system that it must be like.
pub struct Twin {
    /// The mount, without `layers`.
    pub mount: Mount,
    /// The file system.
    pub disk: Disk,
    served: Served,
}

impl Twin {
    /// Of the tree that `script`, run by bash, makes in an empty directory. Both are mounted with the options `options`.
    pub fn of(script: &str, options: &str) -> Twin {
        let disk = Disk::with(script);
        let tar = disk.tar();
        disk.freeze(options);
        let served = Served::made(&ImageBuilder::of([Layer::tar(tar)]));
        let mount = Mount::of(served.reference())
            .with(["--no-layers", "--index", "-o", options])
            .start();
        Twin { mount, disk, served }
    }

    /// The image as an OCI layout, to be mounted by others.
    pub fn layout(&self) -> String {
        format!("oci:{}:{}", self.served.image.layout.display(), self.served.image.tag)
    }
}

/// An ext4 of its own, in a file.
pub struct Disk {
    mountpoint: PathBuf,
    dir: TempDir,
}

impl Disk {
    /// A new one, with what `script` makes in it.
    fn with(script: &str) -> Disk {
        let dir = tempfile::tempdir().expect("a directory");
        // Other users look at it too.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let disk = Disk {
            mountpoint: dir.path().join("disk"),
            dir,
        };
        fs::create_dir(&disk.mountpoint).expect("a mountpoint");
        let image = disk.dir.path().join("image");
        fs::File::create(&image)
            .and_then(|file| file.set_len(64 << 20))
            .expect("a file");
        run("mkfs.ext4", &["-q".as_ref(), "-b4096".as_ref(), image.as_os_str()]);
        run(
            "mount",
            &["-oloop".as_ref(), image.as_os_str(), disk.mountpoint.as_os_str()],
        );
        let made = inside(&disk.mountpoint, &format!("rmdir lost+found\n{script}"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        disk
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.mountpoint
    }

    /// All of it as a tar of GNU tar's, holes, ACLs and extended attributes included.
    fn tar(&self) -> Vec<u8> {
        let tar = inside(
            &self.mountpoint,
            "tar --create --sparse --acls --xattrs --xattrs-include='*' --numeric-owner --sort=name .",
        );
        assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
        tar.stdout
    }

    /// Makes it read-only, as a mount of ours is.
    fn freeze(&self, options: &str) {
        // What only FUSE has to be told.
        let all = ["remount", "ro", "nosuid", "nodev"]
            .into_iter()
            .chain(options.split(','));
        let kept: Vec<&str> = all
            .filter(|option| !["allow_other", "default_permissions"].contains(option))
            .collect();
        run(
            "mount",
            &["-o".as_ref(), kept.join(",").as_ref(), self.root().as_os_str()],
        );
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount_by_force(&self.mountpoint);
    }
}
