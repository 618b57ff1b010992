//! Large buffers, used again and again.
//!
//! Spans and extents, of some hundred KiB to a few MiB each, pass from thread to thread, and the caches let go of one for each
//! that they take in. An allocator either gets such memory from the kernel each time, which clears every page of it, or
//! keeps it in heaps in which small things that live on hold what is free between them. Here it waits for the next
//! span, and goes back to the kernel only if there is too much of it.

use std::collections::{TryReserveError, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;

/// What is smaller is left to the allocator.
const LARGE: usize = 128 << 10;

/// Capacities are multiples of this, so that a buffer fits the next span too, which is rarely just as long.
const STEP: usize = 128 << 10;

/// The most that waits, in bytes. While reading goes on each buffer is taken again soon; this is what the process keeps
/// afterwards.
const LIMIT: usize = 8 << 20;

static POOL: Mutex<Pool> = Mutex::new(Pool::new(LIMIT));

/// An empty buffer for at least `capacity` bytes.
///
/// # Errors
/// There is no memory.
pub(crate) fn empty(capacity: usize) -> Result<Vec<u8>, TryReserveError> {
    let mut buffer = take(capacity)?;
    buffer.clear();
    Ok(buffer)
}

/// A buffer of `len` bytes that are to be written over, all of them: they are whatever they were before.
///
/// # Errors
/// There is no memory.
pub(crate) fn of_len(len: usize) -> Result<Vec<u8>, TryReserveError> {
    let mut buffer = take(len)?;
    buffer.resize(len, 0);
    Ok(buffer)
}

/// The bytes of a buffer, which is used again when the last who has a part of them lets go of it.
pub(crate) fn freeze(buffer: Vec<u8>) -> Bytes {
    match buffer.capacity() {
        LARGE.. => Bytes::from_owner(Used(buffer)),
        _ => Bytes::from(buffer),
    }
}

/// Takes back a buffer that nobody has any use for.
pub(crate) fn give_back(buffer: Vec<u8>) {
    if buffer.capacity() >= LARGE {
        let too_many = POOL.lock().give_back(buffer);
        // The kernel takes its time with them, for which nobody needs to hold the lock.
        drop(too_many);
    }
}

/// The parts one after another; without a copy if there is only one.
pub(crate) fn join(parts: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(parts) {
        Ok([one]) => one,
        Err(parts) => {
            // Without memory for it, it is the allocator's to say so.
            let mut whole = empty(parts.iter().map(Bytes::len).sum()).unwrap_or_default();
            for part in parts {
                whole.extend_from_slice(&part);
            }
            freeze(whole)
        }
    }
}

fn take(len: usize) -> Result<Vec<u8>, TryReserveError> {
    if len < LARGE {
        let mut small = Vec::new();
        small.try_reserve_exact(len)?;
        return Ok(small);
    }
    if let Some(buffer) = POOL.lock().take(len) {
        return Ok(buffer);
    }
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len.checked_next_multiple_of(STEP).unwrap_or(len))?;
    Ok(buffer)
}

/// A buffer that somebody reads.
struct Used(Vec<u8>);

impl AsRef<[u8]> for Used {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.0));
    }
}

/// The buffers that wait, the oldest first.
struct Pool {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    limit: usize,
}

impl Pool {
    const fn new(limit: usize) -> Pool {
        Pool {
            waiting: VecDeque::new(),
            bytes: 0,
            limit,
        }
    }

    /// The buffer that fits `len` bytes best, unless much of it would lie idle: caches count what they keep by its length.
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let most = len.saturating_add(len / 4).saturating_add(STEP);
        let fits = |buffer: &Vec<u8>| (len..=most).contains(&buffer.capacity());
        let candidates = self.waiting.iter().enumerate().filter(|(_, buffer)| fits(buffer));
        // Of those that fit alike the one that came last: its bytes may be in the processor's cache.
        let best = candidates.rev().min_by_key(|(_, buffer)| buffer.capacity())?.0;
        let buffer = self.waiting.remove(best)?;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    /// Takes in a buffer that nobody reads any more. Gives those that are too many.
    fn give_back(&mut self, buffer: Vec<u8>) -> Vec<Vec<u8>> {
        self.bytes += buffer.capacity();
        self.waiting.push_back(buffer);
        let mut too_many = Vec::new();
        while self.bytes > self.limit {
            let Some(oldest) = self.waiting.pop_front() else { break };
            self.bytes -= oldest.capacity();
            too_many.push(oldest);
        }
        too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_buffer_are_where_they_were() {
        for len in [10, 1 << 20] {
            let mut buffer = empty(len).unwrap();
            buffer.resize(len, 7);
            let at = buffer.as_ptr();
            let bytes = freeze(buffer);
            assert_eq!(bytes.as_ptr(), at);
            let part = bytes.slice(5..9);
            drop(bytes);
            assert_eq!(part[..], [7; 4]);
        }
    }

    #[test]
    fn the_best_fit_is_used_again() {
        let mut pool = Pool::new(100 * STEP);
        for steps in [10, 30, 20, 40] {
            assert!(pool.give_back(Vec::with_capacity(steps * STEP)).is_empty());
        }
        let mut took = |steps: usize| pool.take(steps * STEP).map(|buffer| buffer.capacity() / STEP);
        assert_eq!(took(19), Some(20));
        assert_eq!(took(19), None, "30 is too much");
        assert_eq!(took(30), Some(30));
        assert_eq!(took(41), None);
        assert_eq!(pool.bytes, 50 * STEP);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let mut pool = Pool::new(100);
        let gone: Vec<usize> = [60, 30, 20, 200]
            .into_iter()
            .flat_map(|capacity| pool.give_back(Vec::with_capacity(capacity)))
            .map(|buffer| buffer.capacity())
            .collect();
        assert_eq!(gone, [60, 30, 20, 200]);
        assert_eq!(pool.bytes, 0);
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        assert!(empty(usize::MAX).is_err());
        assert!(of_len(isize::MAX as usize).is_err());
    }

    #[test]
    fn parts_are_joined_in_order() {
        let parts = || vec![Bytes::from(vec![1; 200_000]), Bytes::new(), Bytes::from(vec![2; 3])];
        assert_eq!(join(parts())[..], [vec![1; 200_000], vec![2; 3]].concat());
        assert_eq!(join(vec![]), Bytes::new());
        let one = Bytes::from(vec![1; 5]);
        assert_eq!(join(vec![one.clone()]).as_ptr(), one.as_ptr());
    }
}
