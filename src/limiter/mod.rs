//! Admission: buckets, and the all-or-nothing decision over several meters.
