//! Content digests: `sha256:<hex>` and `sha512:<hex>`, as the OCI image-spec writes them.

use std::fmt;
use std::str::FromStr;

use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest as _, Sha256, Sha512};

/// The digest of a blob, or of a layer's decompressed stream (then called DiffID).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// SHA-256, which nearly every image uses.
    Sha256([u8; 32]),
    /// SHA-512, the other algorithm that the image-spec registers.
    Sha512([u8; 64]),
}

/// A digest that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a digest (expected sha256: and 64, or sha512: and 128, lower-case hex digits)")]
pub struct ParseDigestError(String);

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Digest {
        Digest::Sha256(Sha256::digest(bytes).into())
    }

    /// The algorithm's name as it stands before the colon.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Digest::Sha256(_) => "sha256",
            Digest::Sha512(_) => "sha512",
        }
    }

    /// The digest's raw bytes: 32 or 64 of them.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(bytes) => bytes,
            Digest::Sha512(bytes) => bytes,
        }
    }

    /// The hex digits after the colon.
    pub fn hex(&self) -> String {
        self.as_bytes().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The algorithm and 12 hex digits: enough for a person to recognise it.
    pub fn short(&self) -> String {
        format!("{}:{}", self.algorithm(), &self.hex()[..12])
    }

    /// A hasher whose result can be compared with this digest.
    pub fn hasher(&self) -> Hasher {
        match self {
            Digest::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Digest::Sha512(_) => Hasher::Sha512(Box::new(Sha512::new())),
        }
    }

    /// Whether `bytes` have this digest.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        fn parse(text: &str) -> Option<Digest> {
            let (algorithm, hex) = text.split_once(':')?;
            match algorithm {
                "sha256" => Some(Digest::Sha256(unhex(hex)?)),
                "sha512" => Some(Digest::Sha512(unhex(hex)?)),
                _ => None,
            }
        }
        parse(text).ok_or_else(|| ParseDigestError(text.chars().take(160).collect()))
    }
}

fn unhex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    fn nibble(digit: u8) -> Option<u8> {
        match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        }
    }
    if hex.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A digest in the making, whose state can be kept and taken up again by another process.
#[derive(Clone)]
pub enum Hasher {
    /// A SHA-256 in the making.
    Sha256(Sha256),
    /// A SHA-512 in the making; boxed, being large and rare.
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes taken in.
    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Hasher::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }

    /// The state as bytes, for [`Hasher::restore`]: a tag and what the sha2 crate serialises.
    pub fn save(&self) -> Vec<u8> {
        match self {
            Hasher::Sha256(hasher) => [&[1], hasher.serialize().as_slice()].concat(),
            Hasher::Sha512(hasher) => [&[2], hasher.serialize().as_slice()].concat(),
        }
    }

    /// The hasher whose [`Hasher::save`] gave `bytes`; `None` if no hasher did.
    pub fn restore(bytes: &[u8]) -> Option<Hasher> {
        let (tag, state) = bytes.split_first()?;
        match tag {
            1 => {
                let state = SerializedState::<Sha256>::try_from(state).ok()?;
                Sha256::deserialize(&state).ok().map(Hasher::Sha256)
            }
            2 => {
                let state = SerializedState::<Sha512>::try_from(state).ok()?;
                let hasher = Sha512::deserialize(&state).ok()?;
                Some(Hasher::Sha512(Box::new(hasher)))
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_text_form_survives_a_round_trip() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::sha256(b""));
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest.short(), "sha256:e3b0c44298fc");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "sha256:",
            "sha256:E3",
            "md5:00",
            &EMPTY[1..],
            &EMPTY[..70],
            &EMPTY.to_uppercase(),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_restored_hasher_goes_on_where_it_stopped() {
        for whole in [Digest::sha256(b"abcdef"), {
            let mut hasher = Digest::Sha512([0; 64]).hasher();
            hasher.update(b"abcdef");
            hasher.finish()
        }] {
            let mut hasher = whole.hasher();
            hasher.update(b"abc");
            let mut hasher = Hasher::restore(&hasher.save()).unwrap();
            hasher.update(b"def");
            assert_eq!(hasher.finish(), whole);
        }
        assert!(Hasher::restore(b"").is_none());
        assert!(Hasher::restore(&[1, 2, 3]).is_none());
    }
}
