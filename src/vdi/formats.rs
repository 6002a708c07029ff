//! The register of formats.

use crate::types::Format;
use crate::vdi::format::Layout;
use crate::vdi::{qcow2, raw, vhd};

/// The operations that the package has for images of a format.
pub fn layout(format: Format) -> &'static dyn Layout {
    match format {
        Format::Raw => &raw::RawLayout,
        Format::Vhd => &vhd::VhdLayout,
        Format::Qcow2 => &qcow2::Qcow2Layout,
    }
}
