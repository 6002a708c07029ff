//! The findings of sr_check on an SR.

use super::VdiUuid;

/// Something that sr_check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The disk or base that it concerns, if it concerns one.
    pub vdi: Option<VdiUuid>,
    /// Its name in the SR: of an image, or of a record.
    pub object: String,
    /// The label of that disk; empty until the call is at its end, and if the disk has none.
    pub label: String,
    /// A clause about it: `the two footers differ`.
    pub what: String,
    pub outcome: Outcome,
}

/// The outcome of a finding: harmless, mended, or whether it can be mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It does no harm.
    Note,
    /// It is mended now.
    Mended,
    /// sr_check --repair would mend it.
    Mendable,
    /// The data has to be had back from somewhere else, or the disk to be deleted.
    Lasting,
}

impl Outcome {
    /// Its name in answers.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Note => "note",
            Outcome::Mended => "mended",
            Outcome::Mendable => "mendable",
            Outcome::Lasting => "lasting",
        }
    }
}
