//! SR Driver API v1.0: `FileSR COMMAND -d DCONF SR-UUID [ARG …]`, and the same for people as
//! `sm COMMAND -t TYPE …`. Results are s-expressions, failures an exit status and one line on stderr.

use std::ffi::OsString;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::call::{self, Call, Reply};
use crate::context::{Context, DEFAULT_WAIT, LONGEST_WAIT};
use crate::door::{Answer, sexp, size, stream, table};
use crate::error::{self, Error, Lost, Result, ServerFault};
use crate::sr::{self, Driver};
use crate::types::{
    DeviceConfig, Format, Misread, Mode, NewVdi, Overwrite, Params, Size, SrInfo, SrUuid, Tagged, VdiUuid,
};
use crate::vdi;

/// Storage repositories (SR) and the virtual disks (VDI) in them, for people.
///
/// An SR lives where -d DCONF says: in a directory, on a server's export or share, on block devices. You choose
/// the UUIDs, for instance from /proc/sys/kernel/random/uuid. Arguments are verified before anything is touched.
#[derive(Parser)]
#[command(name = "sm", version, max_term_width = 100, disable_help_subcommand = true, arg_required_else_help = false)]
#[command(after_help = AFTER_HELP)]
pub struct SmCommand {
    /// The SR's type; the help of -d lists them.
    #[arg(short = 't', long = "sr-type", value_name = "TYPE", global = true)]
    sr_type: Option<String>,
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "\
Example:
  SR=$(cat /proc/sys/kernel/random/uuid) VDI=$(cat /proc/sys/kernel/random/uuid)
  sm sr_create  -t file -d /srv/sr0 $SR
  sm vdi_create -t file -d /srv/sr0 $SR $VDI 20GiB --label 'root disk'
  sm vdi_attach -t file -d /srv/sr0 $SR $VDI          # prints /dev/loop0
  sm sr_scan    -t file -d /srv/sr0 $SR

Exit status 0, or a number whose name begins the one line on stderr that says what failed and why:
   1 EPERM not supported here   5 EIO                     7 E2BIG            13 EACCES
  16 EBUSY device in use       17 EEXIST                 19 ENODEV           22 EINVAL
  28 ENOSPC                    37 ENOLCK                 42 ENOMSG no such command
 100 ENOSR                    101 ENOVDI                102 ESRBUSY         103 EVDIBUSY";

/// An SR driver, as an agent calls it.
#[derive(Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true, arg_required_else_help = false)]
struct DriverCommand {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Common {
    /// Where the SR lives: the type's short form, or ((key . "value") …) with device_config keys.
    #[arg(short = 'd', long, value_name = "DCONF", global = true, allow_hyphen_values = true)]
    dconf: Option<String>,
    /// Seconds to wait for other calls on the same SR or VDI, before ESRBUSY.
    #[arg(long, value_name = "SECONDS", global = true, default_value_t = DEFAULT_WAIT.as_secs())]
    wait: u64,
    /// How to write what is answered. On a terminal sm writes a table, otherwise s-expressions.
    #[arg(long, value_name = "FORMAT", global = true)]
    format: Option<OutputFormat>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// S-expressions, for Scheme and serde-lexpr.
    Sexp,
    /// The same with t and nil for booleans, as Emacs and Common Lisp read them.
    Lisp,
    Json,
    /// For people.
    Table,
}

// The commands keep the API's spelling.
#[derive(Subcommand)]
#[command(rename_all = "snake_case")]
enum Verb {
    /// Make an SR. Fails if it exists.
    SrCreate {
        #[command(flatten)]
        sr: SrArg,
        /// The least size that will do, in MB or with a unit (20GiB).
        size: Option<String>,
        /// Overwrite what the devices hold. An SR with disks, and what is mounted or in use, is refused all the same.
        #[arg(long)]
        force: bool,
        /// Destroy this SR, which the devices hold, with every disk in it. May be given several times.
        #[arg(long = "destroy-sr", value_name = "SR-UUID")]
        destroy_sr: Vec<String>,
    },
    /// Delete an SR and every VDI in it. Succeeds if there is none; fails while a VDI is in use.
    SrDelete {
        #[command(flatten)]
        sr: SrArg,
        /// Yes, delete the VDIs in it (sm asks for this, the drivers do not).
        #[arg(long)]
        yes: bool,
    },
    /// Make an SR available on this host, and repair what a crash left.
    SrAttach(SrArg),
    /// End the availability on this host. Fails while a VDI is attached.
    SrDetach(SrArg),
    /// Print what is known of an SR: (sr …).
    SrGetParams(SrArg),
    /// Print an SR with every VDI in it: (sr … (vdis (vdi …) …)).
    SrScan(SrArg),
    /// Give space back: merge what deleted snapshots and clones left, also below disks in use.
    SrCollect(SrArg),
    /// Print the kind of content: raw or iso.
    SrContentType(SrArg),
    /// Print the SRs that a DCONF holds: (srs (sr …) …).
    SrProbe,
    /// Make a VDI of zeroes. Fails if the UUID exists.
    VdiCreate {
        #[command(flatten)]
        vdi: VdiArg,
        /// In MB, or with a unit (20GiB).
        size: String,
        #[command(flatten)]
        new: NewArgs,
    },
    /// Delete a VDI. Succeeds if there is none; fails while it is attached or locked.
    VdiDelete {
        #[command(flatten)]
        vdi: VdiArg,
        /// Delete it also if its image cannot be read.
        #[arg(long)]
        yes: bool,
    },
    /// Make a block device of a VDI and print its path; the same path again for an attached one.
    VdiAttach {
        #[command(flatten)]
        vdi: VdiArg,
        /// Attach it read-only.
        #[arg(long = "read-only")]
        read_only: bool,
    },
    /// Remove the block device. Fails while something has it open, and says what.
    VdiDetach(VdiArg),
    /// Make a writable copy of a VDI that is neither attached nor locked.
    VdiClone(CopyArgs),
    /// Make a read-only copy of a VDI as it is now.
    VdiSnapshot(CopyArgs),
    /// Change the size of a VDI that is not read-only. VHD and qcow2 can only grow.
    VdiResize {
        #[command(flatten)]
        vdi: VdiArg,
        /// In MB, or with a unit (20GiB).
        size: String,
        /// Allow it to become smaller; what lies beyond the new end is lost.
        #[arg(long = "allow-shrink")]
        allow_shrink: bool,
    },
    /// Take the persistent lock of a VDI, seen by every host that has the SR.
    VdiLock(LockArgs),
    /// Give the persistent lock back.
    VdiUnlock(LockArgs),
    /// Print what is known of a VDI: (vdi …).
    VdiGetParams(VdiArg),
    /// Write the disk of a VDI to a file or a pipe. Fails while it is attached, if it can be written to.
    VdiExport {
        #[command(flatten)]
        vdi: VdiArg,
        /// The file to make, or - for standard output.
        #[arg(value_name = "FILE")]
        file: String,
        /// Its format: raw, vhd or qcow2. Without it the file's extension decides, else raw.
        #[arg(long = "type", value_name = "FORMAT")]
        image: Option<String>,
    },
    /// Make a VDI of a file or of what comes through a pipe.
    VdiImport {
        #[command(flatten)]
        vdi: VdiArg,
        /// The file to read, or - for standard input.
        #[arg(value_name = "FILE")]
        file: String,
        /// Its format: raw, vhd or qcow2. Without it the file's extension decides, else raw; but what looks like an
        /// image is not taken for raw unless this says so.
        #[arg(long = "file-type", value_name = "FORMAT")]
        file_type: Option<String>,
        /// The least size of the VDI; for raw bytes from a pipe, how many come. In MB, or with a unit.
        #[arg(long, value_name = "SIZE")]
        size: Option<String>,
        #[command(flatten)]
        new: NewArgs,
    },
    /// Draw the chains of an SR: which image is whose parent, and what each takes.
    VdiTree(SrArg),
}

#[derive(Args)]
struct SrArg {
    /// UUID of the SR.
    #[arg(value_name = "SR-UUID")]
    sr: String,
}

#[derive(Args)]
struct VdiArg {
    #[command(flatten)]
    sr: SrArg,
    /// UUID of the VDI.
    #[arg(value_name = "VDI-UUID")]
    vdi: String,
}

/// What a new VDI is to be.
#[derive(Args)]
struct NewArgs {
    /// The VDI's format: raw, vhd or qcow2, as the driver supports. Without it vhd where disks are files, raw where
    /// they are volumes.
    #[arg(long = "type", value_name = "FORMAT")]
    image: Option<String>,
    /// A name for people.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, default_value = "", hide_default_value = true)]
    label: String,
    /// What it is for.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, default_value = "", hide_default_value = true)]
    description: String,
    /// Several users may lock it at once.
    #[arg(long)]
    shareable: bool,
    /// It can only be attached read-only.
    #[arg(long = "read-only")]
    read_only: bool,
}

#[derive(Args)]
struct CopyArgs {
    #[command(flatten)]
    sr: SrArg,
    /// UUID of the VDI to copy.
    #[arg(value_name = "SRC-UUID")]
    source: String,
    /// UUID of the new VDI.
    #[arg(value_name = "DST-UUID")]
    dest: String,
}

#[derive(Args)]
struct LockArgs {
    #[command(flatten)]
    vdi: VdiArg,
    /// TRUE takes the lock from whoever holds it, FALSE does not.
    #[arg(value_name = "FORCE")]
    force: String,
    /// Who holds the lock, in the caller's words.
    #[arg(value_name = "USER", allow_hyphen_values = true)]
    user: String,
}

/// The command line of `sm`, with what each driver says of itself.
pub fn sm_command() -> clap::Command {
    let forms: String =
        sr::DRIVERS.iter().map(|d| format!("\n  {:<6} {}: {}", d.sr_type, d.dconf_form, d.description)).collect();
    SmCommand::command().mut_arg("dconf", |arg| {
        arg.long_help(format!(
            "Where the SR lives. By type:{forms}\nor for any type ((key . \"value\") …) with device_config keys"
        ))
    })
}

/// The command line of a driver's executable.
pub fn driver_command(driver: &'static Driver) -> clap::Command {
    DriverCommand::command()
        .name(driver.executable)
        .about(format!("SR driver {}: {}", driver.sr_type, driver.description))
        .mut_arg("dconf", |arg| {
            arg.help(format!("{}, or ((key . \"value\") …) with device_config keys", driver.dconf_form))
        })
}

/// Serves one call of an agent.
pub fn driver(driver: &'static Driver, args: Vec<OsString>) -> Answer {
    let parsed =
        driver_command(driver).try_get_matches_from(args).and_then(|matches| DriverCommand::from_arg_matches(&matches));
    match parsed {
        Ok(command) => {
            let format = command.common.format.unwrap_or(OutputFormat::Sexp);
            answer(serve(driver, &command.common, command.verb, false), format)
        }
        Err(e) => not_parsed(e),
    }
}

/// Serves one call of a person.
pub fn sm(args: Vec<OsString>) -> Answer {
    let parsed = sm_command().try_get_matches_from(args).and_then(|m| SmCommand::from_arg_matches(&m));
    let command = match parsed {
        Ok(command) => command,
        Err(e) => return not_parsed(e),
    };
    let format =
        command.common.format.unwrap_or(if stdout().is_terminal() { OutputFormat::Table } else { OutputFormat::Sexp });
    let chosen = command.sr_type.as_deref().ok_or_else(|| {
        let known: Vec<&str> = sr::DRIVERS.iter().map(|d| d.sr_type).collect();
        Error::Usage(format!("-t TYPE is missing: one of {}", known.join(", ")))
    });
    let result = chosen.and_then(sr::driver).and_then(|driver| serve(driver, &command.common, command.verb, true));
    answer(result, format)
}

/// Verifies the arguments, then carries the call out. `person`: VDIs are not deleted unasked.
fn serve(driver: &'static Driver, common: &Common, verb: Verb, person: bool) -> Result<Reply> {
    let dconf =
        common.dconf.as_deref().ok_or_else(|| Error::Usage(format!("-d DCONF is missing: {}", driver.dconf_form)))?;
    let config = sexp::device_config(driver, dconf)?;
    let deadline = Instant::now() + Duration::from_secs(common.wait).min(LONGEST_WAIT);
    if matches!(verb, Verb::SrProbe) {
        return (driver.probe)(&config, deadline.into())
            .map(|found| Reply::Srs(found.into_iter().map(Tagged::Sr).collect()));
    }
    let tree = matches!(verb, Verb::VdiTree(_));
    let in_mb = size_in_mb(&verb);
    let confirmed = !person || !matches!(verb, Verb::SrDelete { yes: false, .. });
    let (sr, call) = to_call(verb)?;
    let bar = ProgressBar::new();
    let context = Context { deadline, progress: &|done, total| bar.show(done, total), others: None };
    if !confirmed {
        refuse_loss(driver, sr, &config, &context)?;
    }
    if person && stderr().is_terminal() {
        note_absence(driver, sr, &config, &call, &context);
    }
    let result = call::run(driver, sr, &config, &call, &context);
    if let Call::VdiExport { to, .. } = &call {
        match &result {
            Ok(_) => stream::publish(to)?,
            Err(_) => stream::discard(to),
        }
    }
    let mut reply = result.map_err(|error| match &call {
        Call::VdiDelete { broken: false, .. } => with_hint(error, "vdi_delete --yes deletes it all the same"),
        _ => of_size(error, in_mb.as_deref()),
    })?;
    // The API says that these answer nothing: the caller chose the UUID.
    if matches!(call, Call::VdiCreate(_) | Call::VdiClone { .. } | Call::VdiSnapshot { .. }) {
        return Ok(Reply::Nothing);
    }
    match &mut reply {
        Reply::Sr(info) if tree => return Ok(Reply::Tree(info.clone())),
        // Bases are there for their children; only the tree shows them.
        Reply::Sr(info) => info.vdis.retain(|tagged| !matches!(tagged, Tagged::Vdi(vdi) if vdi.hidden)),
        _ => {}
    }
    Ok(reply)
}

/// The SIZE of a call, if it has no unit.
fn size_in_mb(verb: &Verb) -> Option<String> {
    let size = match verb {
        Verb::VdiCreate { size, .. } | Verb::VdiResize { size, .. } => Some(size),
        Verb::VdiImport { size, .. } => size.as_ref(),
        _ => None,
    };
    size.filter(|size| size.bytes().all(|b| b.is_ascii_digit())).cloned()
}

/// An error of a disk that is too big, which says so if a number of bytes may have been taken for MB.
fn of_size(error: Error, in_mb: Option<&str>) -> Error {
    match (error, in_mb) {
        (Error::DiskTooBig { format, bytes, largest }, Some(size)) => Error::Oversized {
            what: format!("SIZE {size}, in MB,"),
            limit: format!(
                "it is {}, and {format} holds {} at most; for bytes write {size}B",
                Size(bytes),
                Size(largest)
            ),
        },
        (error, _) => error,
    }
}

/// An error of an image that cannot be read, with what can be done about it.
fn with_hint(error: Error, hint: &str) -> Error {
    match error {
        Error::Damaged { path, what } => Error::Damaged { path, what: format!("{what}; {hint}") },
        Error::Unsupported { op, why } => Error::Unsupported { op, why: format!("{why}; {hint}") },
        other => other,
    }
}

/// Asks a person to say that the VDIs of an SR are to be lost.
fn refuse_loss(driver: &'static Driver, sr: SrUuid, config: &DeviceConfig, context: &Context) -> Result<()> {
    if driver.keeps_disks {
        return Ok(());
    }
    let would_lose = |info: &SrInfo| {
        let count = info.vdi_uuids.len();
        Error::Usage(format!("SR {sr} has {count} VDIs, which would be lost; --yes deletes them"))
    };
    match call::run(driver, sr, config, &Call::SrGetParams, context) {
        Ok(Reply::Sr(info)) if !info.vdi_uuids.is_empty() => Err(would_lose(&info)),
        // Not attached: its disks are seen where it lives.
        Err(Error::SrUnavailable { .. }) => {
            match (driver.probe)(config, context.deadline.into())?.iter().find(|info| info.uuid == sr) {
                Some(info) if !info.vdi_uuids.is_empty() => Err(would_lose(info)),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Says at a terminal that there is nothing to delete: what succeeds may be a mistyped UUID. A program that deletes
/// until nothing is there wants no words.
fn note_absence(driver: &'static Driver, sr: SrUuid, config: &DeviceConfig, call: &Call, context: &Context) {
    let look = match call {
        Call::SrDelete => Call::SrGetParams,
        Call::VdiDelete { vdi, .. } => Call::VdiGetParams { vdi: *vdi },
        _ => return,
    };
    if let Err(e @ (Error::NoSr { .. } | Error::NoVdi { .. })) = call::run(driver, sr, config, &look, context) {
        let _ = writeln!(stderr(), "nothing to delete: {}", error::one_line(&e));
    }
}

fn to_call(verb: Verb) -> Result<(SrUuid, Call)> {
    fn vdi(arg: &VdiArg) -> Result<(SrUuid, VdiUuid)> {
        Ok((arg.sr.sr.parse()?, arg.vdi.parse()?))
    }
    fn copy(args: &CopyArgs) -> Result<(SrUuid, VdiUuid, VdiUuid)> {
        Ok((args.sr.sr.parse()?, args.source.parse()?, args.dest.parse()?))
    }
    fn lock(args: &LockArgs) -> Result<(SrUuid, VdiUuid, bool, String)> {
        let (sr, vdi) = vdi(&args.vdi)?;
        Ok((sr, vdi, boolean("FORCE", &args.force)?, text("USER", &args.user, 1..=1024)?))
    }
    Ok(match verb {
        Verb::SrCreate { sr, size, force, destroy_sr } => {
            let size = size.as_deref().map(size::parse_or_zero).transpose()?.flatten();
            let srs = destroy_sr.iter().map(|sr| sr.parse()).collect::<Result<_, Misread>>()?;
            (sr.sr.parse()?, Call::SrCreate { size, over: Overwrite { contents: force, srs } })
        }
        Verb::SrDelete { sr, .. } => (sr.sr.parse()?, Call::SrDelete),
        Verb::SrAttach(sr) => (sr.sr.parse()?, Call::SrAttach),
        Verb::SrDetach(sr) => (sr.sr.parse()?, Call::SrDetach),
        Verb::SrGetParams(sr) => (sr.sr.parse()?, Call::SrGetParams),
        Verb::SrScan(sr) | Verb::VdiTree(sr) => (sr.sr.parse()?, Call::SrScan),
        Verb::SrCollect(sr) => (sr.sr.parse()?, Call::SrCollect),
        Verb::SrContentType(sr) => (sr.sr.parse()?, Call::SrContentType),
        Verb::SrProbe => unreachable!("it names no SR and was answered before"),
        Verb::VdiCreate { vdi: arg, size, new } => {
            let (sr, vdi) = vdi(&arg)?;
            (sr, Call::VdiCreate(new_vdi(vdi, size::parse(&size)?, &new)?))
        }
        Verb::VdiExport { vdi: arg, file, image } => {
            let (sr, vdi) = vdi(&arg)?;
            let format = file_format(&file, image.as_deref())?;
            (sr, Call::VdiExport { vdi, to: stream::to(&file, format)? })
        }
        Verb::VdiImport { vdi: arg, file, file_type, size, new } => {
            let (sr, vdi) = vdi(&arg)?;
            let size = size.as_deref().map(size::parse).transpose()?.unwrap_or(0);
            let new = new_vdi(vdi, size, &new)?;
            let format = file_format(&file, file_type.as_deref())?;
            (sr, Call::VdiImport { new, from: stream::from(&file, format)? })
        }
        Verb::VdiDelete { vdi: arg, yes } => {
            let (sr, vdi) = vdi(&arg)?;
            (sr, Call::VdiDelete { vdi, broken: yes })
        }
        Verb::VdiAttach { vdi: arg, read_only } => {
            let (sr, vdi) = vdi(&arg)?;
            (sr, Call::VdiAttach { vdi, mode: if read_only { Mode::ReadOnly } else { Mode::ReadWrite } })
        }
        Verb::VdiDetach(arg) => {
            let (sr, vdi) = vdi(&arg)?;
            (sr, Call::VdiDetach { vdi })
        }
        Verb::VdiClone(args) => {
            let (sr, source, dest) = copy(&args)?;
            (sr, Call::VdiClone { source, dest })
        }
        Verb::VdiSnapshot(args) => {
            let (sr, source, dest) = copy(&args)?;
            (sr, Call::VdiSnapshot { source, dest })
        }
        Verb::VdiResize { vdi: arg, size, allow_shrink } => {
            let (sr, vdi) = vdi(&arg)?;
            (sr, Call::VdiResize { vdi, size: size::parse(&size)?, allow_shrink })
        }
        Verb::VdiLock(args) => {
            let (sr, vdi, force, user) = lock(&args)?;
            (sr, Call::VdiLock { vdi, force, user })
        }
        Verb::VdiUnlock(args) => {
            let (sr, vdi, force, user) = lock(&args)?;
            (sr, Call::VdiUnlock { vdi, force, user })
        }
        Verb::VdiGetParams(arg) => {
            let (sr, vdi) = vdi(&arg)?;
            (sr, Call::VdiGetParams { vdi })
        }
    })
}

fn new_vdi(vdi: VdiUuid, virtual_size: u64, args: &NewArgs) -> Result<NewVdi> {
    let params = Params {
        label: text("label", &args.label, 0..=4096)?,
        description: text("description", &args.description, 0..=65536)?,
        shareable: args.shareable,
        read_only: args.read_only,
    };
    Ok(NewVdi { vdi, virtual_size, format: args.image.as_deref().map(str::parse).transpose()?, params })
}

/// What was said, else what the file's extension says, else raw; and whether it was said. Never what the file's bytes
/// look like: a guest wrote them.
fn file_format(file: &str, said: Option<&str>) -> Result<(Format, bool)> {
    let extension = std::path::Path::new(file).extension().and_then(|e| e.to_str());
    match said {
        Some(said) => Ok((said.parse()?, true)),
        None => Ok((extension.and_then(|e| e.parse().ok()).unwrap_or(Format::Raw), false)),
    }
}

fn boolean(what: &'static str, value: &str) -> Result<bool> {
    match value {
        _ if value.eq_ignore_ascii_case("true") => Ok(true),
        _ if value.eq_ignore_ascii_case("false") => Ok(false),
        _ => Err(Error::Invalid { what, value: value.to_owned(), expected: "expected TRUE or FALSE".to_owned() }),
    }
}

/// Text that any reader of the answer can show: no control characters, and of a length in `bytes`.
fn text(what: &'static str, value: &str, bytes: std::ops::RangeInclusive<usize>) -> Result<String> {
    let bad = |expected: String| Err(Error::Invalid { what, value: value.to_owned(), expected });
    if !bytes.contains(&value.len()) {
        return bad(format!("expected {} to {} bytes, it has {}", bytes.start(), bytes.end(), value.len()));
    }
    if value.chars().any(char::is_control) {
        return bad("control characters are not allowed in it".to_owned());
    }
    Ok(value.to_owned())
}

fn answer(result: Result<Reply>, format: OutputFormat) -> Answer {
    match result.and_then(|reply| written(&reply, format)) {
        Ok(stdout) => Answer { stdout, stderr: String::new(), status: 0 },
        Err(e) => {
            let (status, name) = exit_status(&e);
            Answer { stdout: Vec::new(), stderr: format!("{name}: {}{}\n", error::one_line(&e), remedy(&e)), status }
        }
    }
}

/// The options of this door that allow what was refused.
fn remedy(e: &Error) -> String {
    match e {
        Error::Occupied { .. } => "; --force overwrites it".to_owned(),
        Error::HoldsSr { held, .. } if held.lost == Lost::Nothing => "; --force overwrites it".to_owned(),
        Error::HoldsSr { held, .. } => format!("; to destroy it, name it: --destroy-sr {}", held.sr),
        Error::Busy { .. } => "; --wait gives it longer".to_owned(),
        Error::WouldShrink { .. } => "; --allow-shrink allows it".to_owned(),
        Error::DiskTooBig { format: Format::Vhd, .. } => {
            format!("; one made with --type qcow2 holds {}", Size(vdi::kind(Format::Qcow2).largest))
        }
        _ => String::new(),
    }
}

/// What there is to say after a panic.
pub fn of_panic(text: &str) -> Answer {
    Answer { stdout: Vec::new(), stderr: format!("EIO: {text}\n"), status: 5 }
}

fn written(reply: &Reply, format: OutputFormat) -> Result<Vec<u8>> {
    let mut bytes = match (reply, format) {
        (Reply::Nothing, _) => return Ok(Vec::new()),
        (_, OutputFormat::Json) => serde_json::to_vec(reply).expect("a reply is plain data"),
        (Reply::Device(path), _) => path.as_os_str().as_encoded_bytes().to_vec(),
        (Reply::Text(text), _) => text.clone().into_bytes(),
        (Reply::Tree(_), _) => table::write(reply).into_bytes(),
        (_, OutputFormat::Sexp) => serde_lexpr::to_vec(reply).expect("a reply is plain data"),
        (_, OutputFormat::Lisp) => {
            serde_lexpr::to_vec_custom(reply, serde_lexpr::print::Options::elisp()).expect("a reply is plain data")
        }
        (_, OutputFormat::Table) => table::write(reply).into_bytes(),
    };
    if !bytes.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// What the parser of the command line refused goes through the same table; help and version are answers.
fn not_parsed(refused: clap::Error) -> Answer {
    let context = |kind| match refused.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let e = match refused.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return Answer { stdout: refused.to_string().into_bytes(), stderr: String::new(), status: 0 };
        }
        ErrorKind::InvalidSubcommand => Error::NoSuchCommand(context(ContextKind::InvalidSubcommand)),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Error::Usage("no command was given; `--help` lists them".to_owned())
        }
        ErrorKind::UnknownArgument if !context(ContextKind::InvalidArg).starts_with('-') => {
            let usage = refused.get(ContextKind::Usage).map(|usage| format!("; {usage}")).unwrap_or_default();
            let usage = usage.replace("Usage:", "usage:").replace('\n', " ");
            Error::TooManyArguments(format!("argument '{}' is one too many{usage}", context(ContextKind::InvalidArg)))
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = match refused.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(names)) => names.join(" "),
                _ => context(ContextKind::InvalidArg),
            };
            Error::Usage(format!("{missing} is missing; `--help` after the command shows what it takes"))
        }
        _ => Error::Usage(first_line(&refused)),
    };
    answer(Err(e), OutputFormat::Sexp)
}

fn first_line(refused: &clap::Error) -> String {
    let text = refused.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let end = text.find("\n\n").unwrap_or(text.len());
    // What values are possible stands on a line of its own.
    text[..end].lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// The exit status of each failure; SR API v1.0, "Results".
fn exit_status(e: &Error) -> (u8, &'static str) {
    use nix::errno::Errno;
    match e {
        Error::Unsupported { .. } | Error::Foreign { .. } | Error::IsBase { .. } => (1, "EPERM"),
        Error::TooBig { .. }
        | Error::Oversized { .. }
        | Error::DiskTooBig { .. }
        | Error::TooManyArguments(_)
        | Error::ChainTooLong { .. } => (7, "E2BIG"),
        Error::DeviceInUse { .. } | Error::Occupied { .. } | Error::HoldsSr { .. } | Error::NotEmpty { .. } => {
            (16, "EBUSY")
        }
        Error::SrExists { .. } | Error::VdiExists { .. } => (17, "EEXIST"),
        Error::NoDevice { .. } => (19, "ENODEV"),
        Error::Server { fault, .. } => match fault {
            ServerFault::UnknownName | ServerFault::NoAnswer | ServerFault::Version | ServerFault::NoExport => {
                (19, "ENODEV")
            }
            ServerFault::Denied => (13, "EACCES"),
            ServerFault::Mount => (5, "EIO"),
        },
        Error::Invalid { .. }
        | Error::MissingKey { .. }
        | Error::ExportNotChosen { .. }
        | Error::WouldShrink { .. }
        | Error::Usage(_) => (22, "EINVAL"),
        Error::NoSpace { .. } | Error::PoolFull { .. } => (28, "ENOSPC"),
        Error::LockRefused { .. } => (37, "ENOLCK"),
        Error::NoSuchCommand(_) => (42, "ENOMSG"),
        Error::NoSr { .. } => (100, "ENOSR"),
        Error::NoVdi { .. } => (101, "ENOVDI"),
        Error::SrUnavailable { .. } | Error::Busy { .. } => (102, "ESRBUSY"),
        Error::VdiInUse { .. } | Error::NotPaused { .. } => (103, "EVDIBUSY"),
        Error::Undo { cause, .. } | Error::Incomplete { cause, .. } => exit_status(cause),
        Error::Damaged { .. } | Error::NotMerged { .. } | Error::Tool { .. } => (5, "EIO"),
        Error::Io { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => (13, "EACCES"),
            Some(Errno::ENOSPC | Errno::EDQUOT) => (28, "ENOSPC"),
            None if source.kind() == std::io::ErrorKind::PermissionDenied => (13, "EACCES"),
            _ => (5, "EIO"),
        },
    }
}

/// A bar on stderr, if that is a terminal and there is something to wait for.
struct ProgressBar(Option<indicatif::ProgressBar>);

impl ProgressBar {
    fn new() -> Self {
        if !stderr().is_terminal() {
            return ProgressBar(None);
        }
        let style =
            indicatif::ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")
                .expect("the template is constant");
        ProgressBar(Some(indicatif::ProgressBar::hidden().with_style(style)))
    }

    fn show(&self, done: u64, total: u64) {
        let Some(bar) = &self.0 else { return };
        if bar.is_hidden() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SrInfo;

    #[test]
    fn the_command_lines_are_consistent() {
        sm_command().debug_assert();
        for driver in sr::DRIVERS {
            driver_command(driver).debug_assert();
        }
    }

    #[test]
    fn a_reply_is_read_back_as_it_was_written() {
        let scratch = tempfile::tempdir().unwrap();
        let location = scratch.path().join("sr").display().to_string();
        let config = DeviceConfig::from([("location", location.as_str())]);
        let storage = (sr::file::DRIVER.open)(SrUuid::random(), &config, Instant::now().into()).unwrap();
        storage.create(None).unwrap();
        let params = Params { label: "a \"b\" \\ ü λ".to_owned(), shareable: true, ..Params::default() };
        let new = NewVdi { vdi: VdiUuid::random(), virtual_size: 1 << 20, format: None, params };
        let vdi = storage.create_vdi(&new).unwrap();
        let (stat, scan) = (storage.stat().unwrap(), storage.scan().unwrap());
        for reply in [Reply::Vdi(vdi), Reply::Sr(SrInfo { free: 0, ..stat }), Reply::Sr(SrInfo { free: 0, ..scan })] {
            let text = written(&reply, OutputFormat::Sexp).unwrap();
            assert_eq!(text.iter().filter(|b| **b == b'\n').count(), 1, "one datum, one line");
            assert_eq!(serde_lexpr::from_slice::<Reply>(&text).unwrap(), reply);
            let json = written(&reply, OutputFormat::Json).unwrap();
            assert_eq!(serde_json::from_slice::<Reply>(&json).unwrap(), reply);
        }
    }
}
