//! Operations with a hand-written backward, each in a plain and a fast form. No autograd tape: every forward has a
//! matching `*_backward` that takes what the forward took, the incoming gradient, and returns the outgoing ones.
//!
//! Letters: T tokens of all sequences end to end, C model width, H query heads, K key/value heads, D head dim,
//! F feed-forward width, V vocabulary, S cache slots, P cache positions.
//!
//! [`plain`] composes candle's operations and runs on every device and dtype; it is the reference. The functions here
//! take the fast CPU kernel where the tensors are f32, contiguous and on the CPU, and the plain form everywhere else.
