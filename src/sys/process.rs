//! Processes of this host, as proc(5) shows them.

use std::fs;

/// The numbers of the processes that are there.
pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process for a person to read: `process 12 (bash)`.
pub fn shown(pid: u32) -> String {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({})", command.trim())
}

/// Field `number` of `/proc/PID/stat`, counted from 1 as the manual does; 3 or more. `None`: there is no such process. The second
/// field is a name in parentheses, which may have any character.
pub fn stat(pid: u32, number: usize) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(')')?.1.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_one_of_all_and_has_a_parent() {
        let pid = std::process::id();
        assert!(all().contains(&pid));
        assert!(shown(pid).starts_with(&format!("process {pid} (")));
        assert_eq!(stat(pid, 4), Some(u64::from(std::os::unix::process::parent_id())));
        assert_eq!(stat(u32::MAX, 4), None);
    }
}
