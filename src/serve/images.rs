//! Opened images, the least recently used closed.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use super::problem::Problem;
use crate::image::reference::Reference;
use crate::image::{Image, ImageError};
use crate::inspect::Inspector;
use crate::tree::{self, Costs, Premises, Settings};

/// For how long a tag is taken to stand for what it stood for.
const TAG_LIFE: Duration = Duration::from_secs(60);

/// For how long an image that could not be opened is not tried again: whoever waited for it gets the same answer.
const FAILURE_LIFE: Duration = Duration::from_secs(1);

/// The images that are open.
#[derive(Debug)]
pub(super) struct Images {
    settings: Settings,
    premises: Premises,
    slots: Mutex<LruCache<Reference, Arc<Slot>>>,
}

/// The place of one image. Whoever opens it holds the lock, and the others wait for that.
#[derive(Debug, Default)]
struct Slot {
    state: tokio::sync::Mutex<State>,
    /// Whether it is open, for those who count and must not wait.
    open: AtomicBool,
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
            slots: Mutex::new(LruCache::new(most)),
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
                slot.open.store(true, Ordering::Relaxed);
                *state = State::Open(inspector.clone(), Instant::now());
                Ok(inspector)
            }
            Err(error) => {
                let problem = Problem::from(&error);
                slot.open.store(false, Ordering::Relaxed);
                *state = State::Failed(problem.clone(), Instant::now());
                Err(problem)
            }
        }
    }

    fn slot(&self, reference: &Reference) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        slots.get_or_insert(reference.clone(), Arc::default).clone()
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

    /// What all of them have cost since the server began.
    pub(super) fn costs(&self) -> Costs {
        self.premises.costs()
    }

    /// How many are open.
    pub(super) fn open_count(&self) -> usize {
        let slots = self.slots.lock();
        let open = slots.iter().filter(|(_, slot)| slot.open.load(Ordering::Relaxed));
        open.count()
    }
}

/// Whether it stands for the same image for ever.
fn is_pinned(reference: &Reference) -> bool {
    matches!(reference, Reference::Registry(registry) if registry.digest().is_some())
}
