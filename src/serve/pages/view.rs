//! `/view`: a file as text, and its versions.

use std::sync::Arc;

use axum::extract::{Request, State};

use super::super::problem::Problem;
use super::super::query::Query;
use super::super::{Server, carve};
use super::SHOWN;
use super::browse::{crumbs, number};
use super::html::{Escaped, Page, link};
use crate::index::Kind;
use crate::inspect::{Content, Entry, Follow, InspectError, Inspector, mode, time};

/// The beginning of a file, for a page.
pub(super) struct Beginning {
    /// What there is of it.
    pub(super) bytes: Vec<u8>,
    /// The length of the file.
    pub(super) size: u64,
    /// The layer that it is from.
    pub(super) layer: Option<usize>,
}

impl Beginning {
    /// Of the file at `path`, as much as a page shows.
    pub(super) async fn of(
        inspector: &Inspector,
        path: &[u8],
        layer: Option<usize>,
    ) -> Result<Beginning, InspectError> {
        let (view, node) = inspector.find(layer, path, Follow::Last).await?;
        let (size, layer) = (node.attr.size, node.layer());
        let mut content = Content::of(&view, Arc::new(node), 0..SHOWN)?;
        let mut bytes = Vec::new();
        while let Some(piece) = content.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(Beginning { bytes, size, layer })
    }

    /// It as text, if it is.
    pub(super) fn text(&self) -> Option<std::borrow::Cow<'_, str>> {
        carve::is_text(&self.bytes).then(|| String::from_utf8_lossy(&self.bytes))
    }

    /// What is to be said of it besides.
    pub(super) fn note(&self) -> String {
        let layer = self
            .layer
            .map(|layer| format!(", from layer {layer}"))
            .unwrap_or_default();
        let cut = match self.size > SHOWN {
            true => format!("; only the first {SHOWN} are shown"),
            false => String::new(),
        };
        format!("{} bytes{layer}{cut}", self.size)
    }
}

pub(super) async fn page(State(server): State<Arc<Server>>, request: Request) -> Result<Page, Problem> {
    let query = Query::parse(request.uri().query(), &["image", "path", "layer", "versions"])?;
    let (layer, all) = (query.layer("layer")?, query.flag("versions", false)?);
    let path = query.needed("path")?;
    let _answering = server.places.admit()?;
    let inspector = server.image(&query, "image").await?;
    let image = query.text("image")?.unwrap_or_default();
    let file = Beginning::of(&inspector, path, layer).await?;
    // They need all layers, and the file may not.
    let history = match all || inspector.is_complete() {
        true => Some(inspector.versions(path).await?),
        false => None,
    };
    let (image, path) = (image.to_owned(), path.to_owned());
    super::made(move || shown(&image, &path, layer, &file, history.as_deref())).await
}

fn shown(image: &str, path: &[u8], layer: Option<usize>, file: &Beginning, history: Option<&[Entry]>) -> Page {
    let mut page = Page::about(crate::inspect::escaped(path), image);
    page.put(crumbs(image, path, layer));
    let layer = number(layer);
    let values: &[(&str, &[u8])] = &[("image", image.as_bytes()), ("path", path), ("layer", &layer)];
    page.put(format_args!(
        "<p>{}. <a href=\"{}\">Download</a></p>\n",
        Escaped(file.note()),
        link("carve", values)
    ));
    match history {
        Some(history) => page.put(versions(image, path, history)),
        None => {
            let values = [values, &[("versions", b"true")]].concat();
            let link = link("view", &values);
            page.put(format_args!(
                "<p><a href=\"{link}\">Look for its versions in all layers</a></p>\n"
            ));
        }
    }
    match file.text() {
        Some(text) => page.put(format_args!("<pre class=\"file\">{}</pre>\n", Escaped(text))),
        None => page.put("<p>It is not text in UTF-8, so it is not shown.</p>\n"),
    }
    page
}

/// The versions of the file, with links to each, and to two of them side by side.
fn versions(image: &str, path: &[u8], history: &[Entry]) -> String {
    let mut html = String::from("<ul class=\"versions\">\n");
    let mut before: Option<usize> = None;
    // The base first.
    for entry in history.iter().rev() {
        let (mode, marks) = (mode(entry.kind, entry.mode), entry.marks());
        html += &format!(
            "<li><code>{mode}</code> {} bytes, {}{marks}",
            entry.size,
            time(entry.mtime)
        );
        if let (Kind::File, Some(layer)) = (entry.kind, entry.found_in) {
            let this = number(Some(layer));
            let values: &[(&str, &[u8])] = &[("image", image.as_bytes()), ("path", path), ("layer", &this)];
            html += &format!(", <a href=\"{}\">view</a>", link("view", values));
            if let Some(before) = before {
                let then = number(Some(before));
                let values: &[(&str, &[u8])] =
                    &[("image", image.as_bytes()), ("path", path), ("a", &then), ("b", &this)];
                html += &format!(
                    ", <a href=\"{}\">compare with layer {before}</a>",
                    link("compare", values)
                );
            }
            before = Some(layer);
        }
        html += "</li>\n";
    }
    html + "</ul>\n"
}
