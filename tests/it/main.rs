//! All tests that need more than one module.

mod emulator;
mod store;
