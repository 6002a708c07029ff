//! Several LVM commands by one process, which reads them as a script: a process takes longer to start, and to read the devices'
//! labels, than a command takes.
//!
//! `lvm` runs a file that begins with `#!` and its own name line by line, and ends at the first command that fails. Each command
//! commits by itself, so a kill leaves the first of them done, and none in part.

use super::hidden::tool;
use super::{DEADLINE, change};
use crate::error::{Error, Result};

/// What `lvm` takes for a script, as its first line.
const FIRST: &str = "#!lvm\n";

/// The longest line that `lvm` reads, in bytes (`CMD_LEN` in lvmcmdline.c), without the line's end and a NUL.
const LONGEST: usize = 254;

/// Of the usual settings, those that concern linear volumes: a line has little room.
const CONFIG: [&str; 2] = ["--config", "global/metadata_read_only=0"];

/// A command: the program, its options, and the things that it works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub program: &'static str,
    pub options: Vec<String>,
    pub names: Vec<String>,
}

impl Command {
    pub fn new<S: AsRef<str>>(program: &'static str, options: &[&str], names: &[S]) -> Command {
        Command {
            program,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            names: names.iter().map(|name| name.as_ref().to_owned()).collect(),
        }
    }

    fn run(&self) -> Result<()> {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        change(self.program, &self.options, &names)
    }

    /// The command as a line of a script. `None`: it has a word that a script would take for something else, or is too long.
    fn line(&self) -> Option<String> {
        let config = CONFIG.iter().map(|word| (*word).to_owned());
        let words = std::iter::once(self.program.to_owned())
            .chain(config)
            .chain(self.options.iter().cloned())
            .chain(std::iter::once("--".to_owned()))
            .chain(self.names.iter().cloned());
        let words: Vec<String> = words.collect();
        let is_plain = |word: &String| {
            !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-+./:=@,".contains(&byte))
        };
        let line = words.join(" ");
        (words.iter().all(is_plain) && line.len() <= LONGEST).then_some(line)
    }
}

/// Runs commands one after the other up to the first that fails.
///
/// # Errors
/// [`Error::Tool`] with LVM's words. What was done before stays.
pub fn run(commands: &[Command]) -> Result<()> {
    if let [command] = commands {
        return command.run();
    }
    let Some(lines) = commands.iter().map(Command::line).collect::<Option<Vec<String>>>() else {
        return commands.iter().try_for_each(Command::run);
    };
    if lines.is_empty() {
        return Ok(());
    }
    let script = format!("{FIRST}{}\n", lines.join("\n"));
    let done = tool("lvm")?.arg("/dev/stdin").input(script.as_bytes())?.deadline(DEADLINE).run();
    done.map(drop).map_err(|error| match error {
        Error::Tool { how, stderr, .. } => {
            let shown = |command: &Command| format!("{} {}", command.program, command.names.join(" "));
            let all: Vec<String> = commands.iter().map(shown).collect();
            Error::Tool { argv: all.join("; "), how, stderr }
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VG: &str = "VG_XenStorage-87b8646b-b800-9500-cb7b-af3b74e02f5c";
    const LV: &str = "VHD-98de866e-b035-4b1a-a571-613bff542b89";

    #[test]
    fn a_command_is_a_line_with_its_settings() {
        let command = Command::new("lvrename", &[], &[VG, LV, LV]);
        assert_eq!(command.line().unwrap(), format!("lvrename --config global/metadata_read_only=0 -- {VG} {LV} {LV}"));
        let journal = "inflate_98de866e-b035-4b1a-a571-613bff542b89_2194719899648";
        let options = ["-y", "-an", "-Zn", "-Wn", "-l", "1", "--addtag", "journaler", "-n", journal];
        assert!(Command::new("lvcreate", &options, &[VG, "/dev/sdb:523262"]).line().is_some());
    }

    #[test]
    fn what_a_script_would_read_otherwise_is_no_line() {
        for odd in ["a b", "", "a\nb", "a\"b", "a'b", "a\\b", "a#b", "é"] {
            assert_eq!(Command::new("lvremove", &["-y"], &[odd]).line(), None, "{odd:?}");
        }
        assert_eq!(Command::new("lvremove", &["-y"], &["x".repeat(220)]).line(), None);
        assert!(Command::new("lvremove", &["-y"], &["x".repeat(190)]).line().is_some());
    }
}
