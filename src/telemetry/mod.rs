//! Every metric's name, unit and labels in one enum; plain atomics behind it.
