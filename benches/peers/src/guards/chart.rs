//! Curves as SVG: both axes logarithmic, and colours that can be read on a light and on a dark page.

use std::fmt::Write;

/// The area of the curves.
const LEFT: f64 = 72.0;
const TOP: f64 = 56.0;
const WIDTH: f64 = 620.0;
const HEIGHT: f64 = 340.0;
const BELOW: f64 = 96.0;
const RIGHT: f64 = 48.0;
/// Neither light nor dark.
const INK: &str = "#7d8590";
/// How many entries of the legend stand in a row.
const IN_A_ROW: usize = 3;

/// One curve, or points of their own.
#[derive(Debug)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub color: &'static str,
    pub look: Look,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Solid,
    /// What ours is compared with.
    Dashed,
    /// Points that belong to no curve.
    Points,
}

/// An axis: what it counts, and how a power of ten is written.
pub struct Axis {
    pub label: String,
    pub tick: fn(f64) -> String,
}

/// A picture of curves.
pub struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
}

/// From which power of ten to which an axis goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Powers {
    from: i32,
    to: i32,
}

impl Powers {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (from, to) = values
            .map(f64::log10)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), value| (from.min(value), to.max(value)));
        // A hair beyond a power is that power.
        let (from, to) = ((from + 1e-9).floor() as i32, (to - 1e-9).ceil() as i32);
        Self { from, to: to.max(from + 1) }
    }

    /// Where a value lies between both ends, from 0 to 1.
    fn place(self, value: f64) -> f64 {
        (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from)
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        (self.from..=self.to).map(|power| 10_f64.powi(power))
    }
}

impl Chart {
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let (x, y) = (Powers::of(points().map(|point| point.0)), Powers::of(points().map(|point| point.1)));
        let at = |(px, py): (f64, f64)| (LEFT + WIDTH * x.place(px), TOP + HEIGHT * (1.0 - y.place(py)));
        let (width, height) = (LEFT + WIDTH + RIGHT, TOP + HEIGHT + BELOW);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"{INK}\">\n"
        );
        let mut put = |line: String| {
            svg += &line;
            svg.push('\n');
        };
        put(format!("<title>{}</title>", escaped(&self.title)));
        put(text(LEFT + WIDTH / 2.0, 24.0, "middle", 15, &self.title));
        for value in x.ticks() {
            let (px, _) = at((value, 1.0));
            put(grid(px, TOP, px, TOP + HEIGHT));
            put(text(px, TOP + HEIGHT + 20.0, "middle", 13, &(self.x.tick)(value)));
        }
        for value in y.ticks() {
            let (_, py) = at((1.0, value));
            put(grid(LEFT, py, LEFT + WIDTH, py));
            put(text(LEFT - 8.0, py + 4.0, "end", 13, &(self.y.tick)(value)));
        }
        put(text(LEFT + WIDTH / 2.0, TOP + HEIGHT + 42.0, "middle", 13, &self.x.label));
        put(text(LEFT - 8.0, TOP - 12.0, "middle", 13, &self.y.label));
        for (n, line) in self.lines.iter().enumerate() {
            put(drawn(line, at));
            let column = LEFT + WIDTH / IN_A_ROW as f64 * (n % IN_A_ROW) as f64;
            let row = TOP + HEIGHT + 64.0 + 20.0 * (n / IN_A_ROW) as f64;
            let ends = if line.look == Look::Points { vec![(0.5, 0.0)] } else { vec![(0.0, 0.0), (1.0, 0.0)] };
            let sample = Line { name: String::new(), points: ends, ..*line };
            put(drawn(&sample, |(along, _)| (column + 26.0 * along, row - 4.0)));
            put(text(column + 36.0, row, "start", 13, &line.name));
        }
        svg + "</svg>\n"
    }
}

fn drawn(line: &Line, at: impl Fn((f64, f64)) -> (f64, f64)) -> String {
    let mut drawn = format!("<g stroke=\"{}\" stroke-width=\"2\" fill=\"none\">", line.color);
    let places: Vec<_> = line.points.iter().map(|point| at(*point)).collect();
    if line.look != Look::Points {
        let places: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dashes = if line.look == Look::Dashed { " stroke-dasharray=\"6 4\"" } else { "" };
        let _ = write!(drawn, "<polyline points=\"{}\"{dashes}/>", places.join(" "));
    }
    let fill = if line.look == Look::Points { "none" } else { line.color };
    for (x, y) in places {
        let _ = write!(drawn, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{fill}\"/>");
    }
    drawn + "</g>"
}

fn grid(x1: f64, y1: f64, x2: f64, y2: f64) -> String {
    format!(
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{INK}\" stroke-opacity=\"0.3\"/>"
    )
}

fn text(x: f64, y: f64, anchor: &str, size: u32, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>", escaped(text))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_all_values_between_powers_of_ten() {
        assert_eq!(Powers::of([1.0, 1000.0].into_iter()), Powers { from: 0, to: 3 });
        assert_eq!(Powers::of([20.0, 1001.0].into_iter()), Powers { from: 1, to: 4 });
        assert_eq!(Powers::of([10.0].into_iter()), Powers { from: 1, to: 2 });
        assert_eq!([1.0, 10.0, 1e4].map(|value| Powers { from: 0, to: 4 }.place(value)), [0.0, 0.25, 1.0]);
    }

    #[test]
    fn a_chart_draws_each_line_and_names_it() {
        let axis = |label: &str| Axis { label: label.to_owned(), tick: |value| format!("{value}") };
        let line = |name: &str, look| Line {
            name: name.to_owned(),
            points: vec![(1.0, 1.0), (10.0, 10.0)],
            color: "#123456",
            look,
        };
        let lines = vec![line("a < b", Look::Solid), line("c", Look::Dashed), line("d", Look::Points)];
        let svg = Chart { title: "t".to_owned(), x: axis("files"), y: axis("time"), lines }.svg();
        // Each stands there twice: as itself and in the legend, where points are one.
        assert_eq!((svg.matches("<polyline").count(), svg.matches("stroke-dasharray").count()), (4, 2));
        assert_eq!(svg.matches("<circle").count(), 11);
        assert!(svg.contains(">a &lt; b</text>") && svg.contains(">files</text>"), "{svg}");
    }
}
