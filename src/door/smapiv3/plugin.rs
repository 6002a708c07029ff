//! What the two plug-ins say of themselves; SMAPIv3, "Versions, Plugin interface, features".

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::sr::SR_UUID;
use super::uri::{PREFIX, SCHEME};
use crate::datapath;
use crate::door::host::device;
use crate::door::smapiv1::{COPYRIGHT, VENDOR};
use crate::sr::Driver;
use crate::sys::tapdisk;

/// The version of the interface. xapi takes no other.
const API_VERSION: &str = "5.0";

/// The features that no file of a volume plug-in says by being there.
const FEATURES: &[&str] = &[
    "THIN_PROVISIONING",
    "VDI_ACTIVATE_READONLY",
    "VDI_ATTACH_OFFLINE",
    "VDI_CONFIG_CBT",
    "VDI_RESIZE_ONLINE",
    "VDI_REVERT",
];

fn query(
    plugin: &str,
    name: &str,
    description: &str,
    features: &[&str],
    configuration: &BTreeMap<&str, &str>,
) -> Value {
    json!({
        "plugin": plugin,
        "name": name,
        "description": description,
        "vendor": VENDOR,
        "copyright": COPYRIGHT,
        "version": env!("CARGO_PKG_VERSION"),
        "required_api_version": API_VERSION,
        "features": features,
        "configuration": configuration,
        "required_cluster_stack": [],
    })
}

/// Plugin.Query of a volume plug-in. Touches nothing.
pub fn of_volumes(driver: &Driver) -> Value {
    let features: Vec<&str> = FEATURES.iter().copied().filter(|feature| !device::missing(feature)).collect();
    let mut configuration: BTreeMap<&str, &str> = driver.about.configuration.iter().copied().collect();
    configuration.insert(SR_UUID, "the UUID of the SR; SR.create and SR.probe tell it");
    query(&format!("{PREFIX}{}", driver.sr_type), driver.about.name, driver.description, &features, &configuration)
}

/// Plugin.Query of the datapath plug-in. Touches nothing.
pub fn of_datapath() -> Value {
    query(SCHEME, VENDOR, "volumes as block devices of this host", &[], &BTreeMap::new())
}

/// Plugin.diagnostics: what this host serves now.
pub fn diagnostics() -> Value {
    let mut text = format!("xcp-storage-managers {}; blktap: {:?}\n", env!("CARGO_PKG_VERSION"), tapdisk::present());
    match datapath::all() {
        Err(error) => text.push_str(&crate::error::one_line(&error)),
        Ok(served) if served.is_empty() => text.push_str("no image is served\n"),
        Ok(served) => {
            for it in served {
                let status = datapath::status(&it).unwrap_or_else(|error| crate::error::one_line(&error));
                let _ =
                    writeln!(text, "{} {} process {}: {status}", it.device.display(), it.image.display(), it.server);
            }
        }
    }
    json!(text)
}
