//! Names that match a pattern, in all layers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};

use super::{Entry, InspectError, Inspector, Versions};

/// A glob: `*` and `?` stop at slashes, `**` does not, `[a-z]` and `{a,b}` are understood.
#[derive(Debug, Clone)]
pub struct Pattern {
    matcher: GlobMatcher,
    /// It is for the whole path and not for the last name.
    whole: bool,
}

/// A pattern that cannot be one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("'{pattern}' is no pattern: {reason}")]
pub struct PatternError {
    pattern: String,
    reason: String,
}

impl std::str::FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        let whole = text.contains('/');
        let glob = GlobBuilder::new(text.trim_start_matches('/'))
            .literal_separator(true)
            .backslash_escape(true)
            .build();
        match glob {
            Ok(glob) => Ok(Pattern {
                matcher: glob.compile_matcher(),
                whole,
            }),
            Err(error) => Err(PatternError {
                pattern: text.to_owned(),
                reason: error.kind().to_string(),
            }),
        }
    }
}

impl Pattern {
    /// Whether an entry's name matches, or where the pattern has a slash its path.
    pub fn matches(&self, entry: &Entry) -> bool {
        let name = if self.whole { &entry.path } else { entry.name() };
        self.matcher.is_match(OsStr::from_bytes(name))
    }
}

/// All versions of all names that match a pattern.
#[derive(Debug)]
pub struct Matches {
    versions: Versions,
    pattern: Pattern,
}

impl Matches {
    /// In the whole image.
    ///
    /// # Errors
    /// [`InspectError::Tree`].
    pub async fn of(inspector: &Arc<Inspector>, pattern: Pattern) -> Result<Matches, InspectError> {
        let versions = Versions::at(inspector, b"/", true).await?;
        Ok(Matches { versions, pattern })
    }

    /// The next; none at the end.
    ///
    /// # Errors
    /// [`InspectError::Tree`].
    pub async fn next(&mut self) -> Result<Option<Entry>, InspectError> {
        while let Some(entry) = self.versions.next().await? {
            if self.pattern.matches(&entry) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}
