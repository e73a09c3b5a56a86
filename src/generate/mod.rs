//! The room `generate`.
