//! Opening, binding, refusing, closing.

use super::*;
