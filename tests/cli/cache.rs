//! `peelfs index` and `peelfs cache`, and what shells and man(1) get.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::cli::{Asked, history};
use crate::support::*;

/// All regular files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

#[test]
fn an_index_made_ahead_serves_everybody() {
    let asked = Asked::of(history());
    let said = asked.ask("index IMAGE IMAGE");
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.err.contains("indexed layer 3") && said.err.contains("is indexed: 4 layers, "),
        "{}",
        said.err
    );
    let (_, bytes) = asked.cost();
    assert_eq!(bytes, asked.served.image.size(), "each byte once");
    asked.served.assert_no_byte_twice();
    let mount = Mount::of(asked.served.reference()).cache(&asked.cache()).start();
    assert!(mount.status().layers.iter().all(|layer| layer.index == "complete"));
    run("find", &[mount.root()]);
    assert_eq!(asked.cost().1, bytes);
    assert_eq!(asked.ask("index -q IMAGE").ok(), b"");

    // One that cannot be had keeps nobody from the others.
    let missing = format!("{}/missing", asked.served.registry.address());
    let said = asked.run(&["index", &missing, "IMAGE"]);
    assert_eq!(said.code, 3);
    assert!(said.err.contains("is indexed"), "{}", said.err);
}

#[test]
fn what_is_kept_can_be_listed() {
    let asked = Asked::of(history());
    let empty = asked.ask("cache ls").text().to_owned();
    assert_eq!(empty, format!("0 B in {}\n", asked.cache().display()));
    assert!(!asked.cache().exists(), "a look must not make one");
    asked.ask("index -q IMAGE").ok();
    let said = asked.ask("cache ls --json").json();
    assert_eq!(said["images"][0]["image"], asked.served.reference());
    assert_eq!(said["images"][0]["digest"], asked.served.image.manifest.to_string());
    for layer in &asked.served.image.layers {
        let told = said["layers"].as_array().unwrap();
        let told = told
            .iter()
            .find(|told| told["digest"] == layer.digest.to_string())
            .unwrap();
        assert_eq!(told["stored"], layer.size);
        assert_eq!(told["index"], "complete");
        assert!(
            told["entries"].as_u64().unwrap() > 5 && told["used"].as_u64().unwrap() > 0,
            "{told}"
        );
    }
    let all: u64 = files(&asked.cache())
        .iter()
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert_eq!(said["total"], all);
    let text = asked.ask("cache ls");
    assert!(text.text().contains(&asked.served.reference()), "{text:?}");
    assert_eq!(text.text().lines().count(), 8);
}

#[test]
fn what_is_damaged_is_found_removed_and_fetched_anew() {
    let asked = Asked::of(history());
    asked.ask("index -q IMAGE").ok();
    let said = asked.ask("cache verify");
    assert_eq!((said.code, said.err.contains(" 0 damaged")), (0, true), "{said:?}");

    let all = files(&asked.cache());
    let one = |part: &str| {
        all.iter()
            .find(|path| path.to_string_lossy().contains(part))
            .unwrap()
            .clone()
    };
    let damaged = [one("/extents/"), one(".index"), one("/documents/sha256/")];
    for path in &damaged {
        let mut bytes = fs::read(path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let said = asked.ask("cache verify");
    assert_eq!(said.code, 4, "{said:?}");
    for path in &damaged {
        assert!(
            said.err.contains(&path.display().to_string()) && !path.exists(),
            "{said:?}"
        );
    }
    assert_eq!(asked.ask("cache verify -q").ok(), b"");
    assert_eq!(asked.ask("carve IMAGE usr/lib/libc").ok(), b"libc\n");
}

#[test]
fn it_can_be_made_smaller_and_empty() {
    let asked = Asked::of(history());
    asked.ask("index -q IMAGE").ok();
    let stored = || {
        asked.ask("cache ls --json").json()["layers"][0]["stored"]
            .as_u64()
            .unwrap()
    };
    assert!(stored() > 0);
    asked.ask("cache prune -q").ok();
    assert!(stored() > 0);
    let said = asked.ask("cache prune --keep 0");
    assert!(said.code == 0 && said.err.contains("kB freed"), "{said:?}");
    assert_eq!(stored(), 0);
    // The indexes are there still.
    asked.served.registry.log().clear();
    asked.ask("ls IMAGE -R").ok();
    assert_eq!(asked.cost(), (0, 0));

    // What is not ours stays, and so does a mount.
    let foreign = [
        "foreign",
        "index/notes.index",
        "documents/tags/README",
        "log/build.log",
        "store/backup.tar",
    ];
    for name in foreign {
        fs::create_dir_all(asked.cache().join(name).parent().unwrap()).unwrap();
        fs::write(asked.cache().join(name), "mine").unwrap();
    }
    let mount = Mount::of(asked.served.reference()).cache(&asked.cache()).start();
    asked.ask("cache clear -q").ok();
    assert_eq!(mount.read("etc/passwd"), b"three\n");
    mount.unmount();
    asked.ask("cache clear -q").ok();
    let left = files(&asked.cache()).into_iter().filter(|path| !path.ends_with("lock"));
    let mut expected = foreign.map(|name| asked.cache().join(name));
    expected.sort();
    assert_eq!(left.collect::<Vec<_>>(), expected);
}

#[test]
fn shells_and_man_know_all_commands() {
    let text = |arguments: &[&str]| {
        let output = peelfs().args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for shell in ["bash", "zsh", "fish"] {
        let completions = text(&["completions", shell]);
        for word in ["carve", "history", "layer", "umount", "prune"] {
            assert!(completions.contains(word), "{shell}: {word}");
        }
    }
    let bash = tempfile::NamedTempFile::new().unwrap();
    fs::write(bash.path(), text(&["completions", "bash"])).unwrap();
    run("bash", &["-n".as_ref(), bash.path().as_os_str()]);
    assert!(text(&["man"]).contains("peelfs\\-carve(1)"));
    let page = text(&["man", "carve"]);
    assert!(
        page.contains(".TH peelfs-carve 1") && page.contains("Exit codes: 0 found"),
        "{page}"
    );
    assert_eq!(
        peelfs().args(["man", "nothing"]).output().unwrap().status.code(),
        Some(2)
    );
}

#[test]
fn help_fits_a_terminal_and_tells_the_exit_codes() {
    for command in [
        "carve", "ls", "find", "layers", "history", "diff", "index", "cache", "mount",
    ] {
        let output = peelfs()
            .args([command, "--help"])
            .env("COLUMNS", "80")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(longest <= 100, "{command}: {longest}\n{text}");
        if !matches!(command, "cache" | "mount") {
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(
                words.contains("Exit codes: 0") && words.contains("4 corrupt"),
                "{command}\n{text}"
            );
        }
    }
}
