//! Numbers of bytes, as people write and read them.

/// Parses `500M`, `10G`, `1.5GiB` or plain bytes. K, M, G and T are powers of 1000 as disks are sold, with an `i`
/// powers of 1024.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let problem = || format!("'{text}' is not a size; write 500M, 10G or a number of bytes");
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| problem())?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000_u64.pow(2),
        "g" | "gb" => 1000_u64.pow(3),
        "t" | "tb" => 1000_u64.pow(4),
        "ki" | "kib" => 1024,
        "mi" | "mib" => 1024_u64.pow(2),
        "gi" | "gib" => 1024_u64.pow(3),
        "ti" | "tib" => 1024_u64.pow(4),
        _ => return Err(problem()),
    };
    let bytes = number * factor as f64;
    match bytes.is_finite() && bytes <= u64::MAX as f64 {
        true => Ok(bytes as u64),
        false => Err(problem()),
    }
}

/// `bytes` with three digits or so and a unit.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("10G"), Ok(10_000_000_000));
        assert_eq!(parse("1.5 MiB"), Ok(1_572_864));
        for wrong in ["", "G", "ten", "-1", "1X", "1e400"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(65_536), "65.5 kB");
        assert_eq!(human(999_700), "1.00 MB");
        assert_eq!(human(156_000_000), "156 MB");
    }
}
