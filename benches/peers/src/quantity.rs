//! A figure with what is uncertain about it, and how it is written.

use std::fmt;

/// A figure, and between which two it lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Span {
    /// The median of some, between the least and the greatest.
    pub fn median(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len().checked_sub(1)? / 2;
        Some(Self { value: values[middle], low: values[0], high: values[values.len() - 1] })
    }

    /// The greatest of some, down to the least.
    pub fn greatest(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        Self::median(values).map(|span| Self { value: span.high, ..span })
    }

    /// This by that, between the two that are furthest apart.
    pub fn by(self, other: Self) -> Self {
        Self { value: self.value / other.value, low: self.low / other.high, high: self.high / other.low }
    }

    /// What this is more than another, between the two that are furthest apart.
    pub fn less(self, other: Self) -> Self {
        Self { value: self.value - other.value, low: self.low - other.high, high: self.high - other.low }
    }

    /// This and so much more.
    pub fn more(self, by: f64) -> Self {
        Self { value: self.value + by, low: self.low + by, high: self.high + by }
    }

    /// One of so many equal parts of this.
    pub fn divided(self, by: f64) -> Self {
        Self { value: self.value / by, low: self.low / by, high: self.high / by }
    }
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Nanoseconds,
    Bytes,
    Count,
    /// A multiple of something else.
    Times,
}

/// A figure as it is written.
pub struct Quantity(pub f64, pub Unit);

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(amount, unit) = *self;
        match unit {
            Unit::Nanoseconds => scaled(f, amount, &["ns", "µs", "ms", "s"], 1000.0),
            Unit::Bytes => scaled(f, amount, &["B", "KiB", "MiB", "GiB"], 1024.0),
            Unit::Count => write!(f, "{amount:.0}"),
            Unit::Times => write!(f, "{} ×", significant(amount)),
        }
    }
}

/// A figure that was measured, with the two between which it lies if they do not read the same.
pub struct Measure(pub Span, pub Unit);

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Span { value, low, high }, unit) = *self;
        write!(f, "{}", Quantity(value, unit))?;
        let (low, high) = (Quantity(low, unit).to_string(), Quantity(high, unit).to_string());
        if low == high {
            return Ok(());
        }
        let unit_of = |text: &str| text.split_once(' ').map(|(_, unit)| unit.to_owned());
        let low = if unit_of(&low) == unit_of(&high) { low.split(' ').next().unwrap_or_default() } else { &low };
        write!(f, " ({low}–{high})")
    }
}

/// A number with its thousands set apart.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The largest unit in which the figure is not below one.
fn scaled(f: &mut fmt::Formatter<'_>, mut amount: f64, units: &[&str], step: f64) -> fmt::Result {
    let mut units = units.iter().peekable();
    while let Some(unit) = units.next() {
        if amount.abs() < step * 0.9995 || units.peek().is_none() {
            return write!(f, "{} {unit}", significant(amount));
        }
        amount /= step;
    }
    Ok(())
}

/// A figure with three digits that mean something, or fewer where that would be more than thousandths.
fn significant(amount: f64) -> String {
    let before = if amount == 0.0 { 1 } else { amount.abs().log10().floor() as i32 + 1 };
    let text = format!("{amount:.*}", usize::try_from(3 - before).unwrap_or(0).min(3));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_in_a_unit_that_suits_them() {
        let written = |amount, unit| Quantity(amount, unit).to_string();
        assert_eq!(written(0.0, Unit::Nanoseconds), "0 ns");
        assert_eq!(written(999.4, Unit::Nanoseconds), "999 ns");
        assert_eq!(written(999.6, Unit::Nanoseconds), "1 µs");
        assert_eq!(written(123_456.0, Unit::Nanoseconds), "123 µs");
        assert_eq!(written(-1_234_567.0, Unit::Nanoseconds), "-1.23 ms");
        assert_eq!(written(5e12, Unit::Nanoseconds), "5000 s");
        assert_eq!(written(64.0 * 1024.0 * 1024.0, Unit::Bytes), "64 MiB");
        assert_eq!(written(0.0754, Unit::Times), "0.075 ×");
        assert_eq!(written(12.34, Unit::Times), "12.3 ×");
        assert_eq!(written(4.0, Unit::Count), "4");
    }

    #[test]
    fn a_measure_says_how_uncertain_it_is() {
        let written = |value, low, high| Measure(Span { value, low, high }, Unit::Nanoseconds).to_string();
        assert_eq!(written(2e3, 1e3, 3e3), "2 µs (1–3 µs)");
        assert_eq!(written(2e3, 500.0, 3e3), "2 µs (500 ns–3 µs)");
        assert_eq!(written(2e3, 2e3, 2.001e3), "2 µs");
    }

    #[test]
    fn a_ratio_or_difference_lies_between_the_sides_furthest_apart() {
        let span = |value, low, high| Span { value, low, high };
        assert_eq!(span(4.0, 3.0, 6.0).by(span(2.0, 1.0, 3.0)), span(2.0, 1.0, 6.0));
        assert_eq!(span(4.0, 3.0, 6.0).less(span(2.0, 1.0, 3.0)), span(2.0, 0.0, 5.0));
        assert_eq!(span(4.0, 3.0, 6.0).more(1.0).divided(2.0), span(2.5, 2.0, 3.5));
    }

    #[test]
    fn medians_and_greatest_of_some() {
        let span = |value, low, high| Some(Span { value, low, high });
        assert_eq!(Span::median([3.0, 1.0, 9.0]), span(3.0, 1.0, 9.0));
        assert_eq!(Span::greatest([3.0, 1.0, 9.0]), span(9.0, 1.0, 9.0));
        assert_eq!(Span::median([]), None);
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([100, 1_000, 1_234_567].map(grouped), ["100", "1,000", "1,234,567"]);
    }
}
