//! The query of a URL. Its values are bytes, since the paths in images are.

use std::collections::HashMap;

use percent_encoding::percent_decode;

use super::problem::Problem;
use crate::inspect::Pattern;

/// The parameters of a request: each known to whoever answers, and given at most once.
#[derive(Debug)]
pub(super) struct Query(HashMap<&'static str, Vec<u8>>);

impl Query {
    /// What stands behind the `?`, of which nothing but `known` names may be there. A plus is a space, as forms have it.
    pub(super) fn parse(text: Option<&str>, known: &[&'static str]) -> Result<Query, Problem> {
        let mut values = HashMap::new();
        for part in text.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = decoded(name)?;
            let Some(known) = known.iter().find(|known| known.as_bytes() == name) else {
                let (name, known) = (name.escape_ascii(), known.join(", "));
                let known = if known.is_empty() { "nothing" } else { &known };
                return Err(Problem::query(format!(
                    "'{name}' cannot be asked for here; {known} can"
                )));
            };
            if values.insert(*known, decoded(value)?).is_some() {
                return Err(Problem::query(format!("'{known}' is given twice")));
            }
        }
        Ok(Query(values))
    }

    /// The value of `name`; none if it is empty.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// The value of `name` as text.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Problem> {
        let text = self.bytes(name).map(std::str::from_utf8).transpose();
        text.map_err(|_| Problem::query(format!("'{name}' is not UTF-8")))
    }

    /// The value of `name`, which must be there.
    pub(super) fn needed(&self, name: &str) -> Result<&[u8], Problem> {
        let missing = || Problem::query(format!("'{name}' is missing"));
        self.bytes(name).ok_or_else(missing)
    }

    /// The path asked for; the root if there is none.
    pub(super) fn path(&self) -> &[u8] {
        self.bytes("path").unwrap_or(b"/")
    }

    /// The number of a layer.
    pub(super) fn layer(&self, name: &str) -> Result<Option<usize>, Problem> {
        let Some(value) = self.text(name)? else { return Ok(None) };
        if !value.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Problem::query(format!(
                "'{name}' must be the number of a layer; 0 is the base"
            )));
        }
        // Whatever does not fit is the number of no layer.
        Ok(Some(value.parse().unwrap_or(usize::MAX)))
    }

    /// Whether `name` is `true`.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, Problem> {
        match self.bytes(name) {
            None => Ok(default),
            Some(b"true" | b"1") => Ok(true),
            Some(b"false" | b"0") => Ok(false),
            Some(_) => Err(Problem::query(format!("'{name}' must be true or false"))),
        }
    }

    /// The glob to look for.
    pub(super) fn pattern(&self) -> Result<Pattern, Problem> {
        self.needed("pattern")?;
        let text = self.text("pattern")?.unwrap_or_default();
        text.parse().map_err(|error| Problem::query(format!("{error}")))
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, Problem> {
    let mut rest = text.split('%').skip(1);
    let is_escape = |part: &str| {
        part.as_bytes()
            .get(..2)
            .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    if !rest.all(is_escape) {
        return Err(Problem::query(
            "a '%' in the query is not followed by two hexadecimal digits",
        ));
    }
    let plus = text.replace('+', " ");
    Ok(percent_decode(plus.as_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bytes() {
        let query = Query::parse(
            Some("path=/caf%e9+a%2Bb%00&image=x&layer=2"),
            &["path", "image", "layer"],
        )
        .unwrap();
        assert_eq!(query.path(), b"/caf\xe9 a+b\0");
        assert_eq!(query.text("image").unwrap(), Some("x"));
        assert_eq!(query.layer("layer").unwrap(), Some(2));
        assert!(query.text("path").is_err());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for wrong in ["pth=x", "path=a&path=b", "path=%e", "path=%zz", "%70ath2=x"] {
            assert!(Query::parse(Some(wrong), &["path"]).is_err(), "{wrong}");
        }
        let query = |text| Query::parse(Some(text), &["layer", "all"]).unwrap();
        for wrong in ["layer=-1", "layer=+1", "layer=x", "layer=1.5"] {
            assert!(query(wrong).layer("layer").is_err(), "{wrong}");
        }
        assert_eq!(
            query("layer=99999999999999999999999").layer("layer").unwrap(),
            Some(usize::MAX)
        );
        assert_eq!(query("layer=&&all").layer("layer").unwrap(), None);
        assert!(query("all=yes").flag("all", false).is_err());
        assert!(query("all=true").flag("all", false).unwrap());
    }
}
