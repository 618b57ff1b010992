//! Entries as lines of text, as `ls -l` has them with their layer.

use super::{Entry, Hidden};
use crate::index::Kind;

impl Entry {
    /// Mode, owner, size and time, with a space behind.
    pub fn attributes(&self) -> String {
        let size = match self.device {
            Some((major, minor)) => format!("{major}, {minor}"),
            None => self.size.to_string(),
        };
        let owner = format!("{}:{}", self.uid, self.gid);
        let (mode, time) = (mode(self.kind, self.mode), time(self.mtime));
        format!("{mode} {owner:>9} {size:>11} {time} ")
    }

    /// The layer, and why the entry is not to be seen, with a space before each.
    pub fn marks(&self) -> String {
        let layer = self.layer.map(|layer| format!(" [L{layer}]")).unwrap_or_default();
        match self.hidden {
            None => layer,
            Some(Hidden::Overridden(_)) => layer + " (overridden)",
            Some(Hidden::Deleted(by)) => format!("{layer} (deleted in L{by})"),
        }
    }
}

/// The ten letters of `ls -l`.
pub fn mode(kind: Kind, mode: u16) -> String {
    let kind = match kind {
        Kind::Directory => 'd',
        Kind::File => '-',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Hardlink => 'h',
    };
    let mut text = String::from(kind);
    // For each of owner, group and others: where the bits are, the bit that changes the x, and to what.
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, false) => letter.to_ascii_uppercase(),
            (true, true) => letter,
        });
    }
    text
}

/// Seconds from the epoch as date and time in UTC.
pub fn time(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years that begin in March have their leap day at their end; 400 of them are an era of 146097 days.
    let days = i128::from(days) + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i128::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01 00:00");
        assert_eq!(time(-1), "1969-12-31 23:59");
        assert_eq!(time(951_782_399), "2000-02-28 23:59");
        assert_eq!(time(951_782_400), "2000-02-29 00:00");
        assert_eq!(time(1_709_251_200), "2024-03-01 00:00");
        assert_eq!(time(4_107_542_399), "2100-02-28 23:59");
        assert_eq!(time(4_107_542_400), "2100-03-01 00:00");
        // Whatever a tar says.
        for seconds in [i64::MIN, i64::MAX] {
            assert!(!time(seconds).is_empty());
        }
    }

    #[test]
    fn modes_are_those_of_ls() {
        assert_eq!(mode(Kind::File, 0o644), "-rw-r--r--");
        assert_eq!(mode(Kind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(mode(Kind::File, 0o6711), "-rws--s--x");
        assert_eq!(mode(Kind::File, 0o7000), "---S--S--T");
    }
}
