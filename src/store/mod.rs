//! Where records live: etcd, or memory within one process.
