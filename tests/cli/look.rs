//! `peelfs ls`, `find`, `layers`, `history` and `diff`: what is in an image, and what each layer did to it.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use crate::support::cli::{Asked, Said, history};
use crate::support::*;
use serde_json::Value;

/// What a listing says, an entry in a line: path, layer, and why it is hidden.
fn marks(said: &Said) -> Vec<String> {
    assert_eq!(said.code, 0, "{said:?}");
    let entries = said.json();
    let line = |entry: &Value| {
        let path = entry.get("path_bytes").unwrap_or(&entry["path"]).as_str().unwrap();
        let hidden = match entry.get("hidden_by") {
            Some(by) => format!(" {} {by}", entry["status"].as_str().unwrap()),
            None => String::new(),
        };
        format!("{path} {}{hidden}", entry["layer"])
    };
    entries.as_array().unwrap().iter().map(line).collect()
}

#[test]
fn all_versions_of_everything() {
    let asked = Asked::of(history());
    let said = asked.ask("ls IMAGE -R --all --json");
    let expected = [
        "/becomes 1",
        "/becomes 0 overridden 1",
        "/becomes/inner 0 overridden 1",
        "/bin 0",
        "/dev 0",
        "/dev/pipe 0",
        "/etc 3",
        "/etc/above 0",
        "/etc/absolute 0",
        "/etc/back 2",
        "/etc/back 0 deleted 1",
        "/etc/caf\\xe9 3",
        "/etc/dangling 0",
        "/etc/loop 0",
        "/etc/mode 2",
        "/etc/mode 0 overridden 2",
        "/etc/old 0 deleted 1",
        "/etc/passwd 3",
        "/etc/passwd 1 overridden 3",
        "/etc/passwd 0 overridden 1",
        "/gone 0 deleted 1",
        "/gone/x 0 deleted 1",
        "/lib 0",
        "/opt 2",
        "/opt/app 2",
        "/opt/app/a 0 deleted 2",
        "/opt/app/b 0 deleted 2",
        "/opt/app/c 2",
        "/usr 2",
        "/usr/bin 2",
        "/usr/bin/tool 0",
        "/usr/bin/tool2 0",
        "/usr/lib 0",
        "/usr/lib/libc 0",
        "/usr/lib/new 3",
    ];
    assert_eq!(marks(&said), expected);
    let part = |path: &str| marks(&asked.run(&["ls", "IMAGE", path, "--all", "--json"]));
    assert_eq!(part("/gone"), ["/gone/x 0 deleted 1"]);
    assert_eq!(part("etc/passwd"), expected[17..20]);
    assert_eq!(part("/lib/"), ["/usr/lib/libc 0", "/usr/lib/new 3"]);
    let said = asked.ask("ls IMAGE --all nothing");
    assert_eq!((said.code, &*said.err), (1, "peelfs: /nothing is not in the image\n"));
}

#[test]
fn lines_are_like_those_of_ls() {
    let asked = Asked::of(history());
    let lines = |words: &str| String::from_utf8_lossy(&asked.ask(words).ok()).into_owned();
    assert_eq!(
        lines("ls IMAGE usr/bin"),
        "-rwsr-xr-x       1:2      300000 2001-09-09 01:46 tool [L0]\n\
         -rwsr-xr-x       1:2      300000 2001-09-09 01:46 tool2 [L0]\n"
    );
    assert_eq!(
        lines("ls IMAGE etc/passwd --all"),
        "-rw-r--r--       0:0           6 2024-01-02 03:04 passwd [L3]\n\
         -rw-r--r--       0:0          12 2024-01-02 03:04 passwd [L1] (overridden)\n\
         -rw-r--r--       0:0           5 2001-09-09 01:46 passwd [L0] (overridden)\n"
    );
    assert_eq!(
        lines("ls IMAGE /bin"),
        "lrwxrwxrwx       0:0           7 2024-01-02 03:04 /bin -> usr/bin [L0]\n"
    );
    assert!(lines("ls IMAGE etc --all").contains(" old [L0] (deleted in L1)\n"));
    // A pipe gets names as they are.
    let raw = asked.ask("ls IMAGE etc").out;
    assert!(raw.windows(6).any(|bytes| bytes == b" caf\xe9 "), "{raw:?}");
    assert!(!raw.contains(&0x1b));
}

/// All paths below a directory, as find(1) prints them.
fn found(root: &std::path::Path) -> BTreeSet<Vec<u8>> {
    let output = Command::new("find")
        .arg(root)
        .args(["-mindepth", "1", "-print0"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let all = output.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    all.map(|path| path[root.as_os_str().as_bytes().len()..].to_vec())
        .collect()
}

/// All paths of a listing in JSON.
fn listed(said: &Said) -> BTreeSet<Vec<u8>> {
    let bytes = |entry: &Value| match entry.get("path_bytes") {
        Some(escaped) => unescape(escaped.as_str().unwrap()),
        None => entry["path"].as_str().unwrap().as_bytes().to_vec(),
    };
    said.json().as_array().unwrap().iter().map(bytes).collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [b'x', a, b, tail @ ..]) => {
                bytes.push(u8::from_str_radix(std::str::from_utf8(&[*a, *b]).unwrap(), 16).unwrap());
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[test]
fn the_names_are_those_that_find_sees_in_the_mount() {
    let asked = Asked::of(history());
    let said = asked.ask("ls IMAGE -R --json");
    let mount = Mount::of(asked.served.reference())
        .cache(&asked.cache())
        .with(["--no-layers"])
        .start();
    assert_eq!(listed(&said), found(mount.root()));
    mount.unmount();
    let mount = Mount::of(asked.served.reference()).cache(&asked.cache()).start();
    for layer in ["0", "1", "2", "3"] {
        let said = asked.run(&["ls", "IMAGE", "-R", "--json", "--layer", layer]);
        assert_eq!(listed(&said), found(&mount.path("layers").join(layer)), "layer {layer}");
    }
    assert_eq!(asked.ask("ls IMAGE --layer 4").code, 2);
    let said = asked.ask("ls IMAGE --layer 1 opt");
    assert_eq!(
        (said.code, &*said.err),
        (1, "peelfs: /opt is not in layer 1; it is in layers 0, 2\n")
    );
}

#[test]
fn a_layer_is_listed_for_that_layer_alone_and_a_second_time_for_nothing() {
    let asked = Asked::of(history());
    let log = asked.served.registry.log();
    let layers = &asked.served.image.layers;
    asked.ask("ls IMAGE -R --layer 1").ok();
    assert_eq!(asked.cost().1, layers[1].size, "{log}");
    asked.ask("ls IMAGE -R").ok();
    assert_eq!(asked.cost().1, asked.served.image.size(), "{log}");
    let cost = asked.cost();
    asked.ask("ls IMAGE -R --all").ok();
    asked.ask("find IMAGE *").ok();
    asked.ask("history IMAGE etc/passwd").ok();
    asked.ask("layers IMAGE").ok();
    assert_eq!(asked.cost(), cost, "{log}");
}

#[test]
fn names_are_found_in_all_layers() {
    let asked = Asked::of(history());
    let find = |pattern: &str| marks(&asked.run(&["find", "IMAGE", "--json", pattern]));
    assert_eq!(
        find("pass*"),
        [
            "/etc/passwd 3",
            "/etc/passwd 1 overridden 3",
            "/etc/passwd 0 overridden 1"
        ]
    );
    assert_eq!(find("/opt/app/[ac]"), ["/opt/app/a 0 deleted 2", "/opt/app/c 2"]);
    assert_eq!(find("/usr/*"), ["/usr/bin 2", "/usr/lib 0"]);
    assert_eq!(find("/usr/**/{new,tool}"), ["/usr/bin/tool 0", "/usr/lib/new 3"]);
    assert_eq!(find("caf?"), ["/etc/caf\\xe9 3"]);
    let said = asked.ask("find IMAGE nothing");
    assert_eq!((said.code, said.text(), &*said.err), (1, "", ""));
    let said = asked.ask("find IMAGE [");
    assert_eq!(said.code, 2);
    assert!(said.err.contains("no pattern"), "{}", said.err);
}

#[test]
fn the_layers_are_told_for_nothing() {
    let asked = Asked::of(history());
    let said = asked.ask("layers IMAGE --json");
    assert_eq!(asked.cost(), (0, 0));
    let layers = said.json();
    for (number, layer) in asked.served.image.layers.iter().enumerate() {
        let told = &layers[number];
        assert_eq!(told["number"], number);
        assert_eq!(told["digest"], layer.digest.to_string());
        assert_eq!(told["diff_id"], layer.diff_id.to_string());
        assert_eq!(told["size"], layer.size);
        assert_eq!(told["media_type"], "application/vnd.oci.image.layer.v1.tar+gzip");
        assert_eq!(told["created_by"], "tests");
        assert_eq!((&told["index"], &told["entries"]), (&Value::from("none"), &Value::Null));
    }
    asked.ask("ls IMAGE --layer 3").ok();
    let told = &asked.ask("layers IMAGE --json").json()[3];
    assert_eq!(
        (&told["index"], &told["entries"]),
        (&Value::from("complete"), &Value::from(6))
    );
    let text = String::from_utf8(asked.ask("layers IMAGE").ok()).unwrap();
    assert_eq!(text.lines().count(), 5);
    assert!(
        text.lines()
            .all(|line| line.ends_with("tar+gzip   tests") || line.ends_with("made by")),
        "{text}"
    );
}

#[test]
fn the_history_of_a_path_is_what_each_layer_did() {
    let asked = Asked::of(history());
    let told = |path: &str| -> Vec<String> {
        let said = asked.run(&["history", "IMAGE", path, "--json"]);
        assert_eq!(said.code, 0, "{said:?}");
        let line = |event: &Value| {
            let actions: Vec<&str> = event["actions"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(Value::as_str)
                .collect();
            format!("{} {}", event["layer"], actions.join(" "))
        };
        said.json().as_array().unwrap().iter().map(line).collect()
    };
    assert_eq!(
        told("etc/passwd"),
        ["0 added", "1 changed_content changed_time", "3 changed_content"]
    );
    assert_eq!(told("/etc/mode"), ["0 added", "2 changed_mode"]);
    assert_eq!(told("etc/old"), ["0 added", "1 deleted"]);
    assert_eq!(told("etc/back"), ["0 added", "1 deleted", "2 added"]);
    assert_eq!(told("gone/x"), ["0 added", "1 deleted"]);
    assert_eq!(told("becomes"), ["0 added", "1 replaced"]);
    assert_eq!(told("becomes/inner"), ["0 added", "1 overridden"]);
    assert_eq!(told("opt/app"), ["0 added", "2 repeated made_opaque"]);
    assert_eq!(told("opt/app/a"), ["0 added", "2 deleted"]);
    assert_eq!(told("lib/new"), ["3 added"]);
    assert_eq!(told("bin/tool2"), ["2 added"]);

    let text = String::from_utf8(asked.ask("history IMAGE etc/mode").ok()).unwrap();
    let digest = peelfs::digest::Digest::sha256(b"mode\n");
    assert_eq!(
        text,
        format!(
            "[L0] added: -rw-r--r--       0:0           5 2024-01-02 03:04 /etc/mode {digest}\n\
             [L2] changed mode: -rw-------       0:0           5 2024-01-02 03:04 /etc/mode {digest}\n"
        )
    );
    let text = String::from_utf8(asked.ask("history IMAGE etc/old --no-digests").ok()).unwrap();
    assert!(text.ends_with("/etc/old\n[L1] deleted\n"), "{text}");
    assert_eq!(asked.ask("history IMAGE no").code, 1);
}

/// What a diff prints, sorted as it is.
fn lines(said: Said) -> Vec<String> {
    assert!(said.code == 1 && said.err.is_empty(), "{said:?}");
    String::from_utf8_lossy(&said.out).lines().map(str::to_owned).collect()
}

#[test]
fn two_layers_are_compared_as_they_are_or_as_they_leave_the_image() {
    let asked = Asked::of(history());
    assert_eq!(
        lines(asked.ask("diff IMAGE --layers 0 1 etc")),
        [
            "A /etc/.wh.back",
            "A /etc/.wh.old",
            "D /etc/above",
            "D /etc/absolute",
            "D /etc/back",
            "D /etc/dangling",
            "D /etc/loop",
            "D /etc/mode",
            "D /etc/old",
            "C /etc/passwd (content, size 5 to 12, time)",
        ]
    );
    assert_eq!(
        lines(asked.ask("diff IMAGE --layers 0 2 --merged --ignore-times")),
        [
            "C /becomes (type, mode 0755 to 0644)",
            "D /becomes/inner",
            "C /etc/back (content)",
            "C /etc/mode (mode 0644 to 0600)",
            "D /etc/old",
            "C /etc/passwd (content, size 5 to 12)",
            "D /gone",
            "D /gone/x",
            "D /opt/app/a",
            "D /opt/app/b",
            "A /opt/app/c",
            "A /usr/bin/tool2",
        ]
    );
    assert_eq!(
        lines(asked.ask("diff IMAGE --layers 0 3 etc/passwd")),
        ["C /etc/passwd (content, size 5 to 6, time)"]
    );
    let same = asked.ask("diff IMAGE --layers 1 1");
    assert_eq!((same.code, same.text()), (0, ""));
    assert_eq!(asked.ask("diff IMAGE --layers 0 4").code, 2);
    assert_eq!(asked.ask("diff IMAGE --layers 0").code, 2);
    assert_eq!(asked.ask("diff IMAGE").code, 2);
    let said = asked.ask("diff IMAGE --layers 0 1 no");
    assert_eq!((said.code, &*said.err), (1, "peelfs: /no is not in the image\n"));
}

#[test]
fn two_images_are_compared_and_only_what_must_be_is_read() {
    let asked = Asked::of(history());
    let layout = tempfile::tempdir().unwrap();
    let mut layers = history();
    layers.push(Layer::of([
        Entry::file("etc/mode", "edom\n").mode(0o600),
        Entry::file("etc/new", "new\n").xattr("user.a", "b"),
        Entry::whiteout("usr/lib/libc"),
    ]));
    ImageBuilder::of(layers).write(layout.path(), "other").unwrap();
    let other = format!("oci:{}:other", layout.path().display());
    let diff = |more: &[&str]| asked.run(&[&["diff", "IMAGE", other.as_str()], more].concat());
    assert_eq!(
        lines(diff(&[])),
        ["C /etc/mode (content)", "A /etc/new", "D /usr/lib/libc"]
    );
    assert_eq!(lines(diff(&["/usr/lib"])), ["D /usr/lib/libc"]);
    let json = diff(&["etc/new", "--json"]).json();
    assert_eq!(json[0]["status"], "added");
    assert_eq!(json[0]["before"], Value::Null);
    assert_eq!(json[0]["after"]["path"], "/etc/new");

    // With the indexes and no byte of a layer, only the two files are read of which nothing else tells.
    std::fs::remove_dir_all(asked.cache().join("store")).unwrap();
    asked.served.registry.log().clear();
    assert_eq!(diff(&["usr"]).code, 1);
    assert_eq!(asked.cost(), (0, 0));
    assert_eq!(diff(&[]).code, 1);
    assert_eq!(asked.cost().0, 1, "{}", asked.served.registry.log());

    let same = asked.ask("diff IMAGE IMAGE");
    assert_eq!((same.code, same.text()), (0, ""));
}

#[test]
fn a_terminal_gets_colours_and_nothing_that_moves_its_cursor() {
    let asked = Asked::of(history());
    let on_terminal = |environment: &str| {
        let (program, cache) = (env!("CARGO_BIN_EXE_peelfs"), asked.cache());
        let command = format!(
            "env -u NO_COLOR {environment} PEELFS_CACHE_DIR={} {program} ls -q {} etc",
            cache.display(),
            asked.served.reference()
        );
        let said = run("script", &["-qec", &command, "/dev/null"]);
        String::from_utf8(said).expect("nothing but text")
    };
    let text = on_terminal("TERM=xterm");
    assert!(text.contains("caf\\xe9 [L3]"), "{text}");
    assert!(text.contains("\x1b[36mloop\x1b[0m -> loop"), "{text}");
    let text = on_terminal("NO_COLOR=1");
    assert!(text.contains("loop -> loop") && !text.contains("\x1b[36m"), "{text}");
}
