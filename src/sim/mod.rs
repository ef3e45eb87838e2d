//! Seeded worlds and the provider emulator.
