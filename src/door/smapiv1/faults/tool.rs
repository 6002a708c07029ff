//! The faults of programs that SRs on logical volumes run.

use crate::door::smapiv1::code::Code;
use crate::door::smapiv1::command::Command;

/// The code of a failure of an SR on logical volumes, by the program that failed.
pub fn of_tool(program: &str, command: Option<Command>) -> Option<Code> {
    match (command?, program) {
        (Command::SrCreate, "vgcreate" | "lvcreate" | "vgchange") => Some(Code::LVMCreate),
        (Command::SrCreate, "mkfs.ext4" | "mkfs.xfs") => Some(Code::LVMFilesystem),
        (Command::SrDelete, "vgremove" | "pvremove" | "vgchange") => Some(Code::LVMDelete),
        (Command::SrAttach, "lvchange" | "e2fsck") => Some(Code::LVMMount),
        (Command::SrDetach, "lvchange" | "dmsetup") => Some(Code::LVMUnMount),
        _ => None,
    }
}
