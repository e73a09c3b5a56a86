//! Several curves over the same steps in one plot, told apart by dashes as well as by colour. One curve alone is
//! [`super::plot::Curve`].

use std::fmt::Write;

use super::html::escape;
use super::plot::{TOP, axes, grid, line, open_plot, short, smoothed, thinned, x_title};

/// Looks of lines in `page.css`; further ones begin again.
const NUM_LOOKS: usize = 6;
/// Fewer points than this are shown as dots too.
const SPARSE: usize = 30;
/// More points than this are smoothed.
const DENSE: usize = 60;

/// One of the curves.
pub struct Line {
    pub label: String,
    /// Step and value, ascending; values that are no numbers are left out.
    pub points: Vec<(f64, f64)>,
}

/// The plot with its legend, or nothing where there is no point at all. `marks` are steps to point at.
pub fn chart(title: &str, lines: &[Line], marks: &[f64]) -> Option<String> {
    let lines: Vec<Line> = lines
        .iter()
        .map(|line| Line {
            label: line.label.clone(),
            points: finite(&line.points),
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    let all: Vec<(f64, f64)> = lines.iter().flat_map(|l| l.points.clone()).collect();
    if all.is_empty() {
        return None;
    }
    let (x, y) = axes(&all, false);
    let said: Vec<String> = lines
        .iter()
        .map(|line| {
            let (from, to) = (line.points[0].1, line.points[line.points.len() - 1].1);
            format!("{} from {} to {}", line.label, short(from), short(to))
        })
        .collect();
    let mut svg = open_plot(&format!("{title}: {}", said.join(", ")));
    grid(&mut svg, &x, &x.ticks(6), &y, x_title(&y));
    for &mark in marks {
        let at = x.at(mark);
        let _ = write!(
            svg,
            "<line class=\"alarm\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>",
            y.start
        );
    }
    for (i, one) in lines.iter().enumerate() {
        let look = i % NUM_LOOKS;
        let shown = match one.points.len() > DENSE {
            true => {
                let raw = format!("l{look} thin");
                line(&mut svg, &raw, &thinned(&one.points), &x, &y);
                thinned(&smoothed(&one.points))
            }
            false => one.points.clone(),
        };
        line(&mut svg, &format!("l{look}"), &shown, &x, &y);
        if one.points.len() < SPARSE {
            for (step, value) in &one.points {
                let _ = write!(
                    svg,
                    "<circle class=\"d{look}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"/>",
                    x.at(*step),
                    y.at(*value)
                );
            }
        }
    }
    svg.push_str("</svg>");
    let mut html = String::new();
    if lines.len() > 1 {
        html.push_str("<div class=\"legend\">");
        for (i, one) in lines.iter().enumerate() {
            let look = i % NUM_LOOKS;
            let _ = write!(
                html,
                "<span class=\"look{look}\">{}</span>",
                escape(&one.label)
            );
        }
        html.push_str("</div>");
    }
    Some(html + &svg)
}

fn finite(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let points = points.iter().copied();
    points.filter(|(_, y)| y.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(label: &str, points: &[(f64, f64)]) -> Line {
        Line {
            label: label.into(),
            points: points.to_vec(),
        }
    }

    #[test]
    fn curves_share_their_axes() {
        let lines = [
            line("pass <rate>", &[(1.0, 0.0), (2.0, 0.5), (3.0, 1.0)]),
            line("held-out", &[(3.0, 0.5), (4.0, f64::NAN)]),
            line("nothing", &[]),
        ];
        let html = chart("Accuracy", &lines, &[3.0]).unwrap();
        for text in [
            "aria-label=\"Accuracy: pass &lt;rate&gt; from 0 to 1, held-out from 0.5 to 0.5\"",
            "<span class=\"look0\">pass &lt;rate&gt;</span><span class=\"look1\">held-out</span></div>",
            // 1 of 1.06 on an axis of 190 units from 202 up
            "<polyline class=\"l0\" points=\"52.0,202.0 236.0,112.4 420.0,22.8\"/>",
            "<circle class=\"d1\" cx=\"420.0\" cy=\"112.4\" r=\"2.5\"/>",
            "<line class=\"alarm\" x1=\"420.0\"",
        ] {
            assert!(html.contains(text), "`{text}` is not in {html}");
        }
        assert!(!html.contains("nothing"));
        assert!(chart("x", &[line("a", &[(1.0, f64::NAN)])], &[]).is_none());
        // one line needs no legend
        let one = chart("x", &[line("a", &[(1.0, 1.0)])], &[]).unwrap();
        assert!(!one.contains("legend"));
    }
}
