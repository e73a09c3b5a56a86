//! The verifiers of `distill` under a fuzzer: `src/verify` as it is, over an error type without the rest of the program.

#[path = "../../../src/random.rs"]
pub mod random;
#[path = "../../../src/verify/mod.rs"]
pub mod verify;

pub use error::{Error, Result};

mod error {
    /// What `distill::Error` is to the verifiers.
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    pub struct Error(String);

    pub type Result<T> = std::result::Result<T, Error>;

    impl Error {
        pub fn input(message: impl Into<String>) -> Self {
            Self(message.into())
        }

        pub fn with_hint(self, _: impl Into<String>) -> Self {
            self
        }
    }
}
