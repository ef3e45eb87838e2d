//! Telemetry, registered with `prometheus`.
