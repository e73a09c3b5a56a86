//! How one task is drawn: a bar that redraws itself, or plain lines at sensible intervals. Both leave one line.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::color::Color;
use crate::progress::Task;

/// Where lines go.
pub type Out = Arc<Mutex<dyn Write + Send>>;

/// A line at least this often while there is progress, and one for every tenth of the work, but no more often than
/// [`MIN_INTERVAL`].
const MAX_INTERVAL: Duration = Duration::from_secs(15);
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// A bar that redraws itself, and leaves one plain line when it ends.
pub struct Bar {
    bar: ProgressBar,
    bars: MultiProgress,
    lines: Lines,
}

impl Bar {
    pub fn new(bars: &MultiProgress, color: Color, lines: Lines) -> Self {
        let (total, unit) = (lines.total, lines.unit);
        let template = match (total.is_some(), color.is_on()) {
            (true, true) => "{prefix} {bar:24.cyan/dim} {done}  {rate}  {left}  {wide_msg}",
            (true, false) => "{prefix} {bar:24} {done}  {rate}  {left}  {wide_msg}",
            (false, _) => "{prefix} {spinner} {done}  {rate}  {wide_msg}",
        };
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━╸─")
            .with_key(
                "done",
                move |state: &ProgressState, w: &mut dyn std::fmt::Write| {
                    let _ = match state.len() {
                        Some(len) => write!(
                            w,
                            "{}/{}",
                            amount(state.pos(), unit),
                            amount_unit(len, unit)
                        ),
                        None => w.write_str(&amount_unit(state.pos(), unit)),
                    };
                },
            )
            .with_key(
                "rate",
                move |state: &ProgressState, w: &mut dyn std::fmt::Write| {
                    let _ = w.write_str(&rate(state.per_sec(), unit));
                },
            )
            .with_key(
                "left",
                |state: &ProgressState, w: &mut dyn std::fmt::Write| {
                    if state.pos() > 0 && state.fraction() < 1.0 {
                        let _ = write!(w, "{} left", duration(state.eta()));
                    }
                },
            );
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        let bar = bars.add(bar.with_style(style).with_prefix(lines.label.clone()));
        bar.enable_steady_tick(Duration::from_millis(250));
        Self {
            bar,
            bars: bars.clone(),
            lines,
        }
    }
}

impl Task for Bar {
    fn set_position(&self, position: u64) {
        self.bar.set_position(position);
        if self.lines.move_to(position) {
            self.bar.reset_eta();
        }
    }

    fn advance(&self, n: u64) {
        self.bar.inc(n);
        self.lines.advance(n);
    }

    fn message(&self, text: &str) {
        self.bar.set_message(text.to_string());
        self.lines.message(text);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.bars.suspend(|| self.lines.end());
    }
}

/// Plain lines for a task, where nothing can be redrawn; `running` ones before its end too.
pub struct Lines {
    running: bool,
    out: Out,
    label: String,
    total: Option<u64>,
    unit: &'static str,
    state: Mutex<LinesState>,
}

struct LinesState {
    position: u64,
    /// Position and moment the rate counts from; the former is unknown until the first report.
    base: Option<u64>,
    since: Instant,
    begun: Instant,
    message: String,
    last_line: Instant,
    last_tenth: u64,
    last_position: Option<u64>,
}

impl Lines {
    pub fn new(
        out: Out,
        label: &str,
        total: Option<u64>,
        unit: &'static str,
        running: bool,
    ) -> Self {
        let now = Instant::now();
        let state = LinesState {
            position: 0,
            base: None,
            since: now,
            begun: now,
            message: String::new(),
            last_line: now,
            last_tenth: 0,
            last_position: None,
        };
        Self {
            running,
            out,
            label: label.to_string(),
            total,
            unit,
            state: Mutex::new(state),
        }
    }

    fn moved_to(&self, state: &mut LinesState, position: u64, now: Instant) {
        state.position = position;
        let tenth = match self.total {
            Some(total) if total > 0 => position.saturating_mul(10) / total,
            _ => 0,
        };
        let waited = now.saturating_duration_since(state.last_line);
        let due = waited >= MAX_INTERVAL || (tenth > state.last_tenth && waited >= MIN_INTERVAL);
        // the end is told when the task is dropped
        if self.running && due && Some(position) != self.total {
            self.tell(state, now, false);
            state.last_tenth = tenth;
        }
    }

    fn tell(&self, state: &mut LinesState, now: Instant, ended: bool) {
        let mut parts = vec![match self.total {
            Some(total) => {
                let percent = state
                    .position
                    .saturating_mul(100)
                    .checked_div(total)
                    .unwrap_or(100);
                format!(
                    "{}/{} ({percent}%)",
                    amount(state.position, self.unit),
                    amount_unit(total, self.unit)
                )
            }
            None => amount_unit(state.position, self.unit),
        }];
        let seconds = now.saturating_duration_since(state.since).as_secs_f64();
        let done = state.position.saturating_sub(state.base.unwrap_or(0));
        if done > 0 && seconds > 0.0 {
            let per_s = done as f64 / seconds;
            parts.push(rate(per_s, self.unit));
            match self.total {
                Some(total) if total > state.position && !ended => {
                    let left = Duration::try_from_secs_f64((total - state.position) as f64 / per_s);
                    parts.extend(left.ok().map(|left| format!("{} left", duration(left))));
                }
                _ => parts.push(duration(now.saturating_duration_since(state.begun))),
            }
        }
        if !state.message.is_empty() {
            parts.push(state.message.clone());
        }
        write_line(&self.out, &format!("{}: {}", self.label, parts.join(", ")));
        state.last_line = now;
        state.last_position = Some(state.position);
    }

    /// Whether this was the first move, from which on the rate counts: a resumed task begins in the middle.
    fn move_to(&self, position: u64) -> bool {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let is_first = state.base.is_none();
        if is_first {
            state.base = Some(position);
            state.since = now;
        }
        self.moved_to(&mut state, position, now);
        is_first
    }

    /// The last line, once.
    fn end(&self) {
        let mut state = lock(&self.state);
        if state.position > 0 && state.last_position != Some(state.position) {
            self.tell(&mut state, Instant::now(), true);
        }
    }
}

impl Task for Lines {
    fn set_position(&self, position: u64) {
        self.move_to(position);
    }

    fn advance(&self, n: u64) {
        let mut state = lock(&self.state);
        state.base.get_or_insert(0);
        let position = state.position.saturating_add(n);
        self.moved_to(&mut state, position, Instant::now());
    }

    fn message(&self, text: &str) {
        lock(&self.state).message = text.to_string();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.end();
    }
}

fn amount(n: u64, unit: &str) -> String {
    if unit == "bytes" {
        indicatif::BinaryBytes(n).to_string()
    } else {
        indicatif::HumanCount(n).to_string()
    }
}

fn amount_unit(n: u64, unit: &str) -> String {
    if unit == "bytes" {
        amount(n, unit)
    } else {
        format!("{} {unit}", amount(n, unit))
    }
}

/// `12 steps/s`, `0.35 steps/s`, `4.20 MiB/s`.
fn rate(per_s: f64, unit: &str) -> String {
    if unit == "bytes" {
        format!("{}/s", indicatif::BinaryBytes(per_s as u64))
    } else if per_s >= 100.0 {
        format!("{} {unit}/s", indicatif::HumanCount(per_s as u64))
    } else if per_s >= 10.0 {
        format!("{per_s:.1} {unit}/s")
    } else {
        format!("{per_s:.2} {unit}/s")
    }
}

/// `7 s`, `3 min 05 s`, `2 h 14 min`.
fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One whole line.
pub fn write_line(out: &Out, text: &str) {
    let mut out = lock(out);
    // a closed stderr must not end a training run
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines at chosen moments, in seconds after the start of the task.
    fn told(total: Option<u64>, unit: &'static str, moves: &[(u64, u64)]) -> String {
        let out = Arc::new(Mutex::new(Vec::new()));
        let lines = Lines::new(out.clone(), "train", total, unit, true);
        lines.message("loss 1.5");
        {
            let mut state = lock(&lines.state);
            let begun = state.begun;
            state.base = Some(0);
            for &(second, position) in moves {
                lines.moved_to(&mut state, position, begun + Duration::from_secs(second));
            }
            state.last_position = Some(state.position);
        }
        drop(lines);
        String::from_utf8(lock(&out).clone()).unwrap()
    }

    #[test]
    fn a_line_for_each_tenth_and_each_quarter_minute() {
        assert_eq!(
            told(
                Some(1000),
                "steps",
                &[
                    (1, 50),
                    (2, 100),
                    (3, 150),
                    (10, 199),
                    (18, 200),
                    (19, 300),
                    (40, 1000)
                ]
            ),
            "train: 100/1,000 steps (10%), 50.0 steps/s, 18 s left, loss 1.5\n\
             train: 200/1,000 steps (20%), 11.1 steps/s, 1 min 12 s left, loss 1.5\n\
             train: 300/1,000 steps (30%), 15.8 steps/s, 44 s left, loss 1.5\n"
        );
        assert_eq!(
            told(None, "bytes", &[(1, 1 << 20), (16, 32 << 20)]),
            "train: 32.00 MiB, 2.00 MiB/s, 16 s, loss 1.5\n"
        );
    }

    #[test]
    fn durations_read_well() {
        let text: Vec<_> = [7, 185, 8040]
            .map(|s| duration(Duration::from_secs(s)))
            .into();
        assert_eq!(text, ["7 s", "3 min 05 s", "2 h 14 min"]);
    }
}
