//! What a run leaves for people: the metrics log, TensorBoard events and `report.html`.
//!
//! [`MetricsLog`] and [`EventWriter`] are written while training goes on.

mod data;
mod metrics;
mod tensorboard;

pub use data::{
    DataReport, Dropped, Evaluation, LengthBin, ReportData, Sample, Source, StageReport, Step,
};
pub use metrics::MetricsLog;
pub use tensorboard::EventWriter;
