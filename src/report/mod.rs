//! What a run leaves for people: the metrics log, TensorBoard events and `report.html`.
//!
//! [`MetricsLog`], [`EventWriter`] and [`RunClock`] are written while training goes on. The page is made from a [`ReportData`], which
//! [`collect()`] rebuilds from the files of a run folder; [`html::write`] puts it beside them.

mod answers;
mod clock;
mod collect;
mod data;
pub mod html;
mod learning;
mod lines;
mod metrics;
mod plot;
mod rollouts;
mod sections;
mod stages;
mod tensorboard;

pub use clock::RunClock;
pub use collect::collect;
pub use data::{
    Alarm, Evaluation, Mixed, NotKept, ReportData, Sample, Selection, Series, StageReport, Step,
};
pub use metrics::MetricsLog;
pub use rollouts::{Completion, Sampled, SampledGroup};
pub use tensorboard::EventWriter;
