//! Text that may hold anything, in HTML and in links.

use std::fmt::{self, Display, Write};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

/// Text in which nothing is markup, in an element or in a quoted attribute.
pub(super) struct Escaped<T>(pub(super) T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaper<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl Write for Escaper<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.chars().try_for_each(|letter| match letter {
                    '&' => self.0.write_str("&amp;"),
                    '<' => self.0.write_str("&lt;"),
                    '>' => self.0.write_str("&gt;"),
                    '"' => self.0.write_str("&quot;"),
                    '\'' => self.0.write_str("&#39;"),
                    letter if crate::inspect::is_direction(letter) => write!(self.0, "{}", letter.escape_unicode()),
                    letter => self.0.write_char(letter),
                })
            }
        }
        write!(Escaper(f), "{}", self.0)
    }
}

/// The bytes of a name as escaped text.
pub(super) fn name(bytes: &[u8]) -> Escaped<String> {
    Escaped(crate::inspect::escaped(bytes))
}

/// A link within the server, to stand in an attribute; its values may be any bytes.
pub(super) fn link(route: &str, values: &[(&str, &[u8])]) -> String {
    let mut link = format!("/{route}");
    for (number, (name, value)) in values.iter().enumerate() {
        let mark = if number == 0 { "?" } else { "&amp;" };
        let _ = write!(link, "{mark}{name}={}", percent_encode(value, NON_ALPHANUMERIC));
    }
    link
}

/// A page on its way.
pub(super) struct Page {
    title: String,
    image: String,
    body: String,
}

impl Page {
    pub(super) fn new(title: impl Into<String>) -> Page {
        Page {
            title: title.into(),
            image: String::new(),
            body: String::new(),
        }
    }

    /// About this image.
    pub(super) fn about(title: impl Into<String>, image: &str) -> Page {
        Page {
            image: image.to_owned(),
            ..Page::new(title)
        }
    }

    /// Adds HTML.
    pub(super) fn put(&mut self, html: impl Display) {
        let _ = write!(self.body, "{html}");
    }

    /// The whole document.
    pub(super) fn finish(self) -> String {
        let (title, image, body) = (Escaped(self.title), Escaped(self.image), self.body);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title} - peelfs</title>\n\
             <link rel=\"stylesheet\" href=\"/style.css\">\n<script src=\"/script.js\" defer></script>\n</head>\n<body>\n\
             <header>\n<a class=\"home\" href=\"/\">peelfs</a>\n<form action=\"/browse\">\n\
             <input name=\"image\" value=\"{image}\" placeholder=\"debian:12\" aria-label=\"Image\" required \
             spellcheck=\"false\" autocapitalize=\"off\">\n<button>Browse</button>\n</form>\n</header>\n\
             <main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(
            Escaped("<a href='x'>\"&\u{202e}").to_string(),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp;\\u{202e}"
        );
        assert_eq!(
            link("view", &[("a", b"x&\"<\xff"), ("b", b"/")]),
            "/view?a=x%26%22%3C%FF&amp;b=%2F"
        );
    }
}
