//! Databases in an image, those of git and of SQLite, are used as on a read-only ext4.

use super::same::assert_same;
use super::twin::Twin;

/// A repository with some history and a checkout.
const REPOSITORY: &str = r#"
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_DATE=@1600000000 GIT_COMMITTER_DATE=@1600000000
git init --quiet --initial-branch=main .
git config user.name tests
git config user.email tests@example.org
mkdir -p src deep/er
for number in $(seq 200); do seq "$number" >"src/$number.txt"; done
echo deep >deep/er/file
printf '#!/bin/sh\n' >run && chmod +x run
ln -s src/1.txt link
echo '*.log' >.gitignore
git add .
git commit --quiet --message=first
git gc --quiet
echo more >>src/7.txt
git mv src/8.txt src/eight.txt
git commit --quiet --all --message=second
git tag --annotate --message=tagged v1
echo ignored >some.log
"#;

#[test]
fn git_finds_a_checkout_clean_and_sound() {
    let twin = Twin::of(REPOSITORY, "nosuid");
    let same = |script: &str| {
        let script = format!("export GIT_CONFIG_GLOBAL=/dev/null\n{script}");
        assert_same(twin.mount.root(), twin.disk.root(), &script)
    };
    // Nothing on standard error: git cannot write its index and has nothing to say of it.
    let status = same("git status 2>&1");
    assert_eq!(status, "On branch main\nnothing to commit, working tree clean\n");
    assert_eq!(same("git status --porcelain=v2 --ignored"), "! some.log\n");
    assert!(same("git log --stat --format=full 2>&1").contains("second"));
    assert_eq!(same("git fsck --full --strict 2>&1"), "");
    assert_eq!(same("git diff --exit-code HEAD 2>&1"), "");
    assert!(same("git archive HEAD | tar t").contains("src/eight.txt"));
    assert!(same("git grep --line-number more 2>&1").contains("src/7.txt:8:more"));
    assert!(same("git blame src/7.txt 2>&1").lines().count() == 8);
    let refused = same("git commit --allow-empty --message=x 2>&1 || echo refused");
    assert!(
        refused.contains("Read-only file system") && refused.ends_with("refused\n"),
        "{refused}"
    );
}

/// Databases with a rollback journal and with a write-ahead log, the latter also as a crash leaves it.
const DATABASES: &str = r#"
fill="CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 20000) INSERT INTO t SELECT i, hex(i*i) FROM n;
CREATE INDEX v ON t(v);"
sqlite3 rollback.db "$fill"
sqlite3 wal.db "PRAGMA journal_mode=WAL; $fill" >/dev/null
sqlite3 logged.db "PRAGMA journal_mode=WAL; CREATE TABLE early(x);" ".dbconfig no_ckpt_on_close on" "$fill" >/dev/null
test -s logged.db-wal
cp logged.db crashed.db
cp logged.db-wal crashed.db-wal
sqlite3 hot.db "$fill" "PRAGMA cache_size=5; BEGIN; UPDATE t SET v='';" \
    ".shell cp hot.db copy.db && cp hot.db-journal copy.db-journal" "ROLLBACK;"
mv copy.db hot.db
mv copy.db-journal hot.db-journal
"#;

#[test]
fn sqlite_reads_databases_of_every_sort() {
    let twin = Twin::of(DATABASES, "nosuid");
    let mut said = String::new();
    for database in ["rollback", "wal", "logged", "crashed", "hot"] {
        for way in ["?mode=rw", "?mode=ro", "?immutable=1"] {
            for mapped in [0, 1 << 28] {
                let script = format!(
                    "echo {database}{way} mapped {mapped}
                    sqlite3 'file:{database}.db{way}' 'PRAGMA mmap_size={mapped}; PRAGMA integrity_check;
                        SELECT count(*), sum(length(v)) FROM t; SELECT v FROM t WHERE k = 777;
                        SELECT count(*) FROM t WHERE v > 39' 2>&1 || true
                    sqlite3 'file:{database}.db{way}' 'INSERT INTO t VALUES(0, 0)' 2>&1 || true"
                );
                said += &assert_same(twin.mount.root(), twin.disk.root(), &script);
            }
        }
    }
    let found = |what: &str| said.matches(what).count();
    // What a read-only file system lets SQLite do at all.
    assert!(found("\nok\n20000|") == 12, "{said}");
    assert!(found("mapped 268435456\n268435456\nok\n20000|") == 6, "{said}");
    assert!(found("readonly database") + found("unable to open") >= 12, "{said}");
}
