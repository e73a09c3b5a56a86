//! The room `cli`.

pub mod color;
pub mod terminal;
