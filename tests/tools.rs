//! A mount is a directory to the programs that people have: they tell of it what they tell of the same image that umoci
//! unpacked, or of the same tree on a read-only ext4, and they work on it.
//!
//! What a FUSE file system cannot do as ext4 does is written down beside what is compared.

mod support;

#[path = "tools/databases.rs"]
mod databases;
#[path = "tools/debian.rs"]
mod debian;
#[path = "tools/roots.rs"]
mod roots;
#[path = "tools/same.rs"]
mod same;
#[path = "tools/system_calls.rs"]
mod system_calls;
#[path = "tools/twin.rs"]
mod twin;
#[path = "tools/unpacked.rs"]
mod unpacked;
