//! `claviger schema`.

use crate::graphql::sdl;

/// Prints the schema.
pub(super) fn run() {
    print!("{}", sdl());
}
