//! The room `tokenize`.
