//! Stages in order: opening what a plan names, the run folder with its lock and keys, resume.
//!
//! - [`open`]: devices, students and data sources by name;
//! - [`folder`]: the run folder: lock, recipe, plan, stage keys, atomic writes;
//! - `run`: the stages of a recipe, top to bottom;
//! - `estimate`: what a run would take, before it runs;
//! - `preview`: rows as the trainer will see them.

pub mod folder;
pub mod open;
