//! Curves, histograms and interval plots as inline SVG. Colours and fonts come from the page's style sheet by class.
//!
//! Every plot carries a text that says what it shows, for those who cannot see it.

use std::fmt::Write;

use super::html::escape;

const WIDTH: f64 = 430.0;
const HEIGHT: f64 = 236.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 10.0;
pub(super) const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// More points than this cannot be told apart on a screen.
const MAX_POINTS: usize = 600;

/// A curve over optimiser steps.
pub struct Curve<'a> {
    pub title: &'a str,
    /// Step and value, ascending; values that are no numbers are left out.
    pub points: Vec<(f64, f64)>,
    /// Steps after which a new epoch begins, with its number.
    pub epochs: &'a [(f64, u64)],
    /// Whether a smoothed line is drawn over the raw one.
    pub smooth: bool,
    /// Whether the vertical axis begins at zero even where the values stay far from it.
    pub from_zero: bool,
}

/// The vertical or horizontal axis: values to pixels.
pub(super) struct Axis {
    lo: f64,
    hi: f64,
    log: bool,
    pub(super) start: f64,
    end: f64,
}

impl Axis {
    pub(super) fn at(&self, value: f64) -> f64 {
        let (lo, hi, v) = match self.log {
            true => (self.lo.ln(), self.hi.ln(), value.max(self.lo).ln()),
            false => (self.lo, self.hi, value),
        };
        self.start + (v - lo) / (hi - lo) * (self.end - self.start)
    }

    /// Round values within the axis.
    pub(super) fn ticks(&self, about: usize) -> Vec<f64> {
        if self.log {
            let decades = (self.lo.log10().ceil() as i32)..=(self.hi.log10().floor() as i32);
            let factors: &[f64] = if decades.clone().count() > 2 {
                &[1.0]
            } else {
                &[1.0, 2.0, 5.0]
            };
            let from = self.lo.log10().floor() as i32;
            return (from..=*decades.end())
                .flat_map(|e| factors.iter().map(move |f| f * 10f64.powi(e)))
                .filter(|v| (self.lo..=self.hi).contains(v))
                .collect();
        }
        let step = nice((self.hi - self.lo) / about as f64);
        let first = (self.lo / step - 1e-9).ceil() as i64;
        (first..)
            .map(|i| i as f64 * step)
            .take_while(|v| *v <= self.hi + step * 1e-6)
            .take(50)
            .collect()
    }
}

/// 1, 2 or 5 times a power of ten, at least `raw`.
fn nice(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let lead = raw / power;
    power
        * [1.0, 2.0, 5.0]
            .into_iter()
            .find(|n| lead <= n * (1.0 + 1e-9))
            .unwrap_or(10.0)
}

/// A number as short as its size allows: `0.5`, `1.2k`, `8e-5`.
pub fn short(value: f64) -> String {
    let size = value.abs();
    let trim = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    };
    match size {
        _ if !value.is_finite() => "n/a".into(),
        0.0 => "0".into(),
        _ if size < 1e-3 => {
            let exponent = size.log10().floor() as i32;
            let lead = format!("{:.2}", value / 10f64.powi(exponent));
            format!("{}e{exponent}", trim(lead))
        }
        _ if size < 1.0 => trim(format!("{value:.3}")),
        _ if size < 100.0 => trim(format!("{value:.2}")),
        _ if size < 1e3 => trim(format!("{value:.1}")),
        _ if size < 1e6 => trim(format!("{:.2}", value / 1e3)) + "k",
        _ if size < 1e9 => trim(format!("{:.1}", value / 1e6)) + "M",
        _ => trim(format!("{:.1}", value / 1e9)) + "G",
    }
}

/// The mean over about a tenth of the curve around each point, over less of it near the ends: it neither lags nor
/// shortens the curve.
pub fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 20;
    let mut sums = vec![0.0];
    sums.extend(points.iter().scan(0.0, |sum, p| {
        *sum += p.1;
        Some(*sum)
    }));
    let mean = |(i, point): (usize, &(f64, f64))| {
        let reach = reach.min(i).min(points.len() - 1 - i);
        let sum = sums[i + reach + 1] - sums[i - reach];
        (point.0, sum / (2 * reach + 1) as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// At most [`MAX_POINTS`] points that keep every peak: the least and the greatest of each stretch.
pub(super) fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(MAX_POINTS / 2);
    let ends = |chunk: &[(f64, f64)]| {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (low, high) = (chunk.iter().min_by(by_value), chunk.iter().max_by(by_value));
        let mut pair: Vec<_> = low.into_iter().chain(high).copied().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair.dedup();
        pair
    };
    points.chunks(stretch).flat_map(ends).collect()
}

impl Curve<'_> {
    /// The curve as an SVG element, or nothing where there are no points.
    pub fn svg(&self) -> Option<String> {
        let points: Vec<_> = self
            .points
            .iter()
            .copied()
            .filter(|(_, y)| y.is_finite())
            .collect();
        let (&(first, from), &(_, to)) = (points.first()?, points.last()?);
        let (low, high) = range(&points);
        let (x, y) = axes(&points, self.from_zero);
        let label = format!(
            "{} over {} steps: from {} to {}, lowest {}, highest {}",
            self.title,
            points.len(),
            short(from),
            short(to),
            short(low),
            short(high)
        );
        let mut svg = open(&label, HEIGHT);
        grid(&mut svg, &x, &x.ticks(6), &y, x_title(&y));
        for (step, epoch) in self.epochs {
            let at = x.at(*step);
            let _ = write!(
                svg,
                "<line class=\"epoch\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\"/><text class=\"note\" x=\"{:.1}\" y=\"{:.1}\">epoch {epoch}</text>",
                HEIGHT - BOTTOM,
                at + 4.0,
                TOP + 9.0
            );
        }
        let smooth = self.smooth && points.len() >= 20;
        let class = if smooth { "raw" } else { "line" };
        line(&mut svg, class, &thinned(&points), &x, &y);
        if smooth {
            line(&mut svg, "line", &thinned(&smoothed(&points)), &x, &y);
        }
        if points.len() == 1 {
            let _ = write!(
                svg,
                "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                x.at(first),
                y.at(from)
            );
        }
        svg.push_str("</svg>");
        Some(svg)
    }
}

/// The lowest and the highest value.
fn range(points: &[(f64, f64)]) -> (f64, f64) {
    let values = points.iter().map(|p| p.1);
    let low = values.clone().fold(f64::INFINITY, f64::min);
    (low, values.fold(f64::NEG_INFINITY, f64::max))
}

/// The axes that show all `points`, of which there is one at least; none of them is NaN or infinite.
pub(super) fn axes(points: &[(f64, f64)], from_zero: bool) -> (Axis, Axis) {
    let (low, high) = range(points);
    let mut sorted: Vec<f64> = points.iter().map(|p| p.1).collect();
    sorted.sort_by(f64::total_cmp);
    // a few spikes must not flatten the rest
    let log = low > 0.0 && high / sorted[sorted.len() / 2] > 20.0;
    let (lo, hi) = match (log, low >= 0.0 && (from_zero || low < high / 2.0)) {
        (true, _) => (low * 0.9, high * 1.1),
        (false, true) => (0.0, if high > 0.0 { high * 1.06 } else { 1.0 }),
        (false, false) => {
            let pad = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-12);
            (low - pad, high + pad)
        }
    };
    let first = points.iter().map(|p| p.0).fold(f64::INFINITY, f64::min);
    let last = points.iter().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max);
    let x = Axis {
        lo: first,
        hi: if last > first { last } else { first + 1.0 },
        log: false,
        start: LEFT,
        end: WIDTH - RIGHT,
    };
    let y = Axis {
        lo,
        hi,
        log,
        start: HEIGHT - BOTTOM,
        end: TOP,
    };
    (x, y)
}

/// What stands under the horizontal axis.
pub(super) fn x_title(y: &Axis) -> &'static str {
    if y.log { "step · logarithmic" } else { "step" }
}

/// The element of a plot of the usual size.
pub(super) fn open_plot(label: &str) -> String {
    open(label, HEIGHT)
}

fn open(label: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>",
        escape(label)
    )
}

pub(super) fn grid(svg: &mut String, x: &Axis, x_ticks: &[f64], y: &Axis, x_title: &str) {
    for tick in y.ticks(5) {
        let at = y.at(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\"/><text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            x.start,
            x.end,
            x.start - 6.0,
            at + 4.0,
            short(tick)
        );
    }
    let bottom = y.start;
    for &tick in x_ticks {
        let at = x.at(tick);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{:.1}\"/><text class=\"tick\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 4.0,
            bottom + 16.0,
            short(tick)
        );
    }
    let _ = write!(
        svg,
        "<line class=\"axis\" x1=\"{}\" y1=\"{bottom}\" x2=\"{}\" y2=\"{bottom}\"/><text class=\"note\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{x_title}</text>",
        x.start,
        x.end,
        x.end,
        bottom + 30.0
    );
}

pub(super) fn line(svg: &mut String, class: &str, points: &[(f64, f64)], x: &Axis, y: &Axis) {
    let _ = write!(svg, "<polyline class=\"{class}\" points=\"");
    for (i, point) in points.iter().enumerate() {
        let _ = write!(
            svg,
            "{}{:.1},{:.1}",
            if i > 0 { " " } else { "" },
            x.at(point.0),
            y.at(point.1)
        );
    }
    svg.push_str("\"/>");
}

/// Bars of counts; each bin is `(from, to, count)`.
pub fn histogram(title: &str, unit: &str, bins: &[(u64, u64, u64)]) -> Option<String> {
    let highest = bins.iter().map(|bin| bin.2).max().filter(|max| *max > 0)?;
    let total: u64 = bins.iter().map(|bin| bin.2).sum();
    let (start, end) = (bins.first()?.0, bins.last()?.1);
    let label =
        format!("{title}: {total} between {start} and {end} {unit}, at most {highest} in one bar");
    let y = Axis {
        lo: 0.0,
        hi: highest as f64 * 1.06,
        log: false,
        start: HEIGHT - BOTTOM,
        end: TOP,
    };
    let x = Axis {
        lo: 0.0,
        hi: bins.len() as f64,
        log: false,
        start: LEFT,
        end: WIDTH - RIGHT,
    };
    let mut svg = open(&label, HEIGHT);
    grid(&mut svg, &x, &[], &y, unit);
    let every = bins.len().div_ceil(7);
    for (i, (from, to, count)) in bins.iter().enumerate() {
        let (left, right) = (x.at(i as f64), x.at(i as f64 + 1.0));
        let top = y.at(*count as f64);
        let _ = write!(
            svg,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{from} to {to} {unit}: {count}</title></rect>",
            left + 0.8,
            (right - left - 1.6).max(0.5),
            y.start - top
        );
        if i % every == 0 {
            let _ = write!(
                svg,
                "<text class=\"tick\" text-anchor=\"middle\" x=\"{left:.1}\" y=\"{:.1}\">{}</text>",
                y.start + 16.0,
                short(*from as f64)
            );
        }
    }
    if bins.len().is_multiple_of(every) {
        let _ = write!(
            svg,
            "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x.end,
            y.start + 16.0,
            short(end as f64)
        );
    }
    svg.push_str("</svg>");
    Some(svg)
}

/// A label, a share and its interval.
pub type Share<'a> = (&'a str, f64, Option<(f64, f64)>);

/// Shares with their intervals, one row each, on an axis from 0 to 100%.
pub fn intervals(title: &str, rows: &[Share<'_>]) -> String {
    const ROW: f64 = 34.0;
    /// Of a letter, about.
    const LETTER: f64 = 6.6;
    const MOST_LETTERS: usize = 26;
    let shown = |name: &str| match name.chars().count() > MOST_LETTERS {
        false => name.to_string(),
        true => name.chars().take(MOST_LETTERS - 1).chain(['…']).collect(),
    };
    let longest = rows.iter().map(|(name, ..)| shown(name).chars().count());
    let longest = longest.max().unwrap_or(0) as f64;
    let height = rows.len() as f64 * ROW + 30.0;
    let x = Axis {
        lo: 0.0,
        hi: 1.0,
        log: false,
        start: (longest * LETTER + 16.0).max(96.0),
        end: WIDTH - 16.0,
    };
    let said: Vec<String> = rows
        .iter()
        .map(|(name, value, _)| format!("{name} {:.1}%", value * 100.0))
        .collect();
    let mut svg = open(&format!("{title}: {}", said.join(", ")), height);
    let bottom = height - 24.0;
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let at = x.at(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" y1=\"4\" x2=\"{at:.1}\" y2=\"{bottom}\"/><text class=\"tick\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{:.0}%</text>",
            bottom + 16.0,
            tick * 100.0
        );
    }
    for (i, (name, value, interval)) in rows.iter().enumerate() {
        let middle = 4.0 + ROW * (i as f64 + 0.5);
        let value = if value.is_finite() {
            value.clamp(0.0, 1.0)
        } else {
            0.0
        };
        let _ = write!(
            svg,
            "<text class=\"name\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text><rect class=\"{}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"16\"/>",
            x.start - 8.0,
            middle + 4.0,
            escape(&shown(name)),
            if i + 1 == rows.len() {
                "bar"
            } else {
                "bar early"
            },
            x.start,
            middle - 8.0,
            (x.at(value) - x.start).max(1.0)
        );
        if let Some((lo, hi)) = interval {
            let (lo, hi) = (x.at(lo.clamp(0.0, 1.0)), x.at(hi.clamp(0.0, 1.0)));
            let _ = write!(
                svg,
                "<path class=\"whisker\" d=\"M{lo:.1} {middle}H{hi:.1}M{lo:.1} {0:.1}v10M{hi:.1} {0:.1}v10\"/>",
                middle - 5.0
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = |lo, hi, log| Axis {
            lo,
            hi,
            log,
            start: 0.0,
            end: 100.0,
        };
        assert_eq!(axis(0.0, 10.6, false).ticks(5), [0.0, 5.0, 10.0]);
        assert_eq!(
            axis(1.0, 300.0, false).ticks(6),
            [50.0, 100.0, 150.0, 200.0, 250.0, 300.0]
        );
        assert_eq!(
            axis(0.5, 30.0, true).ticks(5),
            [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
        );
        assert_eq!(
            axis(0.5, 3e4, true).ticks(5),
            [1.0, 10.0, 100.0, 1000.0, 10000.0]
        );
        assert_eq!(axis(0.5, 50.0, true).at(5.0), 50.0);
    }

    #[test]
    fn numbers_are_short() {
        let all = [
            0.0,
            8e-5,
            1.5e-4,
            0.125,
            0.5,
            2.345,
            42.0,
            1234.0,
            15_500.0,
            2.5e6,
            f64::NAN,
        ]
        .map(short);
        assert_eq!(
            all,
            [
                "0", "8e-5", "1.5e-4", "0.125", "0.5", "2.35", "42", "1.23k", "15.5k", "2.5M",
                "n/a"
            ]
        );
    }

    #[test]
    fn smoothing_keeps_a_straight_line_and_spreads_a_spike() {
        let line: Vec<_> = (0..100).map(|i| (i as f64, 3.0 * i as f64)).collect();
        assert!(
            smoothed(&line)
                .iter()
                .zip(&line)
                .all(|(a, b)| (a.1 - b.1).abs() < 1e-9)
        );
        // 40 points: two on each side
        let mut spike: Vec<_> = (0..40).map(|i| (i as f64, 0.0)).collect();
        spike[10].1 = 1.0;
        let values: Vec<f64> = smoothed(&spike)[7..14].iter().map(|p| p.1).collect();
        assert_eq!(values, [0.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.0]);
    }

    #[test]
    fn thinning_keeps_peaks_and_order() {
        let mut points: Vec<_> = (0..100_000).map(|i| (i as f64, 1.0)).collect();
        points[54_321].1 = 9.0;
        points[54_322].1 = -9.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MAX_POINTS);
        assert!(thin.contains(&(54_321.0, 9.0)) && thin.contains(&(54_322.0, -9.0)));
        assert!(thin.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn a_curve_is_drawn_where_its_numbers_are() {
        let points = vec![(1.0, 2.0), (2.0, f64::NAN), (3.0, 0.0)];
        let curve = Curve {
            title: "loss",
            points,
            epochs: &[(2.0, 2)],
            smooth: true,
            from_zero: true,
        };
        let svg = curve.svg().unwrap();
        assert!(
            svg.contains("aria-label=\"loss over 2 steps: from 2 to 0, lowest 0, highest 2\""),
            "{svg}"
        );
        // 2 of 2.12 on an axis of 190 units from 202 up
        assert!(svg.contains("points=\"52.0,22.8 420.0,202.0\""), "{svg}");
        assert!(svg.contains("epoch 2"));
        let empty = Curve {
            title: "loss",
            points: vec![(1.0, f64::NAN)],
            epochs: &[],
            smooth: true,
            from_zero: true,
        };
        assert!(empty.svg().is_none());
    }
}
