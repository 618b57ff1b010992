//! Opened images, the least recently used closed.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use super::problem::Problem;
use crate::image::reference::Reference;
use crate::image::{Image, ImageError};
use crate::inspect::Inspector;
use crate::tree::{self, Premises, Settings};

/// For how long a tag is taken to stand for what it stood for.
const TAG_LIFE: Duration = Duration::from_secs(60);

/// For how long an image that could not be opened is not tried again: whoever waited for it gets the same answer.
const FAILURE_LIFE: Duration = Duration::from_secs(1);

/// What the images have cost in all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) requests: u64,
    pub(super) bytes_fetched: u64,
    pub(super) bytes_from_store: u64,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) retries: u64,
    pub(super) scanned: u64,
}

/// The images that are open.
#[derive(Debug)]
pub(super) struct Images {
    settings: Settings,
    premises: Premises,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    slots: LruCache<Reference, Arc<Slot>>,
    /// What those have cost that are closed.
    closed: Totals,
}

/// The place of one image. Whoever opens it holds the lock, and the others wait for that.
#[derive(Debug, Default)]
struct Slot {
    state: tokio::sync::Mutex<State>,
    /// The same, for those who count and must not wait.
    open: Mutex<Option<Arc<Inspector>>>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Closed,
    Open(Arc<Inspector>, Instant),
    Failed(Problem, Instant),
}

impl Images {
    /// With at most `most` of them open, opened as `settings` say.
    pub(super) fn new(settings: Settings, most: usize) -> Images {
        let most = NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN);
        Images {
            premises: Premises::new(&settings),
            settings,
            kept: Mutex::new(Kept {
                slots: LruCache::new(most),
                closed: Totals::default(),
            }),
        }
    }

    /// The image that `reference` stands for.
    pub(super) async fn open(&self, reference: &Reference) -> Result<Arc<Inspector>, Problem> {
        let slot = self.slot(reference);
        let mut state = slot.state.lock().await;
        let open = match &*state {
            State::Open(inspector, since) if since.elapsed() < TAG_LIFE || is_pinned(reference) => {
                return Ok(inspector.clone());
            }
            State::Failed(problem, since) if since.elapsed() < FAILURE_LIFE => return Err(problem.clone()),
            State::Open(inspector, _) => Some(inspector.clone()),
            _ => None,
        };
        let opened = match &open {
            Some(inspector) => self.again(reference, inspector).await,
            None => self.anew(reference).await,
        };
        match opened {
            Ok(inspector) => {
                let before = slot.open.lock().replace(inspector.clone());
                if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &inspector)) {
                    self.kept.lock().closed.add(&before);
                }
                *state = State::Open(inspector.clone(), Instant::now());
                Ok(inspector)
            }
            Err(error) => {
                let problem = Problem::from(&error);
                *state = State::Failed(problem.clone(), Instant::now());
                Err(problem)
            }
        }
    }

    fn slot(&self, reference: &Reference) -> Arc<Slot> {
        let mut kept = self.kept.lock();
        if let Some(slot) = kept.slots.get(reference) {
            return slot.clone();
        }
        let slot = Arc::<Slot>::default();
        if let Some((_, old)) = kept.slots.push(reference.clone(), slot.clone())
            && let Some(inspector) = old.open.lock().take()
        {
            kept.closed.add(&inspector);
        }
        slot
    }

    async fn anew(&self, reference: &Reference) -> Result<Arc<Inspector>, ImageError> {
        let image = tree::resolve_with(reference, &self.settings).await?;
        Ok(self.inspect(image).await)
    }

    /// Looks whether `reference` still stands for the image that is open.
    async fn again(&self, reference: &Reference, open: &Arc<Inspector>) -> Result<Arc<Inspector>, ImageError> {
        let image = tree::resolve_with(reference, &self.settings).await?;
        match image.resolved == open.image().resolved {
            true => Ok(open.clone()),
            false => Ok(self.inspect(image).await),
        }
    }

    async fn inspect(&self, image: Image) -> Arc<Inspector> {
        Inspector::new(&self.premises.open(image).await)
    }

    /// What all of them have cost since the server began, and how many are open.
    pub(super) fn totals(&self) -> (Totals, usize) {
        let kept = self.kept.lock();
        let mut totals = kept.closed;
        let mut open = 0;
        for (_, slot) in kept.slots.iter() {
            if let Some(inspector) = &*slot.open.lock() {
                totals.add(inspector);
                open += 1;
            }
        }
        (totals, open)
    }
}

/// Whether it stands for the same image for ever.
fn is_pinned(reference: &Reference) -> bool {
    matches!(reference, Reference::Registry(registry) if registry.digest().is_some())
}

impl Totals {
    fn add(&mut self, inspector: &Inspector) {
        // Layers that are the same are one blob with one count.
        let mut seen = HashSet::new();
        for layer in inspector.layers() {
            let status = layer.status();
            if !seen.insert(layer.descriptor().digest) {
                continue;
            }
            self.requests += status.blob.requests;
            self.bytes_fetched += status.blob.bytes_fetched;
            self.bytes_from_store += status.blob.bytes_from_store;
            self.hits += status.blob.hits;
            self.misses += status.blob.misses;
            self.retries += status.blob.retries;
            self.scanned += status.indexed_bytes;
        }
    }
}
