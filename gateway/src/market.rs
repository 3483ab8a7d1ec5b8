//! One market that this pod follows: its log and its state, at the same position.
//!
//! The tail writes it, and shards and REST read it. Its lock is held to apply an update, to copy pointers or to encode
//! a snapshot, and never across I/O.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use backbone::Loaded;
use protocol::{
    MarketId, MarketState, Payload, Position, Seq, TraceContext, Update,
    client_message::Offset,
    server_message::{self, SnapshotCause},
};
use tokio::sync::Notify;

use crate::{
    frame::{self, Encoded},
    log::{After, Bound, EncodedUpdate, Log, Recovery},
    metrics as names,
    watchers::Watches,
    work_queue::WorkQueue,
};

/// One followed market.
pub struct Market {
    /// Which market it is.
    pub id: MarketId,
    /// The watchers that serve it.
    pub watches: Watches,
    inner: Mutex<Inner>,
    /// Notified whenever a read of the tail has ended.
    read_ended: Notify,
    work: Arc<WorkQueue>,
}

struct Inner {
    /// Whether the market has been loaded. Since then the tail reads it.
    live: bool,
    log: Log,
    state: MarketState,
    /// Snapshot frames of the state, by cause. Empty after each change of the state.
    snapshots: HashMap<SnapshotCause, Encoded>,
    /// Whether older updates have been loaded. What the log lacks then, the backbone lacks too.
    history_loaded: bool,
    /// What the next load is for, while one is wanted.
    load: Option<LoadKind>,
    /// Whether the backbone may have lost updates that this log has. Its latest position is to be checked.
    doubted: bool,
    reads: Reads,
}

/// The tail's reads of a market. They are numbered from 1, and at most one is under way.
#[derive(Default)]
struct Reads {
    begun: u64,
    ended: u64,
    /// The log's latest position as last checked, and the number of the last read that had ended by then.
    checked: Option<(u64, Position)>,
    /// Whether a shard waits for the next check.
    check_awaited: bool,
}

/// What a load is for. Each kind includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LoadKind {
    /// The state, to go live from.
    State,
    /// Older updates as well.
    History,
    /// A replacement for the log, which has a hole or lost history.
    Replacement,
}

/// What a client wants of a market before its delivery can start.
#[derive(Debug)]
pub struct Wanted {
    /// Which market.
    pub market: MarketId,
    /// Where delivery is to start.
    pub start: Start,
    /// The first read that began after the request of a client that is ahead of this pod. Such a client gets a reset
    /// only after a check that follows this read.
    first_read: Option<u64>,
}

/// Where delivery starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the latest position.
    Live,
    /// At the latest position, with a snapshot first.
    Snapshot,
    /// After the last update that the client has.
    After(Offset),
}

impl Wanted {
    /// Wants delivery of `market` from `start`.
    #[must_use]
    pub fn new(market: MarketId, start: Start) -> Self {
        Self { market, start, first_read: None }
    }
}

/// Where delivery of a market begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The position that the client has, or will have by the snapshot.
    pub cursor: Position,
    /// The log's latest position.
    pub latest: Position,
    /// The cause of the snapshot to send first, if any.
    pub snapshot: Option<SnapshotCause>,
    /// The generation of the log that these positions belong to.
    pub generation: u32,
}

/// What a read of the tail brought.
#[derive(Default)]
pub struct News {
    /// How many updates were new.
    pub count: usize,
    /// Those of them that are traced, with the span of the read.
    pub traced: Vec<(Position, TraceContext)>,
}

/// Updates for REST.
pub enum Page {
    /// The JSON of each update, oldest first, and the log's latest position.
    Updates(Vec<String>, Position),
    /// Only the backbone knows.
    Unknown,
}

impl Market {
    /// Creates a market that is not loaded yet.
    pub fn new(id: MarketId, bound: Bound, watches: Watches, work: Arc<WorkQueue>) -> Self {
        let inner = Inner {
            live: false,
            log: Log::at(Position::ORIGIN, bound),
            state: MarketState::default(),
            snapshots: HashMap::new(),
            history_loaded: false,
            load: None,
            doubted: false,
            reads: Reads::default(),
        };
        Self { id, watches, inner: Mutex::new(inner), read_ended: Notify::new(), work }
    }

    // For shards and REST.

    /// Returns where delivery of `wanted` begins. Returns `None` while the tail has to load or read the market first;
    /// the tail notifies the watchers afterwards.
    pub fn begin(&self, wanted: &mut Wanted, resume_max: u64) -> Option<Begin> {
        let mut inner = self.lock();
        let latest = inner.log.latest();
        if !inner.live {
            let kind =
                if matches!(wanted.start, Start::After(_)) { LoadKind::History } else { LoadKind::State };
            self.want_load(&mut inner, kind);
            return None;
        }
        let generation = inner.log.generation();
        let at_latest = |snapshot| Some(Begin { cursor: latest, latest, snapshot, generation });
        let offset = match wanted.start {
            Start::Live => return at_latest(None),
            Start::Snapshot => return at_latest(Some(SnapshotCause::Asked)),
            Start::After(offset) => offset,
        };
        match inner.log.recover(offset.epoch, offset.seq, resume_max) {
            Recovery::Replay(cursor) => Some(Begin { cursor, latest, snapshot: None, generation }),
            Recovery::NeedsHistory if !inner.history_loaded => {
                self.want_load(&mut inner, LoadKind::History);
                None
            }
            Recovery::NeedsFresh => {
                let first_read = *wanted.first_read.get_or_insert(inner.reads.begun + 1);
                match inner.reads.checked {
                    Some((read, checked)) if read >= first_read && checked <= latest => {
                        at_latest(Some(SnapshotCause::Reset))
                    }
                    // This pod is behind. The updates it lacks notify the shard when they come.
                    Some((read, _)) if read >= first_read => None,
                    _ => {
                        inner.reads.check_awaited = true;
                        inner.doubted = true;
                        self.work.mark_changed([self.id]);
                        None
                    }
                }
            }
            Recovery::Reset | Recovery::NeedsHistory => at_latest(Some(SnapshotCause::Reset)),
        }
    }

    /// Returns a copy of the log, which [`Market::look`] keeps up to date.
    #[must_use]
    pub fn view(&self) -> Log {
        self.lock().log.clone()
    }

    /// Brings the view of watcher `index` up to the log. Returns true if the log was replaced since the last look, so
    /// anything served from the view is void.
    pub fn look(&self, index: usize, view: &mut Log) -> bool {
        self.watches.looked(index);
        view.catch_up(&self.lock().log)
    }

    /// Returns the state as a snapshot frame, and brings `view` up to the log that leads to it. The flag is that of
    /// [`Market::look`].
    #[must_use]
    pub fn snapshot(&self, cause: SnapshotCause, view: &mut Log) -> (Encoded, bool) {
        let mut inner = self.lock();
        let Inner { snapshots, state, log, .. } = &mut *inner;
        let replaced = view.catch_up(log);
        let frame = snapshots
            .entry(cause)
            .or_insert_with(|| frame::text(&server_message::snapshot(self.id, state, cause)));
        (Encoded::clone(frame), replaced)
    }

    /// Returns the state, unless the market is not loaded yet.
    #[must_use]
    pub fn state(&self) -> Option<MarketState> {
        let inner = self.lock();
        inner.live.then(|| inner.state.clone())
    }

    /// Returns up to `limit` updates after `since`.
    #[must_use]
    pub fn page(&self, since: Seq, limit: usize) -> Page {
        let inner = self.lock();
        let latest = inner.log.latest();
        if !inner.live {
            return Page::Unknown;
        }
        match inner.log.after(Position { epoch: latest.epoch, seq: since }) {
            After::CaughtUp => Page::Updates(Vec::new(), latest),
            After::Updates(updates) => Page::Updates(
                updates.take(limit).map(|update| frame::json(&update.frame).to_owned()).collect(),
                latest,
            ),
            After::Ahead | After::Trimmed | After::OtherEpoch => Page::Unknown,
        }
    }

    /// Waits until every update that was in the market's log at the time of the call is in memory. So a response is
    /// never older than what any pod has shown to a client. Concurrent callers share one read.
    pub async fn freshen(&self) {
        let first_read = self.lock().reads.begun + 1;
        self.work.mark_changed([self.id]);
        let mut ended = std::pin::pin!(self.read_ended.notified());
        loop {
            // Enabled before the check, so that a read which ends right after it is noticed.
            ended.as_mut().enable();
            if self.has_read(first_read) {
                return;
            }
            ended.as_mut().await;
            ended.set(self.read_ended.notified());
        }
    }

    /// Returns whether read number `read` has ended, or the market is not read at all yet.
    fn has_read(&self, read: u64) -> bool {
        let inner = self.lock();
        inner.reads.ended >= read || !inner.live
    }

    // For the tail.

    /// Returns the position up to which the market has been read, unless it is not loaded yet.
    pub fn cursor(&self) -> Option<Position> {
        let inner = self.lock();
        inner.live.then(|| inner.log.latest())
    }

    /// Begins a read, and returns the position to read after. A market that is not loaded yet is not read.
    pub fn begin_read(&self) -> Option<Position> {
        let mut inner = self.lock();
        inner.reads.begun += u64::from(inner.live);
        inner.live.then(|| inner.log.latest())
    }

    /// Ends a read, and applies the updates it brought, if any.
    pub fn finish_read(&self, updates: &[Update]) -> News {
        let id = self.id;
        let mut inner = self.lock();
        inner.reads.ended = inner.reads.begun;
        self.read_ended.notify_waiters();
        let mut news = News::default();
        for update in updates {
            let latest = inner.log.latest();
            if update.position.epoch == latest.epoch && update.position.seq <= latest.seq {
                continue;
            }
            if !update.position.follows(latest) {
                tracing::warn!(market = %id, have = %latest, next = %update.position, "the log has a hole or is another one: loading it anew");
                metrics::counter!(names::GAPS_HEALED).increment(1);
                self.want_load(&mut inner, LoadKind::Replacement);
                break;
            }
            inner.apply(id, update);
            news.count += 1;
            news.traced.extend(update.trace.clone().map(|read| (update.position, read)));
        }
        news
    }

    /// Returns whether a load of the market has to include older updates.
    pub fn wants_history(&self) -> bool {
        self.lock().load >= Some(LoadKind::History)
    }

    /// Applies what a load brought. `with_history` tells whether older updates were asked for.
    pub fn finish_load(&self, loaded: Loaded, with_history: bool) {
        let mut inner = self.lock();
        // A load without history leaves a later wish for history open.
        let wanted = inner.load.take_if(|kind| with_history || *kind == LoadKind::State);
        let position = loaded.state.position;
        let log = self.loaded_log(&loaded, inner.log.bound());
        let latest = inner.log.latest();
        if inner.live && wanted != Some(LoadKind::Replacement) && latest.epoch == position.epoch {
            // Only the older updates are new here. Where the load is ahead, the next read brings the same updates.
            inner.log.prepend(&log);
        } else {
            inner.log = log.replacing(&inner.log);
            inner.state = loaded.state;
            inner.snapshots.clear();
            inner.live = true;
        }
        inner.history_loaded |= with_history;
    }

    fn loaded_log(&self, loaded: &Loaded, bound: Bound) -> Log {
        let empty = || Log::at(loaded.state.position, bound);
        let Some(first) = loaded.updates.first() else { return empty() };
        let before_first = Seq::new(first.position.seq.get().saturating_sub(1));
        let mut log = Log::at(Position { seq: before_first, ..first.position }, bound);
        for update in &loaded.updates {
            // A backbone loads without holes. A hole would only shorten what can be replayed.
            if log.push(update.position, encode(self.id, update)).is_err() {
                log = empty();
            }
        }
        log
    }

    /// Drops the wish for a load that cannot succeed. The next client that needs it asks again.
    pub fn give_up_load(&self) {
        self.lock().load = None;
    }

    /// Doubts the log until its latest position has been checked.
    pub fn doubt(&self) {
        self.lock().doubted = true;
    }

    /// Returns whether the log is doubted, and no longer doubts it.
    pub fn take_doubt(&self) -> bool {
        std::mem::take(&mut self.lock().doubted)
    }

    /// Compares the log with its `latest` position in the backbone, and returns whether a shard waits for this. A
    /// position below the log's own means that history was lost: the log is reloaded. An empty log in the backbone
    /// changes nothing yet; its next update opens a new epoch.
    pub fn check(&self, latest: Position) -> bool {
        let mut inner = self.lock();
        let have = inner.log.latest();
        if inner.live && latest != Position::ORIGIN && latest < have {
            tracing::warn!(market = %self.id, %have, top = %latest, "the log has lost history: loading it anew");
            metrics::counter!(names::GAPS_HEALED).increment(1);
            self.want_load(&mut inner, LoadKind::Replacement);
        }
        inner.reads.checked = Some((inner.reads.ended, latest));
        std::mem::take(&mut inner.reads.check_awaited)
    }

    fn want_load(&self, inner: &mut Inner, kind: LoadKind) {
        if inner.load < Some(kind) {
            inner.load = Some(kind);
            self.work.want_loads([self.id]);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while this lock is held, so a poisoned one still guards whole data.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn apply(&mut self, id: MarketId, update: &Update) {
        match Payload::parse(&update.payload) {
            Ok(payload) => self.state.apply(update.position, update.ts, &payload),
            Err(error) => {
                // A publisher never writes this, so another program did. The seq goes on without its lines.
                tracing::error!(market = %id, position = %update.position, %error, "an update in the log is not a payload");
                self.state.position = update.position;
                self.state.ts = update.ts;
            }
        }
        self.snapshots.clear();
        if let Err(hole) = self.log.push(update.position, encode(id, update)) {
            tracing::error!(market = %id, %hole, "an update was applied out of order");
        }
    }
}

fn encode(id: MarketId, update: &Update) -> EncodedUpdate {
    EncodedUpdate { frame: frame::text(&server_message::odds_update(id, update)), ts: update.ts }
}
