//! peelfs mounts a container image straight from its registry, without pulling it.
//!
//! The root of the mount is the merged image, `layers/N/` shows each layer's own version of every file. Listings come
//! from an index of each layer; the bytes of a file are carved out of the ordinary `.tar.gz` layer with HTTP range
//! requests when they are read, and kept in a bounded cache.
//!
//! # The house
//!
//! A module uses only what stands below it. A request flows straight down, its answer straight up.
//!
//! | floor | module | its one job |
//! |---|---|---|
//! | 6 | [`cli`] | arguments in, messages and exit codes out |
//! | 5 | [`serve`] | questions and answers over HTTP, and pages for people |
//! | 5 | [`mount`] | the kernel's requests on one side, [`tree`] on the other |
//! | 5 | [`inspect`] | files, listings, versions and comparisons without a mount |
//! | 4 | [`tree`] | the mount's namespace: merged root, `layers/N/`, inode numbers, attributes, reading |
//! | 3 | [`layer`] | one layer: an index that may still be growing, and any range of any of its files |
//! | 2 | [`index`] | what is in a layer and where; built by scanning its tar, kept on disk |
//! | 2 | [`stream`] | any range of the decompressed stream from a range of the compressed one |
//! | 1 | [`blob`] | any range of a blob, each byte fetched once; the store on disk |
//! | 0 | [`image`], [`registry`] | references, manifests, platforms; the distribution protocol; layouts and archives |
//!
//! [`digest`] and [`range`] are the two words that every floor uses; `buffers` is where large buffers wait to be used again.
//!
//! # Words
//!
//! *image, reference, manifest, config, layer, blob, digest, DiffID, whiteout, opaque* mean what the OCI
//! specifications say. An *entry* is a file, directory or link that a layer's tar holds. A *checkpoint* is a place in a
//! compressed stream at which decompression can begin, with the *window* of the 32 KiB before it (zlib's zran); a
//! *span* is the stream from one checkpoint to the next. An *extent* is a run of a blob's bytes kept in the *store*.
//! A *scan* reads a layer from front to back and makes its *index*. To *carve* is to get one file out of a layer by
//! ranges. The *merged view* is the image as a container would see it.

#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod blob;
mod buffers;
mod cache_dir;
pub mod cli;
pub mod digest;
pub mod image;
pub mod index;
pub mod inspect;
pub mod layer;
pub mod mount;
pub mod range;
pub mod registry;
mod regular_file;
pub mod serve;
pub mod stream;
pub mod tree;
