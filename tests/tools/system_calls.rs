//! System calls on a mount come to what they come to on a read-only ext4 with the same tree.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::same::{assert_lines, assert_same, inside};
use super::twin::Twin;
use crate::support::attempt;

/// A tree with all that system calls can be tried on.
const TREE: &str = include_str!("tree.sh");

/// Beginnings of the lines that may differ, and why they do.
const DIFFERENCES: &[(&str, &str)] = &[
    (
        "unaligned O_DIRECT",
        "works here: behind the mount is no block device that can only be read in blocks",
    ),
    (
        "getxattr of no namespace",
        "ext4 refuses names outside of the namespaces that it knows; the kernel passes all on to FUSE, and there are none",
    ),
    ("FS_IOC_GETFLAGS", "no image has inode flags"),
    (
        "FS_IOC_FIEMAP",
        "there is no disk on which a file could have extents; SEEK_DATA tells of holes",
    ),
    (
        "preadv2 RWF_NOWAIT",
        "the kernel does not offer it on FUSE; whoever asks has to take no for an answer",
    ),
    ("statx of the time of birth", "no image has one, and it is optional"),
];

/// Where the kernel checks permissions, ACLs among them.
const CHECKED: &[(&str, &str)] = &[(
    "openat2 CACHED",
    "Linux makes the root inode before it knows that the mount has ACLs, and then never keeps that inode's; so it has to \
     ask each time who is not the owner, and a walk that may ask nobody has to be tried again",
)];

/// What the probes say of a directory, but for known differences. With `user` it is that one who tries.
fn probed(dir: &Path, user: Option<&str>, known: &[&[(&str, &str)]]) -> String {
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/probes.py");
    let mut arguments = vec!["-B", script, dir.to_str().unwrap(), scratch.path().to_str().unwrap()];
    arguments.extend(user);
    let output = attempt("python3", &arguments);
    assert!(
        output.status.success(),
        "on {}: {}",
        dir.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8(output.stdout).unwrap();
    let known: Vec<&str> = known.concat().iter().map(|(beginning, _)| *beginning).collect();
    let differs = |line: &&str| known.iter().any(|beginning| line.starts_with(beginning));
    assert!(said.lines().count() > 2000, "all was tried:\n{said}");
    let lines: Vec<&str> = said.lines().filter(|line| !differs(line)).collect();
    lines.join("\n")
}

/// Asserts that nobody can tell the two apart by these calls, and returns what they come to.
fn assert_alike(twin: &Twin, user: Option<&str>, known: &[&[(&str, &str)]]) -> String {
    let expected = probed(twin.disk.root(), user, known);
    assert_lines(
        &probed(twin.mount.root(), user, known),
        &expected,
        "the same system calls",
    );
    expected
}

#[test]
fn system_calls_come_to_what_they_come_to_on_ext4() {
    let twin = Twin::of(TREE, "nosuid,nodev");
    let said = assert_alike(&twin, None, &[DIFFERENCES]);
    // That it was a read-only file system, with things in it, on which this was tried.
    for line in [
        "open O_RDWR dense: EROFS",
        "SEEK_DATA sparse 0: 65536",
        "SEEK_HOLE sparse 65536: 131072",
        "SEEK_DATA dense 4096: 4096",
        "access ./fifo W_OK: 0",
        "nothing with a name of 256: ENAMETOOLONG",
        "behind the last page: SIGBUS",
        "what is written to null: EACCES",
        "listxattr ./noted: ['trusted.secret', 'user.big', 'user.note']",
    ] {
        assert!(said.lines().any(|other| other == line), "{line} is missing in\n{said}");
    }
}

#[test]
fn another_user_may_do_what_he_may_on_ext4() {
    let twin = Twin::of(TREE, "allow_other,default_permissions");
    let said = assert_alike(&twin, Some("65534"), &[DIFFERENCES, CHECKED]);
    for line in [
        "access ./private R_OK: EACCES",
        // The mode seems to let him, the ACL does not; and the other way round.
        "access ./guarded R_OK: EACCES",
        "access ./allowed R_OK: 0",
        "access ./passable/known R_OK: 0",
        "listxattr ./noted: ['user.big', 'user.note']",
    ] {
        assert!(said.lines().any(|other| other == line), "{line} is missing in\n{said}");
    }
}

#[test]
fn root_may_do_the_same_where_permissions_are_checked() {
    assert_alike(&Twin::of(TREE, "default_permissions"), None, &[DIFFERENCES]);
}

#[test]
fn devices_and_setuid_programs_work_where_that_is_asked_for() {
    let said = assert_alike(&Twin::of(TREE, "suid,dev"), None, &[DIFFERENCES]);
    assert!(said.contains("what is written to null: (1, b'')"), "{said}");
    assert!(said.contains("euid=1000"), "{said}");
}

#[test]
fn acls_and_capabilities_and_other_attributes_are_those_of_ext4() {
    for options in ["nosuid", "default_permissions"] {
        let twin = Twin::of(TREE, options);
        let same = |script| assert_same(twin.mount.root(), twin.disk.root(), script);
        assert!(same("find . -print0 | sort -z | xargs -0 getfacl --numeric --physical --").contains("user:65534:r--"));
        assert!(same("getfacl --numeric defaults").contains("default:user:1000:rwx"));
        assert!(same("getcap -r . | sort").contains("capable cap_net_raw=ep"));
        // Of the root too, which has a report of its own that is not listed.
        let all =
            same("find . -print0 | sort -z | xargs -0 getfattr --no-dereference --dump --match=- --absolute-names --");
        assert!(all.contains("trusted.secret") && all.contains("security.capability") && !all.contains("peelfs"));
    }
}

/// Root of a user namespace is user 0 to a mount that was made there, and yet not who may read `trusted.*`.
#[test]
fn root_of_a_user_namespace_is_not_told_what_he_may_not_read() {
    let twin = Twin::of(TREE, "nosuid");
    let place = tempfile::tempdir().unwrap();
    let listed = |dir: &str| format!("cd {dir}; getfattr --dump --match=- noted private dir; getcap capable");
    let namespace = "unshare --user --map-root-user --mount bash -euo pipefail -c";
    let mounted = format!(
        "{namespace} '
            mkdir mnt cache
            trap \"umount --lazy $PWD/mnt\" EXIT
            {peelfs} mount --quiet --no-layers --cache-dir cache {image} mnt
            {listed}'",
        peelfs = env!("CARGO_BIN_EXE_peelfs"),
        image = twin.layout(),
        listed = listed("mnt"),
    );
    let [found, expected] = [
        inside(place.path(), &mounted),
        inside(twin.disk.root(), &format!("{namespace} '{}'", listed("."))),
    ]
    .map(|output| [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()));
    assert_eq!(found, expected);
    assert!(
        found[0].contains("user.note") && found[0].contains("cap_net_raw"),
        "{found:?}"
    );
}

#[test]
fn a_sparse_file_is_copied_with_its_holes() {
    let twin = Twin::of(TREE, "nosuid");
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy").into_os_string().into_string().unwrap();
    // The mount counts the whole length as blocks, so programs that look for holes only where there are too few blocks
    // have to be told to look.
    let script = format!(
        "for file in sparse hole tail dense; do
            rm -f {copy}
            cp --sparse=always $file {copy}
            cmp $file {copy}
            stat --format='%s %b' {copy}
        done"
    );
    let said = assert_same(twin.mount.root(), twin.disk.root(), &script);
    assert!(said.contains("\n131072 0\n"), "{said}");
    let script = format!(
        "rm -rf {copy}; cp -a . {copy}; cd {copy}; find . -printf '%P %y %m %U %G %T@ %l\\n' | sort; find . -print0 | sort -z | xargs -0 getfacl -nP --"
    );
    assert_same(twin.mount.root(), twin.disk.root(), &script);
}
