//! Several LVM commands by one process, which reads them as a script: a process takes longer to start, and to read the devices'
//! labels, than a command takes.
//!
//! `lvm` runs a file that begins with `#!` and its own name line by line, and ends at the first command that fails. Each command
//! commits by itself, so a kill leaves the first of them done, and none in part. It reads the next line when it has done the last, so a
//! process can also be told its commands bit by bit ([`Shell`]).
//!
//! Each command would write the group to /etc/lvm/archive before its change, and to /etc/lvm/backup after it: a fifth of its time. Of the
//! commands of a change, only the first and the last do.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::hidden::{self, tool};
use super::{DEADLINE, change};
use crate::error::{Error, Result};
use crate::sys::tool::{Dialogue, MOST, Tool};

/// What `lvm` takes for a script, as its first line.
const FIRST: &str = "#!lvm\n";

/// What `lvm` is told to read.
const INPUT: &str = "/dev/stdin";

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
    fn line(&self, copies: Copies) -> Option<String> {
        let config = CONFIG.iter().chain(copies.option()).map(|word| (*word).to_owned());
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

/// Whether a command writes LVM's copies of the metadata, as lvm.conf says, or none.
#[derive(Clone, Copy)]
enum Copies {
    Usual,
    None,
}

impl Copies {
    fn option(self) -> Option<&'static &'static str> {
        const NONE: &str = "-An";
        match self {
            Copies::Usual => None,
            Copies::None => Some(&NONE),
        }
    }
}

/// What LVM says of a command that writes none.
const NO_COPY: &str = "WARNING: This metadata update is NOT backed up.";

/// Runs commands one after the other up to the first that fails.
///
/// # Errors
/// [`Error::Tool`] with LVM's words. What was done before stays.
pub fn run(commands: &[Command]) -> Result<()> {
    match (commands, lines(commands, true, true)) {
        ([], _) => Ok(()),
        ([command], _) => command.run(),
        (_, None) => commands.iter().try_for_each(Command::run),
        (_, Some(lines)) => {
            let input = format!("{FIRST}{lines}");
            let done = tool("lvm")?.arg(INPUT).input(input.as_bytes())?.deadline(DEADLINE).run();
            done.map(drop).map_err(|error| of_commands(error, commands))
        }
    }
}

/// Commands as lines of a script. `None`: one of them is none. `begins`, `ends`: a change with the first, with the last.
fn lines(commands: &[Command], begins: bool, ends: bool) -> Option<String> {
    let line = |(n, command): (usize, &Command)| {
        let is_within = (n > 0 || !begins) && (n + 1 < commands.len() || !ends);
        let short = is_within.then(|| command.line(Copies::None)).flatten();
        Some(short.or_else(|| command.line(Copies::Usual))? + "\n")
    };
    commands.iter().enumerate().map(line).collect()
}

/// The error of a script, as that of its commands.
fn of_commands(error: Error, commands: &[Command]) -> Error {
    match error {
        Error::Tool { how, stderr, .. } => {
            let shown = |command: &Command| format!("{} {}", command.program, command.names.join(" "));
            let all: Vec<String> = commands.iter().map(shown).collect();
            let said = stderr.lines().filter(|line| line.trim() != NO_COPY);
            Error::Tool { argv: all.join("; "), how, stderr: said.flat_map(|line| [line, "\n"]).collect() }
        }
        other => other,
    }
}

/// One process for all commands of a change: it is told more when the caller has seen what the first ones did.
#[derive(Default)]
pub struct Shell(Mutex<Option<Running>>);

struct Running {
    lvm: Dialogue,
    /// The devices that it does not see.
    hidden: Vec<PathBuf>,
}

/// Asks for the line that shows that all commands before it were done, and that line.
const MARK: (&str, &str) = ("version\n", "LVM version:");

impl Shell {
    /// As [`run`]. The process stays for more, until the first command that fails.
    ///
    /// # Errors
    /// As of [`run`].
    pub fn run(&self, commands: &[Command]) -> Result<()> {
        let mut slot = self.slot();
        let Some((mut running, lines)) = Shell::ready(&mut slot, commands, false)? else { return run(commands) };
        running.lvm.say(&format!("{lines}{}", MARK.0), MARK.1).map_err(|error| of_commands(error, commands))?;
        *slot = Some(running);
        Ok(())
    }

    /// As [`run`]. The process ends with them, if there is one; else none is begun that would have to be told so.
    ///
    /// # Errors
    /// As of [`run`].
    pub fn end_with(&self, commands: &[Command]) -> Result<()> {
        let mut slot = self.slot();
        if slot.is_none() {
            return run(commands);
        }
        let Some((running, lines)) = Shell::ready(&mut slot, commands, true)? else { return run(commands) };
        running.lvm.end(&lines).map_err(|error| of_commands(error, commands))
    }

    /// Ends the process.
    pub fn end(&self) {
        drop(self.slot().take());
    }

    fn slot(&self) -> MutexGuard<'_, Option<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process, taken out of its place, and what it is to be told, after which it `ends`. `None`: the commands cannot be said to one; there
    /// is none then.
    fn ready(slot: &mut Option<Running>, commands: &[Command], ends: bool) -> Result<Option<(Running, String)>> {
        let before = slot.take();
        let Some(lines) = lines(commands, before.is_none(), ends).filter(|lines| lines.len() < MOST / 2) else {
            return Ok(None);
        };
        let hidden = hidden::devices()?;
        // A disk that is served since may have to wait for this change.
        let sees_less = |running: &Running| hidden.iter().all(|device| running.hidden.contains(device));
        if let Some(running) = before.filter(sees_less) {
            return Ok(Some((running, lines)));
        }
        let lvm = Tool::new("lvm").hides(&hidden).arg(INPUT).deadline(DEADLINE).begin()?;
        Ok(Some((Running { lvm, hidden }, format!("{FIRST}{lines}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VG: &str = "VG_XenStorage-87b8646b-b800-9500-cb7b-af3b74e02f5c";
    const LV: &str = "VHD-98de866e-b035-4b1a-a571-613bff542b89";

    #[test]
    fn a_command_is_a_line_with_its_settings() {
        let command = Command::new("lvrename", &[], &[VG, LV, LV]);
        assert_eq!(
            command.line(Copies::Usual).unwrap(),
            format!("lvrename --config global/metadata_read_only=0 -- {VG} {LV} {LV}")
        );
        let journal = "inflate_98de866e-b035-4b1a-a571-613bff542b89_2194719899648";
        let options = ["-y", "-an", "-Zn", "-Wn", "-l", "1", "--addtag", "journaler", "-n", journal];
        assert!(Command::new("lvcreate", &options, &[VG, "/dev/sdb:523262"]).line(Copies::None).is_some());
    }

    #[test]
    fn only_the_first_and_the_last_command_of_a_change_write_copies() {
        let commands = ["a", "b", "c"].map(|name| Command::new("lvremove", &["-y"], &[name]));
        let copied = |begins, ends| {
            let lines = lines(&commands, begins, ends).unwrap();
            lines.lines().map(|line| !line.contains(" -An ")).collect::<Vec<_>>()
        };
        assert_eq!(copied(true, true), [true, false, true]);
        assert_eq!(copied(true, false), [true, false, false]);
        assert_eq!(copied(false, true), [false, false, true]);
        let long = Command::new("lvremove", &["-y"], &["x".repeat(190)]);
        assert!(long.line(Copies::None).is_some() && lines(&[long], false, false).unwrap().contains(" -An "));
    }

    #[test]
    fn what_a_script_would_read_otherwise_is_no_line() {
        for odd in ["a b", "", "a\nb", "a\"b", "a'b", "a\\b", "a#b", "é"] {
            assert_eq!(Command::new("lvremove", &["-y"], &[odd]).line(Copies::Usual), None, "{odd:?}");
        }
        assert_eq!(Command::new("lvremove", &["-y"], &["x".repeat(220)]).line(Copies::Usual), None);
        assert!(Command::new("lvremove", &["-y"], &["x".repeat(190)]).line(Copies::Usual).is_some());
    }
}
