//! What a layer can hold, and what the mount shows of it: a table of small images for every rule, each compared with
//! what extraction by other tools gives, wherever those are right.

mod case;
mod links;
mod names;
mod numbers;
mod parents;
mod sparse;
mod types;
mod whiteouts;
mod xattrs;
