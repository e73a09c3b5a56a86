//! Stages in order: opening what a plan names, the run folder with its lock and keys, resume.
//!
//! - [`open`]: devices, students and data sources by name;
//! - [`folder`]: the run folder: lock, stage keys, atomic writes;
//! - [`run`]: the stages of a recipe, top to bottom; [`stages`]: what each does;
//! - [`estimate`]: what a run would take;
//! - [`preview`]: rows as the trainer will see them.

pub mod estimate;
pub mod folder;
pub mod open;
pub mod preview;
pub mod run;
pub mod stages;

pub use open::device;
