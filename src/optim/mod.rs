//! The room `optim`.
