//! A mount is a directory to the programs that people have: they tell of it what they tell of the same image that umoci
//! unpacked, or of the same tree on a read-only ext4, and they work on it.
//!
//! What a FUSE file system cannot do as ext4 does is written down beside what is compared.

mod databases;
mod debian;
mod roots;
mod same;
mod system_calls;
mod twin;
mod unpacked;
