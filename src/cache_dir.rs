//! What holds for every directory of the cache.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A temporary file this old has no writer any more: he was killed.
const STALE: Duration = Duration::from_secs(60 * 60);

/// Whether a temporary file that was last written at `modified` belongs to nobody any more.
pub(crate) fn is_stale(modified: SystemTime, now: SystemTime) -> bool {
    now.duration_since(modified).is_ok_and(|age| age > STALE)
}

/// Removes the temporary files in `dir` whose writers were killed. What cannot be removed stays.
pub(crate) fn remove_stale(dir: &Path) {
    let now = SystemTime::now();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let temporary = entry.file_name().to_str().is_some_and(|name| name.ends_with(".tmp"));
        // Of the link, where it is one.
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        if temporary && modified.is_ok_and(|at| is_stale(at, now)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether what lies in `dir` may be used although nothing can be written there because of `error`. Only of ourselves or
/// root: indexes are believed.
pub(crate) fn is_read_only(dir: &Path, error: &io::Error) -> bool {
    let forbidden = matches!(
        error.kind(),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
    );
    let ours = |owner| owner == 0 || owner == nix::unistd::geteuid().as_raw();
    forbidden
        && fs::metadata(dir).is_ok_and(|metadata| metadata.is_dir() && ours(metadata.uid()))
        && fs::read_dir(dir).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_temporary_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - 2 * STALE;
        for (name, at) in [
            ("a.1-2.tmp", old),
            ("b.1-2.tmp", SystemTime::now()),
            ("c.index", old),
            ("d", old),
        ] {
            let file = fs::File::create(dir.path().join(name)).unwrap();
            file.set_modified(at).unwrap();
        }
        fs::create_dir(dir.path().join("e.tmp")).unwrap();
        remove_stale(dir.path());
        remove_stale(&dir.path().join("nowhere"));
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["b.1-2.tmp", "c.index", "d", "e.tmp"]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_read_if_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let read_only = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        assert!(is_read_only(dir.path(), &read_only));
        assert!(!is_read_only(&dir.path().join("nowhere"), &read_only));
        assert!(!is_read_only(dir.path(), &io::ErrorKind::StorageFull.into()));
    }
}
