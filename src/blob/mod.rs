//! Any range of a blob, each byte fetched once.
//!
//! store > extents > extent. A [`Store`] is a directory that several processes share; it is bounded and forgets the
//! least recently used. The [`Extents`] are all it keeps of one digest: the blob's own bytes, or the bytes decoded from
//! them. An *extent* is one run of at most 1 MiB, one file, checksummed.
//!
//! A [`Blob`] stands between the store and a network. What a reader asks for is put together from three places: the
//! store; *flights*, which are fetches under way; and new flights for what is in neither. A flight belongs to the blob
//! and not to the reader that caused it: readers come and go, bytes that were asked for are kept.
//!
//! ```text
//!   read, prefetch, Sequential          blob.rs, sequential.rs
//!        | what is missing?             flights.rs: who brings which byte, and who waits for it
//!        v
//!   a flight: slot > request > retry    fetch.rs, slots.rs
//!        | chunks                       (readers are woken as soon as *their* bytes are there)
//!        v
//!   extents on disk, or in memory       extents.rs, directory.rs, extent_file.rs, memory.rs
//!        | sizes
//!        v
//!   the limit                           store.rs, eviction.rs
//! ```
//!
//! Everything here needs a tokio runtime: futures must be polled, and [`Blob::prefetch`] and [`Blob::forget`] called,
//! inside its context (`Handle::enter` suffices).

#[allow(clippy::module_inception)] // the file is named after the type it holds
mod blob;
mod directory;
mod error;
mod eviction;
pub mod extent_file;
mod extents;
mod fetch;
mod flights;
mod memory;
mod sequential;
mod slots;
mod stats;
mod store;
#[cfg(test)]
mod tests;

pub use blob::Blob;
pub use error::{BlobError, Cause};
pub use extents::{ExtentKind, Extents, Pin};
pub use sequential::Sequential;
pub use stats::{BlobStats, LastError};
pub use store::{Kept, Store};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; a panic elsewhere left only whole values behind, as no lock here is held across anything that can panic
/// half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
