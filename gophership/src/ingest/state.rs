//! What a worker knows of each of its connections: requests, whether it may be read, and whether its peer takes its answers.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context as TaskContext, Poll, Waker},
    time::Instant,
};

use ::http::Response;
use http_body::{Body, Frame, SizeHint};

use super::{
    connection::Context,
    room::{Phase, Presence},
};

/// A peer that takes nothing of what is sent to it for so many ticks is cut off.
const UNTAKEN_TICKS: u64 = 30;
/// So is one that has connected and sends no greeting, or not all of it.
const SILENT_TICKS: u64 = 30;

/// The connections of one worker.
#[derive(Default)]
pub struct Connections {
    tick: Cell<u64>,
    all: RefCell<Vec<Weak<State>>>,
    /// Those whose readers are stopped.
    stopped: RefCell<Vec<Rc<State>>>,
}

/// One connection.
pub(super) struct State {
    pub(super) context: Rc<Context>,
    presence: Arc<Presence>,
    since: u64,
    has_been_heard: Cell<bool>,
    /// When the first of the reads was made that lie together, without the socket having been empty in between. HTTP/2
    /// begins requests after the last of them.
    read_since: Cell<Instant>,
    has_read: Cell<bool>,
    /// Requests that aren't answered, or whose answers aren't taken.
    requests: Cell<u32>,
    /// Requests that are admitted and not whole.
    unfinished: Cell<u32>,
    /// Answers on their way.
    answers: Cell<u32>,
    /// When an answer was last given or taken.
    answered: Cell<u64>,
    /// Since when the socket takes nothing.
    blocked: Cell<Option<u64>>,
    /// May read once although the gate is closed.
    pass: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    /// It is among the stopped ones.
    is_stopped: Cell<bool>,
    is_cut_off: Cell<bool>,
    /// One request at a time waits for its bytes of the budget: who has many must not come before everybody else.
    pub(super) waits: tokio::sync::Mutex<()>,
    /// And one to be unpacked aside, for the same reason.
    pub(super) unpacks: tokio::sync::Mutex<()>,
}

impl Connections {
    /// Lets stopped readers go on.
    pub fn resume(&self) {
        for state in self.stopped.take() {
            state.is_stopped.set(false);
            state.wake_reader();
        }
    }

    /// Looks after every connection; once each [`super::gate::TICK`].
    pub fn look_after(&self) {
        let now = self.tick.get() + 1;
        self.tick.set(now);
        self.all.borrow_mut().retain(|state| {
            let Some(state) = state.upgrade() else {
                return false;
            };
            state.look_after(now);
            true
        });
        for state in &*self.stopped.borrow() {
            state.pass.set(true);
        }
        self.resume();
    }

    /// Connections whose readers are stopped.
    pub fn stopped(&self) -> usize {
        self.stopped.borrow().len()
    }
}

impl State {
    pub(super) fn new(context: Rc<Context>, presence: Arc<Presence>) -> Rc<Self> {
        let now = context.connections.tick.get();
        let state = Rc::new(Self {
            context,
            presence,
            since: now,
            has_been_heard: Cell::new(false),
            read_since: Cell::new(Instant::now()),
            has_read: Cell::new(false),
            requests: Cell::new(0),
            unfinished: Cell::new(0),
            answers: Cell::new(0),
            answered: Cell::new(now),
            blocked: Cell::new(None),
            pass: Cell::new(false),
            reader: RefCell::new(None),
            is_stopped: Cell::new(false),
            is_cut_off: Cell::new(false),
            waits: tokio::sync::Mutex::default(),
            unpacks: tokio::sync::Mutex::default(),
        });
        let connections = &state.context.connections;
        connections.all.borrow_mut().push(Rc::downgrade(&state));
        state
    }

    /// The tick.
    pub(super) fn now(&self) -> u64 {
        self.context.connections.tick.get()
    }

    fn look_after(&self, now: u64) {
        let untaken = |since: u64| now.saturating_sub(since) > UNTAKEN_TICKS;
        let is_silent = !self.has_been_heard.get() && now.saturating_sub(self.since) > SILENT_TICKS;
        let is_stuck = self.blocked.get().is_some_and(untaken)
            || self.answers.get() > 0 && untaken(self.answered.get());
        if (is_silent || is_stuck) && !self.is_cut_off.replace(true) {
            self.context.counters.cut_off.fetch_add(1, Relaxed);
            self.presence.ask_to_leave();
        }
    }

    /// Whether its peer doesn't listen or speak: there is nothing to wait for.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_cut_off.get()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.requests.get() == 0
    }

    /// Completes when the connection has to close.
    pub(super) async fn asked_to_leave(&self) {
        self.presence.asked_to_leave().await;
    }

    /// Whether the socket may be read now; if not, the task is woken when it may.
    pub(super) fn may_read(self: &Rc<Self>, cx: &TaskContext<'_>) -> bool {
        if !self.context.budget.is_spent() || self.unfinished.get() > 0 || self.pass.take() {
            return true;
        }
        self.reader.replace(Some(cx.waker().clone()));
        if !self.is_stopped.replace(true) {
            let mut stopped = self.context.connections.stopped.borrow_mut();
            stopped.push(Rc::clone(self));
        }
        false
    }

    fn wake_reader(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Beyond the handshake the whole greeting came: it is known what it speaks.
    pub(super) fn heard(&self) {
        self.has_been_heard.set(true);
        self.presence.set(Phase::Idle);
    }

    /// Whether it is known what its peer speaks.
    pub(super) fn has_been_heard(&self) -> bool {
        self.has_been_heard.get()
    }

    /// Whether the socket had something to read.
    pub(super) fn reads(&self, something: bool) {
        if something && !self.has_read.get() {
            self.read_since.set(Instant::now());
        }
        self.has_read.set(something);
    }

    /// Whether the socket takes what is written.
    pub(super) fn writes(&self, takes: bool) {
        if takes {
            self.blocked.set(None);
        } else if self.blocked.get().is_none() {
            self.blocked.set(Some(self.now()));
        }
    }

    /// A request has come.
    pub(super) fn begin(self: &Rc<Self>) -> Request {
        let requests = self.requests.get();
        self.requests.set(requests + 1);
        if requests == 0 {
            self.presence.set(Phase::Busy);
        }
        Request {
            state: Rc::clone(self),
            read_since: self.read_since.get(),
            is_answered: false,
        }
    }

    /// A request is admitted: until it is whole, the connection is read whatever the budget.
    pub(super) fn finish(&self) -> Finishing<'_> {
        self.unfinished.set(self.unfinished.get() + 1);
        self.wake_reader();
        Finishing(self)
    }
}

/// An admitted request that isn't whole.
pub(super) struct Finishing<'a>(&'a State);

impl Drop for Finishing<'_> {
    fn drop(&mut self) {
        self.0.unfinished.set(self.0.unfinished.get() - 1);
    }
}

/// A request, until its answer is taken.
pub(super) struct Request {
    state: Rc<State>,
    read_since: Instant,
    is_answered: bool,
}

impl Request {
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// When its first byte was read.
    pub(super) const fn read_since(&self) -> Instant {
        self.read_since
    }

    /// The answer, which is followed until it is taken.
    pub(super) fn answer<B>(mut self, response: Response<B>) -> Response<Answer<B>> {
        let answers = self.state.answers.get();
        self.state.answers.set(answers + 1);
        if answers == 0 {
            self.state.answered.set(self.state.now());
        }
        self.is_answered = true;
        response.map(|body| Answer {
            body,
            _request: self,
        })
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let state = &self.state;
        if self.is_answered {
            state.answers.set(state.answers.get() - 1);
            state.answered.set(state.now());
        }
        let requests = state.requests.get() - 1;
        state.requests.set(requests);
        if requests == 0 {
            state.presence.set(Phase::Idle);
        }
    }
}

/// The body of an answer.
pub(super) struct Answer<B> {
    body: B,
    _request: Request,
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
