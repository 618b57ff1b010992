//! The line to a client: one that takes too little of what waits for it is cut off, and one that has hung up is noticed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Sleep;

/// What a client has to take of what waits for it, while its patience lasts: a byte now and then is no progress.
const LEAST: usize = 64 << 10;

/// Both ways.
pub(super) struct Line {
    reader: Arc<OwnedReadHalf>,
    writer: Patient<OwnedWriteHalf>,
}

/// What is known of a line by those who do not read or write.
pub(super) struct Watch {
    reader: Arc<OwnedReadHalf>,
    waiting: Arc<AtomicBool>,
}

/// Writes fail when less than [`LEAST`] was taken for a while.
struct Patient<W> {
    writer: W,
    patience: Duration,
    /// When it is over; none while nothing waits to be written.
    over: Option<Pin<Box<Sleep>>>,
    /// What was taken since it began.
    taken: usize,
    /// Whether something waits to be written.
    waiting: Arc<AtomicBool>,
}

impl Line {
    /// The line of `stream`, and what it can be watched by.
    pub(super) fn new(stream: TcpStream, patience: Duration) -> (Line, Watch) {
        let (reader, writer) = stream.into_split();
        let reader = Arc::new(reader);
        let writer = Patient::new(writer, patience);
        let watch = Watch {
            reader: reader.clone(),
            waiting: writer.waiting.clone(),
        };
        (Line { reader, writer }, watch)
    }
}

impl Watch {
    /// Waits until the client will send no more, also if it has sent bytes before that nobody has read.
    pub(super) async fn hung_up(&self) {
        // Urgent bytes are not listened for; all else that this waits for is the end, and errors, which are one too.
        let _ = self.reader.ready(Interest::PRIORITY).await;
    }

    /// Whether something waits for the client to take it.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl<W> Patient<W> {
    fn new(writer: W, patience: Duration) -> Patient<W> {
        Patient {
            writer,
            patience,
            over: None,
            taken: 0,
            waiting: Arc::default(),
        }
    }

    /// What came of a write: an error if too little was taken for too long.
    fn patiently(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            self.taken = self.taken.saturating_add(*written.as_ref().unwrap_or(&0));
            if self.taken >= LEAST {
                self.begin_anew();
            }
            return Poll::Ready(written);
        }
        self.waiting.store(true, Ordering::Relaxed);
        let over = self
            .over
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.patience)));
        ready!(over.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn begin_anew(&mut self) {
        self.over = None;
        self.taken = 0;
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream: &TcpStream = (*self.reader).as_ref();
        loop {
            ready!(stream.poll_read_ready(context))?;
            match stream.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(len) => {
                    buffer.advance(len);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.writer.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Patient<W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.writer).poll_write(context, bytes);
        self.patiently(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.writer).poll_write_vectored(context, slices);
        self.patiently(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.writer.is_write_vectored()
    }

    /// Called when there is nothing left to be written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.begin_anew();
        self.waiting.store(false, Ordering::Relaxed);
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::Interval;

    use super::*;

    /// A client that takes so many bytes now and then.
    struct Slow(Interval, usize);

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            ready!(self.0.poll_tick(context));
            Poll::Ready(Ok(bytes.len().min(self.1)))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Sends a mebibyte to a client that takes `bytes` every ten seconds, with the patience of a minute.
    async fn send(bytes: usize) -> io::Result<()> {
        let slow = Slow(tokio::time::interval(Duration::from_secs(10)), bytes);
        let mut patient = Patient::new(slow, Duration::from_secs(60));
        let mut rest = vec![0; 1 << 20];
        while !rest.is_empty() {
            let taken = poll_fn(|context| Pin::new(&mut patient).poll_write(context, &rest)).await?;
            rest.drain(..taken);
        }
        poll_fn(|context| Pin::new(&mut patient).poll_flush(context)).await
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_byte_now_and_then_is_cut_off() {
        assert_eq!(send(1).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(send(LEAST / 10).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        send(LEAST / 4).await.unwrap();
    }
}
