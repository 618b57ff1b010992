//! The `peelfs` command.

fn main() {}
