//! `inflate FILE`: inflates a gzip file on one thread and drops the result: what a scan or a reader of a layer cannot be
//! faster than on one core. Prints the size and the seconds that it took, without those to read the file.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use flate2::write::MultiGzDecoder;

/// Counts what it is given.
#[derive(Default)]
struct Sink(u64);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn main() -> std::io::Result<()> {
    let path = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .ok_or_else(|| std::io::Error::other("usage: inflate FILE"))?;
    let packed = std::fs::read(path)?;
    let start = Instant::now();
    let mut decoder = MultiGzDecoder::new(Sink::default());
    for piece in packed.chunks(256 << 10) {
        decoder.write_all(piece)?;
    }
    let size = decoder.finish()?.0;
    println!("{size} {:.6}", start.elapsed().as_secs_f64());
    Ok(())
}
