//! What waits for the background settler.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::store::LOG_FRAMES_ENOUGH;

/// How much this process has applied and not settled, and the bell for the thread that settles it.
#[derive(Debug)]
pub(crate) struct Backlog {
    state: Mutex<BacklogState>,
    bell: Condvar,
}

/// The figures of a [`Backlog`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BacklogState {
    pub(crate) transactions: u64,
    pub(crate) paths: u64,
    pub(crate) bytes: u64,
    /// Frames in the write-ahead log.
    pub(crate) frames: u32,
    pub(crate) stop: bool,
    /// From how many bytes on it is settled at once.
    pub(crate) enough_bytes: u64,
    /// From how many paths on.
    pub(crate) enough_paths: u64,
}

impl BacklogState {
    /// True when the settler should not wait for a pause.
    pub(crate) fn is_enough(&self) -> bool {
        self.stop || self.is_much() || self.is_long_log()
    }

    /// True when enough has come together to be settled.
    pub(crate) fn is_much(&self) -> bool {
        self.bytes >= self.enough_bytes || self.paths >= self.enough_paths
    }

    /// True when the log is long enough to be carried over.
    pub(crate) fn is_long_log(&self) -> bool {
        self.frames >= LOG_FRAMES_ENOUGH
    }
}

impl Backlog {
    pub(crate) fn new(enough_bytes: u64, enough_paths: u64) -> Self {
        let state = BacklogState { enough_bytes, enough_paths, ..BacklogState::default() };
        Self { state: Mutex::new(state), bell: Condvar::new() }
    }

    /// Adds an applied transaction, and how long the log is now. Rings only when there was none before or when enough
    /// has come together: to wake a thread costs as much as a good part of a commit.
    pub(crate) fn add(&self, paths: u64, bytes: u64, frames: u32) {
        self.add_with(paths, bytes, Some(frames));
    }

    /// Something is to be done behind a commit that has told how long the log is.
    pub(crate) fn add_files(&self, files: u64, bytes: u64) {
        self.add_with(files, bytes, None);
    }

    fn add_with(&self, paths: u64, bytes: u64, frames: Option<u32>) {
        let mut state = self.state.lock().unwrap_or_else(|poison| poison.into_inner());
        let before = *state;
        state.transactions += 1;
        state.paths += paths;
        state.bytes += bytes;
        state.frames = frames.unwrap_or(state.frames);
        if before.transactions == 0 || (state.is_enough() && !before.is_enough()) {
            self.bell.notify_all();
        }
    }

    /// Says how long the log is now. Rings when that has become too long.
    pub(crate) fn add_log(&self, frames: u32) {
        let mut state = self.state.lock().unwrap_or_else(|poison| poison.into_inner());
        let before = state.is_long_log();
        state.frames = frames;
        if state.is_long_log() && !before {
            self.bell.notify_all();
        }
    }

    /// Takes all figures, and leaves none.
    pub(crate) fn take(&self) -> BacklogState {
        let mut state = self.state.lock().unwrap_or_else(|poison| poison.into_inner());
        let BacklogState { stop, enough_bytes, enough_paths, .. } = *state;
        std::mem::replace(&mut *state, BacklogState { stop, enough_bytes, enough_paths, ..BacklogState::default() })
    }

    /// Forgets how long the log is.
    pub(crate) fn take_log(&self) {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner()).frames = 0;
    }

    /// Tells the settler to end.
    pub(crate) fn stop(&self) {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner()).stop = true;
        self.bell.notify_all();
    }

    /// Waits, at most this long, until `enough` says so of the figures; answers them.
    pub(crate) fn wait(&self, at_most: Duration, enough: impl Fn(&BacklogState) -> bool) -> BacklogState {
        let state = self.state.lock().unwrap_or_else(|poison| poison.into_inner());
        let waited = self.bell.wait_timeout_while(state, at_most, |state| !enough(state));
        *waited.unwrap_or_else(|poison| poison.into_inner()).0
    }
}
