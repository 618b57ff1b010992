//! What the tests stand on: images made in code or of real packages, registries, mounts that clean up after
//! themselves, and trees to compare.

pub mod cli;
pub mod docker_registry;
pub mod fixtures;
pub mod image;
pub mod mount;
pub mod nginx;
pub mod proxy;
pub mod raw_tar;
#[path = "../registry/mod.rs"]
pub mod registry;
pub mod run;
pub mod serve;
pub mod server;
pub mod tree;
pub mod wait;

pub use docker_registry::DockerRegistry;
pub use image::{BuiltImage, Compression, Content, Entry, ImageBuilder, Layer};
pub use mount::{Mount, peelfs};
pub use nginx::Nginx;
pub use proxy::Proxy;
pub use raw_tar::RawTar;
pub use registry::{Head, Line, Listener, Part, Registry, RetryAfter};
pub use run::{attempt, run, start};
pub use serve::{Answer, Serve, encoded};
pub use tree::Tree;
pub use wait::eventually;
