//! Any bytes as a file that `docker save` might have made: it is refused, or has layers inside of the file.
#![no_main]

use std::cell::LazyCell;
use std::io::{Seek, Write};

use libfuzzer_sys::fuzz_target;
use peelfs::image::reference::Reference;
use peelfs::image::{Documents, Options, resolve};
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

thread_local! {
    static RUNTIME: LazyCell<Runtime> = LazyCell::new(|| {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
    });
    static FILE: LazyCell<NamedTempFile> = LazyCell::new(|| NamedTempFile::new().expect("a file"));
}

fuzz_target!(|bytes: &[u8]| {
    let file = FILE.with(|file| {
        let mut open = file.as_file();
        open.set_len(0).expect("a file of our own");
        open.rewind().expect("a file of our own");
        open.write_all(bytes).expect("room for a small file");
        file.path().to_owned()
    });
    let reference = Reference::DockerArchive { file, tag: None };
    let resolved =
        RUNTIME.with(|runtime| runtime.block_on(resolve(&reference, &Options::default(), &Documents::none())));
    if let Ok(image) = resolved {
        assert!(image.layers.iter().all(|layer| layer.size <= bytes.len() as u64));
    }
});
