//! The answer of vdi_attach: where the device of a VDI will be, and what the guest is told of it; SMAPIv1, "Attach /
//! activate / deactivate / detach".

use crate::door::host::device::{device_link, tapdisk_link};
use crate::door::xmlrpc::Value;
use crate::sys::tapdisk::{self, Blktap};
use crate::types::SrUuid;

/// The answer of vdi_attach. `always`: whether the caller wants a word on NBD where there is none.
pub fn attached(sr: SrUuid, vdi: &str, always: bool) -> Value {
    let blktap = tapdisk::present();
    let mut members = vec![
        // The loop device and the logical volume are opened for direct I/O: no page cache in between.
        ("o_direct", Value::Boolean(true)),
        ("o_direct_reason", Value::text("SR_NOT_SUPPORTED")),
        ("xenstore_data", Value::map(pages(vdi))),
    ];
    // Where a tapdisk has no block device, ours would be no back end for a guest.
    if blktap != Blktap::Socket {
        members.push(("params", Value::text(device_link(sr, vdi).display().to_string())));
    }
    if blktap != Blktap::Absent {
        let uri = format!("nbd:unix:{}:exportname={vdi}", tapdisk_link(sr, vdi).display());
        members.push(("params_nbd", Value::text(uri)));
    } else if always {
        members.push(("params_nbd", Value::text("")));
    }
    Value::Struct(members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

/// The SCSI pages by which a guest tells its disks apart.
pub fn pages(vdi: &str) -> [(&'static str, String); 3] {
    let mut serial = vec![0, 0x80, 0, 0x12];
    serial.extend(vdi.bytes().chain(std::iter::repeat(b' ')).take(16));
    serial.extend(b"  ");
    let mut identity = vec![0, 0x83, 0, 0x31, 2, 1, 0, 0x2d];
    identity.extend(b"XENSRC  ");
    identity.extend(vdi.bytes().chain(std::iter::repeat(b' ')).take(36));
    identity.push(b' ');
    [("vdi-uuid", vdi.to_owned()), ("scsi/0x12/0x80", base64(&serial)), ("scsi/0x12/0x83", base64(&identity))]
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = three.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for digit in 0..4 {
            let shown = digit <= three.len();
            text.push(if shown { DIGITS[(number >> (18 - 6 * digit) & 63) as usize] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scsi_pages_are_those_of_the_specification() {
        let Value::Struct(data) = Value::map(pages("0f8d7a52-61c3-4b0e-9a77-5e2c1d3b4a96")) else { panic!() };
        assert_eq!(data["scsi/0x12/0x80"].as_str(), Some("AIAAEjBmOGQ3YTUyLTYxYzMtNGIgIA=="));
        let page = "AIMAMQIBAC1YRU5TUkMgIDBmOGQ3YTUyLTYxYzMtNGIwZS05YTc3LTVlMmMxZDNiNGE5NiA=";
        assert_eq!(data["scsi/0x12/0x83"].as_str(), Some(page));
    }
}
