//! Everything that can be wrong with a registry, against everything that asks it.
//!
//! Whatever the fault, an operation gives what is right or says EIO within the deadline (a mount: a sentence and an exit
//! code), and is right on the same mount as soon as the fault is gone.

use std::fmt::Write as _;

use std::process::{Child, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::fixtures::Served;
use crate::support::mount::Failure;
use crate::support::*;
use peelfs::digest::Digest;

/// `--timeout` of these mounts, and how much longer an operation may take to hear of it on a busy machine.
const DEADLINE: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(10);

/// Rows of the table that are tried at once: they wait more than they work.
const AT_ONCE: usize = 8;

use Listener::{Elsewhere, Registry as Home};
use Outcome::{Fails, Right};

/// What is to become of an operation while the fault is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// It gives what is right.
    Right,
    /// EIO.
    Fails,
    /// It gives what is right or EIO, which depends on what comes first.
    Either,
}

struct Row {
    fault: &'static str,
    set: fn(&Registry),
    mount: Outcome,
    files: Outcome,
}

const fn row(fault: &'static str, mount: Outcome, files: Outcome, set: fn(&Registry)) -> Row {
    Row {
        fault,
        set,
        mount,
        files,
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("unplugged", Fails, Fails, |r| r.faults().line(Line::Unplugged)),
    row("stalled", Fails, Fails, |r| r.faults().line(Line::Stalled)),
    row("500", Fails, Fails, |r| r.faults().status(Some(500))),
    row("404", Fails, Fails, |r| r.faults().status(Some(404))),
    row("403", Fails, Fails, |r| r.faults().status(Some(403))),
    row("429", Fails, Fails, |r| r.faults().status(Some(429))),
    row("204", Fails, Fails, |r| r.faults().status(Some(204))),
    row("416", Fails, Fails, |r| r.faults().status(Some(416))),
    row("manifests: 503", Fails, Right, |r| r.faults().refuse(Part::Manifests, Some(503))),
    row("blobs: 503", Fails, Fails, |r| r.faults().refuse(Part::Blobs, Some(503))),
    row("blobs: 404", Fails, Fails, |r| r.faults().refuse(Part::Blobs, Some(404))),
    row("503, come back in a minute", Fails, Fails, |r| {
        r.faults().status(Some(503));
        r.faults().retry_after(Some(RetryAfter::Seconds(60)));
    }),
    row("429, come back at a date", Fails, Fails, |r| {
        r.faults().status(Some(429));
        r.faults().retry_after(Some(RetryAfter::Date(MINUTE)));
    }),
    row("answers late", Right, Right, |r| r.faults().delay(Some(Duration::from_millis(100)))),
    row("answers far too late", Fails, Fails, |r| r.faults().delay(Some(MINUTE))),
    row("drips", Fails, Fails, |r| r.faults().drip(Some(8))),
    row("cuts at once", Fails, Fails, |r| r.faults().truncate(Some(0))),
    row("cuts", Right, Right, |r| r.faults().truncate(Some(500_000))),
    row("resets at once", Fails, Fails, |r| r.faults().reset_after(Some(0))),
    row("resets", Right, Right, |r| r.faults().reset_after(Some(500_000))),
    row("no ranges", Right, Right, |r| r.faults().ignore_ranges(true)),
    row("no ranges and no length", Right, Right, |r| {
        r.faults().ignore_ranges(true);
        r.faults().head(Some(Head::Http10WithoutLength));
    }),
    row("other bytes than asked for", Right, Fails, |r| r.faults().head(Some(Head::ShiftedRange))),
    row("a blob of another size", Right, Fails, |r| r.faults().head(Some(Head::WrongTotal))),
    row("length too long", Fails, Fails, |r| r.faults().head(Some(Head::LongerLength))),
    row("length too short", Fails, Fails, |r| r.faults().head(Some(Head::ShorterLength))),
    row("another digest", Fails, Right, |r| r.faults().head(Some(Head::WrongDigest))),
    row("encoded", Right, Fails, |r| r.faults().head(Some(Head::Gzip))),
    row("HTTP/1.0", Right, Right, |r| r.faults().head(Some(Head::Http10))),
    row("HTTP/1.0 without a length", Right, Right, |r| r.faults().head(Some(Head::Http10WithoutLength))),
    row("chunked", Right, Right, |r| r.faults().head(Some(Head::Chunked))),
    row("redirected here", Right, Right, |r| r.redirects().lead(&[Home])),
    row("redirected elsewhere", Right, Right, |r| r.redirects().lead(&[Elsewhere])),
    row("redirected there and back", Right, Right, |r| r.redirects().lead(&[Elsewhere, Home])),
    row("10 redirects", Right, Right, |r| r.redirects().lead(&[Elsewhere; 10])),
    row("11 redirects", Fails, Fails, |r| r.redirects().lead(&[Elsewhere; 11])),
    row("redirects in circles", Fails, Fails, |r| r.redirects().circle(&[Elsewhere, Home])),
    row("a URL is good once", Right, Right, |r| {
        r.redirects().lead(&[Elsewhere]);
        r.redirects().uses(Some(1));
    }),
    row("no URL is good", Fails, Fails, |r| {
        r.redirects().lead(&[Elsewhere]);
        r.redirects().uses(Some(0));
    }),
    row("wants tokens", Right, Right, |r| r.guard().tokens()),
    row("tokens are short-lived", Outcome::Either, Outcome::Either, |r| {
        r.guard().tokens();
        r.guard().uses(Some(2));
    }),
    row("wants tokens, the realm is down", Fails, Fails, |r| {
        r.guard().tokens();
        r.faults().refuse(Part::Tokens, Some(503));
    }),
    row("wants tokens, the realm is silent", Fails, Fails, |r| {
        r.guard().tokens();
        r.faults().hold(Some(Part::Tokens));
    }),
    row("wants tokens and refuses them", Fails, Fails, |r| {
        r.guard().tokens();
        r.guard().uses(Some(0));
    }),
    row("wants tokens that cost a password", Fails, Fails, |r| r.guard().tokens_for("user", "password")),
    row("wants a password", Fails, Fails, |r| r.guard().basic("user", "password")),
];

/// Two layers that nobody has indexed, and two whose index is kept, but not a byte of their blobs.
struct Prepared {
    layout: tempfile::TempDir,
    indexes: tempfile::TempDir,
    operations: Vec<(&'static str, Vec<String>, String)>,
}

fn sha256(content: &Content) -> String {
    Digest::sha256(&content.bytes()).hex()
}

fn prepare() -> Prepared {
    let padding = |seed| Entry::file("padding", Content::noise(seed, 1_500_000));
    let looked_up = Layer::of([
        padding(1),
        Entry::dir("dir"),
        Entry::file("dir/file", Content::noise(2, 12_345)),
    ]);
    let names: Vec<String> = (0..60).map(|number| format!("file-{number:02}")).collect();
    let listed = names
        .iter()
        .zip(3..)
        .map(|(name, seed)| Entry::file(format!("dir/{name}"), Content::noise(seed, 20_000)));
    let listed = Layer::of([Entry::dir("dir")].into_iter().chain(listed));
    let (cold, large) = (Content::noise(100, 100_000), Content::noise(101, 4_000_000));
    let indexed = || {
        [
            Layer::of([
                padding(102),
                Entry::file("cold", cold.clone()),
                Entry::file("more", Content::noise(103, 500_000)),
            ]),
            Layer::of([padding(104), Entry::file("large", large.clone())]),
        ]
    };

    let layout = tempfile::tempdir().unwrap();
    let write = |image: ImageBuilder, tag| image.write(layout.path(), tag).unwrap();
    write(ImageBuilder::of(indexed()), "indexed");
    write(
        ImageBuilder::of([looked_up, listed].into_iter().chain(indexed())),
        "all",
    );
    let indexes = tempfile::tempdir().unwrap();
    let registry = Registry::of([("made", layout.path())]);
    Mount::of(format!("{}/made:indexed", registry.address()))
        .cache(indexes.path())
        .with(["--index"])
        .start()
        .unmount();

    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let operations = vec![
        (
            "lookup",
            words(&["stat", "-c", "%s", "layers/0/dir/file"]),
            "12345".into(),
        ),
        ("readdir", words(&["ls", "layers/1/dir"]), names.join("\n")),
        ("cold read", words(&["sha256sum", "layers/2/cold"]), sha256(&cold)),
        (
            "sequential read",
            words(&["sha256sum", "layers/3/large"]),
            sha256(&large),
        ),
    ];
    Prepared {
        layout,
        indexes,
        operations,
    }
}

/// An operation on a mount, in a process of its own.
struct Running {
    name: &'static str,
    expected: String,
    child: Option<Child>,
    /// How it ended, and after how long.
    ended: Option<(Output, Duration)>,
}

impl Prepared {
    fn reference(&self, registry: &Registry) -> String {
        format!("{}/made:all", registry.address())
    }

    fn mount(&self, registry: &Registry) -> mount::MountBuilder {
        Mount::of(self.reference(registry)).with(["--timeout", "2"])
    }

    /// A cache with the indexes of the last two layers and nothing else.
    fn cache(&self) -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        run(
            "cp",
            &[
                "-a".as_ref(),
                self.indexes.path().join("index").as_os_str(),
                cache.path().as_os_str(),
            ],
        );
        cache
    }

    fn start(&self, mount: &Mount) -> Vec<Running> {
        let start = |(name, words, expected): &(&'static str, Vec<String>, String)| {
            let (path, arguments) = words[1..].split_last().unwrap();
            let path = mount.path(path).to_str().unwrap().to_string();
            let arguments: Vec<_> = arguments.iter().chain([&path]).collect();
            (*name, crate::support::start(&words[0], &arguments), expected.clone())
        };
        self.operations
            .iter()
            .map(start)
            .map(|(name, child, expected)| Running {
                name,
                expected,
                child: Some(child),
                ended: None,
            })
            .collect()
    }
}

/// Returns when all have ended, or `within` is over. What they say fits into a pipe.
fn wait(running: &mut [Running], since: Instant, within: Duration) {
    eventually("operations end, or their time does", within + MINUTE, || {
        for one in running.iter_mut() {
            if let Some(child) = &mut one.child
                && child.try_wait().unwrap().is_some()
            {
                let took = since.elapsed();
                one.ended = Some((one.child.take().unwrap().wait_with_output().unwrap(), took));
            }
        }
        (running.iter().all(|one| one.child.is_none()) || since.elapsed() > within).then_some(())
    });
}

impl Running {
    /// What is wrong with how it went.
    fn complaint(&self, wanted: Outcome) -> Option<String> {
        let Some((output, took)) = &self.ended else {
            return Some(format!("{} hangs", self.name));
        };
        let said = String::from_utf8_lossy(&output.stderr);
        let (what, allowed) = if output.status.success() {
            let given = String::from_utf8_lossy(&output.stdout);
            let given = given.split("  ").next().unwrap_or_default().trim_end();
            match given == self.expected {
                true => ("is right", wanted != Fails),
                false => ("is WRONG", false),
            }
        } else {
            match said.contains("Input/output error") {
                true => ("fails", wanted == Fails || wanted == Outcome::Either),
                false => ("fails with something else than EIO", false),
            }
        };
        (!allowed).then(|| format!("{} {what} after {took:.1?}: {said}", self.name))
    }
}

/// What is wrong with how a mount went.
fn mount_complaint(result: &Result<Mount, Failure>, took: Duration, wanted: Outcome) -> Option<String> {
    let (what, allowed) = match result {
        Ok(_) => ("succeeds", wanted != Fails),
        Err(Failure { status, said }) => {
            let sentence = said.lines().any(|line| line.starts_with("peelfs: ") && line.len() > 40);
            match status.code() == Some(3) && sentence {
                true => ("fails", wanted != Right),
                false => ("fails without a sentence or with another exit code", false),
            }
        }
    };
    let said = result
        .as_ref()
        .err()
        .map(|failure| failure.to_string())
        .unwrap_or_default();
    (!allowed || took > DEADLINE + SLACK).then(|| format!("mount {what} after {took:.1?}: {said}"))
}

/// Everything that is not as the row wants it.
fn try_row(row: &Row, prepared: &Prepared) -> Vec<String> {
    let registry = Registry::of([("made", prepared.layout.path())]);
    let cache = prepared.cache();
    let mount = prepared.mount(&registry).cache(cache.path()).start();
    let mut complaints = Vec::new();

    (row.set)(&registry);
    let since = Instant::now();
    let mut running = prepared.start(&mount);
    let result = prepared.mount(&registry).try_start();
    complaints.extend(mount_complaint(&result, since.elapsed(), row.mount));
    drop(result);
    wait(&mut running, since, DEADLINE + SLACK);
    complaints.extend(running.iter().filter_map(|one| one.complaint(row.files)));

    registry.heal();
    let mut say = |what: String| complaints.push(format!("afterwards, {what}"));
    let since = Instant::now();
    let mut again = prepared.start(&mount);
    let result = prepared.mount(&registry).try_start();
    mount_complaint(&result, since.elapsed(), Right)
        .into_iter()
        .for_each(&mut say);
    wait(&mut again, since, DEADLINE + SLACK);
    again.iter().filter_map(|one| one.complaint(Right)).for_each(&mut say);
    if !complaints.is_empty() {
        complaints.push(format!("{}\n{}", mount.log(), registry.log()));
    }
    complaints
}

#[test]
fn whatever_is_wrong_an_operation_is_right_or_says_so_and_is_right_afterwards() {
    let prepared = prepare();
    let next = AtomicUsize::new(0);
    let complaints = Mutex::new(String::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(row) = TABLE.get(next.fetch_add(1, Ordering::Relaxed)) {
                    for complaint in try_row(row, &prepared) {
                        writeln!(complaints.lock().unwrap(), "{}: {complaint}", row.fault).unwrap();
                    }
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "{complaints}");
}

/// An image of layers with a file `NUMBER` each, mounted.
fn layers(layers: u64, arguments: &[&str]) -> (Served, Mount) {
    let layer = |number: u64| Layer::of([Entry::file(number.to_string(), Content::noise(number, 300_000))]);
    let served = Served::made(&ImageBuilder::of((0..layers).map(layer)));
    let mount = Mount::of(served.reference()).with(arguments.iter().copied()).start();
    served.registry.log().clear();
    (served, mount)
}

/// When requests for blobs and for manifests came, by the registry's clock.
fn times(registry: &Registry) -> Vec<Instant> {
    registry.log().requests().iter().map(|request| request.at).collect()
}

#[test]
fn who_asks_to_be_left_alone_is_left_alone_for_so_long() {
    for (status, retry_after, least) in [
        (503, RetryAfter::Seconds(2), Duration::from_secs(2)),
        (429, RetryAfter::Date(Duration::from_secs(3)), Duration::from_secs(2)),
    ] {
        let (served, mount) = layers(1, &["--timeout", "20"]);
        let (registry, faults) = (&served.registry, served.registry.faults());
        faults.refuse(Part::Blobs, Some(status));
        faults.retry_after(Some(retry_after));
        let reader = start("sha256sum", &[mount.path("0")]);
        eventually("a refusal", MINUTE, || {
            let requests = registry.log().requests();
            requests.first().filter(|request| request.status() == status).map(drop)
        });
        faults.clear();
        assert!(reader.wait_with_output().unwrap().status.success(), "{}", mount.log());
        let times = times(registry);
        let waited = times[1] - times[0];
        assert!(
            waited >= least && waited < least + SLACK,
            "{retry_after:?}: {waited:?}\n{}",
            registry.log()
        );
        // Status counts what was asked, the refused one too.
        let log = registry.log();
        let refused = log
            .requests()
            .iter()
            .filter(|request| request.status() == status)
            .count() as u64;
        let throttled = if status == 429 { refused } else { 0 };
        let told = mount.status();
        assert_eq!(
            (told.requests, told.retries, told.throttled),
            (log.len() as u64, refused, throttled),
            "{log}"
        );
        let text = peelfs().arg("status").arg(mount.root()).output().unwrap().stdout;
        let line = format!("retried     {refused} requests; {throttled} were answered with 429");
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains(&line), "{text}");
        let said = mount.log().matches(" is asked too often: ").count();
        assert_eq!(said, usize::from(status == 429), "{}", mount.log());
    }
}

#[test]
fn others_leave_it_alone_too() {
    let (served, mount) = layers(4, &["--timeout", "20"]);
    let (registry, faults) = (&served.registry, served.registry.faults());
    faults.refuse(Part::Blobs, Some(503));
    faults.retry_after(Some(RetryAfter::Seconds(3)));
    let mut readers = vec![start("sha256sum", &[mount.path("layers/0/0")])];
    eventually("a refusal", MINUTE, || {
        let requests = registry.log().requests();
        requests.first().filter(|request| request.status() == 503).map(drop)
    });
    faults.clear();
    readers.extend((1..4).map(|number| start("sha256sum", &[mount.path(format!("layers/{number}/{number}"))])));
    for reader in readers {
        assert!(reader.wait_with_output().unwrap().status.success(), "{}", mount.log());
    }
    let times = times(registry);
    assert!(
        times[1] - times[0] >= Duration::from_secs(3),
        "{:?}\n{}",
        times[1] - times[0],
        registry.log()
    );
}

#[test]
fn a_mount_leaves_alone_who_asks_for_it() {
    let (served, _) = layers(1, &[]);
    let (registry, faults) = (&served.registry, served.registry.faults());
    faults.refuse(Part::Manifests, Some(429));
    faults.retry_after(Some(RetryAfter::Seconds(2)));
    let mounted = std::thread::scope(|scope| {
        let mounting = scope.spawn(|| Mount::of(served.reference()).with(["--timeout", "20"]).try_start());
        eventually("a refusal", MINUTE, || {
            let requests = registry.log().requests();
            requests.first().filter(|request| request.status() == 429).map(drop)
        });
        faults.clear();
        mounting.join().unwrap()
    });
    assert!(mounted.is_ok(), "{mounted:?}", mounted = mounted.err());
    let times = times(registry);
    assert!(
        times[1] - times[0] >= Duration::from_secs(2),
        "{:?}",
        times[1] - times[0]
    );
}
