//! SIGTERM and SIGINT as a request to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};

use super::StopToken;
use crate::error::{IoContext, Result};

/// How long work may go on that was asked to stop by a signal, when nothing else is said.
const GRACE: Duration = Duration::from_secs(8);
/// What comes this soon after the first is the same request: `timeout` sends it to the process and to its group.
const ECHO: Duration = Duration::from_millis(100);

impl StopToken {
    /// A token that SIGTERM and SIGINT (Ctrl-C) ask to stop, in this process and from now on.
    ///
    /// A second one, later than a tenth of a second, ends the process at once, as it would without this: nothing that is banked or
    /// committed is lost by that, and the kernel frees the locks. So does the first one after 8 s, for work that does not look: what it had recorded was
    /// banked when the signal came.
    pub fn on_signals() -> Result<Self> {
        Self::on_signals_within(GRACE)
    }

    /// The same with another time than 8 s; [`Duration::MAX`] lets the work take whatever it takes.
    pub fn on_signals_within(grace: Duration) -> Result<Self> {
        let token = Self::new();
        let asked = Arc::new(AtomicBool::new(false));
        let what = "set a handler for";
        // IMPORTANT: first. A signal that came with only the other handlers there would be lost.
        let mut signals = Signals::new([SIGTERM, SIGINT]).at(what, "SIGTERM and SIGINT")?;
        for signal in [SIGTERM, SIGINT] {
            // In the handler itself: no thread has to come round to it.
            flag::register_conditional_default(signal, Arc::clone(&asked)).at(what, "SIGTERM and SIGINT")?;
        }
        let told = token.clone();
        let watch = move || {
            let Some(signal) = signals.forever().next() else { return };
            told.stop(if signal == SIGTERM { "SIGTERM" } else { "SIGINT" });
            std::thread::sleep(ECHO.min(grace));
            asked.store(true, Ordering::SeqCst);
            std::thread::sleep(grace.saturating_sub(ECHO));
            let _ = low_level::emulate_default_handler(signal);
        };
        std::thread::Builder::new().name("journal-signal".into()).spawn(watch).at("start a thread for", "signals")?;
        Ok(token)
    }
}
