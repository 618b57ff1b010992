//! Programs that look at a whole tree, on a mounted Debian and on the unpacked one.

use std::path::Path;

use super::same::{assert_lines, assert_same, inside};
use super::unpacked::Debian;
use crate::support::{Tree, attempt, run};

/// Runs a script in both, and returns what it says in each.
#[track_caller]
fn same(debian: &Debian, script: &str) -> String {
    assert_same(debian.mount.root(), &debian.truth(), script)
}

fn lines(text: &str) -> usize {
    text.lines().count()
}

#[test]
fn rsync_finds_nothing_to_copy() {
    let debian = Debian::get();
    let [from, to] = [debian.truth().as_path(), debian.mount.root()].map(|path| format!("{}/", path.display()));
    let said = run("rsync", &["-aHAXnci", "--delete", &from, &to]);
    assert_lines(&String::from_utf8_lossy(&said), "", "rsync");
}

#[test]
fn tar_writes_the_same_bytes() {
    // A PAX header is named by the process that writes it, and has the times of the last change and access, which an
    // unpacked tree has from being unpacked.
    let tar = "tar --create --acls --xattrs --xattrs-include='*' --numeric-owner --sort=name
        --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime ."
        .replace('\n', " ");
    let debian = Debian::get();
    let listed = same(
        &debian,
        &format!("{tar} | tee >(sha256sum >&2) | tar --list --verbose --full-time"),
    );
    assert!(lines(&listed) > 10_000, "{listed}");
}

#[test]
fn diff_finds_no_difference() {
    let debian = Debian::get();
    let [truth, root] = [debian.truth().as_path(), debian.mount.root()].map(|path| path.display().to_string());
    let diff = attempt("diff", &["--recursive", "--no-dereference", &truth, &root]);
    let said = String::from_utf8_lossy(&diff.stdout);
    // It never takes two special files for the same.
    let special = |line: &&str| {
        ["is a character special file while", "is a fifo while"]
            .iter()
            .any(|text| {
                let kind = text.trim_end_matches("while");
                line.contains(text) && line.trim_end().ends_with(kind.trim_end())
            })
    };
    let others: Vec<&str> = said.lines().filter(|line| !special(line)).collect();
    assert_lines(&others.join("\n"), "", "diff");
    assert_lines(&String::from_utf8_lossy(&diff.stderr), "", "diff");
    assert!(said.contains("srv/app/pipe is a fifo"), "{said}");
}

#[test]
fn find_and_stat_and_ls_tell_the_same_of_everything() {
    let debian = Debian::get();
    // A directory's size and link count are what a file system makes them, and inode and device numbers too.
    let found = same(
        &debian,
        r"find . -type d -printf '%p %y %m %M %U %G %u %g %T@\n' \
            -o -printf '%p %y %m %M %U %G %u %g %T@ %s %l %n\n' | LC_ALL=C sort",
    );
    assert!(lines(&found) > 10_000);
    let said = same(
        &debian,
        "find . ! -type d -print0 | LC_ALL=C sort -z | xargs -0 stat --format='%n %A %a %f %F %g %h %N %o %s %t %T %u %Y %y'",
    );
    assert!(lines(&said) > 9_000);
    let listed = same(
        &debian,
        r"ls -lAR --full-time . | sed -E '/^total /d; s/^(d\S+) +[0-9]+ (\S+ +\S+) +[0-9]+/\1 \2/' | tr -s ' '",
    );
    assert!(listed.contains(" app.conf") && lines(&listed) > 10_000);
    // That all is found by the right type without a stat, which the listing has then told.
    for kind in ["f", "d", "l", "p", "c"] {
        assert!(lines(&same(&debian, &format!("find . -type {kind} | LC_ALL=C sort"))) > 0);
    }
    let links = same(&debian, "find . -samefile srv/app/app.conf | sort");
    assert_eq!(links, "./srv/app/app.conf\n./srv/app/linked.conf\n");
}

#[test]
fn du_counts_the_bytes_of_each_file_once() {
    let debian = Debian::get();
    // Of directories it would count sizes, which are free.
    let files = "find . ! -type d -print0 | LC_ALL=C sort -z";
    let counted = same(
        &debian,
        &format!("{files} | du --apparent-size --block-size=1 --total --files0-from=-"),
    );
    assert!(counted.ends_with("\ttotal\n"), "{counted}");
    // Blocks are not a disk's but what the length comes to; of hard links only one counts.
    let blocks = inside(debian.mount.root(), "du --summarize --block-size=512 . | cut -f1");
    let expected = inside(
        &debian.truth(),
        "find . ! -type d -printf '%i %s\\n' | sort -u | awk '{ sum += int(($2 + 511) / 512) } END { print sum }'",
    );
    let [blocks, expected] = [blocks, expected].map(|output| String::from_utf8(output.stdout).unwrap());
    assert_eq!(blocks, expected);
    assert!(blocks.trim().parse::<u64>().unwrap() > 400_000, "{blocks}");
}

#[test]
fn attributes_and_acls_and_capabilities_are_told() {
    let debian = Debian::get();
    let all = "find . -print0 | LC_ALL=C sort -z | xargs -0";
    let dumped = same(&debian, &format!("{all} getfattr --no-dereference --dump --match=- --"));
    assert!(
        dumped.contains("user.origin=\"peelfs\"") && dumped.contains("security.capability"),
        "{dumped}"
    );
    assert!(!dumped.contains("user.peelfs"), "{dumped}");
    assert!(lines(&same(&debian, &format!("{all} getfacl --numeric --physical --"))) > 30_000);
    assert!(same(&debian, "getcap -r . | sort").contains("cap_net_raw"));
}

#[test]
fn the_lists_of_dpkg_are_right_inside() {
    let debian = Debian::get();
    // Layer 2 has taken away what is not there.
    let said = same(&debian, "cat var/lib/dpkg/info/*.md5sums | md5sum --check 2>&1 || true");
    let bad: Vec<&str> = said
        .lines()
        .filter(|line| !line.ends_with(": OK") && !line.contains("usr/share/vim/") && !line.contains("WARNING"))
        .collect();
    assert_lines(&bad.join("\n"), "", "md5sum");
    assert!(lines(&said) > 5_000, "{said}");
}

#[test]
fn grep_and_file_and_cp_read_the_same() {
    let debian = Debian::get();
    let matched = same(
        &debian,
        "grep --recursive --line-number --binary-files=text 'Debian' etc usr/lib usr/bin | sort | md5sum",
    );
    assert!(!matched.is_empty());
    assert_eq!(lines(&same(&debian, "grep --recursive hello srv | sort")), 2);
    let kinds = same(
        &debian,
        "find usr/bin usr/lib/x86_64-linux-gnu usr/lib/aarch64-linux-gnu etc srv dev -print0 2>/dev/null |
        LC_ALL=C sort -z | xargs -0 file --no-pad --no-dereference --",
    );
    for kind in [
        "ELF 64-bit",
        "symbolic link to",
        "fifo (named pipe)",
        "character special",
    ] {
        assert!(kinds.contains(kind), "{kind} is missing in\n{kinds}");
    }
    let copies = tempfile::tempdir().unwrap();
    let (etc, copy) = (debian.mount.path("etc"), copies.path().join("etc"));
    run("cp", &[Path::new("-a"), &etc, &copy]);
    Tree::of(&copy).assert_is(&Tree::of(debian.truth().join("etc")));
}
