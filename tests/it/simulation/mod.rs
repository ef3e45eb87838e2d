//! Members, controllers and operators over a store that loses, delays, forgets and goes back in time, with clocks that drift.

mod found;
