//! Listings, versions and comparisons, as JSON and as text: the same, byte for byte, as the commands print.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use serde::Serialize;

use super::Server;
use super::carve::put;
use super::places::Answering;
use super::problem::Problem;
use super::query::Query;
use crate::inspect::{Change, Diff, Entry, Follow, InspectError, Inspector, Matches, Versions, View, Walk};

/// Rows are sent in pieces of about this size.
const FULL: usize = 32 << 10;

/// What a listing has in it, one after the other.
pub(super) type Rows<T> = BoxStream<'static, Result<T, InspectError>>;

/// `/ls`.
pub(super) async fn ls(State(server): State<Arc<Server>>, request: Request) -> Result<Response, Problem> {
    let names = ["image", "path", "layer", "recursive", "all"];
    let query = Query::parse(request.uri().query(), &names)?;
    let (layer, recursive) = (query.layer("layer")?, query.flag("recursive", false)?);
    let all = query.flag("all", false)?;
    if all && layer.is_some() {
        return Err(Problem::query("'all' is about all layers: leave out 'layer'"));
    }
    let answering = server.places.admit()?;
    let inspector = server.image(&query, "image").await?;
    let rows = match all {
        true => versions(&inspector, query.path(), recursive).await?,
        false => entries(&inspector, layer, query.path(), recursive).await?,
    };
    json(rows, answering).await
}

/// `/fslog`.
pub(super) async fn fslog(State(server): State<Arc<Server>>, request: Request) -> Result<Response, Problem> {
    let query = Query::parse(request.uri().query(), &["image", "path", "layer"])?;
    let layer = query.layer("layer")?;
    let answering = server.places.admit()?;
    let inspector = server.image(&query, "image").await?;
    let rows = match layer {
        None => versions(&inspector, query.path(), true).await?,
        Some(_) => entries(&inspector, layer, query.path(), true).await?,
    };
    let lines = rows.map_ok(|entry| line(&entry)).boxed();
    send("text/plain; charset=utf-8", lines, answering).await
}

/// `/find`.
pub(super) async fn find(State(server): State<Arc<Server>>, request: Request) -> Result<Response, Problem> {
    let query = Query::parse(request.uri().query(), &["image", "pattern"])?;
    let pattern = query.pattern()?;
    let answering = server.places.admit()?;
    let inspector = server.image(&query, "image").await?;
    let matches = Matches::of(&inspector, pattern).await?;
    let rows = stream::try_unfold(matches, |mut matches| async {
        Ok(matches.next().await?.map(|entry| (entry, matches)))
    });
    json(rows.boxed(), answering).await
}

/// `/layers`.
pub(super) async fn layers(State(server): State<Arc<Server>>, request: Request) -> Result<Response, Problem> {
    let query = Query::parse(request.uri().query(), &["image"])?;
    let answering = server.places.admit()?;
    let inspector = server.image(&query, "image").await?;
    json(
        stream::iter(inspector.summaries().into_iter().map(Ok)).boxed(),
        answering,
    )
    .await
}

/// `/history`.
pub(super) async fn history(State(server): State<Arc<Server>>, request: Request) -> Result<Response, Problem> {
    let query = Query::parse(request.uri().query(), &["image", "path", "digests"])?;
    let (path, digests) = (query.needed("path")?, query.flag("digests", true)?);
    let answering = server.places.admit()?;
    let inspector = server.image(&query, "image").await?;
    let events = inspector.history(path, digests).await?;
    json(stream::iter(events.into_iter().map(Ok)).boxed(), answering).await
}

/// `/diff`.
pub(super) async fn diff(State(server): State<Arc<Server>>, request: Request) -> Result<Response, Problem> {
    let names = ["image", "other", "a", "b", "merged", "path", "ignore_times"];
    let query = Query::parse(request.uri().query(), &names)?;
    let (a, b) = (query.layer("a")?, query.layer("b")?);
    let (merged, ignore_times) = (query.flag("merged", false)?, query.flag("ignore_times", false)?);
    if query.bytes("other").is_some() && merged {
        return Err(Problem::query(
            "'merged' is about two layers of one image: leave out 'other'",
        ));
    }
    let answering = server.places.admit()?;
    let (left, right) = match (query.bytes("other"), a, b) {
        (Some(_), None, None) => {
            // One after the other: what they share is fetched once.
            let left = server.image(&query, "image").await?;
            left.complete().await?;
            let right = server.image(&query, "other").await?;
            (left.view(None)?, right.view(None)?)
        }
        (None, Some(a), Some(b)) => {
            let inspector = server.image(&query, "image").await?;
            let view = |number| match merged {
                true => inspector.stage(number),
                false => inspector.view(Some(number)),
            };
            (view(a)?, view(b)?)
        }
        _ => {
            let sentence = "say what to compare the image with: 'other', another image, or 'a' and 'b', two layers";
            return Err(Problem::query(sentence));
        }
    };
    let diff = Diff::of(left, right, query.path()).await?;
    let rows = stream::try_unfold(diff, |mut diff| async {
        Ok(diff.next().await?.map(|difference| (difference, diff)))
    });
    let rows = rows.try_filter_map(move |mut difference| async move {
        let was_changed = !difference.changes.is_empty();
        difference
            .changes
            .retain(|change| !ignore_times || *change != Change::Time);
        Ok((!was_changed || !difference.changes.is_empty()).then_some(difference))
    });
    json(rows.boxed(), answering).await
}

/// What is to be seen at `path`, or if it is a directory in it.
pub(super) async fn entries(
    inspector: &Arc<Inspector>,
    layer: Option<usize>,
    path: &[u8],
    recursive: bool,
) -> Result<Rows<Entry>, InspectError> {
    let (view, node) = inspector.find(layer, path, Follow::Parents).await?;
    let node = Arc::new(node);
    if !node.is_directory() {
        let entry = Entry::of(&view, &node)?;
        return Ok(stream::iter([Ok(entry)]).boxed());
    }
    // What goes wrong is to be known before the first row.
    view.list(&node).await?;
    let walk = Walk::of(&view, node, recursive);
    let rows = stream::try_unfold((walk, view), |(mut walk, view): (Walk, View)| async {
        let Some(node) = walk.next().await? else {
            return Ok(None);
        };
        Ok(Some((Entry::of(&view, &node)?, (walk, view))))
    });
    Ok(rows.boxed())
}

/// The same, with all versions.
pub(super) async fn versions(
    inspector: &Arc<Inspector>,
    path: &[u8],
    recursive: bool,
) -> Result<Rows<Entry>, InspectError> {
    let versions = Versions::at(inspector, path, recursive).await?;
    let rows = stream::try_unfold(versions, |mut versions| async {
        Ok(versions.next().await?.map(|entry| (entry, versions)))
    });
    Ok(rows.boxed())
}

/// An entry as a line of `peelfs ls -R`, its name escaped as for a terminal.
fn line(entry: &Entry) -> Vec<u8> {
    let target = entry.target.as_deref().map(crate::inspect::escaped);
    let target = target.map(|target| format!(" -> {target}")).unwrap_or_default();
    let (attributes, path) = (entry.attributes(), crate::inspect::escaped(&entry.path));
    format!("{attributes}/{path}{target}{}\n", entry.marks()).into_bytes()
}

/// One JSON array with a value in each line, as the commands print it.
async fn json<T: Serialize + Send + 'static>(rows: Rows<T>, answering: Answering) -> Result<Response, Problem> {
    let mut is_first = true;
    let values = rows.map_ok(move |row| {
        let start: &[u8] = if std::mem::take(&mut is_first) { b"[\n" } else { b",\n" };
        let mut text = start.to_vec();
        // It fails only for maps whose keys are no strings.
        let _ = serde_json::to_writer(&mut text, &row);
        text
    });
    let mut values = values.boxed().peekable();
    let end: &[u8] = match std::pin::Pin::new(&mut values).peek().await {
        None => b"[]\n",
        Some(_) => b"\n]\n",
    };
    let end = stream::iter([Ok(end.to_vec())]);
    send("application/json", values.chain(end).boxed(), answering).await
}

/// Sends rows as they come, the first of them read before the head is.
async fn send(media_type: &str, mut rows: Rows<Vec<u8>>, mut answering: Answering) -> Result<Response, Problem> {
    let first = answering.work(piece(&mut rows)).await?;
    let first = stream::iter([Ok(first)]);
    let rest = stream::try_unfold((rows, answering), |(mut rows, mut answering)| async {
        match answering.work(piece(&mut rows)).await {
            Ok(piece) if piece.is_empty() => Ok(None),
            Ok(piece) => Ok(Some((piece, (rows, answering)))),
            Err(error) => {
                tracing::warn!("{error}");
                Err(error)
            }
        }
    });
    let mut response = Response::new(Body::from_stream(first.chain(rest)));
    put(response.headers_mut(), CONTENT_TYPE, media_type);
    Ok(response)
}

/// Rows enough to be worth sending; none at the end.
async fn piece(rows: &mut Rows<Vec<u8>>) -> Result<Bytes, InspectError> {
    let mut piece = Vec::new();
    while piece.len() < FULL {
        match rows.try_next().await? {
            Some(row) => piece.extend_from_slice(&row),
            None => break,
        }
    }
    Ok(piece.into())
}
