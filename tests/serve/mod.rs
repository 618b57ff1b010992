//! What can be asked of an image over HTTP: the same as on the command line and through a mount, at no higher cost, and
//! safely.

mod api;
mod carve;
mod listings;
mod load;
mod pages;
mod safety;

use std::path::PathBuf;

use crate::support::cli::{Asked, history};
use crate::support::*;

/// An image in a registry, and a server that is asked about it.
struct Scene {
    asked: Asked,
    serve: Serve,
}

impl Scene {
    fn of(layers: impl IntoIterator<Item = Layer>) -> Scene {
        Scene::with(Asked::of(layers), &[])
    }

    /// The image in which everything happens that can happen to a file.
    fn history() -> Scene {
        Scene::of(history())
    }

    fn with(asked: Asked, arguments: &[&str]) -> Scene {
        let serve = Serve::with(&asked.cache(), arguments);
        Scene { asked, serve }
    }

    /// The target of a request about the image.
    fn target(&self, route: &str, rest: &str) -> String {
        format!("/{route}?image={}{rest}", encoded(self.asked.served.reference()))
    }

    #[track_caller]
    fn get(&self, route: &str, rest: &str) -> Answer {
        self.serve.get(&self.target(route, rest))
    }

    fn cache(&self) -> PathBuf {
        self.asked.cache()
    }
}
