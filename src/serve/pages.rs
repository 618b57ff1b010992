//! The pages for people.

use std::sync::Arc;

use axum::routing::MethodRouter;

use super::Server;

/// The pages, and what they are made of.
pub(super) fn routes() -> Vec<(&'static str, MethodRouter<Arc<Server>>)> {
    Vec::new()
}
