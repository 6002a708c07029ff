//! What a slot is to a driver: the type of its SR and its device_config.

use super::{Layout, Slot, keys};
use crate::registry::candidate::Class;
use crate::registry::line;
use crate::sr::{DRIVERS, Driver};
use crate::types::DeviceConfig;

/// The driver of the SRs of a class.
pub fn driver(class: Class) -> &'static Driver {
    let found = DRIVERS.iter().find(|driver| driver.sr_type == class.word());
    found.expect("each class is named after its driver")
}

/// The keys that say where an SR of a class is, which a slot itself gives.
pub(super) fn given_by_slot(class: Class) -> &'static [&'static str] {
    match class {
        Class::Lvm => &["device"],
        Class::File => &["location"],
        Class::Nfs => &["server", "serverpath", "mountpoint", "options"],
    }
}

/// The keys that `CLASS_format` may have.
pub fn format_keys(class: Class) -> Vec<&'static str> {
    driver(class).keys().filter(|key| !given_by_slot(class).contains(key)).collect()
}

/// The device_config of the SR of a slot.
pub fn device_config(layout: &Layout, slot: &Slot) -> DeviceConfig {
    let class = slot.id.class;
    let mut config = DeviceConfig::default();
    let mut put = |key: &str, value: &str| drop(config.0.insert(key.to_owned(), value.to_owned()));
    // The values were read before.
    let formats = layout.options.get(&format!("{class}_format")).and_then(|text| line::fields(text).ok());
    formats.into_iter().flatten().for_each(|field| put(&field.key, &field.value));
    match class {
        Class::Lvm => put("device", &slot.devs()),
        Class::File => put("location", &slot.devs()),
        Class::Nfs => {
            put("server", layout.address(&slot.host).unwrap_or(&slot.host));
            put("serverpath", &slot.devs());
            let attach = layout.attaches.iter().find(|it| it.class == class);
            let of_line = |value: fn(&super::Attach) -> &str| attach.map(value).filter(|value| !value.is_empty());
            let of_class = |key: &str| layout.options.get(&format!("{class}_{key}"));
            let path = of_line(|it| &it.path).or_else(|| of_class(keys::ATTACH_PATH));
            if let Some(path) = path.or_else(|| layout.options.get(keys::ATTACH_PATH)) {
                put("mountpoint", &expanded(path, layout, slot));
            }
            let options = of_line(|it| &it.options).or_else(|| of_class(keys::ATTACH_OPTIONS));
            if let Some(options) = options.or_else(|| layout.options.get(keys::ATTACH_OPTIONS)) {
                put("options", options);
            }
        }
    }
    config
}

/// A path with what its variables stand for.
fn expanded(path: &str, layout: &Layout, slot: &Slot) -> String {
    let value = |name: &str| match name {
        "layout" => layout.name.to_string(),
        "class" => slot.id.class.to_string(),
        "index" => slot.id.index.to_string(),
        "uuid" => slot.uuid.to_string(),
        _ => slot.host.clone(),
    };
    // No variable is the beginning of another.
    keys::VARIABLES.iter().fold(path.to_owned(), |text, name| text.replace(&format!("${name}"), &value(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::installed::tests::sample;

    #[test]
    fn a_slot_has_the_keys_of_its_driver_and_no_others() {
        let mut layout = sample();
        layout.options.put(keys::find("nfs_attach_path").unwrap(), "/mnt/$layout/$class-$index/$host".to_owned());
        layout.options.put(keys::find("attach_path").unwrap(), "/else".to_owned());
        let shown = |at: usize| {
            let config = device_config(&layout, &layout.slots[at]).0;
            config.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(0), "allocation=thin device=/dev/disk/by-id/wwn-0x5000,/dev/disk/by-id/wwn-0x5001");
        assert_eq!(shown(1), "location=/srv/sr0");
        assert_eq!(
            shown(2),
            "mountpoint=/mnt/rack1/nfs-4/filer1 options=timeo=300 server=10.0.0.11 serverpath=/export/sr0"
        );
        for slot in &layout.slots {
            let known: Vec<&str> = driver(slot.id.class).keys().collect();
            assert!(device_config(&layout, slot).0.keys().all(|key| known.contains(&key.as_str())));
        }
        assert!(format_keys(Class::Lvm).contains(&"allocation") && !format_keys(Class::Lvm).contains(&"device"));
    }
}
