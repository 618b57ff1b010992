//! `/compare`: two versions of a file side by side.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::{Request, State};

use super::super::Server;
use super::super::problem::Problem;
use super::super::query::Query;
use super::browse::crumbs;
use super::html::{Escaped, Page};
use super::view::Beginning;

/// The most cells of the table by which lines are matched; where there would be more, all of them count as changed.
const CELLS: usize = 1 << 20;

/// About the most bytes of a table.
const BYTES: usize = 2 << 20;

/// The lines of two texts that stand beside each other.
#[derive(Debug, PartialEq, Eq)]
enum Row<'a> {
    Same(&'a str),
    Removed(&'a str),
    Added(&'a str),
}

pub(super) async fn page(State(server): State<Arc<Server>>, request: Request) -> Result<Page, Problem> {
    let query = Query::parse(request.uri().query(), &["image", "path", "a", "b"])?;
    let (a, b) = (query.layer("a")?, query.layer("b")?);
    let path = query.needed("path")?;
    let _answering = server.places.admit()?;
    let inspector = server.image(&query, "image").await?;
    let image = query.text("image")?.unwrap_or_default();
    let left = Beginning::of(&inspector, path, a).await?;
    let right = Beginning::of(&inspector, path, b).await?;
    let (image, path) = (image.to_owned(), path.to_owned());
    super::made(move || comparison(&image, &path, (a, &left), (b, &right))).await
}

/// A side: its layer, or none for the merged image, and what is there.
type Side<'a> = (Option<usize>, &'a Beginning);

fn comparison(image: &str, path: &[u8], (a, left): Side<'_>, (b, right): Side<'_>) -> Page {
    let mut page = Page::about(crate::inspect::escaped(path), image);
    page.put(crumbs(image, path, None));
    page.put("<div class=\"wide\"><table class=\"compare\">\n<thead><tr>");
    for (side, version) in [(a, left), (b, right)] {
        let side = side.map_or("Merged".to_owned(), |layer| format!("Layer {layer}"));
        page.put(format_args!("<th>{side}<br><small>{}</small>", Escaped(version.note())));
    }
    page.put("</tr></thead>\n<tbody>\n");
    match (left.text(), right.text()) {
        (Some(before), Some(after)) => {
            let (table, is_cut) = table(&rows(&before, &after));
            page.put(table);
            if is_cut {
                page.put("<tr><td colspan=\"2\">There is more.</tr>\n");
            }
        }
        _ => page.put(match left.bytes == right.bytes && left.size == right.size {
            true => "<tr><td colspan=\"2\">They are not text, and as far as they are shown the same.</tr>\n",
            false => "<tr><td colspan=\"2\">They are not text, and they differ.</tr>\n",
        }),
    }
    page.put("</tbody>\n</table></div>\n");
    page
}

/// What is on both sides, and what on one.
fn rows<'a>(before: &'a str, after: &'a str) -> Vec<Row<'a>> {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let start = a.iter().zip(&b).take_while(|(left, right)| left == right).count();
    let (ends_a, ends_b) = (a[start..].iter().rev(), b[start..].iter().rev());
    let end = ends_a.zip(ends_b).take_while(|(left, right)| left == right).count();
    let mut rows: Vec<Row<'a>> = a[..start].iter().copied().map(Row::Same).collect();
    rows.extend(between(&a[start..a.len() - end], &b[start..b.len() - end]));
    rows.extend(a[a.len() - end..].iter().copied().map(Row::Same));
    rows
}

/// The same by the longest common subsequence.
fn between<'a>(a: &[&'a str], b: &[&'a str]) -> Vec<Row<'a>> {
    let width = b.len() + 1;
    if (a.len() + 1).saturating_mul(width) > CELLS {
        let removed = a.iter().copied().map(Row::Removed);
        return removed.chain(b.iter().copied().map(Row::Added)).collect();
    }
    // How many lines of what follows `i` and `j` are common.
    let mut common = vec![0_u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i * width + j] = match a[i] == b[j] {
                true => common[(i + 1) * width + j + 1] + 1,
                false => common[(i + 1) * width + j].max(common[i * width + j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut rows = Vec::new();
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            rows.push(Row::Same(a[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < a.len() && (j == b.len() || common[(i + 1) * width + j] >= common[i * width + j + 1]) {
            rows.push(Row::Removed(a[i]));
            i += 1;
        } else {
            rows.push(Row::Added(b[j]));
            j += 1;
        }
    }
    rows
}

/// Rows of a table, and whether there would be more: a run of removed lines stands beside the added ones that follow.
fn table(rows: &[Row<'_>]) -> (String, bool) {
    let mut html = String::new();
    let mut is_full = false;
    let mut put = |left: Option<&str>, right: Option<&str>, same: bool| {
        let cell = |side: Option<&str>, class| match (side, same) {
            (None, _) => "<td>".to_owned(),
            (Some(line), true) => format!("<td><pre>{}</pre>", Escaped(line)),
            (Some(line), false) => format!("<td class=\"{class}\"><pre>{}</pre>", Escaped(line)),
        };
        is_full |= html.len() > BYTES;
        if !is_full {
            let _ = writeln!(html, "<tr>{}{}</tr>", cell(left, "removed"), cell(right, "added"));
        }
    };
    let mut rest = rows;
    while let Some(first) = rest.first() {
        if let Row::Same(line) = first {
            put(Some(line), Some(line), true);
            rest = &rest[1..];
            continue;
        }
        let run = rest.iter().take_while(|row| !matches!(row, Row::Same(_))).count();
        let (changed, after) = rest.split_at(run);
        let removed = changed.iter().filter_map(|row| match row {
            Row::Removed(line) => Some(*line),
            _ => None,
        });
        let added = changed.iter().filter_map(|row| match row {
            Row::Added(line) => Some(*line),
            _ => None,
        });
        let (removed, added): (Vec<&str>, Vec<&str>) = (removed.collect(), added.collect());
        for number in 0..removed.len().max(added.len()) {
            put(removed.get(number).copied(), added.get(number).copied(), false);
        }
        rest = after;
    }
    (html, is_full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_matched() {
        use Row::{Added, Removed, Same};
        assert_eq!(
            rows("a\nb\nc\nd", "a\nc\nx\nd\ne"),
            [Same("a"), Removed("b"), Same("c"), Added("x"), Same("d"), Added("e")]
        );
        assert_eq!(rows("", "a"), [Added("a")]);
        assert_eq!(rows("a\na", "a"), [Same("a"), Removed("a")]);
        let long: String = (0..2000).map(|line| format!("{line}\n")).collect();
        assert_eq!(rows(&long, &long.replace('\n', "x\n")).len(), 4000);
    }
}
