use super::*;
use crate::layout::installed::tests::sample;
use crate::layout::{Active, keys};

type Change = fn(&mut Layout);

fn lvm(layout: &mut Layout) -> &mut Slot {
    &mut layout.slots[0]
}

fn nfs(layout: &mut Layout) -> &mut Slot {
    &mut layout.slots[2]
}

fn option(layout: &mut Layout, key: &str, value: &str) {
    layout.options.put(keys::find(key).unwrap(), value.to_owned());
}

/// Each action with its object and, after a `!`, what has to be allowed.
fn shown(changes: &Changes) -> String {
    let one = |(action, object, allow): (Action, &Object, Option<Allow>)| {
        let object = match object {
            Object::Whole => String::new(),
            Object::Slot(id) => format!(" {id}"),
            Object::Attached { slot, host, .. } => format!(" {slot}@{host}"),
            Object::Gateway(host) => format!(" {host}"),
        };
        format!("{action}{object}{}", allow.map(|allow| format!("!{}", allow.word())).unwrap_or_default())
    };
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The layout without gateways, which are refused when a plan is made.
fn base() -> Layout {
    let mut layout = sample();
    layout.slots.truncate(4);
    layout
}

fn after(change: Change) -> Result<Changes> {
    let mut new = base();
    change(&mut new);
    compare(Some(&base()), &new, &BTreeSet::new())
}

#[test]
fn each_change_has_its_actions() {
    let cases: &[(Change, &str)] = &[
        (|_| {}, ""),
        // Data would be lost.
        (|it| option(it, "lvm_format", "allocation=thick"), "copyconf, reformat lvm/0!reformat"),
        (|it| option(it, "file_format_args", "-x"), "copyconf, reformat file/0!reformat"),
        (|it| option(it, "nfs_format", "a=b"), "copyconf, reformat nfs/4!reformat, reformat nfs/5!reformat"),
        // Properties.
        (|it| option(it, "lvm_alloc", "cling"), "copyconf, retune lvm/0!retune"),
        (|it| option(it, "lvm_tags", "a"), "copyconf, retune lvm/0!retune"),
        (|it| option(it, "file_reserve", "1"), "copyconf, retune file/0!retune"),
        (
            |it| option(it, "limit", "1"),
            "copyconf, retune lvm/0!retune, retune file/0!retune, retune nfs/4!retune, retune nfs/5!retune",
        ),
        // Addresses of a host with slots, and of one without.
        (|it| it.addresses[0].address = "10.0.0.99".to_owned(), "copyconf, rewire nfs/4!rewire, rewire nfs/5!rewire"),
        (|it| it.addresses[1].address = "10.0.0.99".to_owned(), "copyconf"),
        (|it| option(it, "description", "other"), "copyconf"),
        (|it| lvm(it).tag = "slow".to_owned(), "copyconf"),
        (|it| lvm(it).group = "g".to_owned(), "copyconf"),
        // How hosts attach.
        (
            |it| option(it, "attach_path", "/mnt"),
            "detach nfs/4@node1, detach nfs/5@node1, copyconf, attach nfs/4@node1, attach nfs/5@node1",
        ),
        (
            |it| option(it, "attach_options", "ro"),
            "detach nfs/4@node1, detach nfs/5@node1, copyconf, attach nfs/4@node1, attach nfs/5@node1",
        ),
        (
            |it| option(it, "subdir", "x"),
            "detach nfs/4@node1, detach nfs/5@node1, copyconf, attach nfs/4@node1, attach nfs/5@node1",
        ),
        (|it| option(it, "nfs_attach_path", "/mnt"), "copyconf, restart nfs/4!restart, restart nfs/5!restart"),
        (|it| option(it, "lvm_attach_options", "x"), "copyconf, restart lvm/0!restart"),
        (|it| it.attaches.clear(), "detach nfs/4@node1, detach nfs/5@node1, copyconf"),
        (
            |it| {
                let attach = Attach { host: "node2".to_owned(), ..it.attaches[0].clone() };
                it.attaches.push(attach);
            },
            "copyconf, attach nfs/4@node2, attach nfs/5@node2",
        ),
        (
            |it| it.attaches[0].options = "ro".to_owned(),
            "detach nfs/4@node1, detach nfs/5@node1, copyconf, attach nfs/4@node1, attach nfs/5@node1",
        ),
        // Gateways.
        (|it| it.gateways.clear(), "copyconf, unpublish node1"),
        (
            |it| it.gateways.push(Gateway { host: "node2".to_owned(), fabric: "fc".to_owned() }),
            "copyconf, publish node2",
        ),
        // Slots that go and come.
        (|it| drop(it.slots.remove(0)), "stop lvm/0, copyconf, rewire lvm/0, remove lvm/0"),
        (|it| drop(it.slots.remove(2)), "detach nfs/4@node1, copyconf, rewire nfs/4, remove nfs/4"),
        (
            |it| {
                let mut slot = it.slots[0].clone();
                slot.id.index = 1;
                it.slots.insert(1, slot);
            },
            "copyconf, create lvm/1, start lvm/1",
        ),
        (
            |it| {
                let mut slot = it.slots[3].clone();
                slot.id.index = 9;
                it.slots.push(slot);
            },
            "copyconf, create nfs/9, attach nfs/9@node1",
        ),
        (
            |it| {
                let mut slot = it.slots[0].clone();
                (slot.id.index, slot.active) = (1, Active::Manual);
                it.slots.insert(1, slot);
            },
            "copyconf, create lvm/1",
        ),
        (
            |it| {
                let mut slot = it.slots[0].clone();
                (slot.id.index, slot.mode) = (1, Mode::External);
                it.slots.insert(1, slot);
            },
            "copyconf",
        ),
        // Where a slot is.
        (|it| lvm(it).host = "node2".to_owned(), "stop lvm/0, copyconf, rewire lvm/0, start lvm/0"),
        (|it| lvm(it).ha_hosts = vec!["node2".to_owned()], "stop lvm/0, copyconf, rewire lvm/0, start lvm/0"),
        (|it| lvm(it).network = "san".to_owned(), "stop lvm/0, copyconf, rewire lvm/0, start lvm/0"),
        (|it| lvm(it).media[0].dev = "/dev/mapper/a".to_owned(), "stop lvm/0, copyconf, start lvm/0"),
        (|it| nfs(it).host = "filer2".to_owned(), "detach nfs/4@node1, copyconf, rewire nfs/4, attach nfs/4@node1"),
        (|it| nfs(it).media[0].dev = "/other".to_owned(), "detach nfs/4@node1, copyconf, attach nfs/4@node1"),
        (|it| lvm(it).active = Active::No, "copyconf, tune lvm/0"),
        (|it| lvm(it).media[1].size = Some(2 << 30), "copyconf, grow lvm/0"),
    ];
    for (change, wanted) in cases {
        let changes = after(*change).unwrap();
        assert_eq!(shown(&changes), *wanted);
        assert_eq!(changes.is_empty(), wanted.is_empty());
    }
}

#[test]
fn what_cannot_be_changed_is_refused() {
    let cases: &[(Change, &str)] = &[
        (|it| it.name = "rack2".parse().unwrap(), "its name stays"),
        (|it| it.uuid = crate::types::LayoutUuid::random(), "its UUID is 87b8646b"),
        (|it| it.gateways[0].fabric = "fc".to_owned(), "the gateway node1 cannot be changed"),
        (|it| lvm(it).jdev = "/dev/x".to_owned(), "jdev of lvm/0"),
        (|it| lvm(it).fs = "xfs".to_owned(), "fs of lvm/0"),
        (|it| lvm(it).uuid = crate::types::SrUuid::random(), "uuid of lvm/0"),
        (|it| lvm(it).mode = Mode::External, "mode of lvm/0"),
        (|it| lvm(it).media[0].size = Some(1), "had 1GiB and has 1 bytes now"),
    ];
    for (change, wanted) in cases {
        match after(*change) {
            Err(error @ Error::Frozen { .. }) => assert!(error.to_string().contains(wanted), "{error}"),
            other => panic!("{wanted}: {other:?}"),
        }
    }
}

#[test]
fn another_medium_is_no_other_path_of_the_same() {
    let change: Change =
        |it| lvm(it).media[0] = Medium { dev: "/dev/x".to_owned(), identity: "x".to_owned(), size: None };
    assert!(matches!(after(change), Err(Error::NoDevice { .. })));
    let one_more: Change = |it| {
        let medium = Medium { dev: "/dev/x".to_owned(), identity: "x".to_owned(), size: None };
        lvm(it).media.push(medium);
    };
    assert!(matches!(after(one_more), Err(Error::NoDevice { .. })));
    // It has the mark of the slot.
    let mut new = base();
    change(&mut new);
    let marked = BTreeSet::from([new.slots[0].id]);
    let changes = compare(Some(&base()), &new, &marked).unwrap();
    assert_eq!(shown(&changes), "stop lvm/0, copyconf, start lvm/0");
}

#[test]
fn a_first_layout_is_made_and_marked_media_are_adopted() {
    let new = base();
    let changes = compare(None, &new, &BTreeSet::from([new.slots[0].id])).unwrap();
    assert_eq!(
        shown(&changes),
        "copyconf, create file/0, create nfs/4, create nfs/5, adopt lvm/0, start lvm/0, start file/0, attach nfs/4@node1, \
         attach nfs/5@node1, publish node1"
    );
    assert_eq!(changes.actions().len(), 6);
}
