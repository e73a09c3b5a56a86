//! Stages in order: opening what a plan names, the run folder with its lock and keys, resume.
//!
//! - [`open`]: devices and models by name; [`student`]: the student of a plan;
//! - [`folder`]: the run folder: lock, stage keys, atomic writes; [`commits`]: at which commits sources are read;
//! - [`run`]: the stages of a student's recipe, top to bottom; [`stages`], [`suites`]: what each does;
//! - [`graph`]: a recipe of `[[stage]]`s; `rerun`: which of them run again; [`stage_sft`], [`stage_generate`],
//!   [`stage_grpo`], [`stage_select`], [`stage_reward_model`], [`stage_preference`], [`stage_eval`]: what each kind does;
//!   [`sample_rows`], [`pair_rows`]: which samples are fit to learn from, alone or in pairs;
//! - [`publish`]: what of a run goes to the Hub; [`publish_card`], [`publish_data`]: what the cards say; [`publish_lineage`]:
//!   where a model comes from, in its run; [`publish_chain`]: and before, with every licence; [`publish_license`]: what
//!   licences want; [`publish_parquet`]: rows as parquet;
//! - [`estimate`]: what a run would take; `advice`: what to change where that is too much; [`fit`]: whether there is so much;
//!   [`export`]: a model as a GGUF file;
//! - [`preview`]: rows as the trainer will see them.

mod advice;
pub mod commits;
pub mod estimate;
pub mod export;
pub mod fit;
pub mod folder;
pub mod graph;
pub mod open;
pub mod pair_rows;
pub mod preview;
pub mod publish;
pub mod publish_card;
pub mod publish_chain;
pub mod publish_data;
mod publish_folder;
mod publish_language;
pub mod publish_license;
pub mod publish_lineage;
mod publish_model;
pub mod publish_parquet;
mod publish_usage;
mod publish_weights;
mod rerun;
pub mod run;
pub mod sample_rows;
pub mod stage_eval;
pub mod stage_generate;
pub mod stage_grpo;
pub mod stage_preference;
pub mod stage_reward_model;
pub mod stage_select;
pub mod stage_sft;
pub mod stages;
pub mod student;
pub mod suites;

pub use open::device;
