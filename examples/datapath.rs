//! Serves images by hand: what `vdi_attach` does, without an SR around it. Tests and benchmarks use it.
//!
//!     datapath create IMAGE BYTES [PARENT]     a VHD
//!     datapath attach IMAGE [ro]               prints the device
//!     datapath list | status IMAGE | detach IMAGE
//!     datapath pause IMAGE                     until its stdin ends

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for tests: its answer is its output")]

use std::path::Path;
use std::process::ExitCode;

use xcp_sm::datapath::{self, Source};
use xcp_sm::error::one_line;
use xcp_sm::image::vhd;
use xcp_sm::sys::loopdev::Detached;
use xcp_sm::types::{Format, Mode};
use xcp_sm::{Error, Result};

fn main() -> ExitCode {
    if let Some(status) = datapath::main() {
        return status;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<String> {
    let attached = |image: &str| {
        datapath::find(Path::new(image))?
            .ok_or_else(|| Error::NoDevice { device: image.to_owned(), why: "it is not attached".to_owned() })
    };
    match args {
        ["create", image, size, parent @ ..] => create(Path::new(image), size, parent.first()).map(|()| String::new()),
        ["attach", image, mode @ ..] => {
            let format = if image.ends_with(".qcow2") { Format::Qcow2 } else { Format::Vhd };
            let source = Source { format, path: image.into(), read_only: mode.first() == Some(&"ro"), shared: false };
            Ok(datapath::attach(&source, None, soon())?.display().to_string())
        }
        ["list"] => Ok(datapath::all()?
            .iter()
            .map(|a| format!("{} {} {} {}", a.device.display(), a.server, a.healthy, a.image.display()))
            .collect::<Vec<_>>()
            .join("\n")),
        ["status", image] => datapath::status(&attached(image)?),
        ["detach", image] => match datapath::detach(Path::new(image), soon())? {
            Detached::Done(_) => Ok(String::new()),
            Detached::Busy(holder) => Err(Error::DeviceInUse { device: (*image).to_owned(), holder }),
        },
        ["pause", image] => {
            let paused = datapath::pause(Path::new(image), soon())?;
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            match paused {
                Some(paused) => Ok(paused.resume()?.to_string()),
                None => Ok(String::new()),
            }
        }
        _ => Err(Error::Usage("see the top of examples/datapath.rs".to_owned())),
    }
}

fn create(image: &Path, size: &str, parent: Option<&&str>) -> Result<()> {
    let size = size.parse().map_err(|_| Error::Usage(format!("{size} is no number of bytes")))?;
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(image);
    let place = vhd::FileStorage::new(file.map_err(Error::io("create", image))?, image)?;
    let new = vhd::NewImage::new(size);
    match parent {
        None => vhd::create(&place, &new)?,
        Some(parent) => {
            let parent = Path::new(parent);
            let info = vhd::query(&vhd::FileStorage::open(parent, Mode::ReadOnly)?)?;
            // The parent lies beside its child, as in an SR.
            let name = parent.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let link = vhd::ParentLink::beside(name, Some(info.uuid), 0);
            vhd::create_child(&place, &new, &link)?
        }
    };
    Ok(())
}

fn soon() -> std::time::Instant {
    std::time::Instant::now() + std::time::Duration::from_secs(60)
}
