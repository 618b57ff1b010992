//! The Debian image twice: mounted, and as umoci unpacks it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::support::fixtures::{Served, debian};
use crate::support::{Mount, run};

/// A mount of the Debian image without `layers`.
pub struct Debian {
    /// The mount.
    pub mount: Mount,
    _served: Served,
}

impl Debian {
    /// The mount that all tests share that run at the same time: what one has read need not be decoded for another.
    pub fn get() -> Arc<Debian> {
        static SHARED: Mutex<Weak<Debian>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(debian) = shared.upgrade() {
            return debian;
        }
        let served = Served::debian();
        let mount = Mount::of(served.reference()).cache(&unpacked().path.join("cache"));
        let debian = Arc::new(Debian {
            // Until the layers are known, the root's attributes are provisional.
            mount: mount.with(["--no-layers", "--index"]).start(),
            _served: served,
        });
        *shared = Arc::downgrade(&debian);
        debian
    }

    /// The same, unpacked.
    pub fn truth(&self) -> PathBuf {
        unpacked().path.join("bundle/rootfs")
    }
}

/// A directory that is gone when this program has ended, however it ends.
struct Unpacked {
    path: PathBuf,
    /// Waits for the end of its standard input, which comes with ours, and removes the directory.
    _remover: Child,
}

/// Unpacks once for all tests of this program: it takes longer than most of them.
fn unpacked() -> &'static Unpacked {
    static UNPACKED: OnceLock<Unpacked> = OnceLock::new();
    UNPACKED.get_or_init(|| {
        let path = tempfile::tempdir().expect("a directory").keep();
        let unpacked = Unpacked {
            _remover: remover(&path),
            path,
        };
        let image = debian();
        let source = format!("{}:{}", image.layout.display(), image.tag);
        let bundle = unpacked.path.join("bundle");
        run(
            "umoci",
            &["unpack", "--image", &source, bundle.to_str().expect("a name")],
        );
        unpacked
    })
}

fn remover(path: &Path) -> Child {
    use std::os::unix::process::CommandExt;
    Command::new("sh")
        .args(["-c", "read -r _; exec rm -rf --one-file-system \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Out of reach of a Ctrl-C, which ends us.
        .process_group(0)
        .spawn()
        .expect("sh")
}
