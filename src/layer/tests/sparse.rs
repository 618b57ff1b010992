//! Sparse files, as GNU tar writes them: read with their holes.

use super::*;

const SIZE: usize = 900_000;
const PIECES: [(usize, usize); 3] = [(0, 512), (100_000, 1000), (700_000, 150_000)];

fn whole() -> Vec<u8> {
    let mut whole = vec![0; SIZE];
    let data = content(0, 0, SIZE);
    for (start, len) in PIECES {
        whole[start..start + len].copy_from_slice(&data[start..start + len]);
    }
    whole
}

fn stored() -> Vec<u8> {
    let whole = whole();
    PIECES
        .iter()
        .flat_map(|(start, len)| whole[*start..start + len].to_vec())
        .collect()
}

fn pad(mut tar: Vec<u8>) -> Vec<u8> {
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar
}

fn old_gnu() -> Vec<u8> {
    let stored = stored();
    let mut header = tar::Header::new_gnu();
    header.set_path("a").unwrap();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_size(stored.len() as u64);
    let gnu = header.as_gnu_mut().unwrap();
    for ((start, len), place) in PIECES.iter().zip(&mut gnu.sparse) {
        place.offset[..11].copy_from_slice(format!("{start:011o}").as_bytes());
        place.numbytes[..11].copy_from_slice(format!("{len:011o}").as_bytes());
    }
    gnu.realsize[..11].copy_from_slice(format!("{SIZE:011o}").as_bytes());
    header.set_cksum();
    pad([header.as_bytes(), stored.as_slice()].concat())
}

fn pax() -> Vec<u8> {
    let map: String = PIECES.iter().map(|(start, len)| format!("{start}\n{len}\n")).collect();
    let map = pad(format!("{}\n{map}", PIECES.len()).into_bytes());
    let data = [map, stored()].concat();
    let mut builder = tar::Builder::new(Vec::new());
    let real = SIZE.to_string();
    builder
        .append_pax_extensions([
            ("GNU.sparse.major", b"1".as_slice()),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"a"),
            ("GNU.sparse.realsize", real.as_bytes()),
        ])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "GNUSparseFile.0/a", &data[..])
        .unwrap();
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn sparse_files_are_read_with_their_holes() {
    let whole = whole();
    for tar in [old_gnu(), pax()] {
        let sample = Sample::new(&tar, gzip(&tar));
        for _ in 0..2 {
            let layer = sample.open();
            let entry = find(&layer, "a").await.unwrap().unwrap();
            let mut number = numbers(1);
            for _ in 0..40 {
                let (offset, len) = (number(SIZE as u64 + 10) as usize, number(400_000) as usize);
                let read = layer.read(entry, offset as u64, len).await.unwrap().bytes;
                let end = (offset + len).min(SIZE);
                assert!(read == whole[offset.min(end)..end], "{len} bytes from {offset}");
            }
            assert_eq!(read_all(&layer, "a").await, whole);
            layer.complete().await.unwrap();
        }
    }
}
