use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::layout::model::tests::read;

const UUID: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";

/// A free disk of node1 of 100 bytes, called by its letter.
pub fn disk(letter: char) -> Offer {
    offer("node1", &letter.to_string(), &[&format!("/dev/sd{letter}"), &format!("/dev/disk/by-id/wwn-{letter}")])
}

fn offer(host: &str, identity: &str, names: &[&str]) -> Offer {
    Offer {
        candidate: Candidate {
            class: Class::Lvm,
            host: host.to_owned(),
            dev: names[0].to_owned(),
            size: Some(100),
            rest: BTreeMap::new(),
        },
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        identity: identity.to_owned(),
        standing: Standing::Free,
    }
}

fn matched_with(text: &str, offers: &[Offer], installed: Option<&Layout>, reading: Reading) -> Result<Matched> {
    let of_class = move |class| if class == Class::Lvm { reading } else { Reading::Unseen };
    let standing = |offer: &Offer| match offer.identity.as_str() {
        "file:/srv/taken" => Ok(Standing::Taken("claimed by rack2 file/0".to_owned())),
        _ => Ok(Standing::Free),
    };
    let around = Around { installed, uuid: UUID.parse().unwrap(), reading: &of_class, standing: &standing };
    matched(&read(text)?, offers, &around)
}

fn made(text: &str, offers: &[Offer]) -> Result<Matched> {
    matched_with(text, offers, None, Reading::Patterns)
}

/// Each slot as `class/index media`.
fn shown(matched: &Matched) -> Vec<String> {
    matched.layout.slots.iter().map(|slot| format!("{} {}", slot.id, slot.devs())).collect()
}

fn fault(text: &str, offers: &[Offer]) -> (&'static str, usize, String) {
    match made(text, offers) {
        Err(Error::NoMatch { line, what, .. }) => ("ENOMATCH", line, what),
        Err(Error::BadIndex { line, what, .. }) => ("EINDEX", line, what),
        Err(Error::BadLine { line, what, .. }) => ("EMODEL", line, what),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_pattern_over_three_disks_gives_the_indexes_that_are_left() {
    let disks: Vec<Offer> = "abcd".chars().map(disk).collect();
    let pattern = "layout: r\nlvm: host=node1 dev=/dev/disk/by-id/wwn-[abc]\n";
    assert_eq!(
        shown(&made(pattern, &disks).unwrap()),
        ["lvm/0 /dev/disk/by-id/wwn-a", "lvm/1 /dev/disk/by-id/wwn-b", "lvm/2 /dev/disk/by-id/wwn-c"]
    );
    let with_one = format!("{pattern}lvm: host=node1 dev=/dev/sdd index=1\n");
    let found = made(&with_one, &disks).unwrap();
    assert_eq!(
        shown(&found),
        [
            "lvm/0 /dev/disk/by-id/wwn-a",
            "lvm/1 /dev/disk/by-id/wwn-d",
            "lvm/2 /dev/disk/by-id/wwn-b",
            "lvm/3 /dev/disk/by-id/wwn-c"
        ]
    );
    let [second, third] = [1, 2].map(|index| SlotId { class: Class::Lvm, index });
    assert_eq!((found.lines[&second], found.lines[&third]), (3, 2));
    let [at, uuid] = [&found.layout.slots[2], &found.layout.slots[3]].map(|slot| slot.uuid);
    assert_eq!((at == third.sr(found.layout.uuid), at == uuid), (true, false));
}

#[test]
fn a_span_takes_all_that_fit_and_a_line_takes_nothing_twice() {
    let mut disks: Vec<Offer> = "abcd".chars().map(disk).collect();
    disks[2].candidate.size = Some(10);
    disks[3].candidate.rest.insert("tag".to_owned(), "fast".to_owned());
    let text = "layout: r\nlvm: host=node1 dev=.* tag=fast index=7\nlvm: host=node1 dev=/dev/.* size>=100 span=all\n\
                lvm: host=.* dev=.* active=no group=g uuid=87b8646b-b800-9500-cb7b-af3b74e02f5d\n";
    let found = made(text, &disks).unwrap();
    assert_eq!(
        shown(&found),
        [
            "lvm/0 /dev/disk/by-id/wwn-a,/dev/disk/by-id/wwn-b",
            "lvm/1 /dev/disk/by-id/wwn-c",
            "lvm/7 /dev/disk/by-id/wwn-d"
        ]
    );
    let [span, rest, tagged] = found.layout.slots.as_slice() else { panic!() };
    assert_eq!((span.size(), rest.size(), tagged.tag.as_str()), (Some(200), Some(10), "fast"));
    assert_eq!((rest.active, rest.group.as_str(), rest.tag.as_str()), (super::super::Active::No, "g", ""));
    assert_eq!(rest.uuid.to_string(), "87b8646b-b800-9500-cb7b-af3b74e02f5d");
}

#[test]
fn lists_are_compared_by_position_and_the_medium_may_have_more() {
    let mut disks = vec![disk('a'), offer("node2", "a", &["/dev/sdx"]), offer("node3", "a", &["/dev/sdx"])];
    disks[0].candidate.rest.insert("ha_host".to_owned(), "node2,node3".to_owned());
    let with = |list: &str| made(&format!("layout: r\nlvm: host=node1 dev=.* ha_host={list}\n"), &disks);
    for fits in ["node2", "node.", "node2,node[1-9]{1}"] {
        assert_eq!(with(fits).unwrap().layout.slots[0].ha_hosts, ["node2", "node3"], "{fits}");
    }
    for misses in ["node3", "node2,node2", "node2,node3,node4", "node"] {
        assert!(matches!(with(misses), Err(Error::NoMatch { .. })), "{misses}");
    }
    let unseen = [disks.remove(0)];
    assert_eq!(fault("layout: r\nlvm: host=node1 dev=.* ha_host=node2\n", &unseen).0, "EMODEL");
}

#[test]
fn each_fault_has_its_code_and_its_line() {
    let taken = Offer { standing: Standing::Taken("busy (swap)".to_owned()), ..disk('t') };
    let disks = [disk('a'), disk('b'), taken];
    let long = format!("lvm: host=node1 dev=/{}", "x".repeat(600));
    for (bad, code, what) in [
        (
            "lvm: host=node1 dev=.* index=1\nlvm: host=node1 dev=/dev/sdb index=1",
            "EINDEX",
            "used twice: by lines 2 and 3",
        ),
        ("lvm: host=node1 dev=.* index=65535", "EINDEX", "index 65535 of class lvm is out of range"),
        ("lvm: host=node1 dev=/dev/sd(", "EMODEL", "the pattern of dev is not valid"),
        (&long, "EMODEL", "512 are the most"),
        ("lvm: host=node2 dev=.*", "ENOMATCH", "/dev/sda comes nearest, and its host is node1"),
        ("lvm: host=node1 dev=/dev/sd", "ENOMATCH", "its dev is /dev/sda /dev/disk/by-id/wwn-a"),
        ("lvm: host=node1 dev=.* tag=x", "ENOMATCH", "it has no tag"),
        ("lvm: host=node1 dev=/dev/sd[a] size>=101", "ENOMATCH", "its size is 100 bytes"),
        ("lvm: host=node1 dev=/dev/sd[a] size<=99", "ENOMATCH", "its size is 100 bytes"),
        ("lvm: host=node1 dev=/dev/sdt", "ENOMATCH", "/dev/sdt fits, and is busy (swap)"),
        ("lvm: host=node1 dev=.*\nlvm: host=node1 dev=.*", "ENOMATCH", "/dev/sdt fits, and is busy"),
        ("nfs: host=f dev=/e", "EMODEL", "no address for f, check addr lines"),
        ("file: host=n dev=srv", "EMODEL", "no absolute path"),
        ("file: host=n dev=/srv/taken", "ENOMATCH", "claimed by rack2 file/0"),
        ("file: host=n dev=/srv/a\nfile: host=n dev=/srv//a/", "ENOMATCH", "line 2 has /srv/a already"),
        ("file: host=n dev=/srv/a size>=1", "EMODEL", "taken as it is"),
        ("file: host=n dev=/srv/$index", "EMODEL", "nothing stands for anything else"),
        ("attach: host=n class=nfs", "EMODEL", "no SR of class nfs to attach"),
        ("gateway: host=n fabric=iscsi", "EMODEL", "there is none"),
        ("file: host=n dev=/srv publish=yes", "EMODEL", "publish=yes needs a gateway"),
    ] {
        let (found, line, said) = fault(&format!("layout: r\n{bad}\n"), &disks);
        assert_eq!((found, line), (code, bad.lines().count() + 1), "{bad}: {said}");
        assert!(said.contains(what), "{bad}: {said}");
    }
    let none = fault("layout: r\nlvm: host=node1 dev=.*\n", &[]);
    assert!(none.2.contains("no medium of class lvm"), "{none:?}");
}

#[test]
fn an_external_line_has_an_index_and_no_medium_is_asked_for() {
    let found =
        made("layout: r\nlvm: host=node9 dev=/dev/x mode=external\nlvm: host=node1 dev=/dev/sda\n", &[disk('a')]);
    let found = found.unwrap();
    assert_eq!(shown(&found), ["lvm/0 /dev/x", "lvm/1 /dev/disk/by-id/wwn-a"]);
    assert_eq!((found.layout.slots[0].mode, found.layout.slots[1].mode), (Mode::External, Mode::Managed));
}

#[test]
fn a_line_without_a_host_takes_media_of_this_host_alone() {
    // Models are read on node.1 here, which is no pattern.
    let named = |host: &str, letter: char| offer(host, &letter.to_string(), &[&format!("/dev/sd{letter}")]);
    let offers = [named("node.1", 'a'), named("nodex1", 'b'), named("node.1", 'c')];
    let found = made("layout: r\nlvm: dev=/dev/.*\n", &offers).unwrap();
    assert_eq!(shown(&found), ["lvm/0 /dev/sda", "lvm/1 /dev/sdc"]);
    let any = made("layout: r\nlvm: host=node.1 dev=/dev/.*\n", &offers).unwrap();
    assert_eq!(any.layout.slots.len(), 3);
    let file = made("layout: r\nfile: dev=/srv/a\n", &[]).unwrap();
    assert_eq!(file.layout.slots[0].host, "node.1");
}

#[test]
fn without_an_inventory_values_are_what_they_say() {
    let literal = |text: &str| matched_with(&format!("layout: r\n{text}\n"), &[disk('a')], None, Reading::Literal);
    assert_eq!(shown(&literal("lvm: host=node1 dev=/dev/sda").unwrap()), ["lvm/0 /dev/disk/by-id/wwn-a"]);
    assert!(matches!(literal("lvm: host=node1 dev=/dev/sd."), Err(Error::NoMatch { .. })));
    let nfs = literal("addr: host=f addr=10.0.0.1\nnfs: host=f dev=/e[0-1]/ index=[4-5] tag=x").unwrap();
    assert_eq!(shown(&nfs), ["nfs/4 /e0", "nfs/5 /e1"]);
    let slot = &nfs.layout.slots[1];
    assert_eq!((slot.media[0].identity.as_str(), slot.tag.as_str()), ("nfs:10.0.0.1:/e1", "x"));
}

/// The offers after a layout was applied.
fn applied(offers: &[Offer], layout: &Layout) -> Vec<Offer> {
    let of = |offer: &Offer| {
        let slot = layout.slots.iter().find(|slot| slot.media.iter().any(|it| it.identity == offer.identity));
        let standing = slot.map_or_else(|| offer.standing.clone(), |slot| Standing::Ours(slot.id));
        Offer { standing, ..offer.clone() }
    };
    offers.iter().map(of).collect()
}

#[test]
fn an_installed_slot_keeps_its_index_and_its_name_and_one_that_goes_takes_its_index_along() {
    let text = "layout: r\nlvm: host=node1 dev=/dev/sd.\n";
    let first = made(text, &[disk('b'), disk('c')]).unwrap().layout;
    let mut offers = applied(&[disk('a'), disk('b'), disk('c')], &first);
    let again = matched_with(text, &offers, Some(&first), Reading::Patterns).unwrap();
    assert_eq!(
        shown(&again),
        ["lvm/0 /dev/disk/by-id/wwn-b", "lvm/1 /dev/disk/by-id/wwn-c", "lvm/2 /dev/disk/by-id/wwn-a"]
    );
    // The kernel gives it another name, and another name comes up.
    offers[1].names = vec!["/dev/disk/by-id/a".to_owned(), "/dev/sdz".to_owned(), "/dev/disk/by-id/wwn-b".to_owned()];
    let by_id = "layout: r\nlvm: host=node1 dev=.*\n";
    let renamed = matched_with(by_id, &offers, Some(&first), Reading::Patterns).unwrap();
    assert_eq!(shown(&renamed)[0], "lvm/0 /dev/disk/by-id/wwn-b");
    // b is not there and c fits no more: a is neither of them.
    let narrow = "layout: r\nlvm: host=node1 dev=/dev/sda\n";
    assert_eq!(
        shown(&matched_with(narrow, &offers, Some(&first), Reading::Patterns).unwrap()),
        ["lvm/2 /dev/disk/by-id/wwn-a"]
    );
    // An index that a line says goes to the medium that has it.
    let said = "layout: r\nlvm: host=node1 dev=/dev/sd[abc] index=1\n";
    let kept =
        matched_with(said, &applied(&[disk('a'), disk('b'), disk('c')], &first), Some(&first), Reading::Patterns);
    assert_eq!(
        shown(&kept.unwrap()),
        ["lvm/0 /dev/disk/by-id/wwn-b", "lvm/1 /dev/disk/by-id/wwn-c", "lvm/2 /dev/disk/by-id/wwn-a"]
    );
    let moved = "layout: r\nlvm: host=node1 dev=/dev/disk/by-id/wwn-b index=5\n";
    let moved = matched_with(moved, &offers, Some(&first), Reading::Patterns).unwrap_err().to_string();
    assert!(moved.contains("is lvm/0 already and keeps that index"), "{moved}");
}

#[test]
fn a_marked_medium_gets_its_index_back_and_no_other_line_may_have_it() {
    let at = |index| SlotId { class: Class::Lvm, index };
    let marked = Offer { standing: Standing::Adoptable(at(3)), ..disk('a') };
    let offers = [disk('b'), marked];
    let found = made("layout: r\nlvm: host=node1 dev=.*\n", &offers).unwrap();
    assert_eq!(shown(&found), ["lvm/0 /dev/disk/by-id/wwn-b", "lvm/3 /dev/disk/by-id/wwn-a"]);
    assert_eq!(found.adoptable, BTreeSet::from([at(3)]));
    let fixed = "layout: r\nlvm: host=node1 dev=/dev/sda\nlvm: host=node1 dev=/dev/sdb index=3\n";
    let (code, line, said) = fault(fixed, &offers);
    assert_eq!((code, line), ("EINDEX", 2), "{said}");
    assert!(said.contains("line 3 gives that index to another"), "{said}");
    let (code, line, said) = fault("layout: r\nlvm: host=node1 dev=/dev/sda index=0\n", &offers);
    assert_eq!((code, line), ("EINDEX", 2), "{said}");
}

proptest! {
    #[test]
    fn any_order_of_the_media_gives_the_same_layout(
        order in Just("abcdefgh".chars().collect::<Vec<_>>()).prop_shuffle(),
        order_before in Just("cdefg".chars().collect::<Vec<_>>()).prop_shuffle(),
        index in 0u16..9, span in any::<bool>(),
    ) {
        let span = if span { "all" } else { "each" };
        let text = format!(
            "layout: r\nlvm: host=node1 dev=/dev/sd[ef] index={index} span={span}\nlvm: host=node1 dev=.*-[a-d]\n\
             lvm: host=node1 dev=.*\nfile: host=node1 dev=/srv/[0-3]\n"
        );
        let sorted: Vec<Offer> = "abcdefgh".chars().map(disk).collect();
        let shuffled: Vec<Offer> = order.iter().map(|letter| disk(*letter)).collect();
        prop_assert_eq!(made(&text, &shuffled).unwrap(), made(&text, &sorted).unwrap());
        // So does an update.
        let before: Vec<Offer> = order_before.iter().map(|letter| disk(*letter)).collect();
        let installed = made("layout: r\nlvm: host=node1 dev=.*\n", &before).unwrap().layout;
        let update = |offers: &[Offer]| {
            let model = "layout: r\nlvm: host=node1 dev=/dev/sd[bf]\nlvm: host=node1 dev=.*\n";
            matched_with(model, &applied(offers, &installed), Some(&installed), Reading::Patterns).unwrap()
        };
        let (one, other) = (update(&shuffled), update(&sorted));
        prop_assert_eq!(&one, &other);
        for slot in &installed.slots {
            prop_assert_eq!(&one.layout.slot(slot.id).unwrap().media, &slot.media);
        }
    }
}
