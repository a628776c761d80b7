//! The `mcp` program: everything it does lies in the library.

fn main() {}
