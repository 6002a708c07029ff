//! SMAPIv3: one executable for each method, a JSON object on standard input, one JSON value on standard output. xapi's
//! `xapi-storage-script` calls it, and `static-vdis` by a command line.
//!
//! All executables are links to one file. The name of the link is the method, the directory that the link is in is the plug-in:
//! `volume/org.xen.xapi.storage.sm-nfs/SR.ls`, `datapath/sm/Datapath.attach`.
//!
//! | file | what |
//! |---|---|
//! | [`method`] | the methods and their parameters |
//! | [`request`] | the parameters of a call |
//! | [`uri`] | the handle of an SR and the URI of a volume |
//! | [`mod@state`] | what is kept on the host until a reboot |
//! | [`call`] | an SR opened for one call |
//! | [`plugin`], [`sr`], [`volume`], [`datapath`] | the methods |
//! | [`claim`] | which host has a volume, on an SR that several hosts have |
//! | [`fault`] | the answer to a call that failed |

pub mod call;
pub mod claim;
pub mod datapath;
pub mod fault;
pub mod method;
pub mod plugin;
pub mod request;
pub mod sr;
pub mod state;
pub mod uri;
pub mod volume;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use self::fault::Fault;
use self::method::{Interface, Method};
use self::request::Request;
use self::uri::Uri;
pub use self::uri::driver_of;
use super::smapiv1::code::Code;
use super::smapiv1::faults::Failure;
use super::{Answer, guarded, said, smapiv1};
use crate::error::Error;
use crate::sr::{DRIVERS, Driver};
use crate::sys::{run_dir, syslog};
use crate::types::{Mode, Names, ParamsChange};

/// The prefix of a directory of a volume plug-in; the type of its SRs follows.
const VOLUME: &str = "org.xen.xapi.storage.";

/// The plug-in whose executable was called.
#[derive(Clone, Copy)]
enum Plugin {
    Volume(&'static Driver),
    Datapath,
}

impl Plugin {
    /// By the name of the directory that the executable is in, or that the name leads to.
    fn of(executable: &Path) -> Option<Plugin> {
        let directory = executable.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let named = |directory: &Path| match directory.file_name()?.to_str()? {
            uri::SCHEME => Some(Plugin::Datapath),
            name => uri::driver_of(name.strip_prefix(VOLUME)?).map(Plugin::Volume),
        };
        named(directory).or_else(|| named(&fs::canonicalize(directory).ok()?))
    }

    /// The driver that a failure is about, if the request names one.
    fn driver(self, request: Option<&Request>) -> Option<&'static Driver> {
        match self {
            Plugin::Volume(driver) => Some(driver),
            Plugin::Datapath => Some(Uri::parse(request?.text("uri")).ok()?.handle.driver),
        }
    }
}

/// The file by which xapi's daemon asks for the volumes of an SR of this type.
pub fn installed(sr_type: &str) -> PathBuf {
    run_dir::smapiv3_plugins().join("volume").join(format!("{VOLUME}{sr_type}")).join(Method::SrLs.name())
}

/// Serves one call, if this process was called by the name of a method.
pub fn serve(args: &[OsString]) -> Option<Answer> {
    let executable = Path::new(args.first()?);
    let called = executable.file_name()?;
    let method = Method::ALL.iter().copied().find(|method| called == method.name())?;
    let of_panic = |text: &str| {
        let words = [String::new(), text.to_owned(), String::new()];
        failed(fault::document(&format!("SR_BACKEND_FAILURE_{}", Code::GenericException as u16), &words, text))
    };
    Some(guarded(method.name(), || answer(method, executable, &args[1..]), of_panic))
}

fn failed(document: String) -> Answer {
    Answer { status: 1, ..said(document) }
}

fn answer(method: Method, executable: &Path, words: &[OsString]) -> Answer {
    let by_words = !words.iter().any(|word| word == "--json" || word == "-j");
    let request = match (by_words, words) {
        (true, _) => Request::of_words(method, words),
        (false, [_]) => Request::read(method, io::stdin().lock()),
        (false, _) => Err(Failure::new(Code::BadRequest, "--json goes without other words")),
    };
    let plugin = Plugin::of(executable);
    if let Ok(request) = &request {
        syslog::write(&request.shown(method));
    }
    let done = match (&request, plugin) {
        (Ok(request), Some(plugin)) => run(method, plugin, request),
        (Ok(_), None) => Err(no_plugin(executable)),
        (Err(_), _) => Ok(Value::Null),
    };
    let (request, fault) = match (request, done) {
        (Ok(_), Ok(value)) => return said(value.to_string() + "\n"),
        (Ok(request), Err(fault)) => (Some(request), fault),
        (Err(failure), _) => (None, failure.into()),
    };
    let driver = plugin.and_then(|plugin| plugin.driver(request.as_ref()));
    let (code, mut params) = fault::told(&fault, driver, method.command());
    let mut secrets = call::fetched_secrets();
    secrets.extend(request.map(|request| request.secrets(method)).unwrap_or_default());
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    for param in &mut params {
        *param = smapiv1::masked(std::mem::take(param), &secrets);
    }
    let why = params.join(" ").trim().to_owned();
    syslog::write(&format!("{} failed: {code} {why}", method.name()));
    match by_words {
        true => Answer { stdout: Vec::new(), stderr: format!("{code}: {why}\n"), status: 1 },
        false => failed(fault::document(&code, &params, &why)),
    }
}

fn no_plugin(executable: &Path) -> Fault {
    let served = DRIVERS.iter().filter_map(|driver| uri::driver_of(&format!("{}{}", uri::PREFIX, driver.sr_type)));
    let types: Vec<String> = served.map(|driver| format!("{VOLUME}{}{}", uri::PREFIX, driver.sr_type)).collect();
    let expected = format!("expected it in a directory {}, or one of {}", uri::SCHEME, types.join(", "));
    Error::Invalid { what: "place of the executable", value: executable.display().to_string(), expected }.into()
}

fn run(method: Method, plugin: Plugin, request: &Request) -> Result<Value, Fault> {
    match (method.interface(), plugin) {
        (Interface::Plugin, plugin) => Ok(match (method, plugin) {
            (Method::PluginDiagnostics, _) => plugin::diagnostics(),
            (_, Plugin::Volume(driver)) => plugin::of_volumes(driver),
            (_, Plugin::Datapath) => plugin::of_datapath(),
        }),
        (Interface::Volume, Plugin::Volume(driver)) => of_volumes(method, driver, request),
        (Interface::Datapath, Plugin::Datapath) => of_datapath(method, Uri::parse(request.text("uri"))?, request),
        (Interface::Volume, Plugin::Datapath) | (Interface::Datapath, Plugin::Volume(_)) => {
            Err(Failure::new(Code::Unimplemented, format!("{} is of the other plug-in", method.name())).into())
        }
    }
}

fn of_volumes(method: Method, driver: &'static Driver, request: &Request) -> Result<Value, Fault> {
    let handle = || call::handle(driver, request);
    let new = |name: &str| request.text(name).to_owned();
    let volume = || volume::Call::new(handle()?, request);
    match method {
        Method::SrProbe => sr::probe(driver, request),
        Method::SrCreate => sr::create(driver, request),
        Method::SrAttach => sr::attach(driver, request),
        Method::SrDetach => sr::detach(handle()?),
        Method::SrDestroy => sr::destroy(handle()?),
        Method::SrStat => sr::stat(handle()?),
        Method::SrSetName => {
            let label = new("new_name");
            sr::rename(handle()?, move |names| Names { label: label.clone(), ..names })
        }
        Method::SrSetDescription => {
            let description = new("new_description");
            sr::rename(handle()?, move |names| Names { description: description.clone(), ..names })
        }
        Method::SrLs => sr::ls(handle()?),
        Method::VolumeCreate => volume()?.create(),
        Method::VolumeSnapshot => volume()?.snapshot(),
        Method::VolumeClone => volume()?.copy(),
        Method::VolumeDestroy => volume()?.destroy(),
        Method::VolumeRevert => volume()?.revert(),
        Method::VolumeSetName => {
            volume()?.rename(ParamsChange { label: Some(new("new_name")), ..ParamsChange::default() })
        }
        Method::VolumeSetDescription => {
            volume()?.rename(ParamsChange { description: Some(new("new_description")), ..ParamsChange::default() })
        }
        Method::VolumeSet => volume()?.set(Some(request.text("v"))),
        Method::VolumeUnset => volume()?.set(None),
        Method::VolumeResize => volume()?.resize(),
        Method::VolumeStat => volume()?.stat(),
        Method::VolumeEnableCbt => volume()?.configure_cbt(true),
        Method::VolumeDisableCbt => volume()?.configure_cbt(false),
        Method::VolumeDataDestroy => volume()?.data_destroy(),
        Method::VolumeListChangedBlocks => volume()?.list_changed_blocks(),
        Method::PluginQuery
        | Method::PluginDiagnostics
        | Method::DatapathAttach
        | Method::DatapathActivate
        | Method::DatapathActivateReadonly
        | Method::DatapathDeactivate
        | Method::DatapathDetach => unreachable!("it is of another interface"),
    }
}

fn of_datapath(method: Method, uri: Uri, request: &Request) -> Result<Value, Fault> {
    let domain = request.text("domain");
    match method {
        Method::DatapathActivate => datapath::activate(uri, domain, Mode::ReadWrite),
        Method::DatapathActivateReadonly => datapath::activate(uri, domain, Mode::ReadOnly),
        Method::DatapathDeactivate => datapath::deactivate(uri, domain),
        Method::DatapathDetach => Ok(datapath::detach(uri, domain)),
        _ => datapath::attach(uri),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_an_executable_says_which_plug_in_it_is_of() {
        let of = |path: &str| match Plugin::of(Path::new(path)) {
            Some(Plugin::Volume(driver)) => driver.executable,
            Some(Plugin::Datapath) => "datapath",
            None => "none",
        };
        for (path, expected) in [
            ("/x/volume/org.xen.xapi.storage.sm-file/SR.ls", "FileSR"),
            ("/x/volume/org.xen.xapi.storage.sm-largeblock/SR.ls", "LargeBlockSR"),
            ("/x/datapath/sm/Datapath.attach", "datapath"),
            ("/x/volume/org.xen.xapi.storage.file/SR.ls", "none"),
            ("/x/volume/org.xen.xapi.storage.sm-lvm/SR.ls", "none"),
            ("/x/volume/sm-file/SR.ls", "none"),
            ("SR.ls", "none"),
            ("", "none"),
        ] {
            assert_eq!(of(path), expected, "{path}");
        }
    }

    #[test]
    fn a_name_that_is_no_method_is_not_meant() {
        for name in ["sm", "FileSR", "SR.nothing", "Volume.copy", "/x/Data.mirror", ""] {
            assert!(serve(&[name.into()]).is_none(), "{name}");
        }
        assert!(serve(&[]).is_none());
    }
}
