//! Laws of the planner.
