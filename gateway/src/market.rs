//! The markets this pod follows: what the tail writes, and what shards and REST read.
//!
//! A [`Market`] lives as long as somebody holds it: a shard with a subscriber, or a request in flight. The registry
//! lets go of one that nobody else has held for [`GRACE`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
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
    log::{After, Bound, Kept, Log, Recovery},
};

/// How long a market without subscribers is still followed, so that a client that comes right back finds it warm.
pub const GRACE: Duration = Duration::from_secs(30);

/// Something that serves subscribers of markets: a shard.
pub trait Watcher: Send + Sync + 'static {
    /// The market has something new. At most one ring a market is outstanding.
    fn notify(&self, market: MarketId);
    /// The market's update at `position`, for which it is about to be rung, is traced; `read` is the span so far.
    fn trace(&self, market: MarketId, position: Position, read: TraceContext);
    /// Everything of this batch has been rung.
    fn flush(&self);
}

/// Says which part of the backbone holds a market; each part is read on its own.
pub type PartOf = Box<dyn Fn(MarketId) -> usize + Send + Sync>;

/// Every market this pod follows, and what the tail is to do about them.
pub struct Markets {
    bound: Bound,
    partition_of: PartOf,
    watchers: OnceLock<Vec<Arc<dyn Watcher>>>,
    watcher_count: usize,
    markets: Mutex<HashMap<MarketId, Arc<Market>>>,
    queue: Mutex<WorkQueue>,
    /// Something is in `queue.changed`.
    pub changed: Notify,
    /// Something is in `queue.loads`.
    pub load_wanted: Notify,
}

/// Work for the tail: at most one mark a followed market, of each kind.
#[derive(Default)]
struct WorkQueue {
    /// By part.
    changed: BTreeMap<usize, Marks>,
    loads: BTreeSet<MarketId>,
}

/// What is to be read of one part.
#[derive(Default)]
struct Marks {
    changed: BTreeSet<MarketId>,
    /// All markets now and then, hardly any of which has changed: what rang does not wait behind them.
    swept: BTreeSet<MarketId>,
}

impl Marks {
    fn pop(&mut self) -> Option<MarketId> {
        let Some(id) = self.changed.pop_first() else { return self.swept.pop_first() };
        self.swept.remove(&id);
        Some(id)
    }

    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.swept.is_empty()
    }
}

impl WorkQueue {
    fn take_part(&mut self, max: usize, busy: &HashSet<usize>) -> Option<(usize, Vec<MarketId>)> {
        let (&part, marks) = self.changed.iter_mut().find(|(part, _)| !busy.contains(part))?;
        let ids = std::iter::from_fn(|| marks.pop()).take(max).collect();
        if marks.is_empty() {
            self.changed.remove(&part);
        }
        Some((part, ids))
    }
}

/// One market: its log and its state, at the same position.
pub struct Market {
    /// Which.
    pub id: MarketId,
    inner: Mutex<Inner>,
    /// A read has ended.
    read_ended: Notify,
    /// Per watcher: whether it serves the market, and whether it has been rung and has not looked yet.
    bells: Box<[Bell]>,
}

#[derive(Default)]
struct Bell {
    watching: AtomicBool,
    changed: AtomicBool,
}

struct Inner {
    /// Loaded, and followed since.
    live: bool,
    log: Log,
    state: MarketState,
    /// Snapshot frames of the state, by cause.
    snapshots: HashMap<SnapshotCause, Encoded>,
    /// What the log lacks the backbone lacks too.
    history_loaded: bool,
    /// What the next load is for.
    load: Option<LoadKind>,
    /// The log may have lost history that is here: its top is to be looked at.
    doubted: bool,
    reads: Reads,
    /// When the registry was found to be the only holder.
    unheld_since: Option<Instant>,
}

/// The tail's reads of a market, by number; one at a time.
#[derive(Default)]
struct Reads {
    begun: u64,
    ended: u64,
    /// The log's top as it was asked for last, and after which read.
    asked_top: Option<(u64, Position)>,
    /// A shard waits for it to be asked for.
    awaited: bool,
}

/// What a load is for. A later kind includes the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LoadKind {
    /// The state, to go live from.
    State,
    /// The log's past as well.
    History,
    /// Everything anew: the log has a hole, or is another one.
    Everything,
}

/// What a client wants of a market before its delivery can start.
#[derive(Debug)]
pub struct Wanted {
    /// Which market.
    pub market: MarketId,
    /// From where.
    pub start: Start,
    /// The read after which the log's top must have been asked for before a client that is ahead is told so.
    asked_after: Option<u64>,
}

/// From where delivery starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From now on.
    Live,
    /// From the snapshot on.
    Snapshot,
    /// From what the client has.
    After(Offset),
}

impl Wanted {
    /// `start` in `market`.
    #[must_use]
    pub fn new(market: MarketId, start: Start) -> Self {
        Self { market, start, asked_after: None }
    }
}

/// Where delivery of a market begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// What the client has, or will have by the snapshot.
    pub cursor: Position,
    /// The log's top, where live delivery starts.
    pub latest: Position,
    /// The snapshot that comes first.
    pub snapshot: Option<SnapshotCause>,
    /// Of the log that said so.
    pub generation: u32,
}

impl Markets {
    /// An empty registry for `watcher_count` shards.
    #[must_use]
    pub fn new(bound: Bound, watcher_count: usize, partition_of: PartOf) -> Arc<Self> {
        Arc::new(Self {
            bound,
            partition_of,
            watchers: OnceLock::new(),
            watcher_count,
            markets: Mutex::default(),
            queue: Mutex::default(),
            changed: Notify::new(),
            load_wanted: Notify::new(),
        })
    }

    /// Says who is rung. Once, at start.
    pub fn set_watchers(&self, watchers: Vec<Arc<dyn Watcher>>) {
        debug_assert_eq!(watchers.len(), self.watcher_count);
        let _ = self.watchers.set(watchers);
    }

    /// The market, followed from now on if it was not.
    #[must_use]
    pub fn follow(&self, id: MarketId) -> Arc<Market> {
        let mut markets = lock(&self.markets);
        let market =
            markets.entry(id).or_insert_with(|| Arc::new(Market::new(id, self.bound, self.watcher_count)));
        Arc::clone(market)
    }

    /// The market, if it is followed.
    #[must_use]
    pub fn get(&self, id: MarketId) -> Option<Arc<Market>> {
        lock(&self.markets).get(&id).map(Arc::clone)
    }

    /// Every market that is read, with its cursor, ordered by id.
    #[must_use]
    pub fn followed(&self) -> Vec<(MarketId, Position)> {
        let mut markets: Vec<Arc<Market>> = lock(&self.markets).values().map(Arc::clone).collect();
        markets.sort_by_key(|market| market.id);
        let cursor = |market: &Arc<Market>| {
            let inner = market.lock();
            inner.live.then(|| (market.id, inner.log.latest()))
        };
        markets.iter().filter_map(cursor).collect()
    }

    /// How many are followed.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.markets).len()
    }

    /// Whether none is followed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The parts of the backbone that hold them now.
    #[must_use]
    pub fn parts(&self) -> HashSet<usize> {
        lock(&self.markets).keys().map(|id| (self.partition_of)(*id)).collect()
    }

    /// How many have a subscriber.
    #[must_use]
    pub fn watched(&self) -> usize {
        lock(&self.markets).values().filter(|market| market.is_watched()).count()
    }

    /// Whether delivery of `wanted` can begin, and where; `None` while the tail has to read first, after which it
    /// rings.
    pub fn begin(&self, market: &Market, wanted: &mut Wanted, resume_max: u64) -> Option<Begin> {
        let mut inner = market.lock();
        let latest = inner.log.latest();
        if !inner.live {
            let kind =
                if matches!(wanted.start, Start::After(_)) { LoadKind::History } else { LoadKind::State };
            self.want_load(market.id, &mut inner, kind);
            return None;
        }
        let generation = inner.log.generation();
        let at_top = |snapshot| Some(Begin { cursor: latest, latest, snapshot, generation });
        let offset = match wanted.start {
            Start::Live => return at_top(None),
            Start::Snapshot => return at_top(Some(SnapshotCause::Asked)),
            Start::After(offset) => offset,
        };
        match inner.log.recover(offset.epoch, offset.seq, resume_max) {
            Recovery::Replay(cursor) => Some(Begin { cursor, latest, snapshot: None, generation }),
            Recovery::NeedsHistory if !inner.history_loaded => {
                self.want_load(market.id, &mut inner, LoadKind::History);
                None
            }
            Recovery::NeedsFresh => {
                let ticket = *wanted.asked_after.get_or_insert(inner.reads.begun + 1);
                match inner.reads.asked_top {
                    Some((read, asked)) if read >= ticket && asked <= latest => {
                        at_top(Some(SnapshotCause::Reset))
                    }
                    // This pod is behind: what it lacks rings when it comes.
                    Some((read, _)) if read >= ticket => None,
                    _ => {
                        inner.reads.awaited = true;
                        inner.doubted = true;
                        self.mark([market.id]);
                        None
                    }
                }
            }
            Recovery::Reset | Recovery::NeedsHistory => at_top(Some(SnapshotCause::Reset)),
        }
    }

    fn want_load(&self, id: MarketId, inner: &mut Inner, kind: LoadKind) {
        if inner.load < Some(kind) {
            inner.load = Some(kind);
            lock(&self.queue).loads.insert(id);
            self.load_wanted.notify_one();
        }
    }

    /// Marks markets as changed. Those that are not followed are passed over when the tail takes them.
    pub fn mark(&self, ids: impl IntoIterator<Item = MarketId>) {
        self.mark_as(|marks| &mut marks.changed, ids);
    }

    fn mark_as(
        &self,
        kind: fn(&mut Marks) -> &mut BTreeSet<MarketId>,
        ids: impl IntoIterator<Item = MarketId>,
    ) {
        let mut queue = lock(&self.queue);
        for id in ids {
            kind(queue.changed.entry((self.partition_of)(id)).or_default()).insert(id);
        }
        drop(queue);
        self.changed.notify_one();
    }

    /// Waits until everything that was in the market's log when this was called is in memory: so that no answer is
    /// older than what any client, on any pod, has been shown. All who wait for one market share one read.
    pub async fn freshen(&self, market: &Market) {
        let ticket = market.lock().reads.begun + 1;
        self.mark([market.id]);
        let mut ended = std::pin::pin!(market.read_ended.notified());
        loop {
            // Before the look, so that a read which ends right after it is noticed.
            ended.as_mut().enable();
            if market.has_read(ticket) {
                return;
            }
            ended.as_mut().await;
            ended.set(market.read_ended.notified());
        }
    }

    /// Marks every followed market as one to read once what rang has been, and lets go of those that nobody has held
    /// for [`GRACE`].
    pub fn sweep(&self, now: Instant) {
        let mut markets = lock(&self.markets);
        markets.retain(|_, market| {
            let mut inner = market.lock();
            // Only this registry makes new holders, under the lock held here.
            if Arc::strong_count(market) > 1 {
                inner.unheld_since = None;
                return true;
            }
            now.duration_since(*inner.unheld_since.get_or_insert(now)) < GRACE
        });
        let all: Vec<MarketId> = markets.keys().copied().collect();
        drop(markets);
        metrics::counter!(crate::metrics::TAIL_SWEPT).increment(all.len() as u64);
        self.mark_as(|marks| &mut marks.swept, all);
    }

    /// Up to `max` changed markets of one part that is not `busy`, with the cursor of each.
    #[must_use]
    pub fn take_changed(
        &self,
        max: usize,
        busy: &HashSet<usize>,
    ) -> Option<(usize, Vec<(MarketId, Position)>)> {
        loop {
            let (part, ids) = lock(&self.queue).take_part(max, busy)?;
            let cursor = |id: MarketId| {
                let market = self.get(id)?;
                let mut inner = market.lock();
                inner.reads.begun += u64::from(inner.live);
                inner.live.then(|| (id, inner.log.latest()))
            };
            let batch: Vec<_> = ids.into_iter().filter_map(cursor).collect();
            if !batch.is_empty() {
                return Some((part, batch));
            }
        }
    }

    /// Up to `max` markets to load, and whether their history is wanted.
    #[must_use]
    pub fn take_loads(&self, max: usize) -> (Vec<MarketId>, bool) {
        let mut batch = Vec::new();
        let mut history = false;
        while batch.len() < max {
            let Some(id) = lock(&self.queue).loads.pop_first() else { break };
            if let Some(market) = self.get(id) {
                history |= market.lock().load >= Some(LoadKind::History);
                batch.push(id);
            }
        }
        (batch, history)
    }

    /// Puts markets whose load failed back.
    pub fn put_back_loads(&self, ids: &[MarketId]) {
        lock(&self.queue).loads.extend(ids);
        self.load_wanted.notify_one();
    }

    /// Ends the wish for a load that cannot be had; the next one to want it asks again.
    pub fn give_up_load(&self, id: MarketId) {
        if let Some(market) = self.get(id) {
            market.lock().load = None;
        }
    }

    /// Takes what a load brought, `with_history` or without, and rings.
    pub fn loaded(&self, id: MarketId, loaded: Loaded, with_history: bool) {
        let Some(market) = self.get(id) else { return };
        let mut inner = market.lock();
        // A wish for history that came while this was on its way without any stays one.
        let wanted = inner.load.take_if(|kind| with_history || *kind == LoadKind::State);
        let position = loaded.state.position;
        let mut log = Log::at(position, self.bound);
        if let Some(first) = loaded.updates.first() {
            let before_first = Seq::new(first.position.seq.get().saturating_sub(1));
            log = Log::at(Position { seq: before_first, ..first.position }, self.bound);
            for update in &loaded.updates {
                // A backbone loads without holes; one that did not would only shorten what is replayed.
                if log.push(update.position, kept(id, update)).is_err() {
                    log = Log::at(position, self.bound);
                }
            }
        }
        let own = inner.log.latest();
        if inner.live && wanted != Some(LoadKind::Everything) && own.epoch == position.epoch {
            // Only its past is news here; where it is ahead, the next read brings the same.
            inner.log.prepend(&log);
        } else {
            inner.log = log.in_place_of(&inner.log);
            inner.state = loaded.state;
            inner.snapshots.clear();
            inner.live = true;
        }
        inner.history_loaded |= with_history;
        // It went on while it was loaded: what has changed since is read next.
        drop(inner);
        self.mark([id]);
        self.notify(&market);
        self.flush();
    }

    /// Takes what a read of `id` brought, be it nothing. Says how many updates were new.
    pub fn read(&self, id: MarketId, updates: &[Update]) -> usize {
        let Some(market) = self.get(id) else { return 0 };
        let mut inner = market.lock();
        inner.reads.ended = inner.reads.begun;
        market.read_ended.notify_waiters();
        let mut new = 0;
        let mut traced = Vec::new();
        for update in updates {
            let latest = inner.log.latest();
            if update.position.epoch == latest.epoch && update.position.seq <= latest.seq {
                continue;
            }
            if !update.position.follows(latest) {
                tracing::warn!(market = %id, have = %latest, next = %update.position, "the log has a hole or is another one: loading it anew");
                metrics::counter!(crate::metrics::GAPS_HEALED).increment(1);
                self.want_load(id, &mut inner, LoadKind::Everything);
                break;
            }
            inner.apply(id, update);
            new += 1;
            traced.extend(update.trace.clone().map(|read| (update.position, read)));
        }
        drop(inner);
        for (position, read) in traced {
            self.watchers_of(&market).for_each(|(_, watcher)| watcher.trace(id, position, read.clone()));
        }
        if new > 0 {
            self.notify(&market);
        }
        new
    }

    /// Doubts every log: the backbone was away, or is another one.
    pub fn doubt_all(&self) {
        let all: Vec<MarketId> = lock(&self.markets).keys().copied().collect();
        self.doubt(all);
    }

    /// Doubts these logs, until their tops have been looked at.
    pub fn doubt(&self, ids: impl IntoIterator<Item = MarketId>) {
        let followed: Vec<Arc<Market>> = ids.into_iter().filter_map(|id| self.get(id)).collect();
        for market in &followed {
            market.lock().doubted = true;
        }
        self.mark(followed.iter().map(|market| market.id));
    }

    /// Which of these markets, which have just been read, are doubted; they no longer are.
    #[must_use]
    pub fn take_doubted(&self, ids: impl IntoIterator<Item = MarketId>) -> Vec<MarketId> {
        let doubted =
            |id: &MarketId| self.get(*id).is_some_and(|market| std::mem::take(&mut market.lock().doubted));
        ids.into_iter().filter(doubted).collect()
    }

    /// Takes a log's top that was asked for in doubt. One below what is here has lost history: it is loaded anew. An
    /// empty one says nothing that clients could be shown; its next update opens a new epoch.
    pub fn check_top(&self, id: MarketId, latest: Position) {
        let Some(market) = self.get(id) else { return };
        let mut inner = market.lock();
        let have = inner.log.latest();
        if inner.live && latest != Position::ORIGIN && latest < have {
            tracing::warn!(market = %id, %have, %latest, "the log has lost history: loading it anew");
            metrics::counter!(crate::metrics::GAPS_HEALED).increment(1);
            self.want_load(id, &mut inner, LoadKind::Everything);
        }
        inner.reads.asked_top = Some((inner.reads.ended, latest));
        let awaited = std::mem::take(&mut inner.reads.awaited);
        drop(inner);
        if awaited {
            self.notify(&market);
        }
    }

    /// Tells the watchers that a batch is complete.
    pub fn flush(&self) {
        for watcher in self.watchers.get().into_iter().flatten() {
            watcher.flush();
        }
    }

    fn notify(&self, market: &Market) {
        for (bell, watcher) in self.watchers_of(market) {
            if !bell.changed.swap(true, Ordering::SeqCst) {
                watcher.notify(market.id);
            }
        }
    }

    fn watchers_of<'a>(&'a self, market: &'a Market) -> impl Iterator<Item = (&'a Bell, &'a dyn Watcher)> {
        let watchers = self.watchers.get().into_iter().flatten().map(|watcher| &**watcher);
        market.bells.iter().zip(watchers).filter(|(bell, _)| bell.watching.load(Ordering::SeqCst))
    }
}

impl Inner {
    fn apply(&mut self, id: MarketId, update: &Update) {
        match Payload::parse(&update.payload) {
            Ok(payload) => self.state.apply(update.position, update.ts, &payload),
            Err(error) => {
                // Only something other than our publisher can have written it. seq goes on without its lines.
                tracing::error!(market = %id, position = %update.position, %error, "an update in the log is not a payload");
                self.state.position = update.position;
                self.state.ts = update.ts;
            }
        }
        self.snapshots.clear();
        if let Err(hole) = self.log.push(update.position, kept(id, update)) {
            tracing::error!(market = %id, %hole, "an update was applied out of order");
        }
    }
}

/// Updates for REST, or why they are not here.
pub enum Page {
    /// The JSON of each, oldest first, with the log's top.
    Updates(Vec<String>, Position),
    /// Only the backbone can tell.
    Unknown,
}

impl Market {
    fn new(id: MarketId, bound: Bound, watcher_count: usize) -> Self {
        Self {
            id,
            inner: Mutex::new(Inner {
                live: false,
                log: Log::at(Position::ORIGIN, bound),
                state: MarketState::default(),
                snapshots: HashMap::new(),
                history_loaded: false,
                load: None,
                doubted: false,
                reads: Reads::default(),
                unheld_since: None,
            }),
            read_ended: Notify::new(),
            bells: (0..watcher_count).map(|_| Bell::default()).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Whether the read with this number has ended, or the market is not read at all yet.
    fn has_read(&self, ticket: u64) -> bool {
        let inner = self.lock();
        inner.reads.ended >= ticket || !inner.live
    }

    fn is_watched(&self) -> bool {
        self.bells.iter().any(|bell| bell.watching.load(Ordering::Relaxed))
    }

    /// Watcher `index` serves this market from now on, or no longer.
    pub fn watch(&self, index: usize, watching: bool) {
        let bell = &self.bells[index];
        // A ring that came when the watcher had just let go of the market was never looked at.
        bell.changed.store(false, Ordering::SeqCst);
        bell.watching.store(watching, Ordering::SeqCst);
    }

    /// Watcher `index` looks: its view becomes the log. Says whether it was another one.
    pub fn look(&self, index: usize, view: &mut Log) -> bool {
        self.bells[index].changed.store(false, Ordering::SeqCst);
        view.catch_up(&self.lock().log)
    }

    /// The log as it is, to [`Market::look`] with from now on.
    #[must_use]
    pub fn view(&self) -> Log {
        self.lock().log.clone()
    }

    /// The state as a snapshot frame; `view` becomes the log that leads up to it. Also says whether it was another
    /// one.
    #[must_use]
    pub fn snapshot(&self, cause: SnapshotCause, view: &mut Log) -> (Encoded, bool) {
        let mut inner = self.lock();
        let Inner { snapshots, state, log, .. } = &mut *inner;
        let another = view.catch_up(log);
        let frame = snapshots
            .entry(cause)
            .or_insert_with(|| frame::text(&server_message::snapshot(self.id, state, cause)));
        (Encoded::clone(frame), another)
    }

    /// The state, unless it is not loaded yet.
    #[must_use]
    pub fn state(&self) -> Option<MarketState> {
        let inner = self.lock();
        inner.live.then(|| inner.state.clone())
    }

    /// Up to `limit` updates after `since`.
    #[must_use]
    pub fn page(&self, since: Seq, limit: usize) -> Page {
        let inner = self.lock();
        let latest = inner.log.latest();
        if !inner.live {
            return Page::Unknown;
        }
        match inner.log.after(Position { epoch: latest.epoch, seq: since }) {
            After::CaughtUp => Page::Updates(Vec::new(), latest),
            After::Updates(kept) => Page::Updates(
                kept.take(limit).map(|kept| frame::json(&kept.frame).to_owned()).collect(),
                latest,
            ),
            After::Ahead | After::Trimmed | After::OtherEpoch => Page::Unknown,
        }
    }
}

fn kept(id: MarketId, update: &Update) -> Kept {
    Kept { frame: frame::text(&server_message::odds_update(id, update)), ts: update.ts }
}

/// Nothing panics while one of these locks is held, so that a poisoned one is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
