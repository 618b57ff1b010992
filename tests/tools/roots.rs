//! The mount as a root: of a chroot, of a container, and of a writable file system on top of it.

use std::ffi::OsStr;
use std::path::Path;

use super::same::{assert_lines, assert_same};
use super::unpacked::Debian;
use crate::support::run;

/// What programs say that are started with a directory as their root.
const PROGRAMS: &str = r#"
    $IN dpkg --list
    $IN dpkg --verify || true
    $IN python3 -B -c 'import os, re, sys; print(sys.version, sorted(os.listdir("/srv/app")))'
    # Where a library lies in memory is never the same.
    $IN ldd /usr/bin/git | sed 's/ (0x.*//'
    $IN git --version
    $IN bash -c 'id; getent passwd reader app; readlink -f /bin/sh'
    $IN openssl version 2>/dev/null || $IN ssh -V 2>&1
    $IN sh -c 'touch /x 2>/dev/null' || echo read-only
"#;

#[track_caller]
fn assert_programs_run(said: &str) {
    for line in [
        "ii  python3-minimal",
        "libz.so.1 => ",
        "git version",
        "uid=0(root)",
        "/home/reader",
    ] {
        assert!(said.contains(line), "{line} is missing in\n{said}");
    }
}

#[test]
fn programs_run_in_a_chroot() {
    let debian = Debian::get();
    // The unpacked one is to be read-only too, and what lies in memory to be mounted in both.
    let script = format!(
        "unshare --mount bash -c '
            set -e
            mount --bind . /mnt
            mount -o remount,bind,ro,nosuid,nodev /mnt
            # Of the mounts that came along only this one: their daemons would outlive their unmounting.
            findmnt -rno TARGET -t fuse,fuse.peelfs | grep -vxF /mnt | xargs -r -n1 umount -l || true
            cd /mnt
            mount --bind /dev dev
            mount -t proc proc proc
            exec bash -euo pipefail /dev/fd/3' 3<<'END'
            IN='env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C chroot .'
            {PROGRAMS}
END"
    );
    let said = assert_same(debian.mount.root(), &debian.truth(), &script);
    assert_programs_run(&said);
    assert!(said.ends_with("read-only\n"), "{said}");
}

#[test]
fn a_container_runs_on_it_without_a_pull() {
    let debian = Debian::get();
    let script = format!(
        "IN='bwrap --ro-bind . / --dev /dev --proc /proc --tmpfs /tmp --unshare-all --die-with-parent --clearenv
            --setenv PATH /usr/sbin:/usr/bin:/sbin:/bin --setenv HOME /root --setenv LC_ALL C'
        {PROGRAMS}
        $IN sh -c 'echo x >/tmp/x && cat /tmp/x'"
    );
    let said = assert_same(debian.mount.root(), &debian.truth(), &script);
    assert_programs_run(&said);
    assert!(said.ends_with("read-only\nx\n"), "{said}");
}

/// Puts overlayfs on a directory (`$1`), with all that is written in memory, and works on that. All of it is in a mount
/// namespace of its own, which ends with the script.
const OVERLAY: &str = r#"
    set -euo pipefail
    export PATH=$PATH:/usr/sbin:/sbin
    lower=$1
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/root
    # The mounts that came along are not needed; their daemons would outlive their unmounting.
    umount --all --lazy --types fuse,fuse.peelfs || true
    cd /mnt/root

    # Names that are new, and files that are copied up whole, with all they have.
    echo new >srv/new
    echo more >>srv/app/app.conf
    getfattr -d -m user srv/app/app.conf
    chmod 700 etc/hostname 2>/dev/null || chmod 700 etc/issue
    ping=$(getcap -r usr/bin | head -n 1 | cut -d' ' -f1)
    touch -m -d @1 "$ping"
    getcap "$ping"
    setfattr -n user.added -v x srv/app/linked.conf

    mv srv/app/app.conf srv/renamed
    mv usr/share/doc/bash usr/share/bash-doc 2>&1 || echo 'directories cannot be renamed'
    rm etc/passwd-
    rm -r usr/share/man
    rm -r usr/share/locale && mkdir usr/share/locale && echo x >usr/share/locale/only
    ln srv/renamed srv/linked
    ln -s renamed srv/symlink
    echo again >etc/passwd-
    mkfifo srv/fifo
    printf 'line\n' | tee -a etc/hosts >/dev/null
    sed -i 's/root/admin/' etc/group
    chroot . /usr/sbin/useradd --create-home extra
    chroot . dpkg --remove --force-depends vim-tiny 2>&1 | tail -n 1
    ! chroot . vi --version 2>/dev/null

    # Times of what was written are those of now.
    find . -type f -printf '%P %y %m %U %G %s %n\n' -o -printf '%P %y %m %U %G %l\n' | LC_ALL=C sort
    find . -type f -size -1000k ! -path './var/log/*' ! -path './var/lib/dpkg/*' ! -name 'shadow*' -print0 |
        LC_ALL=C sort -z | xargs -0 md5sum
    cd /mnt/upper
    find . | LC_ALL=C sort
"#;

#[test]
fn overlayfs_makes_it_writable_and_leaves_it_as_it_is() {
    let debian = Debian::get();
    let before = facts(debian.mount.root());
    let work = |lower: &Path| {
        let arguments = ["--mount", "--propagation=private", "bash", "-c", OVERLAY, "bash"].map(OsStr::new);
        let said = run("unshare", &[&arguments[..], &[lower.as_os_str()]].concat());
        String::from_utf8_lossy(&said).into_owned()
    };
    // What is below must not change either while this looks at it.
    let (found, expected) = (work(debian.mount.root()), work(&debian.truth()));
    assert_lines(&found, &expected, "work on an overlay");
    for line in [
        "srv/renamed f 644 999 999",
        "cap_net_raw=ep",
        "./srv/app/app.conf",
        "usr/share/locale/only",
    ] {
        assert!(found.contains(line), "{line} is missing in\n{found}");
    }
    assert_eq!(facts(debian.mount.root()), before);
    assert_same(debian.mount.root(), &debian.truth(), FACTS);
}

/// All that could have been changed from above.
const FACTS: &str = "find . -type d -printf '%p %m %U %G %T@\\n' -o -printf '%p %y %m %U %G %s %T@ %l %n\\n' | sort
    find etc srv home usr/bin -type f -print0 | sort -z | xargs -0 md5sum";

fn facts(root: &Path) -> String {
    String::from_utf8_lossy(&super::same::inside(root, FACTS).stdout).into_owned()
}
