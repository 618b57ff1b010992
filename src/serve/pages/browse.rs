//! `/browse`: a directory.

use std::sync::Arc;

use axum::extract::{Request, State};
use futures_util::TryStreamExt;

use super::super::problem::Problem;
use super::super::query::Query;
use super::super::{Server, listings};
use super::html::{Escaped, Page, link, name};
use crate::index::Kind;
use crate::inspect::{Entry, Inspector, mode, time};

/// The most rows of a page.
const ROWS: usize = 5000;

/// About the most bytes of them.
const BYTES: usize = 2 << 20;

pub(super) async fn page(State(server): State<Arc<Server>>, request: Request) -> Result<Page, Problem> {
    let query = Query::parse(request.uri().query(), &["image", "path", "layer"])?;
    let layer = query.layer("layer")?;
    let _answering = server.places.admit()?;
    let inspector = server.image(&query, "image").await?;
    let image = query.text("image")?.unwrap_or_default();
    let path = [b"/", query.path()].concat();
    let path = trimmed(&path);
    let mut rows = match layer {
        None => listings::versions(&inspector, query.path(), false).await?,
        Some(_) => listings::entries(&inspector, layer, query.path(), false).await?,
    };
    let (mut entries, mut bytes, mut is_cut) = (Vec::new(), 0, false);
    while let Some(entry) = rows.try_next().await? {
        is_cut = entries.len() == ROWS || bytes > BYTES;
        if is_cut {
            break;
        }
        bytes += entry.path.len() + entry.target.as_ref().map_or(0, Vec::len);
        entries.push(entry);
    }
    let (image, path) = (image.to_owned(), path.to_owned());
    super::made(move || listing(&inspector, &image, &path, layer, &entries, is_cut)).await
}

/// The page with the first of the entries of a directory, or if not `is_cut` with all of them.
fn listing(
    inspector: &Inspector,
    image: &str,
    path: &[u8],
    layer: Option<usize>,
    entries: &[Entry],
    is_cut: bool,
) -> Page {
    let (mut count, mut html) = (0, String::new());
    for entry in entries {
        if html.len() > BYTES {
            break;
        }
        count += 1;
        html += &row(image, layer, entry);
    }
    let is_cut = is_cut || count < entries.len();
    let mut page = Page::about(crate::inspect::escaped(path), image);
    page.put(crumbs(image, path, layer));
    page.put(layers(inspector, image, path, layer));
    page.put("<input id=\"filter\" type=\"search\" placeholder=\"Filter these names\" aria-label=\"Filter\" hidden>\n");
    page.put("<div class=\"wide\"><table id=\"entries\">\n<thead><tr><th>Mode<th>Owner<th class=\"number\">Size");
    page.put("<th>Modified (UTC)<th>Name<th>Layer<th></tr></thead>\n<tbody>\n");
    page.put(html);
    page.put("</tbody>\n</table></div>\n");
    if count == 0 {
        page.put("<p>There is nothing in it.</p>\n");
    }
    if is_cut {
        page.put(format_args!(
            "<p>There is more; these are the first {count}. <code>/ls</code> gives all.</p>\n"
        ));
    }
    page
}

/// A path with one slash before it and none behind.
fn trimmed(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    let end = path
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(start, |last| last + 1);
    // There is a slash before it, which was added.
    &path[start.saturating_sub(1)..end.max(start)]
}

/// The number of a layer as a value in a link, or nothing for the merged view.
pub(super) fn number(layer: Option<usize>) -> Vec<u8> {
    layer.map(|layer| layer.to_string().into_bytes()).unwrap_or_default()
}

/// Links to the directories that a path is in.
pub(super) fn crumbs(image: &str, path: &[u8], layer: Option<usize>) -> String {
    let layer = number(layer);
    let to = |path: &[u8], text: String| {
        let link = link(
            "browse",
            &[("image", image.as_bytes()), ("path", path), ("layer", &layer)],
        );
        format!("<a href=\"{link}\">{text}</a>")
    };
    let mut html = format!("<nav class=\"crumbs\">{}", to(b"/", Escaped(image).to_string()));
    let mut end = 0;
    for part in path.split(|byte| *byte == b'/') {
        end += part.len() + 1;
        if !part.is_empty() {
            let above = path.get(..end - 1).unwrap_or(path);
            html += &format!(" / {}", to(above, name(part).to_string()));
        }
    }
    html + "</nav>\n"
}

/// A form to choose a layer or the merged view.
fn layers(inspector: &Inspector, image: &str, path: &[u8], layer: Option<usize>) -> String {
    let hidden =
        |name: &str, value: &str| format!("<input type=\"hidden\" name=\"{name}\" value=\"{}\">", Escaped(value));
    let mut html = String::from("<form action=\"/browse\" class=\"choice\">");
    html += &hidden("image", image);
    // A form can send only text; a path that is none stays in the links.
    html += &hidden("path", std::str::from_utf8(path).unwrap_or("/"));
    html += "<label>Show <select name=\"layer\"><option value=\"\">the merged image</option>";
    for summary in inspector.summaries() {
        let selected = if layer == Some(summary.number) { " selected" } else { "" };
        let made: String = summary.created_by.unwrap_or_default().chars().take(60).collect();
        html += &format!(
            "<option value=\"{number}\"{selected}>layer {number}, {size} bytes{dash}{made}</option>",
            number = summary.number,
            size = summary.size,
            dash = if made.is_empty() { "" } else { ": " },
            made = Escaped(made),
        );
    }
    html + "</select></label> <button>Show</button></form>\n"
}

fn row(image: &str, layer: Option<usize>, entry: &Entry) -> String {
    let path = [b"/", entry.path.as_slice()].concat();
    // What is hidden is only to be seen in its layer.
    let from = match entry.hidden {
        Some(_) => entry.found_in,
        None => layer,
    };
    let is_there = entry.hidden.is_none() || from.is_some();
    let values: &[(&str, &[u8])] = &[("image", image.as_bytes()), ("path", &path), ("layer", &number(from))];
    let shown = name(entry.name());
    let text = match entry.kind {
        Kind::Directory if is_there => format!("<a href=\"{}\">{shown}/</a>", link("browse", values)),
        Kind::File if is_there => format!("<a href=\"{}\">{shown}</a>", link("view", values)),
        Kind::Directory => format!("{shown}/"),
        _ => format!("{shown}"),
    };
    let target = entry
        .target
        .as_deref()
        .map(|target| format!(" &rarr; {}", name(target)));
    let download = match entry.kind {
        Kind::File if is_there => format!("<a href=\"{}\">download</a>", link("carve", values)),
        _ => String::new(),
    };
    let hidden = if entry.hidden.is_some() {
        " class=\"hidden\""
    } else {
        ""
    };
    format!(
        "<tr{hidden}><td><code>{}</code><td>{}:{}<td class=\"number\">{}<td>{}<td class=\"name\">{text}{}<td>{}<td>{download}</tr>\n",
        mode(entry.kind, entry.mode),
        entry.uid,
        entry.gid,
        entry.size,
        time(entry.mtime),
        target.unwrap_or_default(),
        Escaped(entry.marks().trim_start()),
    )
}

#[cfg(test)]
mod tests {
    use super::trimmed;

    #[test]
    fn paths_have_one_slash_before_them() {
        for (path, as_shown) in [
            ("//", "/"),
            ("//etc", "/etc"),
            ("/etc/", "/etc"),
            ("//a/b//", "/a/b"),
            ("/", "/"),
        ] {
            assert_eq!(trimmed(path.as_bytes()), as_shown.as_bytes(), "{path}");
        }
    }
}
