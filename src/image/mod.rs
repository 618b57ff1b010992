//! image

pub mod source;
