//! The room `verify`.
