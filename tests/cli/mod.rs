//! What can be asked of an image without a mount, by the command line: it says what a mount shows, at no higher cost.

mod cache;
mod carve;
mod look;
