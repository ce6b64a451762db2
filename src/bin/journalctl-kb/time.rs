//! Times as people write and read them.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

/// Reads a time in the past: `2h`, `3d`, a date, a date and a time, RFC 3339, `today`, `yesterday`.
pub(crate) fn since(text: &str) -> Result<i64, String> {
    at(text, &Zoned::now()).map(Timestamp::as_millisecond).ok_or_else(|| {
        "not a time: write a span back from now (2h, 3d, 1h30m), a date (2026-11-20), `yesterday`, or RFC 3339 \
         (2026-11-20T16:00:00Z)"
            .into()
    })
}

fn at(text: &str, now: &Zoned) -> Option<Timestamp> {
    let text = text.trim();
    let midnight = |date: Date| date.to_zoned(now.time_zone().clone()).ok().map(|zoned| zoned.timestamp());
    match text {
        "now" => return Some(now.timestamp()),
        "today" => return midnight(now.date()),
        "yesterday" => return midnight(now.date().yesterday().ok()?),
        _ => {}
    }
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Some(timestamp);
    }
    // jiff reads the date of a longer text as well, so the longer form comes first.
    if text.len() > "2026-11-20".len()
        && let Ok(time) = text.parse::<DateTime>()
    {
        return time.to_zoned(now.time_zone().clone()).ok().map(|zoned| zoned.timestamp());
    }
    if let Ok(date) = text.parse::<Date>() {
        return midnight(date);
    }
    let span = text.parse::<Span>().ok()?;
    now.checked_sub(span.abs()).ok().map(|zoned| zoned.timestamp())
}

/// A stored time in the local zone; a question mark for what is none.
pub(crate) fn local(ms: i64) -> String {
    match Timestamp::from_millisecond(ms) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => "?".into(),
    }
}

/// The same where it lies in the past; clocks can be set.
pub(crate) fn past(ms: i64) -> Option<String> {
    (ms <= Timestamp::now().as_millisecond()).then(|| ago(ms))
}

/// How long ago a stored time is.
pub(crate) fn ago(ms: i64) -> String {
    since_when(Timestamp::now().as_millisecond().saturating_sub(ms))
}

fn since_when(elapsed_ms: i64) -> String {
    match elapsed_ms / 1000 {
        ..0 => "in the future".into(),
        0 => "just now".into(),
        s => format!("{} ago", span(s)),
    }
}

/// So many seconds as people say it.
pub(crate) fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now: Zoned = "2026-11-20T16:30:00+01:00[Europe/Berlin]".parse().unwrap();
        for (text, want) in [
            ("2h", "2026-11-20T13:30:00Z"),
            ("2h ago", "2026-11-20T13:30:00Z"),
            ("1h30m", "2026-11-20T14:00:00Z"),
            ("3d", "2026-11-17T15:30:00Z"),
            ("2 weeks", "2026-11-06T15:30:00Z"),
            ("2026-11-20", "2026-11-19T23:00:00Z"),
            ("2026-11-20 12:00", "2026-11-20T11:00:00Z"),
            ("2026-11-20T12:00:05", "2026-11-20T11:00:05Z"),
            ("2026-11-20T12:00:00Z", "2026-11-20T12:00:00Z"),
            ("2026-11-20T12:00:00+02:00", "2026-11-20T10:00:00Z"),
            ("today", "2026-11-19T23:00:00Z"),
            ("yesterday", "2026-11-18T23:00:00Z"),
            ("now", "2026-11-20T15:30:00Z"),
        ] {
            assert_eq!(at(text, &now).map(|time| time.to_string()).as_deref(), Some(want), "{text}");
        }
        for text in ["", "soon", "2026-13-01", "5", "99999999999 years"] {
            assert_eq!(at(text, &now), None, "{text}");
        }
    }

    #[test]
    fn any_number_is_shown_as_some_time() {
        assert_eq!(local(i64::MAX), "?");
        assert_eq!(since_when(0), "just now");
        assert_eq!(since_when(-1_000), "in the future");
        assert_eq!(since_when(119_999), "119 s ago");
        assert_eq!(since_when(120_000), "2 min ago");
        assert_eq!(since_when(3_600_000 * 47), "47 h ago");
        assert_eq!(since_when(i64::MAX), "106751991167 days ago");
    }
}
