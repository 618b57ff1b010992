//! Many clients, slow ones, and such as go away.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::Duration;

use super::Scene;
use crate::support::cli::{Asked, history};
use crate::support::serve::read_head;
use crate::support::*;

const LONG: Duration = Duration::from_secs(60);

/// A file that is longer than all buffers on its way, and so is its layer.
pub fn large() -> Layer {
    let content = vec![b'x'; 40_000_000];
    Layer::of([Entry::file("large", content)]).compressed(Compression::None)
}

#[test]
fn a_client_that_goes_away_stops_its_carve() {
    let scene = Scene::of([large()]);
    let mut client = scene.serve.send("GET", &scene.target("carve", "&path=large"), &[]);
    assert_eq!(read_head(&mut client).0, 200);
    client.read_exact(&mut [0; 1000]).unwrap();
    drop(client);
    eventually("the carve has ended", LONG, || {
        let text = String::from_utf8(scene.serve.get("/metrics").ok()).unwrap();
        text.contains("\npeelfs_carves 0\n").then_some(())
    });
    // Once it has ended nothing is fetched: what a server that ends well waits for is not there.
    let fetched = scene.asked.served.layer_bytes();
    assert!(fetched < scene.asked.served.image.size() / 2, "{fetched}");
    assert_eq!(scene.serve.end().code(), Some(0));
    let after = scene.asked.served.layer_bytes();
    assert!(after < scene.asked.served.image.size() / 2, "{fetched}, then {after}");
}

#[test]
fn a_client_that_goes_away_is_missed_though_it_has_sent_more() {
    let scene = Scene::with(Asked::of([large()]), &["--timeout", "3600"]);
    scene.asked.served.registry.faults().hold(Some(Part::Blobs));
    let carves = |count: &str| {
        let text = String::from_utf8(scene.serve.get("/metrics").ok()).unwrap();
        text.contains(&format!("\npeelfs_carves {count}\n")).then_some(())
    };
    let client = scene.serve.send("GET", &scene.target("carve", "&path=large"), &[]);
    // The beginning of a further request.
    client.get_ref().write_all(b"G").unwrap();
    eventually("it is being answered", LONG, || carves("1"));
    drop(client);
    eventually("the carve has ended", LONG, || carves("0"));
    scene.asked.served.registry.faults().clear();
}

#[test]
fn slow_clients_block_nobody() {
    let layers = [large(), Layer::of([Entry::file("small", "small\n")])];
    let scene = Scene::with(Asked::of(layers), &["--max-carves", "2"]);
    let target = scene.target("carve", "&path=large");
    // Some do not read, and some do not even finish their request; all have their answer begun, with two places for work.
    // Until the buffers on its way are full there is work for a reader, and others are told to come again.
    let begun = || {
        eventually("an answer begins", LONG, || {
            let mut reader = scene.serve.send("GET", &target, &[]);
            (read_head(&mut reader).0 == 200).then_some(reader)
        })
    };
    let readers: Vec<_> = (0..8).map(|_| begun()).collect();
    let mut writers: Vec<_> = (0..8)
        .map(|_| TcpStream::connect(scene.serve.address()).unwrap())
        .collect();
    for writer in &mut writers {
        writer.write_all(b"GET /healthz HTTP/1.1\r\nHost: loc").unwrap();
    }
    let small = eventually("a place for another", LONG, || {
        let answer = scene.get("carve", "&path=small");
        (answer.status != 503).then_some(answer)
    });
    assert_eq!(small.ok(), b"small\n");
    assert_eq!(scene.serve.get("/healthz").ok(), b"ok\n");
    drop((readers, writers));
}

#[test]
fn a_client_that_stalls_is_cut_off() {
    let scene = Scene::with(Asked::of([large()]), &["--client-timeout", "1"]);
    let mut client = scene.serve.send("GET", &scene.target("carve", "&path=large"), &[]);
    eventually("its carve has begun and ended", LONG, || {
        let text = String::from_utf8(scene.serve.get("/metrics").ok()).unwrap();
        let begun = text.contains("route=\"/carve\",status=\"200\"");
        (begun && text.contains("\npeelfs_carves 0\n")).then_some(())
    });
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert!(rest.len() < 40_000_000);
}

#[test]
fn more_than_may_be_carved_at_a_time_is_refused() {
    let scene = Scene::with(Asked::of(history()), &["--max-carves", "1"]);
    scene.asked.served.registry.faults().hold(Some(Part::Everything));
    let first = scene
        .serve
        .send("GET", &scene.target("carve", "&path=/etc/passwd"), &[]);
    eventually("the first is being answered", LONG, || {
        (!scene.asked.served.registry.log().is_empty()).then_some(())
    });
    let second = scene.get("carve", "&path=/etc/passwd");
    assert_eq!((second.status, &second.json()["kind"]), (503, &"busy".into()));
    assert!(second.header("retry-after").is_some());
    assert_eq!(scene.serve.get("/healthz").status, 200);
    scene.asked.served.registry.faults().clear();
    let mut first = first;
    assert_eq!(read_head(&mut first).0, 200);
}

#[test]
fn an_image_is_opened_once_for_all_who_ask() {
    let scene = Scene::history();
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                scene.get("layers", "").ok();
            });
        }
    });
    let log = scene.asked.served.registry.log();
    let manifests = log
        .requests()
        .iter()
        .filter(|request| matches!(request.target, registry::Target::Manifest { .. }))
        .count();
    assert!(manifests <= 2, "{log}");
    let requests = log.len();
    scene.get("layers", "").ok();
    assert_eq!(log.len(), requests, "{log}");
}

#[test]
fn what_is_too_long_to_be_a_request_is_refused() {
    let scene = Scene::history();
    let answer = scene.serve.get(&format!("/carve?path={}", "x".repeat(100_000)));
    assert!(matches!(answer.status, 414 | 431), "{answer:?}");
}

#[test]
fn many_readers_of_a_large_file_share_bounded_memory() {
    const SIZE: u64 = 200_000_000;
    const READERS: u64 = 64;
    const PART: u64 = 8_000_000;
    let zeros = Layer::of([Entry::file("zeros", vec![0; SIZE as usize])]).compressed(Compression::Gzip);
    let scene = Scene::of([zeros]);
    let target = scene.target("carve", "&path=zeros");
    let together = Barrier::new(READERS as usize);
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let (scene, target, together) = (&scene, &target, &together);
            scope.spawn(move || {
                let start = (SIZE - PART) / (READERS - 1) * reader;
                let range = format!("bytes={start}-{}", start + PART - 1);
                let mut answer = scene.serve.send("GET", target, &[("Range", &range)]);
                assert_eq!(read_head(&mut answer).0, 206);
                // Each has its answer begun, and the others' are still to be read.
                together.wait();
                let mut body = Vec::new();
                answer.read_to_end(&mut body).unwrap();
                assert!(body.len() as u64 == PART && body.iter().all(|byte| *byte == 0));
            });
        }
    });
    let memory = scene.serve.memory();
    // 32 of it are the decoded spans that are kept; each reader may be waiting for one of 1 MiB besides.
    assert!(memory.peak < 128 << 20, "{memory:?}");
    scene.asked.served.assert_no_byte_twice();
}
