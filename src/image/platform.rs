//! The machine that an image is for, and which image of an index fits.

use std::fmt;
use std::str::FromStr;

/// A platform in the names that the OCI image-spec uses (Go's): `linux/amd64`, `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    /// The operating system: `linux`.
    pub os: String,
    /// The processor: `amd64`, `arm64`, `arm`.
    pub architecture: String,
    /// The processor's variant: `v8`, `v7`.
    pub variant: Option<String>,
}

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a platform (expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64)")]
pub struct ParsePlatformError(String);

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Platform {
        let little = cfg!(target_endian = "little");
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "loongarch64" => ("loong64", None),
            "powerpc64" => (if little { "ppc64le" } else { "ppc64" }, None),
            "mips" => (if little { "mipsle" } else { "mips" }, None),
            "mips64" => (if little { "mips64le" } else { "mips64" }, None),
            other => (other, None),
        };
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well what is offered serves who wants this: 0 is exact, more is worse, `None` not at all.
    ///
    /// Processors run what was made for their older variants. An absent variant means the common one: v8 for arm64, v7
    /// for arm, v1 for amd64. Who wants no variant takes any rather than none.
    pub fn fit(&self, offered: &Platform) -> Option<u32> {
        let (wanted, offered) = (self.normalised(), offered.normalised());
        if (&wanted.0, &wanted.1) != (&offered.0, &offered.1) {
            return None;
        }
        if wanted.2 == offered.2 {
            return Some(0);
        }
        match (number(&wanted.2), number(&offered.2)) {
            (Some(wanted), Some(offered)) if offered < wanted => Some(wanted - offered),
            (_, Some(offered)) if self.variant.is_none() => Some(100 + offered),
            (None, None) if self.variant.is_none() => Some(1000),
            _ => None,
        }
    }

    fn normalised(&self) -> (String, String, String) {
        let variant = match (self.architecture.as_str(), self.variant.as_deref().unwrap_or_default()) {
            ("arm64", "" | "8") => "v8",
            ("arm", "" | "7") => "v7",
            ("arm", "5") => "v5",
            ("arm", "6") => "v6",
            ("amd64", "") => "v1",
            (_, variant) => variant,
        };
        (self.os.clone(), self.architecture.clone(), variant.to_owned())
    }
}

/// The `7` of `v7`; `v9.2` counts as 9.
fn number(variant: &str) -> Option<u32> {
    let digits = variant.strip_prefix('v')?;
    let digits = digits.split('.').next()?;
    digits.parse().ok().filter(|number| *number < 100)
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParsePlatformError(text.chars().take(100).collect());
        let lower = text.to_ascii_lowercase();
        let is_word = |word: &str| {
            let mut bytes = word.bytes();
            !word.is_empty() && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        let words: Vec<&str> = lower.split('/').collect();
        if !words.iter().all(|word| is_word(word)) {
            return Err(refuse());
        }
        let (os, architecture, variant) = match words[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(refuse()),
        };
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64", variant) => ("arm64", variant),
            ("i386" | "i686" | "x86", variant) => ("386", variant),
            ("armhf", None) => ("arm", Some("v7")),
            ("armel", None) => ("arm", Some("v6")),
            other => other,
        };
        Ok(Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best<'a>(wanted: &str, offered: &[&'a str]) -> Option<&'a str> {
        let wanted: Platform = wanted.parse().unwrap();
        let fits = offered
            .iter()
            .filter_map(|text| Some((wanted.fit(&text.parse().unwrap())?, *text)));
        fits.min_by_key(|(fit, _)| *fit).map(|(_, text)| text)
    }

    #[test]
    fn the_best_of_what_is_offered() {
        let arms = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"];
        let table: &[(&str, &[&str], Option<&str>)] = &[
            ("linux/amd64", &["linux/arm64", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &["windows/amd64"], None),
            ("linux/arm/v7", &arms, Some("linux/arm/v7")),
            ("linux/arm", &arms, Some("linux/arm/v7")),
            ("linux/arm/v7", &arms[..2], Some("linux/arm/v6")),
            ("linux/arm/v5", &arms[1..], None),
            ("linux/arm/v6", &["linux/arm"], None),
            ("linux/arm64", &arms, Some("linux/arm64/v8")),
            ("linux/arm64/v8", &["linux/arm64"], Some("linux/arm64")),
            ("linux/arm64", &["linux/arm64/v9"], Some("linux/arm64/v9")),
            (
                "linux/amd64",
                &["linux/amd64/v3", "linux/amd64/v2"],
                Some("linux/amd64/v2"),
            ),
            (
                "linux/amd64/v3",
                &["linux/amd64/v4", "linux/amd64/v2", "linux/amd64"],
                Some("linux/amd64/v2"),
            ),
            ("linux/amd64/v2", &["linux/amd64"], Some("linux/amd64")),
            ("linux/amd64/v1", &["linux/amd64/v2"], None),
            ("linux/s390x", &["linux/s390x"], Some("linux/s390x")),
            ("linux/mips", &["linux/mips/softfloat"], Some("linux/mips/softfloat")),
        ];
        for (wanted, offered, expected) in table {
            assert_eq!(best(wanted, offered), *expected, "{wanted} from {offered:?}");
        }
    }

    #[test]
    fn the_text_form() {
        for (text, full) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/AArch64", "linux/arm64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm64/v8", "linux/arm64/v8"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), full);
        }
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/a b", "linux//v8"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        assert_eq!(Platform::host().os, "linux");
    }
}
