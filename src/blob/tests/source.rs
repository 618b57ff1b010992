//! A blob in memory that records what it is asked for, and misbehaves as it is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use tokio::sync::Semaphore;

use crate::image::source::{BlobSource, FetchError, Fetched};
use crate::range::ByteRange;

/// How one request is answered.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// As it should be.
    Good,
    /// No answer but an error.
    Error(FetchError),
    /// So many bytes, then an error.
    Breaks(u64, FetchError),
    /// So many bytes, and then the body just ends.
    Ends(u64),
    /// So many bytes, and then nothing any more; with `None` not even a header.
    Stalls(Option<u64>),
    /// The whole blob, whatever was asked for.
    All,
    /// The whole blob, as far as so many bytes, then an error.
    AllBreaks(u64, FetchError),
    /// A header that says this range, and bytes that fit what was asked for.
    Says(ByteRange),
    /// So many bytes more than the header says.
    Surplus(u64),
}

pub(super) struct Recorded {
    pub(super) content: Bytes,
    /// Size of the pieces that a body comes in.
    piece: usize,
    /// The answers to come; good ones after that.
    answers: Mutex<VecDeque<Answer>>,
    /// The answer when there are no more of those.
    otherwise: Answer,
    requests: Mutex<Vec<ByteRange>>,
    /// How often each byte was delivered.
    delivered: Mutex<Vec<u8>>,
    /// One permit lets one piece pass.
    gate: Option<Semaphore>,
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorded")
    }
}

impl Recorded {
    pub(super) fn new(content: Bytes) -> Recorded {
        Recorded {
            piece: 16 * 1024,
            answers: Mutex::default(),
            otherwise: Answer::Good,
            requests: Mutex::default(),
            delivered: Mutex::new(vec![0; content.len()]),
            gate: None,
            content,
        }
    }

    /// Lets nothing pass but what [`Recorded::let_pass`] allows.
    pub(super) fn gated(mut self) -> Recorded {
        self.gate = Some(Semaphore::new(0));
        self
    }

    pub(super) fn answering(self, answers: impl IntoIterator<Item = Answer>) -> Recorded {
        self.answers.lock().unwrap().extend(answers);
        self
    }

    pub(super) fn always(mut self, answer: Answer) -> Recorded {
        self.otherwise = answer;
        self
    }

    pub(super) fn in_pieces_of(mut self, len: u64) -> Recorded {
        self.piece = len as usize;
        self
    }

    pub(super) fn let_pass(&self, pieces: usize) {
        self.gate.as_ref().unwrap().add_permits(pieces);
    }

    pub(super) fn requests(&self) -> Vec<ByteRange> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.lock().unwrap().iter().map(|n| u64::from(*n)).sum()
    }

    pub(super) fn most_often_delivered(&self) -> u8 {
        self.delivered.lock().unwrap().iter().copied().max().unwrap_or(0)
    }

    pub(super) async fn asked(&self, times: usize) {
        while self.requests.lock().unwrap().len() < times {
            tokio::task::yield_now().await;
        }
    }
}

/// `Arc<Recorded>` is what a body needs to outlive the borrow in `fetch`.
#[derive(Debug)]
pub(super) struct Source(pub(super) Arc<Recorded>);

impl BlobSource for Source {
    fn fetch(&self, asked: ByteRange) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move { answer(&self.0, asked).await })
    }
}

async fn answer(this: &Arc<Recorded>, asked: ByteRange) -> Result<Fetched, FetchError> {
    assert!(!asked.is_empty() && asked.end() <= this.content.len() as u64, "{asked}");
    this.requests.lock().unwrap().push(asked);
    let answer = this.answers.lock().unwrap().pop_front();
    let answer = answer.unwrap_or_else(|| this.otherwise.clone());
    let all = ByteRange::new(0, this.content.len() as u64);
    let (says, given, then) = match answer {
        Answer::Good => (asked, asked, Then::End),
        Answer::Error(error) => return Err(error),
        Answer::Breaks(len, error) => (
            asked,
            ByteRange::at(asked.start(), len.min(asked.len())),
            Then::Error(error),
        ),
        Answer::Ends(len) => (asked, ByteRange::at(asked.start(), len.min(asked.len())), Then::End),
        Answer::Stalls(None) => std::future::pending().await,
        Answer::Stalls(Some(len)) => (asked, ByteRange::at(asked.start(), len.min(asked.len())), Then::Stall),
        Answer::All => (all, all, Then::End),
        Answer::AllBreaks(len, error) => (all, ByteRange::at(0, len.min(all.len())), Then::Error(error)),
        Answer::Says(range) => (range, asked, Then::End),
        Answer::Surplus(more) => (asked, ByteRange::at(asked.start(), asked.len() + more), Then::End),
    };
    let body = stream::unfold((Arc::clone(this), given, then), |(this, left, then)| async move {
        if left.is_empty() {
            return match then {
                Then::End => None,
                Then::Error(error) => Some((Err(error), (this, left, Then::End))),
                Then::Stall => std::future::pending().await,
            };
        }
        if let Some(gate) = &this.gate {
            gate.acquire().await.unwrap().forget();
        }
        let piece = ByteRange::at(left.start(), left.len().min(this.piece as u64));
        let within = piece.start() as usize..piece.end().min(this.content.len() as u64) as usize;
        for count in &mut this.delivered.lock().unwrap()[within.clone()] {
            *count = count.saturating_add(1);
        }
        let mut bytes = this.content.slice(within).to_vec();
        bytes.resize(piece.len() as usize, 0xEE);
        Some((
            Ok(Bytes::from(bytes)),
            (this, ByteRange::new(piece.end(), left.end()), then),
        ))
    });
    Ok(Fetched {
        range: says,
        body: body.boxed(),
    })
}

enum Then {
    End,
    Error(FetchError),
    Stall,
}

pub(super) fn transient(retry_after: Option<std::time::Duration>) -> FetchError {
    FetchError::Transient {
        reason: "registry.test is out of sorts".to_owned(),
        retry_after,
    }
}

pub(super) fn permanent() -> FetchError {
    FetchError::Permanent {
        reason: "registry.test does not have it".to_owned(),
    }
}
