//! A tar of what is carved: everything that an image can hold, as it is there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tar::{EntryType, Header};

use super::files::NewFile;
use super::{Failure, Output, below, pour};
use crate::index::Kind;
use crate::inspect::{Node, View, Walk};
use crate::tree::Ino;

/// A tar consists of blocks of this size.
const BLOCK: u64 = 512;

/// A tar in the making.
pub(super) struct Archive {
    to: To,
    /// The first name of each file that has several.
    linked: HashMap<Ino, Vec<u8>>,
}

enum To {
    Stdout(Output),
    File(NewFile),
}

impl Archive {
    /// To a file, or to standard output.
    pub(super) fn new(to: Option<&Path>) -> Result<Archive, Failure> {
        let to = match to {
            Some(path) => To::File(NewFile::beside(path)?),
            None => {
                let output = Output::new();
                if output.is_terminal() {
                    return Err(Failure::Usage(
                        "a tar is nothing for a terminal: add -o FILE".to_owned(),
                    ));
                }
                To::Stdout(output)
            }
        };
        Ok(Archive {
            to,
            linked: HashMap::new(),
        })
    }

    /// Adds `node`, and all that is below it, under the name `name`; gives how many bytes of content that was.
    pub(super) async fn add(&mut self, view: &View, node: &Arc<Node>, name: &[u8]) -> Result<u64, Failure> {
        let mut size = self.one(view, node, name).await?;
        if node.is_directory() {
            let mut walk = Walk::of(view, node.clone(), true);
            while let Some(child) = walk.next().await? {
                size += self.one(view, &child, &below(node, &child, name)).await?;
            }
        }
        Ok(size)
    }

    /// Ends the tar; if it is a file, it appears.
    pub(super) async fn finish(mut self) -> Result<(), Failure> {
        self.write(vec![0; 2 * BLOCK as usize].into()).await?;
        match self.to {
            To::Stdout(_) => Ok(()),
            To::File(file) => file.finish_plain(),
        }
    }

    async fn one(&mut self, view: &View, node: &Arc<Node>, name: &[u8]) -> Result<u64, Failure> {
        let attr = &node.attr;
        let mut path = if name.is_empty() { b".".to_vec() } else { name.to_vec() };
        let first = self.linked.get(&attr.ino).cloned();
        let (kind, link, size) = match (attr.kind, first) {
            (Kind::Directory, _) => (EntryType::Directory, Vec::new(), 0),
            (_, Some(first)) => (EntryType::Link, first, 0),
            (Kind::Symlink, _) => (EntryType::Symlink, view.tree().readlink(attr.ino)?, 0),
            (Kind::Fifo, _) => (EntryType::Fifo, Vec::new(), 0),
            (Kind::CharDevice, _) => (EntryType::Char, Vec::new(), 0),
            (Kind::BlockDevice, _) => (EntryType::Block, Vec::new(), 0),
            (Kind::File | Kind::Hardlink, _) => (EntryType::Regular, Vec::new(), attr.size),
        };
        if kind == EntryType::Directory {
            path.push(b'/');
        } else if kind != EntryType::Link && attr.nlink > 1 {
            self.linked.insert(attr.ino, path.clone());
        }
        let head = head(view, node, (&path, kind, &link, size));
        let head = head.map_err(Failure::io(format!(
            "cannot put {} into a tar",
            super::os(&path).display()
        )))?;
        self.write(head.into()).await?;
        if kind == EntryType::Regular {
            pour(view, node, async |bytes| self.write(bytes).await).await?;
            self.write(vec![0; (size.next_multiple_of(BLOCK) - size) as usize].into())
                .await?;
        }
        Ok(size)
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        match &mut self.to {
            To::Stdout(output) => output.write(bytes).await,
            To::File(file) => file.write(&bytes),
        }
    }
}

/// The headers of an entry: what ustar cannot say stands in a PAX header before it.
fn head(
    view: &View,
    node: &Node,
    (path, kind, link, size): (&[u8], EntryType, &[u8], u64),
) -> std::io::Result<Vec<u8>> {
    let attr = &node.attr;
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    let mut header = Header::new_ustar();
    let raw = header.as_old_mut();
    put(&mut raw.name, "path", path, &mut records);
    put(&mut raw.linkname, "linkpath", link, &mut records);
    header.set_entry_type(kind);
    header.set_mode(attr.mode.into());
    header.set_uid(attr.uid.into());
    header.set_gid(attr.gid.into());
    header.set_size(size);
    header.set_mtime(u64::try_from(attr.mtime).unwrap_or(0));
    if attr.mtime < 0 || attr.mtime_nsec != 0 {
        records.push(("mtime".into(), seconds(attr.mtime, attr.mtime_nsec).into_bytes()));
    }
    header.set_device_major(attr.major)?;
    header.set_device_minor(attr.minor)?;
    header.set_cksum();
    if kind != EntryType::Link {
        for name in view.tree().xattr_names(attr.ino).unwrap_or_default() {
            let value = view.tree().xattr(attr.ino, &name).ok().flatten();
            // The keys of PAX records are text.
            if let (Ok(name), Some(value)) = (String::from_utf8(name), value) {
                records.push((format!("SCHILY.xattr.{name}"), value));
            }
        }
    }
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
    builder.append(&header, std::io::empty())?;
    Ok(std::mem::take(builder.get_mut()))
}

/// Puts a name into its field, or if it does not fit there, into a record.
fn put(field: &mut [u8; 100], key: &str, name: &[u8], records: &mut Vec<(String, Vec<u8>)>) {
    let len = name.len().min(field.len());
    field[..len].copy_from_slice(&name[..len]);
    if len < name.len() {
        records.push((key.to_owned(), name.to_vec()));
    }
}

/// A time as PAX writes it: a decimal fraction, also before 1970.
fn seconds(seconds: i64, nanoseconds: u32) -> String {
    match seconds < 0 && nanoseconds > 0 {
        // -1.25 is two seconds before the epoch, and 0.75 after that.
        true => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
        false => format!("{seconds}.{nanoseconds:09}"),
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_before_the_epoch_are_negative_fractions() {
        assert_eq!(seconds(-2, 750_000_000), "-1.250000000");
        assert_eq!(seconds(-1, 500_000_000), "-0.500000000");
        assert_eq!(seconds(-3, 0), "-3.000000000");
        assert_eq!(seconds(7, 1), "7.000000001");
    }
}
