//! What is in a directory, and below it, in the order of names.

use std::sync::Arc;

use super::{InspectError, Node, View};
use crate::tree::Listing;

/// Goes through a directory: each entry before what is in it.
#[derive(Debug)]
pub struct Walk {
    view: View,
    recursive: bool,
    /// The directories that are being gone through, the innermost last.
    frames: Vec<Frame>,
    /// The directory that was given last, to be entered next.
    entered: Option<Arc<Node>>,
}

#[derive(Debug)]
struct Frame {
    node: Arc<Node>,
    listing: Arc<Listing>,
    next: usize,
}

impl Walk {
    /// Through what is in the directory `node` of `view`, and with `recursive` what is below.
    pub fn of(view: &View, node: Arc<Node>, recursive: bool) -> Walk {
        Walk {
            view: view.clone(),
            recursive,
            frames: Vec::new(),
            entered: Some(node),
        }
    }

    /// The next entry; none at the end.
    ///
    /// # Errors
    /// [`InspectError::NotADirectory`] at the start, [`InspectError::Tree`].
    pub async fn next(&mut self) -> Result<Option<Arc<Node>>, InspectError> {
        if let Some(node) = self.entered.take() {
            let listing = self.view.list(&node).await?;
            self.frames.push(Frame { node, listing, next: 0 });
        }
        while let Some(frame) = self.frames.last_mut() {
            // Once all is known nothing here waits, and others are to have their turn.
            tokio::task::consume_budget().await;
            if frame.next >= frame.listing.len() {
                self.frames.pop();
                continue;
            }
            frame.next += 1;
            let child = self.view.child(&frame.node, &frame.listing, frame.next - 1).await?;
            if let Some(child) = child.map(Arc::new) {
                let child = self.view.settled(child).await?;
                self.entered = (self.recursive && child.is_directory()).then(|| child.clone());
                return Ok(Some(child));
            }
        }
        Ok(None)
    }
}
