//! The thin client.
