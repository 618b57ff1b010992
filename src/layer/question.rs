//! Questions to a layer that is not completely known yet.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::scan::Scan;
use super::{GrowingView, Layer, LayerError, State, View};

/// A wait longer than this is told to the log, and again at each such interval.
const SLOW: Duration = Duration::from_secs(2);

/// How much of a layer a question is likely to need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// It may be answered anywhere: fetch little more than is looked at.
    Little,
    /// It takes the whole layer: fetch as fast as the line allows.
    Whole,
    /// Nothing: it is answered when the scan gets so far for the sake of others. `ask` may then wait for ever.
    ToWatch,
}

/// The open questions of a layer, and its scan when nobody runs it.
#[derive(Debug, Default)]
pub(super) struct Desk {
    questions: Vec<Asked>,
    running: bool,
    scan: Option<Scan>,
}

#[derive(Debug)]
struct Asked {
    want: Want,
    question: Box<dyn Question>,
}

/// A question with its reader's address.
trait Question: Send + fmt::Debug {
    /// Looks at what is known; true if it is done with.
    fn look(&mut self, view: View<'_>) -> bool;
    /// Tells the reader that there will be no answer.
    fn fail(&mut self, error: &Arc<LayerError>);
    /// Whether the reader has gone.
    fn abandoned(&self) -> bool;
}

struct Pending<R, F> {
    reader: Option<oneshot::Sender<Result<R, Arc<LayerError>>>>,
    test: F,
}

impl<R, F> fmt::Debug for Pending<R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

impl<R: Send, F: FnMut(View<'_>) -> Option<R> + Send> Question for Pending<R, F> {
    fn look(&mut self, view: View<'_>) -> bool {
        if self.abandoned() {
            return true;
        }
        match (self.test)(view) {
            Some(answer) => {
                if let Some(reader) = self.reader.take() {
                    let _ = reader.send(Ok(answer));
                }
                true
            }
            None => false,
        }
    }

    fn fail(&mut self, error: &Arc<LayerError>) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.send(Err(error.clone()));
        }
    }

    fn abandoned(&self) -> bool {
        self.reader.as_ref().is_none_or(|reader| reader.is_closed())
    }
}

impl Layer {
    /// Waits until `test` gives an answer, scanning the layer as far as that takes. `what` names, for the log, what
    /// is looked for. `test` must answer once the view is complete.
    ///
    /// # Errors
    /// [`LayerError::Blob`] if the bytes that it takes cannot be had, [`LayerError::Corrupt`] if they are not what
    /// they should be.
    pub async fn ask<R: Send + 'static>(
        self: &Arc<Self>,
        want: Want,
        what: impl FnOnce() -> String,
        mut test: impl FnMut(View<'_>) -> Option<R> + Send + 'static,
    ) -> Result<R, Arc<LayerError>> {
        let verify_first = self.workshop.verify_first;
        let mut test = move |view: View<'_>| {
            if verify_first && !view.complete() {
                None
            } else {
                test(view)
            }
        };
        if let Some(answer) = self.glance(&mut test)? {
            return Ok(answer);
        }
        let (reader, mut answer) = oneshot::channel();
        self.pose(Asked {
            want,
            question: Box::new(Pending {
                reader: Some(reader),
                test,
            }),
        });

        let mut what = Some(what);
        let mut text = String::new();
        let mut slow = tokio::time::interval_at(tokio::time::Instant::now() + SLOW, SLOW);
        slow.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                answer = &mut answer => return answer.unwrap_or_else(|_| Err(self.stopped())),
                _ = slow.tick(), if want != Want::ToWatch => {
                    if let Some(what) = what.take() {
                        text = what();
                    }
                    let scanned = self.glance(|view| view.compressed()).unwrap_or(0);
                    tracing::info!(
                        "still looking for {text} in layer {}: {:.1} of {:.1} MB scanned",
                        self.number, scanned as f64 / 1e6, self.descriptor.size as f64 / 1e6
                    );
                }
            }
        }
    }

    /// Puts a question on the desk, and a scan to work if none is.
    fn pose(self: &Arc<Self>, mut asked: Asked) {
        let mut desk = self.desk.lock();
        // The scan may have gone on, or ended, since the reader looked.
        if self.look(&mut asked) {
            return;
        }
        let wanted = asked.want != Want::ToWatch;
        desk.questions.push(asked);
        if wanted && !desk.running {
            desk.running = true;
            let scan = desk.scan.take();
            tokio::spawn(self.clone().run_scan(scan));
        }
    }

    /// Whether a scan runs.
    pub(super) fn is_running(&self) -> bool {
        self.desk.lock().running
    }

    /// Marks a scan as running, if none is and none rests.
    pub(super) fn begin_running(&self) -> bool {
        let mut desk = self.desk.lock();
        let free = !desk.running && desk.scan.is_none();
        desk.running |= free;
        free
    }

    /// Puts one question; true if it is done with.
    fn look(&self, asked: &mut Asked) -> bool {
        match &*self.state.read() {
            State::Growing(growing) => asked.question.look(View::Growing(GrowingView(growing))),
            State::Complete(index) => {
                if !asked.question.look(View::Complete(index)) {
                    asked.question.fail(&self.stopped());
                }
                true
            }
            State::Failed(error) => {
                asked.question.fail(error);
                true
            }
        }
    }

    /// Puts all open questions again, after the scan has come further.
    pub(super) fn answer(&self) {
        self.desk.lock().questions.retain_mut(|asked| !self.look(asked));
    }

    /// What the open questions want, or `None` if they want nothing any more: then the scan rests on the desk.
    pub(super) fn demand(&self, mut scan: Scan) -> Option<(Scan, Want)> {
        let mut desk = self.desk.lock();
        desk.questions.retain(|asked| !asked.question.abandoned());
        let is_wanted = |want| desk.questions.iter().any(|asked| asked.want == want);
        if is_wanted(Want::Whole) {
            return Some((scan, Want::Whole));
        }
        if is_wanted(Want::Little) {
            return Some((scan, Want::Little));
        }
        desk.running = false;
        scan.rest();
        desk.scan = Some(scan);
        self.rested.notify_waiters();
        None
    }

    /// Puts all open questions a last time, now that the layer is complete: there is no scan any more.
    pub(super) fn finish(self: &Arc<Self>) {
        let mut desk = self.desk.lock();
        desk.questions.retain_mut(|asked| !self.look(asked));
        desk.scan = None;
        // What is open now was asked after the index had been found damaged and dropped.
        desk.running = desk.questions.iter().any(|asked| asked.want != Want::ToWatch);
        if desk.running {
            tokio::spawn(self.clone().run_scan(None));
        } else {
            self.rested.notify_waiters();
        }
    }

    /// Tells all readers that the scan cannot go on, and lets it rest. The next question tries again.
    pub(super) fn give_up(&self, scan: Option<Scan>, error: &Arc<LayerError>) {
        let mut desk = self.desk.lock();
        for mut asked in desk.questions.drain(..) {
            asked.question.fail(error);
        }
        desk.running = false;
        desk.scan = scan;
        self.rested.notify_waiters();
    }
}
