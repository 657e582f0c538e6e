//! kvspec core.
