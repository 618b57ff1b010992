//! What users see: real mounts, of images in real registries, judged by other people's tools.
//!
//! One program for all of it: what the tests stand on is built once, and who waits does not keep the others waiting.

mod cli;
mod corpus;
mod corrupt;
mod cost;
mod crash;
mod credentials;
mod disk;
mod faults;
mod memory;
mod mount;
mod outage;
mod registries;
mod rights;
mod serve;
mod size;
mod soak;
mod streams;
mod support;
mod support_works;
mod tools;
mod truth;
