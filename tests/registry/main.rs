//! The tests' registry as a program, for the demo and for trying things by hand.
//!
//! It says the image references that it serves, one a line, and serves until it is stopped (or until its standard
//! input ends, with `--until-eof`).

#[path = "../support/image.rs"]
#[allow(dead_code, reason = "the demo's image needs only some of what tests do")]
mod image;
#[path = "mod.rs"]
#[allow(dead_code, unused_imports, reason = "faults and log are for tests")]
mod registry;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Parser;
use image::{Content, Entry, ImageBuilder, Layer};
use registry::Registry;

/// Serve OCI layout directories as a registry on loopback.
#[derive(Parser)]
struct Arguments {
    /// The port; one that is free if it is 0.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Serve a small image of three layers as `demo:latest`.
    #[arg(long)]
    demo_image: bool,
    /// Stop when standard input ends.
    #[arg(long)]
    until_eof: bool,
    /// Layouts to serve, each as NAME=DIR.
    layouts: Vec<String>,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let mut layouts: BTreeMap<String, PathBuf> = BTreeMap::new();
    for layout in &arguments.layouts {
        let (name, dir) = layout
            .split_once('=')
            .ok_or_else(|| io::Error::other(format!("{layout}: not NAME=DIR")))?;
        layouts.insert(name.to_string(), dir.into());
    }
    let demo = tempfile::tempdir()?;
    if arguments.demo_image {
        demo_image(demo.path())?;
        layouts.insert("demo".to_string(), demo.path().to_path_buf());
    }
    let names: Vec<String> = layouts.keys().cloned().collect();
    let registry = Registry::on_port(arguments.port, layouts);
    for name in names {
        println!("{}/{name}", registry.address());
    }
    if arguments.until_eof {
        io::copy(&mut io::stdin().lock().take(u64::MAX), &mut io::sink())?;
    } else {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(tokio::signal::ctrl_c())?;
    }
    Ok(())
}

/// A web shop in three layers: a base, the shop with much that nobody reads, and a last one that cleans up.
fn demo_image(layout: &Path) -> io::Result<()> {
    let passwd = |users: &[&str]| {
        let base = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n";
        Entry::file("etc/passwd", base.to_string() + &users.concat())
    };
    let shop = "shop:x:1000:1000:the web shop:/srv/shop:/usr/sbin/nologin\n";
    let backup = "backup:x:34:34:backup:/var/backups:/usr/sbin/nologin\n";
    let dirs = |paths: &[&str]| paths.iter().map(Entry::dir).collect::<Vec<_>>();

    let base = dirs(&["bin", "etc", "srv", "usr", "usr/bin", "usr/share"])
        .into_iter()
        .chain([
            Entry::file("etc/os-release", "NAME=\"Demo Linux\"\nVERSION_ID=1\n"),
            passwd(&[]),
            Entry::file("usr/bin/busybox", Content::Noise { seed: 1, size: 2 << 20 }).mode(0o755),
            Entry::hardlink("usr/bin/sh", "usr/bin/busybox"),
            Entry::symlink("bin/sh", "../usr/bin/sh"),
            Entry::file(
                "usr/share/zoneinfo.tar",
                Content::Noise {
                    seed: 2,
                    size: 16 << 20,
                },
            ),
        ]);
    let installed = dirs(&["etc", "srv/shop", "srv/shop/photos"])
        .into_iter()
        .chain([
            passwd(&[shop]),
            Entry::file("srv/shop/shop.toml", "name = \"Peel & Sons\"\ncurrency = \"EUR\"\n").owner(1000, 1000),
            Entry::file("srv/shop/.env", "DATABASE_PASSWORD=hunter2\n")
                .mode(0o600)
                .owner(1000, 1000),
        ])
        .chain((0..12).map(|number| {
            let content = Content::Noise {
                seed: 10 + number,
                size: 2 << 20,
            };
            Entry::file(format!("srv/shop/photos/orange-{number:02}.jpg"), content).owner(1000, 1000)
        }));
    let cleaned = dirs(&["etc"])
        .into_iter()
        .chain([passwd(&[shop, backup]), Entry::whiteout("srv/shop/.env")]);
    ImageBuilder::of([Layer::of(base), Layer::of(installed), Layer::of(cleaned)]).write(layout, "latest")?;
    Ok(())
}
