//! Every way in which a blob can hold a tar, or fail to: what the mount shows of it, or why it does not.
//!
//! Each case is looked at several ways, because each goes another way through the daemon: the first file first (a scan
//! that stops early), a listing first (a whole scan), and with the index of an earlier mount.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::fixtures::Served;
use crate::support::*;
use flate2::write::GzEncoder;
use tempfile::TempDir;

/// A tar, and what is in it.
struct Sample {
    tar: Vec<u8>,
    files: Vec<(&'static str, Vec<u8>)>,
    /// Where in the tar the last file's data begins.
    last: usize,
}

impl Sample {
    fn of(large: u64) -> Sample {
        let noise = |seed, size| Content::noise(seed, size).bytes();
        let files = vec![
            ("first", b"the first file\n".to_vec()),
            ("dir/a", noise(1, large)),
            ("dir/b", b"between\n".to_vec()),
            ("dir/c", noise(2, large + 77)),
            // Longer than what gzip may leave unsaid, and not a whole number of blocks.
            ("last", noise(3, 700)),
        ];
        let mut tar = RawTar::new().file("first", &files[0].1).dir("dir/");
        for (name, bytes) in &files[1..] {
            tar = tar.file(name, bytes);
        }
        let tar = tar.end();
        let last = tar.len() - 1024 - 1024;
        Sample { tar, files, last }
    }

    /// Of several spans.
    fn large() -> Sample {
        Sample::of(1_500_000)
    }

    /// Of less than one.
    fn tiny() -> Sample {
        Sample::of(900)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.files.iter().map(|(name, _)| name.to_string()).collect();
        names.push("dir".into());
        names.sort();
        names
    }
}

/// What a mount must make of a layer.
#[derive(Clone, Copy)]
enum Makes<'a> {
    /// These files and no others.
    Files(&'a Sample),
    /// An empty directory.
    Nothing,
    /// An I/O error, with this word in the log and the status; the files before the damage may be read.
    Refusal(&'a Sample, &'a str),
}

use Makes::{Files, Nothing, Refusal};

/// The layers of some cases, in one layout.
struct Cases {
    layout: TempDir,
    number: usize,
}

impl Cases {
    fn new() -> Cases {
        let layout = tempfile::tempdir().unwrap();
        Cases { layout, number: 0 }
    }

    /// A blob, which the manifest calls a gzip layer; the daemon has to see for itself.
    #[track_caller]
    fn blob(&mut self, name: &str, blob: impl Into<Vec<u8>>, tar: &[u8], makes: Makes<'_>) {
        self.layer(name, Layer::blob(blob, tar), makes);
    }

    #[track_caller]
    fn layer(&mut self, name: &str, layer: Layer, makes: Makes<'_>) {
        self.number += 1;
        let tag = format!("case-{}", self.number);
        ImageBuilder::of([layer]).write(self.layout.path(), &tag).unwrap();
        let reference = format!("oci:{}:{tag}", self.layout.path().display());
        println!("{name}");
        check(name, &reference, makes);
    }
}

#[track_caller]
fn check(name: &str, reference: &str, makes: Makes<'_>) {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mount = |cache: &TempDir| Mount::of(reference).cache(cache.path()).start();
    match makes {
        Files(sample) => {
            let early = mount(&one);
            // Uncached in the kernel and in the middle: before anything else of that layer is known.
            assert!(early.read("first") == sample.files[0].1, "{name}: first");
            assert_random_reads(name, &early, sample);
            assert_shown(name, &early, sample);
            early.unmount();
            let listed = mount(&other);
            assert_listed(name, &listed, &sample.names());
            assert_shown(name, &listed, sample);
            listed.unmount();
            let again = mount(&other);
            assert_eq!(again.status().layers[0].index, "complete", "{name}");
            assert_random_reads(name, &again, sample);
            assert_shown(name, &again, sample);
            again.unmount();
        }
        Nothing => {
            let early = mount(&one);
            let said = attempt("cat", &[early.path("first")]);
            assert!(
                String::from_utf8_lossy(&said.stderr).contains("No such file"),
                "{name}: {said:?}"
            );
            early.unmount();
            for _ in 0..2 {
                let listed = mount(&other);
                assert_listed(name, &listed, &[]);
                listed.unmount();
            }
        }
        Refusal(sample, word) => {
            let early = mount(&one);
            assert_right_or_refused(name, &early, sample);
            assert_refused(name, &early, sample, word);
            // What was refused is not kept: the next mount with this cache says the same.
            for _ in 0..2 {
                let listed = mount(&other);
                assert_refused(name, &listed, sample, word);
                assert_right_or_refused(name, &listed, sample);
                listed.unmount();
            }
        }
    }
}

#[track_caller]
fn assert_listed(name: &str, mount: &Mount, expected: &[String]) {
    let found = run(
        "find",
        &[
            mount.path("layers/0").as_os_str(),
            "-mindepth".as_ref(),
            "1".as_ref(),
            "-printf".as_ref(),
            "%P\n".as_ref(),
        ],
    );
    let found = String::from_utf8(found).unwrap();
    let mut found: Vec<&str> = found.lines().collect();
    found.sort_unstable();
    assert_eq!(found, expected, "{name}");
}

#[track_caller]
fn assert_shown(name: &str, mount: &Mount, sample: &Sample) {
    for view in ["", "layers/0/"] {
        for (path, bytes) in &sample.files {
            let path = format!("{view}{path}");
            assert!(mount.read(&path) == *bytes, "{name}: {path}\n{}", mount.log());
        }
    }
    assert_listed(name, mount, &sample.names());
}

#[track_caller]
fn assert_random_reads(name: &str, mount: &Mount, sample: &Sample) {
    let mut state = 1u64;
    for (path, bytes) in sample.files.iter().cycle().take(40) {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let at = (state >> 33) as usize % bytes.len();
        let len = (bytes.len() - at).min(4096);
        let mut read = vec![0; len];
        let file = File::open(mount.path(path)).unwrap();
        file.read_exact_at(&mut read, at as u64).unwrap();
        assert!(read == bytes[at..at + len], "{name}: {path} at {at}");
    }
}

/// Whatever is asked gives the right bytes up to an I/O error, or none; what is there is never said not to be.
#[track_caller]
fn assert_right_or_refused(name: &str, mount: &Mount, sample: &Sample) {
    for view in ["", "layers/0/"] {
        for (path, bytes) in &sample.files {
            let output = mount.cat(&format!("{view}{path}"));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(bytes.starts_with(&output.stdout), "{name}: {path} has wrong bytes");
            match output.status.success() {
                true => assert!(*bytes == output.stdout, "{name}: {path} is short"),
                false => assert!(said.contains("Input/output error"), "{name}: {path}: {said}"),
            }
        }
    }
}

#[track_caller]
fn assert_refused(name: &str, mount: &Mount, sample: &Sample, word: &str) {
    for path in ["", "layers/0", "no-such-file"] {
        let output = attempt("ls", &[mount.path(path)]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("Input/output error"),
            "{name}: ls {path}: {said}{}",
            mount.log()
        );
    }
    let reason = mount.status().layers[0].last_error.clone().unwrap_or_default();
    assert!(reason.contains(word), "{name}: status: {reason:?}");
    assert!(mount.log().contains(word), "{name}: {}", mount.log());
    assert_eq!(mount.status().layers[0].index, "failed", "{name}");
    let _ = sample;
}

/// What a program makes of some input.
fn through(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(input).unwrap();
    let path = file.path().to_str().unwrap();
    let fed = r#"input=$0; exec "$@" < "$input""#;
    run("sh", &[&["-c", fed, path, program], arguments].concat())
}

fn gzip(level: u32, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A member of one stored block, which no compressor needs to be started for.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut member = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1];
    let len = u16::try_from(bytes.len()).unwrap();
    member.extend_from_slice(&len.to_le_bytes());
    member.extend_from_slice(&(!len).to_le_bytes());
    member.extend_from_slice(bytes);
    member.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    member.extend_from_slice(&u32::from(len).to_le_bytes());
    member
}

/// A member with these flags and fields in its header, and the header's CRC where the flags say so.
fn with_header(flags: u8, fields: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut member = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3];
    member.extend_from_slice(fields);
    if flags & 2 != 0 {
        let crc = crc32fast::hash(&member) as u16;
        member.extend_from_slice(&crc.to_le_bytes());
    }
    member.extend_from_slice(&gzip(6, bytes)[10..]);
    member
}

/// gzip by Python's zlib, that of Debian: the level, the strategy, the kind of flush and after how many bytes.
fn zlib(level: &str, strategy: &str, flush: &str, every: &str, bytes: &[u8]) -> Vec<u8> {
    let program = "
import sys, zlib
data = sys.stdin.buffer.read()
level, strategy, flush, every = map(int, sys.argv[1:])
compressor = zlib.compressobj(level, zlib.DEFLATED, 31, 8, strategy)
for at in range(0, len(data), every):
    sys.stdout.buffer.write(compressor.compress(data[at:at + every]))
    if flush: sys.stdout.buffer.write(compressor.flush(flush))
sys.stdout.buffer.write(compressor.flush())
";
    through("python3", &["-c", program, level, strategy, flush, every], bytes)
}

fn zstd_frames(bytes: &[u8], every: usize) -> Vec<u8> {
    let frames = bytes.chunks(every).map(|piece| zstd::bulk::compress(piece, 3).unwrap());
    frames.flatten().collect()
}

fn skippable(bytes: &[u8]) -> Vec<u8> {
    let len = (bytes.len() as u32).to_le_bytes();
    [&[0x5a, 0x2a, 0x4d, 0x18], &len[..], bytes].concat()
}

#[test]
fn an_empty_layer_is_an_empty_directory() {
    let mut cases = Cases::new();
    for (name, tar) in [
        ("nothing", vec![]),
        ("one block of zeros", vec![0; 512]),
        ("an empty tar", vec![0; 1024]),
        ("a record of zeros, as GNU tar makes it", vec![0; 10240]),
    ] {
        cases.blob(&format!("plain: {name}"), tar.clone(), &tar, Nothing);
        cases.blob(&format!("gzip: {name}"), gzip(6, &tar), &tar, Nothing);
        cases.blob(&format!("zstd: {name}"), zstd_frames(&tar, 1 << 20), &tar, Nothing);
    }
    let tar = [0; 1024];
    cases.blob(
        "empty members around",
        [gzip(6, b""), gzip(6, &tar), gzip(6, b"")].concat(),
        &tar,
        Nothing,
    );
}

#[test]
fn a_tar_may_end_in_many_ways() {
    let mut cases = Cases::new();
    for (size, sample) in [("tiny", Sample::tiny()), ("large", Sample::large())] {
        let without = sample.tar.len() - 1024;
        let unpadded = sample.last + 700;
        let tails: [(&str, usize, &[u8]); 7] = [
            ("no end", without, b""),
            ("one block of zeros", without + 512, b""),
            ("half a block of zeros", without + 256, b""),
            // umoci refuses this, GNU tar and bsdtar do not.
            ("no padding of the last file", unpadded, b""),
            ("zeros after the end", sample.tar.len(), &[0; 9216]),
            (
                "garbage after the end",
                sample.tar.len(),
                b"This is no header of a tar.",
            ),
            (
                "another tar after the end",
                sample.tar.len(),
                &Sample::of(100).tar.clone(),
            ),
        ];
        for (name, len, tail) in tails {
            let tar = [&sample.tar[..len], tail].concat();
            cases.blob(&format!("{size}, plain: {name}"), tar.clone(), &tar, Files(&sample));
            cases.blob(&format!("{size}, gzip: {name}"), gzip(6, &tar), &tar, Files(&sample));
        }
    }
}

#[test]
fn a_tar_that_is_cut_or_broken_is_refused() {
    let sample = Sample::tiny();
    let mut cases = Cases::new();
    for (name, len) in [
        ("in the last file", sample.last + 699),
        ("in the last header", sample.last - 1),
        ("in the first header", 100),
        ("behind a header whose file has bytes", 512),
    ] {
        let tar = &sample.tar[..len];
        cases.blob(&format!("plain, cut {name}"), tar, tar, Refusal(&sample, "cut off"));
        cases.blob(
            &format!("gzip, cut {name}"),
            gzip(6, tar),
            tar,
            Refusal(&sample, "cut off"),
        );
    }
    let mut tar = sample.tar.clone();
    tar[sample.last - 500] ^= 1;
    cases.blob("a header's checksum", gzip(6, &tar), &tar, Refusal(&sample, "checksum"));
    cases.blob(
        "another DiffID",
        gzip(6, &sample.tar),
        b"something else",
        Refusal(&sample, "DiffID"),
    );
}

#[test]
fn gzip_of_any_compressor_is_read() {
    let mut cases = Cases::new();
    let sample = Sample::large();
    let tar = &sample.tar[..];
    for (name, blob) in [
        ("zlib-rs, level 1", gzip(1, tar)),
        ("zlib-rs, level 9", gzip(9, tar)),
        ("zlib-rs, stored", gzip(0, tar)),
        ("gzip -1", through("gzip", &["-1"], tar)),
        ("gzip -9", through("gzip", &["-9"], tar)),
        ("gzip --rsyncable", through("gzip", &["--rsyncable"], tar)),
        ("pigz", through("pigz", &["-p", "2"], tar)),
        (
            "pigz of small blocks",
            through("pigz", &["-p", "2", "-b", "32", "-i"], tar),
        ),
        ("zlib, stored", zlib("0", "0", "0", "1000000", tar)),
        ("zlib, level 1", zlib("1", "0", "0", "1000000", tar)),
        ("zlib, level 9", zlib("9", "0", "0", "1000000", tar)),
        ("zlib, no matches", zlib("6", "2", "0", "1000000", tar)),
        ("zlib, runs only", zlib("6", "3", "0", "1000000", tar)),
        ("zlib, fixed codes", zlib("6", "4", "0", "1000000", tar)),
        ("zlib, Z_SYNC_FLUSH", zlib("6", "0", "2", "30000", tar)),
        ("zlib, Z_FULL_FLUSH", zlib("6", "0", "3", "30000", tar)),
    ] {
        cases.blob(name, blob, tar, Files(&sample));
    }
}

#[test]
fn gzip_members_are_one_stream() {
    let mut cases = Cases::new();
    let sample = Sample::large();
    let tar = &sample.tar[..];
    let cut_at = |cuts: &[usize]| {
        let mut from = 0;
        let mut blob = Vec::new();
        for to in cuts.iter().copied().chain([tar.len()]) {
            blob.extend(gzip(6, &tar[from..to]));
            from = to;
        }
        blob
    };
    let whole = gzip(6, tar);
    let empty = gzip(6, b"");
    let pieces = tar.len().div_ceil(65_536);
    let many: Vec<u8> = tar.chunks(pieces).flat_map(stored).collect();
    // FEXTRA (4), FNAME (8), FCOMMENT (16), FTEXT (1), FHCRC (2). umoci refuses a header with a CRC.
    let all = b"\x06\x00AP\x02\x00xyname\0comment\0";
    for (name, blob) in [
        ("cut in a header", cut_at(&[100, 1124])),
        ("cut in a file", cut_at(&[1_000_000, 1_000_001, 2_500_000])),
        ("cut at a file", cut_at(&[sample.last - 512, sample.last])),
        ("empty members", [&empty[..], &empty, &whole, &empty].concat()),
        ("a member for every few bytes", many),
        ("FTEXT", with_header(1, b"", tar)),
        ("FHCRC", with_header(2, b"", tar)),
        ("FEXTRA", with_header(4, b"\x06\x00AP\x02\x00xy", tar)),
        ("an empty FEXTRA", with_header(4, b"\x00\x00", tar)),
        ("FNAME", with_header(8, b"layer.tar\0", tar)),
        ("FCOMMENT", with_header(16, b"\0", tar)),
        ("all of them", with_header(31, all, tar)),
        (
            "a long FNAME",
            with_header(8, &[&[b'n'; 100_000][..], b"\0"].concat(), tar),
        ),
        // GNU gzip ignores the first and warns of the second; umoci refuses both.
        ("zeros after the trailer", [&whole[..], &[0; 10_000]].concat()),
        ("garbage after the trailer", [&whole[..], b"garbage"].concat()),
        ("zeros between members", [&cut_at(&[])[..], &[0; 512], &empty].concat()),
    ] {
        cases.blob(name, blob, tar, Files(&sample));
    }
}

#[test]
fn damaged_gzip_is_refused() {
    let mut cases = Cases::new();
    let sample = Sample::large();
    let tar = &sample.tar[..];
    let whole = gzip(6, tar);
    let len = whole.len();
    for (name, at, word) in [("CRC", len - 6, "damaged"), ("length", len - 2, "damaged")] {
        let mut blob = whole.clone();
        blob[at] ^= 4;
        cases.blob(&format!("a wrong {name}"), blob, tar, Refusal(&sample, word));
    }
    let mut header = with_header(2, b"", tar);
    header[10] ^= 1;
    cases.blob("a wrong CRC of the header", header, tar, Refusal(&sample, "damaged"));
    for cut in [5, 40, len / 2, len - 9, len - 1] {
        cases.blob(
            &format!("cut at {cut}"),
            &whole[..cut],
            tar,
            Refusal(&sample, "too early"),
        );
    }
    let members: Vec<u8> = tar.chunks(1_000_000).flat_map(|piece| gzip(6, piece)).collect();
    cases.blob(
        "members, cut",
        &members[..members.len() - 2],
        tar,
        Refusal(&sample, "too early"),
    );
    // One byte of a magic is no magic: as GNU gzip has it, what follows the member is garbage, and the tar too short.
    let first = gzip(6, &tar[..1_000_000]);
    cases.blob(
        "cut behind a member's first byte",
        &members[..first.len() + 1],
        tar,
        Refusal(&sample, "cut off"),
    );
}

#[test]
fn zstd_of_any_compressor_is_read() {
    let mut cases = Cases::new();
    let sample = Sample::large();
    let tar = &sample.tar[..];
    let frames = zstd_frames(tar, 400_000);
    let one = zstd_frames(tar, usize::MAX);
    // umoci cannot read zstd at all.
    for (name, blob) in [
        ("one frame", one.clone()),
        ("many frames", frames.clone()),
        ("a frame for each 1000 bytes", zstd_frames(tar, 1000)),
        ("level 1", through("zstd", &["-1"], tar)),
        ("level 19", through("zstd", &["-19"], tar)),
        (
            "a checksum, no size",
            through("zstd", &["--check", "--no-content-size"], tar),
        ),
        ("no checksum", through("zstd", &["--no-check"], tar)),
        ("a window of 128 MiB", through("zstd", &["--long=27"], tar)),
        ("skippable: front", [skippable(b"head"), one.clone()].concat()),
        ("skippable: end", [one.clone(), skippable(&[1; 5000])].concat()),
        (
            "skippable: empty",
            [skippable(b""), frames.clone(), skippable(b"")].concat(),
        ),
        (
            "skippable: middle",
            [
                zstd_frames(&tar[..700_000], usize::MAX),
                skippable(&[7; 99]),
                zstd_frames(&tar[700_000..], 1 << 20),
            ]
            .concat(),
        ),
        (
            "empty frames",
            [zstd_frames(&[], 1), zstd::bulk::compress(b"", 3).unwrap(), one.clone()].concat(),
        ),
    ] {
        cases.blob(name, blob, tar, Files(&sample));
    }
}

#[test]
fn damaged_or_unsupported_zstd_is_refused() {
    let mut cases = Cases::new();
    let sample = Sample::large();
    let tar = &sample.tar[..];
    let checked = through("zstd", &["--check"], tar);
    let len = checked.len();
    let long = through("zstd", &["--long=28"], tar);
    cases.blob(
        "a window of 256 MiB",
        long,
        tar,
        Refusal(&sample, "window of 268435456 bytes"),
    );

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let text: String = (0..20_000)
        .map(|line| format!("line {line} of {}\n", line * 7919))
        .collect();
    fs::write(path("text"), text).unwrap();
    run(
        "zstd",
        &[
            "-q",
            "--train",
            "-B512",
            "--maxdict=4096",
            "--dictID=77",
            &path("text"),
            "-o",
            &path("dict"),
        ],
    );
    let with_dictionary = through("zstd", &["-D", &path("dict")], tar);
    cases.blob("a dictionary", with_dictionary, tar, Refusal(&sample, "dictionary 77"));

    for cut in [3, 9, len / 2, len - 1] {
        let word = if cut == 3 { "cut off" } else { "too early" };
        cases.blob(&format!("cut at {cut}"), &checked[..cut], tar, Refusal(&sample, word));
    }
    let mut flipped = checked.clone();
    flipped[len - 1] ^= 1;
    cases.blob("a wrong checksum", flipped, tar, Refusal(&sample, "damaged"));
    let mut header = checked.clone();
    header[4] |= 8;
    cases.blob("a reserved bit", header, tar, Refusal(&sample, "reserved"));
    let tail = [&checked[..], b"garbage"].concat();
    cases.blob("garbage after the frame", tail, tar, Refusal(&sample, "damaged"));
}

#[test]
fn what_the_media_type_says_does_not_matter() {
    let mut cases = Cases::new();
    let sample = Sample::tiny();
    let tar = &sample.tar[..];
    let zstd = zstd_frames(tar, 700);
    for (name, blob) in [("plain", tar.to_vec()), ("gzip", gzip(6, tar)), ("zstd", zstd)] {
        for media_type in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
        ] {
            let layer = Layer::blob(blob.clone(), tar).media_type(media_type);
            cases.layer(&format!("{name} as {media_type}"), layer, Files(&sample));
        }
    }
}

#[test]
fn a_layer_that_occurs_twice_is_fetched_once() {
    let noise = |seed| Content::Noise { seed, size: 1_500_000 };
    let base = Layer::of([
        Entry::file("first", "base"),
        Entry::dir("dir"),
        Entry::file("dir/a", noise(1)),
    ]);
    let between = Layer::of([
        Entry::whiteout("first"),
        Entry::opaque("dir"),
        Entry::file("dir/b", noise(2)),
    ]);
    for layers in [
        vec![base.clone(), base.clone()],
        vec![base.clone(), between, base.clone()],
    ] {
        let last = layers.len() - 1;
        let served = Served::made(&ImageBuilder::of(layers));
        let mount = Mount::of(served.reference()).start();
        let whole = mount.read("dir/a");
        assert_eq!(mount.read("first"), b"base");
        for layer in [0, last] {
            assert_eq!(mount.read(&format!("layers/{layer}/first")), b"base");
            assert!(mount.read(&format!("layers/{layer}/dir/a")) == whole);
        }
        let listed = String::from_utf8(run("ls", &[mount.path("dir")])).unwrap();
        assert_eq!(listed, if last == 2 { "a\nb\n" } else { "a\n" });
        let log = served.registry.log();
        let layer = &served.image.layers[0];
        assert!(log.bytes_of(&layer.digest) <= layer.size, "{log}");
        assert_eq!(log.repeated_of(&layer.digest), 0, "{log}");
    }
}

/// The tools that others read layers with agree with the table, where they do not refuse what it has.
#[test]
fn gnu_tar_and_bsdtar_see_the_same_files() {
    let sample = Sample::tiny();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let without = sample.tar.len() - 1024;
    for (name, blob) in [
        ("no-end", gzip(6, &sample.tar[..without])),
        ("one-block", gzip(6, &sample.tar[..without + 512])),
        ("zeros", gzip(6, &[&sample.tar[..], &[0; 9216]].concat())),
        ("members", sample.tar.chunks(100).flat_map(stored).collect()),
        ("padded", [&gzip(6, &sample.tar)[..], &[0; 512]].concat()),
        ("fields", with_header(31, b"\x00\x00name\0\0", &sample.tar)),
    ] {
        fs::write(path(name), &blob).unwrap();
        assert_extracted("tar", &path(name), &sample);
        // libarchive 3.7 and older take the CRC of a gzip header for compressed data.
        if name != "fields" {
            assert_extracted("bsdtar", &path(name), &sample);
        }
    }
}

#[track_caller]
fn assert_extracted(program: &str, archive: &Path, sample: &Sample) {
    for (path, bytes) in &sample.files {
        let output = attempt(program, &["-xzOf".as_ref(), archive.as_os_str(), path.as_ref()]);
        assert!(
            output.stdout == *bytes,
            "{program} of {}: {path}: {}",
            archive.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
