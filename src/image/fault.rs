//! The faults that an image may have.

use std::fmt;

/// The consequence of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Nothing: every reader finds the data all the same.
    Note,
    /// The repair of the format mends it without a loss.
    Mendable,
    /// The image contradicts itself, or data is missing.
    Lasting,
}

/// One thing that is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub weight: Weight,
    /// A clause about the image: `the two footers differ`.
    pub what: String,
}

impl Fault {
    pub fn note(what: impl Into<String>) -> Fault {
        Fault { weight: Weight::Note, what: what.into() }
    }

    pub fn mendable(what: impl Into<String>) -> Fault {
        Fault { weight: Weight::Mendable, what: what.into() }
    }

    pub fn lasting(what: impl Into<String>) -> Fault {
        Fault { weight: Weight::Lasting, what: what.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// How an image is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// A process has it open: what it is still to write is no fault.
    pub in_use: bool,
    /// Its tables are read as a whole, and not its headers alone.
    pub deep: bool,
}
