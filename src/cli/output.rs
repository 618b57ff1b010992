//! Standard output: text for a person or a pipe, or the bytes of a file.

use std::io::{IsTerminal, Write};

use bytes::Bytes;

use super::Failure;
use crate::index::Kind;
use crate::inspect::escaped;

/// Text is written in pieces of this size.
const FULL: usize = 64 << 10;

/// Standard output. It is written to by a thread that may wait, so that a reader who does not read keeps nobody from
/// ending this process.
pub(super) struct Output {
    buffer: Vec<u8>,
    terminal: bool,
    colours: bool,
}

/// How a piece of text is shown where there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Directory,
    Symlink,
    Special,
    Executable,
    Hidden,
    Added,
    Removed,
}

impl Style {
    /// How a name of something of this kind is shown.
    pub(super) fn of(kind: Kind, mode: u16, hidden: bool) -> Style {
        match kind {
            _ if hidden => Style::Hidden,
            Kind::Directory => Style::Directory,
            Kind::Symlink => Style::Symlink,
            Kind::File if mode & 0o111 != 0 => Style::Executable,
            Kind::File => Style::Plain,
            _ => Style::Special,
        }
    }

    /// The codes of ANSI terminals.
    fn code(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Directory => "1;34",
            Style::Symlink => "36",
            Style::Special => "33",
            Style::Executable | Style::Added => "32",
            Style::Hidden => "2",
            Style::Removed => "31",
        }
    }
}

impl Output {
    /// The process's own.
    pub(super) fn new() -> Output {
        let terminal = std::io::stdout().is_terminal();
        Output {
            buffer: Vec::new(),
            terminal,
            colours: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Whether a person reads it.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Adds text.
    pub(super) fn put(&mut self, text: impl AsRef<[u8]>) {
        self.buffer.extend_from_slice(text.as_ref());
    }

    /// Adds a name as it is, or for a terminal what can do no harm there.
    pub(super) fn put_name(&mut self, name: &[u8], style: Style) {
        if self.colours && style != Style::Plain {
            self.put(format!("\x1b[{}m{}\x1b[0m", style.code(), escaped(name)));
        } else if self.terminal {
            self.put(escaped(name));
        } else {
            self.put(name);
        }
    }

    /// Ends a line, and writes if there is enough.
    pub(super) async fn end_line(&mut self) -> Result<(), Failure> {
        self.buffer.push(b'\n');
        self.flush_if_full().await
    }

    /// Writes what was added if it is much.
    pub(super) async fn flush_if_full(&mut self) -> Result<(), Failure> {
        match self.buffer.len() >= FULL {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    /// Writes what was added.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        let buffer = std::mem::take(&mut self.buffer);
        self.write(buffer.into()).await
    }

    /// Writes bytes as they are.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let written = tokio::task::spawn_blocking(move || {
            let mut output = std::io::stdout().lock();
            output.write_all(&bytes).and_then(|()| output.flush())
        });
        match written.await {
            Ok(Ok(())) => Ok(()),
            // Whoever read has what he wanted.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Closed),
            Ok(Err(cause)) => Err(Failure::io("cannot write to standard output")(cause)),
            Err(error) => Err(Failure::io("cannot write to standard output")(error.into())),
        }
    }
}
