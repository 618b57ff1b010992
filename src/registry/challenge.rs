//! `WWW-Authenticate` (RFC 9110, 11.6.1), as registries use it: one or more challenges, in one header or several.

/// What a registry wants to see before it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token from somewhere else.
    Bearer {
        /// Where tokens are to be had.
        realm: String,
        /// Whom the token is for.
        service: Option<String>,
        /// What it must permit; absent, it is reading the repository.
        scope: Option<String>,
        /// Whether the token that was shown is a good one, but not for this; RFC 6750, 3.1.
        insufficient: bool,
    },
    /// User and password with each request.
    Basic,
}

/// The challenges in the values of all `WWW-Authenticate` headers of one answer; what cannot be understood is left out.
pub(super) fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for header in headers {
        let mut open: Option<(String, Vec<(String, String)>)> = None;
        let mut parser = Parser { rest: header };
        while let Some(item) = parser.next() {
            match item {
                Item::Scheme(scheme) => {
                    challenges.extend(open.take().and_then(finish));
                    open = Some((scheme, Vec::new()));
                }
                Item::Parameter(name, value) => {
                    if let Some((_, parameters)) = &mut open {
                        parameters.push((name, value));
                    }
                }
            }
        }
        challenges.extend(open.take().and_then(finish));
    }
    challenges
}

/// For the fuzz targets: a challenge is never longer than the headers that it was in.
#[cfg(fuzzing)]
pub fn fuzz<'a>(headers: impl IntoIterator<Item = &'a str> + Clone) {
    let most: usize = headers.clone().into_iter().map(str::len).sum();
    for challenge in parse(headers) {
        if let Challenge::Bearer {
            realm, service, scope, ..
        } = challenge
        {
            let len = |text: Option<String>| text.map_or(0, |text| text.len());
            assert!(realm.len() + len(service) + len(scope) <= most);
        }
    }
}

fn finish((scheme, mut parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let mut take = |wanted: &str| {
        let at = parameters.iter().position(|(name, _)| name == wanted)?;
        Some(parameters.swap_remove(at).1)
    };
    match scheme.as_str() {
        "bearer" => Some(Challenge::Bearer {
            realm: take("realm")?,
            service: take("service"),
            scope: take("scope").filter(|scope| !scope.is_empty()),
            insufficient: take("error").is_some_and(|error| error == "insufficient_scope"),
        }),
        "basic" => Some(Challenge::Basic),
        _ => None,
    }
}

enum Item {
    Scheme(String),
    Parameter(String, String),
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    /// The next scheme or parameter, in lower case but for values. A word is a parameter if `=` follows it.
    fn next(&mut self) -> Option<Item> {
        self.rest = self.rest.trim_start_matches([' ', '\t', ',']);
        let end = self.rest.find([' ', '\t', ',', '=']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            // A stray '=' cannot be made sense of, nor what follows it.
            self.rest = "";
            return None;
        }
        let word = word.to_ascii_lowercase();
        match rest.trim_start_matches([' ', '\t']).strip_prefix('=') {
            None => {
                self.rest = rest;
                Some(Item::Scheme(word))
            }
            Some(value) => {
                let value = self.value(value.trim_start_matches([' ', '\t']));
                Some(Item::Parameter(word, value))
            }
        }
    }

    fn value(&mut self, text: &str) -> String
    where
        Self: Sized,
    {
        let mut value = String::new();
        let mut used = text.len();
        if let Some(quoted) = text.strip_prefix('"') {
            let mut escaped = false;
            for (at, c) in quoted.char_indices() {
                match c {
                    _ if escaped => {
                        value.push(c);
                        escaped = false;
                    }
                    '\\' => escaped = true,
                    '"' => {
                        used = at + 2;
                        break;
                    }
                    _ => value.push(c),
                }
            }
        } else {
            used = text.find([' ', '\t', ',']).unwrap_or(text.len());
            value.push_str(text.get(..used).unwrap_or_default());
        }
        let skip = self.rest.len() - text.len() + used;
        self.rest = self.rest.get(skip..).unwrap_or_default();
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
            insufficient: false,
        }
    }

    #[test]
    fn challenges_as_registries_write_them() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull,push""#;
        let table: &[(&[&str], Vec<Challenge>)] = &[
            (&[], vec![]),
            (&[""], vec![]),
            (&["Basic realm=\"x\""], vec![Challenge::Basic]),
            (&["basic"], vec![Challenge::Basic]),
            (&["Negotiate", "Basic realm=x"], vec![Challenge::Basic]),
            (
                &[docker],
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/a:pull,push"),
                )],
            ),
            (
                &["BEARER Realm = \"https://a/t\" , service=plain"],
                vec![bearer("https://a/t", Some("plain"), None)],
            ),
            (
                &[r#"Basic realm="a, b=\"c\"", Bearer realm="https://a/t", scope="""#],
                vec![Challenge::Basic, bearer("https://a/t", None, None)],
            ),
            // without a realm there is nowhere to go
            (&["Bearer service=\"x\""], vec![]),
            // broken input ends, it does not loop or panic
            (
                &["=", "Bearer =x", "Bearer realm=\"unended", "Bearer realm"],
                vec![bearer("unended", None, None)],
            ),
            (&["Bearer realm=\"ü\\"], vec![bearer("ü", None, None)]),
        ];
        for (headers, expected) in table {
            assert_eq!(&parse(headers.iter().copied()), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_token_that_does_not_suffice_is_told_from_one_that_is_over() {
        for (error, expected) in [("insufficient_scope", true), ("invalid_token", false)] {
            let header = format!(r#"Bearer realm="https://a/t",error="{error}""#);
            let found = parse([header.as_str()]);
            assert!(
                matches!(found[..], [Challenge::Bearer { insufficient, .. }] if insufficient == expected),
                "{header}"
            );
        }
    }
}
