//! A mount under everything at once, for as long as one likes: readers that never stop, a registry that fails in every
//! way it can, a cache that is too small, and a daemon that is killed now and then. `scripts/soak` runs it.
//!
//! Every byte, list and attribute that a reader gets is compared with what umoci and GNU tar make of the same image. An
//! I/O error is right while something is wrong with the registry, and shortly after; anything else never is. For the
//! second half of the time one daemon lives on, and must end with as many files, threads and bytes as it began with.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::fixtures::debian;
use crate::support::image::BuiltImage;
use crate::support::*;

const READERS: u64 = 8;

/// How long after the last fault a read may still fail: `--timeout`, and the backoff that a retry may be in.
const GRACE: Duration = Duration::from_secs(6);

/// What takes longer than this has come to a halt.
const HANGS: Duration = Duration::from_secs(300);

/// What the daemon may have more of at the end: connections that are kept for the next request, threads of the runtime
/// that have not yet been idle long enough to end, what an allocator keeps, and the extents that a store keeps in memory when
/// all of its disk is in use by readers, as many bytes as `--memory` says: it keeps them until others take their place.
const MORE_FILES: usize = 8;
const MORE_THREADS: usize = 2;
const MORE_MEMORY: u64 = (24 + 8) << 20;

/// How long it may take to let go of them.
const SETTLED: Duration = Duration::from_secs(40);

/// For half a minute, or as long as `$PEELFS_SOAK` says, in seconds.
#[test]
fn nothing_wrong_is_ever_served_and_nothing_is_left_behind() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let length = Duration::from_secs(number("PEELFS_SOAK").unwrap_or(30));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("PEELFS_SOAK_SEED").unwrap_or(now);
    println!("soak: {length:?} with PEELFS_SOAK_SEED={seed}");

    let truth = tempfile::tempdir().unwrap();
    let image = debian();
    let world = World::of(&image, truth.path());
    let registry = Registry::of([("debian", image.layout.clone())]);
    let mut weather = Weather {
        dice: Dice::of(seed, 0),
        image: &image,
        reference: format!("{}/debian:{}", registry.address(), image.tag),
        cache: tempfile::tempdir().unwrap(),
        registry: &registry,
        world: &world,
        kills: 0,
        faults: 0,
    };
    std::thread::scope(|scope| {
        // Also where this thread panics: the scope waits for the readers.
        let _stop = Stop(&world.stop);
        for reader in 1..=READERS {
            let world = &world;
            scope.spawn(move || world.read_on(&mut Dice::of(seed, reader)));
        }
        let half = Instant::now() + length / 2;
        let mut mount = weather.mounted();
        while Instant::now() < half && world.is_right() {
            mount = weather.storm_with_kills(mount);
        }

        mount = weather.remounted(mount);
        weather.is_right_in(&world.roots[..1], "after the last kill");
        let before = Footprint::of(&mount);
        println!("soak: warm: {before:?}");
        let end = Instant::now() + length / 2;
        while Instant::now() < end && world.is_right() {
            weather.fault(&mount);
        }
        weather.calm();
        let calm = world.calm.load(Ordering::Relaxed);
        eventually("the readers read what they may not be refused", HANGS, || {
            (world.calm.load(Ordering::Relaxed) >= calm + READERS || !world.is_right()).then_some(())
        });
        world.stop.store(true, Ordering::Relaxed);
        weather.is_right_in(&world.roots, "after the last fault");

        println!("soak: nobody reads any more: {:?}", Footprint::of(&mount));
        let after = eventually("it has no more than when it was warm", SETTLED, || {
            Some(Footprint::of(&mount)).filter(|now| now.is_near(&before))
        });
        let (done, refused) = (
            world.done.load(Ordering::Relaxed),
            world.refused.load(Ordering::Relaxed),
        );
        println!(
            "soak: at the end: {after:?}\nsoak: {done} operations, {refused} of them I/O errors; {} faults, {} kills",
            weather.faults, weather.kills
        );
        assert!(done > 0, "nothing was read");
        if world.is_right() {
            mount.unmount();
        }
    });
    let wrong = world.wrong.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(wrong.is_empty(), "PEELFS_SOAK_SEED={seed}\n{}", wrong.join("\n"));
}

/// Tells the readers to stop when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Numbers that are the same each time for the same seed.
struct Dice(u64);

impl Dice {
    fn of(seed: u64, player: u64) -> Dice {
        let mut dice = Dice((seed ^ player.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        // The first numbers of seeds that are alike are alike.
        for _ in 0..8 {
            dice.roll(2);
        }
        dice
    }

    /// A number from 0 on, below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len() as u64) as usize]
    }
}

/// What the daemon has.
#[derive(Debug)]
struct Footprint {
    files: usize,
    threads: usize,
    memory: u64,
}

impl Footprint {
    fn of(mount: &Mount) -> Footprint {
        let count = |what: &str| {
            let dir = format!("/proc/{}/{what}", mount.pid());
            fs::read_dir(dir).map_or(0, Iterator::count)
        };
        Footprint {
            files: count("fd"),
            threads: count("task"),
            memory: mount.memory().anonymous,
        }
    }

    fn is_near(&self, before: &Footprint) -> bool {
        self.files <= before.files + MORE_FILES
            && self.threads <= before.threads + MORE_THREADS
            && self.memory <= before.memory + MORE_MEMORY
    }
}

/// The registry's faults, and the daemon's.
struct Weather<'a> {
    dice: Dice,
    image: &'a BuiltImage,
    reference: String,
    cache: tempfile::TempDir,
    registry: &'a Registry,
    world: &'a World,
    kills: u64,
    faults: u64,
}

impl Weather<'_> {
    /// A mount for the readers, with a cache that holds little of the image.
    fn mounted(&mut self) -> Mount {
        let size = format!("{}M", 2 + self.dice.roll(30));
        let mount = Mount::of(&*self.reference)
            .cache(self.cache.path())
            .with(["--timeout", "2", "--memory", "8M", "--cache-size", &size])
            .start();
        self.world
            .change(|now| now.mountpoint = Some(mount.root().to_path_buf()));
        mount
    }

    fn remounted(&mut self, mount: Mount) -> Mount {
        self.kills += 1;
        self.world.change(|now| {
            now.mountpoint = None;
            now.mounts += 1;
        });
        mount.crash_by_force();
        self.calm();
        self.mounted()
    }

    /// Some faults, and a kill in the middle of one or between two.
    fn storm_with_kills(&mut self, mount: Mount) -> Mount {
        for _ in 0..self.dice.roll(4) {
            self.fault(&mount);
        }
        if self.dice.roll(2) == 0 {
            self.begin(&mount);
        }
        self.lasts(150);
        self.remounted(mount)
    }

    /// A fault that comes and goes.
    fn fault(&mut self, mount: &Mount) {
        self.lasts(150);
        self.begin(mount);
        self.lasts(60);
        self.calm();
    }

    /// Lets the readers do something, fewer things than `most`.
    fn lasts(&mut self, most: u64) {
        let until = self.world.done.load(Ordering::Relaxed) + self.dice.roll(most);
        eventually("the readers go on", HANGS, || {
            (self.world.done.load(Ordering::Relaxed) >= until || !self.world.is_right()).then_some(())
        });
    }

    fn begin(&mut self, mount: &Mount) {
        self.faults += 1;
        self.world.change(|now| now.fault());
        let (dice, faults) = (&mut self.dice, self.registry.faults());
        let indexed = || mount.status().layers.iter().all(|layer| layer.index == "complete");
        let fault = match dice.roll(8) {
            0 => {
                faults.line(Line::Unplugged);
                "an unplugged line".into()
            }
            1 => {
                faults.line(Line::Stalled);
                "a stalled line".into()
            }
            2 => {
                let bytes = dice.roll(4 << 20);
                faults.stall_after(bytes);
                format!("a line that stalls after {bytes} bytes")
            }
            3 => {
                let bytes = 1 + dice.roll(300_000);
                faults.truncate(Some(bytes));
                format!("answers of {bytes} bytes")
            }
            4 => {
                faults.ignore_ranges(true);
                "no ranges".into()
            }
            // Of a layer without an index, wrong bytes are served as they come: that is what `--verify full` is for.
            5 if indexed() => {
                for layer in &self.image.layers {
                    (0..64).for_each(|_| faults.flip(&layer.digest, dice.roll(layer.size)));
                }
                "wrong bytes".into()
            }
            _ => {
                let status = *dice.pick(&[404, 429, 500, 503]);
                faults.status(Some(status));
                format!("status {status}")
            }
        };
        self.world.change(|now| now.last_fault = fault);
    }

    fn calm(&mut self) {
        self.registry.faults().clear();
        self.world.change(|now| now.calm());
    }

    /// Reads all there is. No error is right.
    fn is_right_in(&self, roots: &[Root], when: &str) {
        let mountpoint = self.world.now().mountpoint.expect("a mount");
        for root in roots {
            let found = sum(&mountpoint.join(&root.shown));
            assert!(found == root.sum, "all of {:?} {when}", root.shown);
        }
    }
}

/// What the readers read, and what they have to know to judge it.
struct World {
    roots: Vec<Root>,
    now: RwLock<Now>,
    stop: AtomicBool,
    wrong: Mutex<Vec<String>>,
    /// What the readers have done ...
    done: AtomicU64,
    /// ... of that, what nothing was wrong with that could excuse an error ...
    calm: AtomicU64,
    /// ... and what ended with an error.
    refused: AtomicU64,
}

/// A directory of the mount, and the same as others unpack it.
struct Root {
    shown: PathBuf,
    truth: PathBuf,
    files: Vec<PathBuf>,
    directories: Vec<PathBuf>,
    sum: Vec<u8>,
}

/// A digest of all that is in a directory.
fn sum(dir: &Path) -> Vec<u8> {
    let script = "set -o pipefail; cd \"$0\" && \
        tar --create --sort=name --numeric-owner --mtime=@0 --exclude=./layers . | sha256sum";
    run("bash", &["-c".as_ref(), script.as_ref(), dir.as_os_str()])
}

impl Root {
    fn of(shown: impl Into<PathBuf>, truth: PathBuf) -> Root {
        let found = |kind: &str| -> Vec<PathBuf> {
            let arguments = [truth.as_os_str(), "-mindepth".as_ref(), "1".as_ref()];
            let printed = ["-type", kind, "-printf", "%P\\0"].map(OsStr::new);
            let paths = run("find", &[&arguments[..], &printed].concat());
            let paths = paths.split(|byte| *byte == 0).filter(|path| !path.is_empty());
            let mut paths: Vec<_> = paths.map(|path| OsStr::from_bytes(path).into()).collect();
            paths.sort();
            paths
        };
        Root {
            shown: shown.into(),
            files: found("f"),
            directories: found("d"),
            sum: sum(&truth),
            truth,
        }
    }
}

/// What there is to read at the moment.
#[derive(Clone)]
struct Now {
    mountpoint: Option<PathBuf>,
    /// How many daemons were killed.
    mounts: u64,
    /// How many faults there were.
    faults: u64,
    last_fault: String,
    /// Since when there is none; never, while there is one.
    calm: Option<Instant>,
}

impl Now {
    fn fault(&mut self) {
        self.faults += 1;
        self.calm = None;
    }

    fn calm(&mut self) {
        self.calm = Some(Instant::now());
    }
}

/// How the output of a program is compared.
enum Judged {
    /// Of a program that failed, what it wrote before is right as far as it goes.
    Bytes,
    /// In any order; of a program that failed, some may be missing.
    Lines,
    /// Only of a program that did not fail.
    Whole,
}

impl World {
    fn of(image: &BuiltImage, truth: &Path) -> World {
        let source = format!("{}:{}", image.layout.display(), image.tag);
        let bundle = truth.join("bundle");
        run("umoci", &["unpack", "--image", &source, bundle.to_str().unwrap()]);
        let mut roots = vec![Root::of("", bundle.join("rootfs"))];
        for (number, layer) in image.layers.iter().enumerate() {
            let dir = truth.join(number.to_string());
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let blob = image.layout.join("blobs/sha256").join(layer.digest.hex());
            let how = ["--extract", "--preserve-permissions", "--same-owner", "--numeric-owner"];
            let what = [
                "--directory".as_ref(),
                dir.as_os_str(),
                "--file".as_ref(),
                blob.as_os_str(),
            ];
            run("tar", &[&how.map(OsStr::new)[..], &what].concat());
            roots.push(Root::of(format!("layers/{number}"), dir));
        }
        World {
            roots,
            now: RwLock::new(Now {
                mountpoint: None,
                mounts: 0,
                faults: 0,
                last_fault: "none".into(),
                calm: Some(Instant::now()),
            }),
            stop: AtomicBool::new(false),
            wrong: Mutex::default(),
            done: AtomicU64::new(0),
            calm: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Now {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Now)) {
        change(&mut self.now.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn is_right(&self) -> bool {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Reads one thing after another until it is told to stop, or something is wrong.
    fn read_on(&self, dice: &mut Dice) {
        while !self.stop.load(Ordering::Relaxed) && self.is_right() {
            let before = self.now();
            let Some(mountpoint) = &before.mountpoint else {
                eventually("there is a mount again", HANGS, || {
                    (self.now().mountpoint.is_some() || self.stop.load(Ordering::Relaxed)).then_some(())
                });
                continue;
            };
            let root = dice.pick(&self.roots);
            let (judged, script, path) = operation(dice, root);
            let arguments = |dir: &Path| -> [OsString; 4] {
                let script = format!("cd \"$0\" && {script}");
                ["-c".into(), script.into(), dir.into(), path.into()]
            };
            let started = Instant::now();
            let found = attempt("bash", &arguments(&mountpoint.join(&root.shown)));
            let after = self.now();
            let expected = attempt("bash", &arguments(&root.truth));

            let killed = before.mounts != after.mounts;
            let calm = |now: &Now| now.calm.is_some_and(|since| started > since + GRACE);
            let troubled = !calm(&before) || !calm(&after) || before.faults != after.faults;
            match judge(judged, &found, &expected.stdout, troubled, killed) {
                Ok(()) => {}
                Err(reason) => {
                    let took = started.elapsed();
                    let line = format!(
                        "{reason}: {script} {} in {:?}, after {took:?}, the last fault being {} ({:?} ago); {} bytes, not {}; {}",
                        path.display(),
                        root.shown,
                        after.last_fault,
                        after.calm.map(|since| since.elapsed()),
                        found.stdout.len(),
                        expected.stdout.len(),
                        String::from_utf8_lossy(&found.stderr)
                    );
                    self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            }
            self.done.fetch_add(1, Ordering::Relaxed);
            self.calm.fetch_add(u64::from(!troubled && !killed), Ordering::Relaxed);
            if !found.status.success() {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Something to do with a path, `$1`.
fn operation<'a>(dice: &mut Dice, root: &'a Root) -> (Judged, String, &'a Path) {
    let file = dice.pick(&root.files);
    let directory = dice.pick(&root.directories);
    match dice.roll(8) {
        0 | 1 => (Judged::Bytes, "exec cat \"$1\"".into(), file),
        // Whatever was read goes from the kernel's cache again, so that the next reader asks the daemon.
        2 | 3 => {
            let (skip, count) = (dice.roll(3 << 20), dice.roll(1 << 20));
            let flags = "iflag=nocache,skip_bytes,count_bytes";
            let script = format!("exec dd if=\"$1\" bs=64k skip={skip} count={count} {flags} status=none");
            (Judged::Bytes, script, file)
        }
        4 => {
            let script = "dd if=\"$1\" iflag=nocache count=0 status=none && exec cat \"$1\"";
            (Judged::Bytes, script.into(), file)
        }
        5 => (Judged::Bytes, "exec stat --format='%f %u %g %s %Y' \"$1\"".into(), file),
        6 => {
            // What a file has a size and a time for, a directory need not.
            let script = "exec find \"$1\" -printf '%y %m %U %G %l %p\\n'";
            (Judged::Lines, script.into(), directory)
        }
        _ => {
            let list = "find \"$1\" -maxdepth 1 -print0 | sort --zero-terminated";
            let pack = "tar --create --numeric-owner --mtime=@0 --no-recursion --null --files-from=-";
            let script = format!("set -o pipefail; {list} | {pack}");
            (Judged::Whole, script, directory)
        }
    }
}

/// The path that a line of find's complaints is about.
fn named(complaint: &str) -> Option<&str> {
    Some(complaint.strip_prefix("find: '")?.split_once("': ")?.0)
}

/// What is wrong with how a program ended and what it wrote.
fn judge(judged: Judged, found: &Output, expected: &[u8], troubled: bool, killed: bool) -> Result<(), String> {
    let status = found.status;
    if matches!(status.code(), Some(124 | 137) | None) {
        return Err(format!("it hung: {status}"));
    }
    let lines =
        |bytes: &[u8]| -> BTreeSet<Vec<u8>> { bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect() };
    if status.success() && !killed {
        let same = match judged {
            Judged::Lines => lines(&found.stdout) == lines(expected),
            Judged::Bytes | Judged::Whole => found.stdout == expected,
        };
        return if same {
            Ok(())
        } else {
            Err("wrong, without an error".into())
        };
    }
    let said = String::from_utf8_lossy(&found.stderr).into_owned();
    let fair = match judged {
        Judged::Bytes => expected.starts_with(&found.stdout),
        // find says so where it could not read a link, and lists it without what it points to.
        Judged::Lines => lines(&found.stdout).difference(&lines(expected)).all(|line| {
            said.lines()
                .filter_map(named)
                .any(|path| line.ends_with(path.as_bytes()))
        }),
        Judged::Whole => true,
    };
    if !fair {
        return Err("wrong, with an error".into());
    }
    if killed {
        return Ok(());
    }
    // What tar says of an error in the middle of a block.
    let known = ["Input/output error", "Exiting with failure status", ": File shrank by "];
    let other = said
        .lines()
        .find(|line| !known.iter().any(|known| line.contains(known)));
    match other {
        _ if !troubled => Err(format!("an error, and nothing was wrong: {status}")),
        Some(line) => Err(format!("an error that is not one of input and output: {line}")),
        None => Ok(()),
    }
}
