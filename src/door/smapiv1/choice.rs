//! What a client may choose from, as documents for the third parameter of a fault; SMAPIv1, "XML documents".

use super::faults::Failure;
use crate::door::xmlrpc;
use crate::error::{Error, Exported, NotChosen, Offered, OfferedAdapter, OfferedLun, OfferedTarget};

/// The port that a list of targets leaves out.
const USUAL_PORT: u16 = 3260;

/// The document of a failure that has something to choose from. `None` for any other failure.
pub fn document(failure: &Failure) -> Option<String> {
    let (root, members) = match failure {
        Failure::Driver(Error::ExportNotChosen { server, exports }) => ("nfs-exports", nfs(server, exports)),
        Failure::Driver(Error::NotChosen(choice)) => {
            let NotChosen { offered, .. } = choice.as_ref();
            match offered {
                Offered::Targets { found, asked, port } => ("iscsi-target-iqns", targets(found, asked, *port)),
                Offered::Luns(luns) => ("iscsi-target", luns.iter().map(lun).collect()),
                Offered::Disks { luns, adapters } => {
                    ("Devlist", luns.iter().map(disk).chain(adapters.iter().map(adapter)).collect())
                }
            }
        }
        _ => return None,
    };
    Some(match members.is_empty() {
        true => format!("<?xml version=\"1.0\" ?>\n<{root}/>\n"),
        false => format!("<?xml version=\"1.0\" ?>\n<{root}>\n{members}</{root}>\n"),
    })
}

/// One element with members. A member without text is left out.
fn element(tag: &str, members: &[(&str, String)], inner: &str) -> String {
    let members = members.iter().filter(|(_, text)| !text.is_empty());
    let members: String =
        members.map(|(tag, text)| format!("\t\t<{tag}>{}</{tag}>\n", xmlrpc::escaped(text))).collect();
    format!("\t<{tag}>\n{members}{inner}\t</{tag}>\n")
}

fn nfs(server: &str, exports: &[Exported]) -> String {
    let one = |export: &Exported| {
        let members =
            [("Target", server.to_owned()), ("Path", export.path.clone()), ("Accesslist", export.access.clone())];
        element("Export", &members, "")
    };
    exports.iter().map(one).collect()
}

/// The targets, and last of all the one that stands for all of them.
fn targets(found: &[OfferedTarget], asked: &str, port: u16) -> String {
    let all = OfferedTarget { address: asked.to_owned(), port, iqn: "*".to_owned() };
    let one = |(index, target): (usize, &OfferedTarget)| {
        let port = if target.port == USUAL_PORT { String::new() } else { target.port.to_string() };
        let members = [
            ("Index", index.to_string()),
            ("IPAddress", target.address.clone()),
            ("Port", port),
            ("TargetIQN", target.iqn.clone()),
        ];
        element("TGT", &members, "")
    };
    found.iter().chain([&all]).enumerate().map(one).collect()
}

fn lun(lun: &OfferedLun) -> String {
    let members = [
        ("vendor", lun.vendor.clone()),
        ("serial", lun.serial.clone()),
        ("LUNid", lun.lun.to_string()),
        ("size", lun.size.to_string()),
        ("SCSIid", lun.scsi_id.clone()),
    ];
    element("LUN", &members, "")
}

/// A LUN of an adapter; its further paths stand in brackets.
fn disk(lun: &OfferedLun) -> String {
    let (first, more) = lun.paths.split_first().map_or(("", &[][..]), |(first, more)| (first.as_str(), more));
    let more = if more.is_empty() { String::new() } else { format!(" [{}]", more.join(" ").replace("/dev/", "")) };
    let (host, channel, id) = lun.at;
    let members = [
        ("path", format!("{first}{more}")),
        ("numpaths", lun.paths.len().to_string()),
        ("SCSIid", lun.scsi_id.clone()),
        ("vendor", lun.vendor.clone()),
        ("serial", lun.serial.clone()),
        ("size", lun.size.to_string()),
        ("adapter", host.to_string()),
        ("channel", channel.to_string()),
        ("id", id.to_string()),
        ("lun", lun.lun.to_string()),
        ("hba", lun.driver.clone()),
    ];
    element("BlockDevice", &members, "")
}

fn adapter(adapter: &OfferedAdapter) -> String {
    let members = adapter.fc.iter().filter(|(_, text)| !text.is_empty());
    let fc: String = members.map(|(tag, text)| format!("\t\t\t<{tag}>{}</{tag}>\n", xmlrpc::escaped(text))).collect();
    let inner = if fc.is_empty() { String::new() } else { format!("\t\t<fc_host>\n{fc}\t\t</fc_host>\n") };
    element("Adapter", &adapter.members, &inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::smapiv1::code::Code;

    fn of(key: &'static str, offered: Offered) -> String {
        document(&Error::NotChosen(Box::new(NotChosen { key, wrong: None, offered })).into()).unwrap()
    }

    #[test]
    fn what_may_be_chosen_is_a_document() {
        let exports = vec![Exported { path: "/a<&>".to_owned(), access: "10.0.0.0/8".to_owned() }];
        let failure = Error::ExportNotChosen { server: "filer".to_owned(), exports }.into();
        let document = document(&failure).unwrap();
        assert!(document.contains("<Target>filer</Target>\n\t\t<Path>/a&lt;&amp;&gt;</Path>"), "{document}");
        assert_eq!(super::document(&Failure::new(Code::BadRequest, "no")), None);
    }

    /// As the Python driver of XCP-ng 8.3 prints it.
    #[test]
    fn the_targets_end_with_the_one_that_stands_for_all() {
        let iqn = "iqn.2003-01.org.example:t1".to_owned();
        let found = vec![OfferedTarget { address: "10.1.0.1".to_owned(), port: 3260, iqn }];
        assert_eq!(
            of("targetIQN", Offered::Targets { found, asked: "10.1.0.1".to_owned(), port: 3260 }),
            "<?xml version=\"1.0\" ?>\n<iscsi-target-iqns>\n\t<TGT>\n\t\t<Index>0</Index>\n\t\t<IPAddress>10.1.0.1</IPAddress>\n\
             \t\t<TargetIQN>iqn.2003-01.org.example:t1</TargetIQN>\n\t</TGT>\n\t<TGT>\n\t\t<Index>1</Index>\n\
             \t\t<IPAddress>10.1.0.1</IPAddress>\n\t\t<TargetIQN>*</TargetIQN>\n\t</TGT>\n</iscsi-target-iqns>\n"
        );
        let other = of("targetIQN", Offered::Targets { found: Vec::new(), asked: "a,b".to_owned(), port: 860 });
        assert!(other.contains("<IPAddress>a,b</IPAddress>\n\t\t<Port>860</Port>\n\t\t<TargetIQN>*"), "{other}");
    }

    #[test]
    fn a_lun_leaves_out_what_it_has_not() {
        let lun = OfferedLun {
            scsi_id: "3600".to_owned(),
            vendor: "LIO-ORG".to_owned(),
            size: 314_572_800,
            paths: vec!["/dev/sda".to_owned(), "/dev/sdb".to_owned()],
            at: (2, 0, 1),
            driver: "qla2xxx".to_owned(),
            ..OfferedLun::default()
        };
        assert_eq!(
            of("SCSIid", Offered::Luns(vec![lun.clone()])),
            "<?xml version=\"1.0\" ?>\n<iscsi-target>\n\t<LUN>\n\t\t<vendor>LIO-ORG</vendor>\n\t\t<LUNid>0</LUNid>\n\
             \t\t<size>314572800</size>\n\t\t<SCSIid>3600</SCSIid>\n\t</LUN>\n</iscsi-target>\n"
        );
        assert_eq!(of("SCSIid", Offered::Luns(Vec::new())), "<?xml version=\"1.0\" ?>\n<iscsi-target/>\n");
        let adapter = OfferedAdapter {
            members: vec![("host", "host2".to_owned()), ("name", "qla2xxx".to_owned())],
            fc: vec![("port_state", "Online".to_owned()), ("speed", String::new())],
        };
        let list = of("SCSIid", Offered::Disks { luns: vec![lun], adapters: vec![adapter] });
        assert!(list.contains("<path>/dev/sda [sdb]</path>\n\t\t<numpaths>2</numpaths>"), "{list}");
        assert!(list.contains("<name>qla2xxx</name>\n\t\t<fc_host>\n\t\t\t<port_state>Online</port_state>\n\t\t</fc_host>\n\t</Adapter>"), "{list}");
    }
}
