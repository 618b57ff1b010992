//! Layers that are large in one way each: many entries, many children, deep, long, or many of them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::support::*;
use flate2::write::GzEncoder;
use peelfs::digest::Digest;
use tempfile::TempDir;

/// What the daemon may have in anonymous memory for a layer of a few entries, whatever their size.
const SMALL: u64 = 128 << 20;

/// A layout with one image, and a cache that its mounts share.
struct Made {
    layout: TempDir,
    cache: TempDir,
}

impl Made {
    fn of(layers: impl IntoIterator<Item = Layer>) -> Made {
        let layout = tempfile::tempdir().unwrap();
        ImageBuilder::of(layers).write(layout.path(), "latest").unwrap();
        let cache = tempfile::tempdir().unwrap();
        Made { layout, cache }
    }

    fn mount(&self) -> mount::MountBuilder {
        Mount::of(format!("oci:{}", self.layout.path().display())).cache(self.cache.path())
    }
}

/// The output of a shell command in the mount, which must succeed.
#[track_caller]
fn inside(mount: &Mount, command: &str) -> String {
    let script = format!("cd \"$0\" && {command}");
    let output = run("sh", &["-c".as_ref(), script.as_ref(), mount.root().as_os_str()]);
    String::from_utf8(output).unwrap().trim().to_string()
}

/// The output of a Python program in the mount, which must succeed.
#[track_caller]
fn python(mount: &Mount, program: &str) -> String {
    let program = format!("import os, sys\nos.chdir(sys.argv[1])\n{program}");
    let output = run("python3", &["-c".as_ref(), program.as_ref(), mount.root().as_os_str()]);
    String::from_utf8(output).unwrap().trim().to_string()
}

#[track_caller]
fn assert_refused(mount: &Mount, path: &str, word: &str) {
    let output = attempt("ls", &["-l".as_ref(), mount.path(path).as_os_str()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("Input/output error"),
        "{said}"
    );
    let reason = mount.status().last_error.unwrap_or_default();
    assert!(reason.contains(word), "{reason:?}");
}

/// A gzip layer of `dirs` directories with `files` empty files each: `dNNNN/fNNNNNN`.
fn many(dirs: usize, files: usize) -> Layer {
    let dir = RawTar::new().dir("d0000/").unended();
    let file = RawTar::new().file("d0000/f000000", "").unended();
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    let mut hasher = Digest::sha256(b"").hasher();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        gzip.write_all(bytes).unwrap();
    };
    // Another name in a header that is there; its checksum changes by what the name's digits do.
    let named = |template: &[u8], name: &str| {
        let mut header = template.to_vec();
        let digits = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let sum = u32::from_str_radix(std::str::from_utf8(&header[148..154]).unwrap(), 8).unwrap();
        let sum = sum - digits(&header[..name.len()]) + digits(name.as_bytes());
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        header
    };
    for number in 0..dirs {
        put(&named(&dir, &format!("d{number:04}/")));
        let mut batch = Vec::with_capacity(files * 512);
        for other in 0..files {
            batch.extend(named(&file, &format!("d{number:04}/f{other:06}")));
        }
        put(&batch);
    }
    put(&[0; 1024]);
    let blob = gzip.finish().unwrap();
    Layer::blob_of(blob, hasher.finish())
}

#[test]
fn a_million_entries_are_found_and_take_bounded_memory() {
    let made = Made::of([many(1000, 999)]);
    let mount = made.mount().start();
    assert_eq!(inside(&mount, "find layers/0 -mindepth 1 | wc -l"), "1000000");
    let scanned = mount.memory();
    assert!(scanned.peak < 600 << 20, "while it is scanned: {scanned:?}");
    mount.unmount();
    let mount = made.mount().start();
    assert_eq!(mount.status().layers[0].index, "complete");
    assert_eq!(mount.status().layers[0].entries, 1_000_001);
    assert_eq!(
        inside(&mount, "stat -c %s:%F d0000/f000000 d0999/f000998"),
        "0:regular empty file\n0:regular empty file"
    );
    let missing = attempt("stat", &[mount.path("d0999/f000999")]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("No such file"));
    assert_eq!(
        inside(&mount, "find . -path ./layers -prune -o -type f -print | wc -l"),
        "999000"
    );
    let memory = mount.memory();
    println!("scanned: {scanned:?}, from the index: {memory:?}");
    assert!(memory.peak < 250 << 20, "from the index: {memory:?}");
    mount.unmount();
}

#[test]
fn a_directory_of_200000_children_lists_each_of_them_once() {
    let made = Made::of([many(1, 200_000)]);
    // The second mount has an index.
    for _ in 0..2 {
        let mount = made.mount().start();
        for dir in ["d0000", "layers/0/d0000"] {
            assert_eq!(inside(&mount, &format!("ls -U {dir} | sort -u | wc -l")), "200000");
        }
        // As many calls as possible: a buffer of 512 bytes holds 16 names.
        let program = "
import ctypes, platform, struct
number = {'x86_64': 217, 'aarch64': 61}[platform.machine()]
call = ctypes.CDLL(None, use_errno=True).syscall
fd = os.open('d0000', os.O_RDONLY | os.O_DIRECTORY)
buffer = ctypes.create_string_buffer(512)
names, calls = [], 0
while True:
    got = call(number, fd, buffer, 512)
    assert got >= 0, os.strerror(ctypes.get_errno())
    if got == 0: break
    calls, at = calls + 1, 0
    while at < got:
        length = struct.unpack_from('H', buffer.raw, at + 16)[0]
        names.append(buffer.raw[at + 19:at + length].split(b'\\0')[0])
        at += length
assert calls > 10000, calls
names = [name for name in names if name not in (b'.', b'..')]
print(len(names), len(set(names)))
";
        assert_eq!(python(&mount, program), "200000 200000");
        let found = inside(
            &mount,
            "for i in 0 99999 199999; do stat -c %n d0000/f$(printf %06d $i); done | wc -l",
        );
        assert_eq!(found, "3");
        mount.unmount();
    }
}

#[test]
fn a_path_of_a_thousand_and_of_two_thousand_directories_is_walked() {
    for depth in [1000, 2047] {
        // With the name of the file, 4095 bytes at most: what a path may have.
        let path = "d/".repeat(depth) + "f";
        let made = Made::of([Layer::of([Entry::file(&path, "the bottom\n")])]);
        // From the index on disk the second time.
        for _ in 0..2 {
            let mount = made.mount().start();
            for view in [".", "layers/0"] {
                let walk = format!(
                    "
fd = os.open('{view}', os.O_RDONLY)
for _ in range({depth}):
    below = os.open('d', os.O_RDONLY, dir_fd=fd)
    os.close(fd)
    fd = below
print(os.listdir(fd), os.read(os.open('f', os.O_RDONLY, dir_fd=fd), 99).decode(), end='')
"
                );
                assert_eq!(python(&mount, &walk), "['f'] the bottom");
            }
            assert_eq!(inside(&mount, "find d | wc -l"), (depth + 1).to_string());
            mount.unmount();
        }
    }
    // A byte more is left out with a warning, and the rest of the layer mounts.
    let longer = "d/".repeat(2047) + "fff";
    let made = Made::of([Layer::of([Entry::file(&longer, "x"), Entry::file("other", "y")])]);
    let mount = made.mount().start();
    assert_eq!(inside(&mount, "find layers/0 -mindepth 1 -printf '%P\\n'"), "other");
    assert!(mount.log().contains("4096"), "{}", mount.log());
}

/// Zeros in a multiple of this are made by repeating what the compressor made of it.
const UNIT: usize = 64 << 20;

/// A tar of one file `zeros` of `units * UNIT` zeros, in the middle of which nothing is ever made as a whole.
fn tar_of_zeros(units: usize) -> (Vec<u8>, Digest) {
    let size = (units * UNIT).to_string();
    // The size is in a PAX header, because the field has room for 8 GiB only.
    let head = RawTar::new()
        .pax(&[("size", size.as_bytes())])
        .file("zeros", "")
        .unended();
    let mut hasher = Digest::sha256(b"").hasher();
    hasher.update(&head);
    let zeros = vec![0; UNIT];
    (0..units).for_each(|_| hasher.update(&zeros));
    hasher.update(&[0; 1024]);
    (head, hasher.finish())
}

fn gzip(level: u32, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A long file of zeros is read at many places and grows neither the memory nor the store.
#[track_caller]
fn assert_zeros(name: &str, made: &Made, size: u64) {
    let cache_size = 3 << 20;
    let mut peaks = Vec::new();
    for _ in 0..2 {
        let mount = made.mount().with(["--cache-size", "3M"]).start();
        let path = mount.path("zeros");
        assert_eq!(fs::metadata(&path).unwrap().len(), size, "{name}");
        let file = File::open(&path).unwrap();
        let mut buffer = vec![1; 4096];
        let mut state = 9u64;
        let mut random = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 16) % (size - 4096)
        };
        for at in [
            0,
            size / 2,
            size - 4096,
            random(),
            random(),
            random(),
            random(),
            random(),
        ] {
            buffer.fill(1);
            file.read_exact_at(&mut buffer, at).unwrap();
            assert!(buffer.iter().all(|byte| *byte == 0), "{name} at {at}");
        }
        drop(file);
        let path = path.to_str().unwrap();
        run("cmp", &["-n", "100000000", path, "/dev/zero"]);
        let skip = (size - 1_000_000).to_string();
        run("cmp", &["-i", &format!("{skip}:0"), "-n", "1000000", path, "/dev/zero"]);
        // The whole layer has now been seen, in the first round by a scan.
        inside(&mount, "ls layers/0");
        peaks.push(mount.memory());
        assert!(mount.memory().peak < SMALL, "{name}: {:?}", mount.memory());
        mount.unmount();
    }
    println!("{name}: {peaks:?}");
    let mut stored = 0;
    let mut dirs = vec![made.cache.path().to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => stored += entry.metadata().unwrap().blocks() * 512,
            }
        }
    }
    // The index and the log are beside what is bounded.
    assert!(stored < cache_size + (6 << 20), "{name}: {stored} bytes are kept");
}

#[test]
fn gigabytes_of_zeros_in_little_gzip_are_read_in_bounded_memory() {
    let zeros = vec![0; UNIT];
    // The levels make blocks of different sizes.
    for (level, units) in [(1, 4), (6, 17), (9, 4)] {
        let (head, diff_id) = tar_of_zeros(units);
        let mut blob = gzip(level, &head);
        let member = gzip(level, &zeros);
        (0..units).for_each(|_| blob.extend_from_slice(&member));
        blob.extend(gzip(level, &[0; 1024]));
        assert!(blob.len() < 6_000_000, "{}", blob.len());
        let made = Made::of([Layer::blob_of(blob, diff_id)]);
        assert_zeros(&format!("gzip level {level}"), &made, (units * UNIT) as u64);
    }
    // And a member as long as the file.
    let (head, diff_id) = tar_of_zeros(8);
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(&head).unwrap();
    (0..8).for_each(|_| encoder.write_all(&zeros).unwrap());
    encoder.write_all(&[0; 1024]).unwrap();
    let made = Made::of([Layer::blob_of(encoder.finish().unwrap(), diff_id)]);
    assert_zeros("gzip of one member", &made, 8 * UNIT as u64);
}

#[test]
fn gigabytes_of_zeros_in_a_frame_are_read_in_bounded_memory() {
    let zeros = vec![0; UNIT];
    let (head, diff_id) = tar_of_zeros(16);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(&head).unwrap();
    (0..16).for_each(|_| encoder.write_all(&zeros).unwrap());
    encoder.write_all(&[0; 1024]).unwrap();
    let blob = encoder.finish().unwrap();
    assert!(blob.len() < 100_000, "{}", blob.len());
    let made = Made::of([Layer::blob_of(blob, diff_id)]);
    assert_zeros("zstd", &made, 16 * UNIT as u64);
}

#[test]
fn a_hole_of_100_gib_is_read_as_zeros() {
    let size = 100u64 << 30;
    let map = format!("0,3,{},4,{size},0", size - 4);
    let tar = RawTar::new()
        .pax(&[
            ("GNU.sparse.size", size.to_string().as_bytes()),
            ("GNU.sparse.numblocks", b"3"),
            ("GNU.sparse.map", map.as_bytes()),
        ])
        .file("hole", "onelast")
        .file("after", "after")
        .end();
    let made = Made::of([Layer::tar(tar)]);
    let mount = made.mount().start();
    let file = File::open(mount.path("hole")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    for (at, expected) in [
        (0, b"one\0"),
        (size / 2, &[0; 4]),
        (size - 5, b"\0las"),
        (size - 4, b"last"),
    ] {
        let mut read = [9; 4];
        file.read_exact_at(&mut read, at).unwrap();
        assert_eq!(&read, expected, "at {at}");
    }
    assert_eq!(mount.read("after"), b"after");
    let path = mount.path("hole");
    run(
        "cmp",
        &["-i", "3:0", "-n", "200000000", path.to_str().unwrap(), "/dev/zero"],
    );
    assert!(mount.memory().peak < SMALL, "{:?}", mount.memory());
}

#[test]
fn a_size_that_the_tar_does_not_have_is_an_error() {
    let size = (100u64 << 30).to_string();
    let tar = RawTar::new()
        .file("first", "first")
        .pax(&[("size", size.as_bytes())])
        .file("liar", "a few bytes")
        .end();
    let made = Made::of([Layer::tar(tar)]);
    let mount = made.mount().start();
    let output = mount.cat("liar");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Input/output error"),
        "{output:?}"
    );
    assert_refused(&mount, "layers/0", "cut off inside the data of a file");
    assert!(mount.memory().peak < SMALL, "{:?}", mount.memory());
}

#[test]
fn as_many_layers_as_may_be_are_mounted_and_one_more_is_refused() {
    let layer = |number: usize| {
        Layer::of([
            Entry::file("top", number.to_string()),
            Entry::file(format!("d/f{number}"), number.to_string()),
        ])
    };
    for count in [100, 128] {
        let made = Made::of((0..count).map(layer));
        let mount = made.mount().start();
        assert_eq!(mount.read("top"), (count - 1).to_string().as_bytes());
        assert_eq!(inside(&mount, "ls d | wc -l"), count.to_string());
        assert_eq!(inside(&mount, "ls -d layers/*/ | wc -l"), count.to_string());
        assert_eq!(mount.read("layers/0/d/f0"), b"0");
        mount.unmount();
    }
    let failure = Made::of((0..129).map(layer))
        .mount()
        .try_start()
        .err()
        .expect("a refusal");
    assert!(
        failure.said.contains("it has 129 layers; 128 are the limit"),
        "{failure}"
    );
}
