//! A whole deflate span by libdeflate, which takes half the time of zlib-rs for it.
//!
//! libdeflate knows only complete deflate streams: it can begin neither with a window nor inside of a byte, and it ends
//! only behind a final block. So a complete stream (RFC 1951) is made around the span, for the price of a copy of the
//! compressed bytes:
//!
//! ```text
//! 00  LEN NLEN  the window      a stored block, which ends with a byte
//! empty blocks                  up to the bit of a byte at which the span begins
//! the span's blocks
//! 1 01 0000000                  a final block with fixed codes and nothing but its end
//! ```
//!
//! The span's bits cannot be moved within their bytes instead: a stored block in it goes on at the next whole byte.
//!
//! A span that has a final block itself ends there, and what follows is not looked at.

use std::cell::RefCell;

use bytes::Bytes;
use libdeflater::Decompressor;

use super::{Checkpoint, WINDOW};
use crate::buffers;

/// A block with fixed codes that is empty: its type 01, and the end of a block, which is seven zeros. The first bit, which
/// marks the final block, is the lowest.
const FIXED: u128 = 0b010;
const FIXED_LEN: u32 = 10;
/// The same as the final block, and how many bytes it needs at most, as it may begin with the last bit of one.
const FINAL: u32 = 0b011;
const FINAL_BYTES: usize = 3;

/// An empty block with codes of its own, which has an odd number of bits.
const DYNAMIC: u128 = {
    let block_type = 0b10 << 1;
    // 18 lengths of the code for lengths, 3 bits each, in an order in which that for 18 is the third and that for 1 the
    // last; these two have 1 bit: 0 is a 1, and 1 is an 18, for as many zeros as 7 bits say, and 11.
    let lengths = (18 - 4) << 13 | 1 << (17 + 3 * 2) | 1 << (17 + 3 * 17);
    // No literals up to 254, a literal 255, the end of a block, and one distance.
    let codes = (1 | (138 - 11) << 1) << 71 | (1 | (117 - 11) << 1) << 79;
    let end = 1 << 90;
    block_type | lengths | codes | end
};
const DYNAMIC_LEN: u32 = 91;
/// Bytes of the longest row of empty blocks.
const FILLING_BYTES: usize = (DYNAMIC_LEN + 3 * FIXED_LEN).div_ceil(8) as usize;

thread_local! {
    /// Its tables, 11 KB, which each span fills anew.
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// The `len` bytes behind `at`, a checkpoint inside of a gzip member, from the `compressed` bytes up to the next one, to
/// which `following` bits of the last byte belong.
///
/// `None` if these bytes are anything but sound blocks of one member that give just so much. [`Decoder`](super::Decoder)
/// then knows what to make of them.
pub(super) fn inflate(at: &Checkpoint, compressed: &[u8], following: u8, len: usize) -> Option<Bytes> {
    let stream = complete(at, compressed, following)?;
    let whole = at.window.len().checked_add(len)?;
    let mut out = buffers::of_len(whole).ok()?;
    let got = DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.deflate_decompress(&stream, &mut out));
    buffers::give_back(stream);
    if got != Ok(whole) {
        buffers::give_back(out);
        return None;
    }
    Some(buffers::freeze(out).slice(at.window.len()..))
}

/// The complete stream that gives the window and then the span.
fn complete(at: &Checkpoint, compressed: &[u8], following: u8) -> Option<Vec<u8>> {
    let sane = (1..=WINDOW).contains(&at.window.len()) && at.bits <= 7 && following <= 7;
    if !sane || compressed.is_empty() {
        return None;
    }
    let window_len = u16::try_from(at.window.len()).ok()?;
    let most = 5 + at.window.len() + FILLING_BYTES + compressed.len() + FINAL_BYTES;
    let mut stream = buffers::empty(most).ok()?;
    stream.push(0);
    stream.extend_from_slice(&window_len.to_le_bytes());
    stream.extend_from_slice(&(!window_len).to_le_bytes());
    stream.extend_from_slice(&at.window);

    let mut compressed = compressed;
    if at.bits != 0 {
        let (first, rest) = compressed.split_first()?;
        let before = 8 - u32::from(at.bits);
        let (filling, len) = empty_blocks(before);
        stream.extend(filling.to_le_bytes().iter().take(len as usize / 8 + 1));
        *stream.last_mut()? |= first >> before << before;
        compressed = rest;
    }
    stream.extend_from_slice(compressed);

    let (begun, begun_len) = match following {
        0 => (0, 0),
        _ => (u32::from(stream.pop()?) & (0xff >> following), 8 - u32::from(following)),
    };
    let end = begun | FINAL << begun_len;
    stream.extend(end.to_le_bytes().iter().take(FINAL_BYTES));
    Some(stream)
}

/// Empty blocks that end with the bit `to` of a byte, 1 to 7, and how many bits they have.
fn empty_blocks(to: u32) -> (u128, u32) {
    let (mut blocks, mut len) = if to.is_multiple_of(2) {
        (0, 0)
    } else {
        (DYNAMIC, DYNAMIC_LEN)
    };
    while len % 8 != to {
        blocks |= FIXED << len;
        len += FIXED_LEN;
    }
    (blocks, len)
}
