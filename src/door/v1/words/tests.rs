use super::*;
use crate::door::v1::sm_command;

const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
const VDI: &str = "98de866e-b035-4b1a-a571-00000000000a";
const NIL: &str = "00000000-0000-0000-0000-000000000000";

/// The words of each line, `NEW` for a UUID that was chosen; `None` for a line that was not touched.
fn arranged(line: &str, default: Option<&str>) -> Option<Vec<String>> {
    let command = sm_command();
    let is_sr = |word: &str| word == "fast" || word == "slow";
    let redirected = || line.contains("--rescue").then_some(Format::Qcow2);
    let known = Known { is_sr: &is_sr, default_sr: default.map(str::to_owned), redirected: &redirected };
    let args: Vec<OsString> = std::iter::once("sm").chain(line.split(' ')).map(OsString::from).collect();
    let lines = lines(&command, args.clone(), &known);
    if lines.len() == 1 && lines[0].args == args {
        return None;
    }
    let shown = |line: &Line| {
        let mut words = line.args.iter().map(|word| word.to_str().unwrap().to_owned());
        let before: Vec<String> = words.by_ref().take_while(|word| word != "--").collect();
        // What the line had is told by the line.
        let option = before
            .last()
            .filter(|word| ["--label=", "--name=", "--type="].iter().any(|option| word.starts_with(option)));
        let option = option.filter(|word| !args.iter().any(|arg| arg == word.as_str())).cloned();
        let words = words.map(|word| if Some(&word) == line.made.as_ref() { "NEW".to_owned() } else { word });
        option.into_iter().chain(words).collect::<Vec<_>>().join(" ")
    };
    Some(lines.iter().map(shown).collect())
}

#[test]
fn a_line_of_the_api_is_not_touched() {
    for line in [
        format!("vdi_create -t file -d /a {SR} {VDI} 4"),
        format!("vdi_delete -t file -d /a {SR} {VDI}"),
        format!("sr_create {SR} 20GiB -t file -d /a"),
        "sr_create fast".to_owned(),
        "vdi_snapshot fast web slow/before".to_owned(),
        "sr_create cafe646b-b800-9500 -t file -d /a".to_owned(),
        "sr_create big -t file -d /a --name other".to_owned(),
        format!("vdi_create -t file -d /a {SR} web 4"),
        "vdi_create fast 98de866e 20G".to_owned(),
        format!("vdi_lock -tfile -d /a {SR} {VDI} FALSE -x"),
        "vdi_export fast web web.qcow2".to_owned(),
        "sr_scan fast".to_owned(),
        "vdi_fly x".to_owned(),
        "vdi_create fast --colour red".to_owned(),
        "vdi_create --help".to_owned(),
        "sr_probe -d /a".to_owned(),
        "vdi_delete fast".to_owned(),
        "sr_scan".to_owned(),
        "sr_delete -d /a".to_owned(),
        "sr_attach -t file -d /a".to_owned(),
        "vdi_tree fast".to_owned(),
        "vdi_tree fast web".to_owned(),
        "vdi_tree web".to_owned(),
        "vdi_lock fast web yes host1".to_owned(),
        "vdi_lock fast web FALSE".to_owned(),
        "vdi_lock web host1".to_owned(),
        "vdi_export fast web".to_owned(),
    ] {
        assert_eq!(arranged(&line, None), None, "{line}");
    }
}

#[test]
fn what_is_left_out_is_put_in() {
    for (line, default, lines) in [
        ("vdi_create fast 20G --label web", None, &["fast NEW 20G"][..]),
        ("vdi_create --label=web 20G", Some("fast"), &["fast NEW 20G"]),
        ("vdi_create slow 20G", Some("fast"), &["slow NEW 20G"]),
        ("vdi_clone fast web", None, &["fast web NEW"]),
        ("vdi_clone fast/web", None, &["fast web NEW"]),
        ("vdi_clone web", Some("fast"), &["fast web NEW"]),
        ("vdi_clone slow web", Some("fast"), &["slow web NEW"]),
        ("vdi_import fast a/b.raw", None, &["fast NEW a/b.raw"]),
        ("vdi_import a/b.raw", Some("fast"), &["fast NEW a/b.raw"]),
        ("vdi_export fast/web ./x.raw", None, &["fast web ./x.raw"]),
        ("vdi_export web x.raw", Some("fast"), &["fast web x.raw"]),
        ("vdi_resize fast/a/b +10G", None, &["fast a/b +10G"]),
        ("vdi_lock web TRUE -x", Some("fast"), &["fast web TRUE -x"]),
        ("vdi_attach fast/web", None, &["fast web"]),
        // Words are missing: the parser says which, and not those that are known.
        ("vdi_unlock fast/web", None, &["fast web"]),
        ("vdi_create fast/web", None, &["fast web"]),
        ("vdi_unlock web", Some("fast"), &["fast web"]),
        ("vdi_resize fast/web", None, &["fast web"]),
        ("vdi_export", Some("fast"), &["fast"]),
        ("vdi_delete", Some("fast"), &["fast"]),
        ("vdi_delete web db", Some("fast"), &["fast web", "fast db"]),
        ("vdi_delete slow web db", Some("fast"), &["slow web", "slow db"]),
        ("vdi_delete fast web db slow/x", None, &["fast web", "fast db", "fast slow/x"]),
        ("vdi_delete fast/web slow/web", None, &["fast web", "slow web"]),
        ("vdi_detach web", Some("fast"), &["fast web"]),
        ("vdi_set --read-only web", Some("fast"), &["fast web"]),
        ("vdi_set --read-only=false fast/web --shareable", None, &["fast web"]),
        ("vdi_snapshot web --label before", Some("fast"), &["fast web NEW"]),
        ("sr_scan", Some("fast"), &["fast"]),
        // The SR is the one that is there.
        ("sr_attach --name new -d /a", Some("fast"), &[NIL]),
        ("sr_attach --name new -t file -d /a", None, &[NIL]),
        ("sr_scan -d /a", None, &[NIL]),
        ("sr_scan -d /a", Some("fast"), &["fast"]),
        ("vdi_tree -d /a", None, &[NIL]),
        ("vdi_tree fast/web", None, &["fast web"]),
        ("vdi_tree web", Some("fast"), &["fast web"]),
        ("vdi_tree", Some("fast"), &["fast"]),
        // A lock is not taken from its holder unless the line says so.
        ("vdi_lock fast/web host1", None, &["fast web FALSE host1"]),
        ("vdi_lock fast web host1", None, &["fast web FALSE host1"]),
        ("vdi_unlock web host1", Some("fast"), &["fast web FALSE host1"]),
        ("vdi_unlock slow web host1", Some("fast"), &["slow web FALSE host1"]),
        ("vdi_lock fast/web yes host1", None, &["fast web yes host1"]),
        ("vdi_lock fast/web true", None, &["fast web true"]),
        // Standard output is a file of that format.
        ("vdi_export --rescue fast/web", None, &["--type=qcow2 fast web -"]),
        ("vdi_export --rescue web", Some("fast"), &["--type=qcow2 fast web -"]),
        ("vdi_export --rescue --type raw fast web", None, &["fast web -"]),
        ("vdi_export --rescue fast/web x.raw", None, &["fast web x.raw"]),
        ("vdi_export --rescue web x.raw", Some("fast"), &["fast web x.raw"]),
        ("sr_attach fast slow", None, &["fast", "slow"]),
        ("sr_create --name fast -t file -d /a", None, &["NEW"]),
        ("sr_create 20GiB -t file -d /a", None, &["NEW 20GiB"]),
        // A word for something new that is no UUID is what it is called.
        ("sr_create big -t file -d /a", None, &["--name=big NEW"]),
        ("sr_create big 20GiB -t file -d /a", None, &["--name=big NEW 20GiB"]),
        ("vdi_create fast web 20G", None, &["--label=web fast NEW 20G"]),
        ("vdi_create fast/web 20G", None, &["--label=web fast NEW 20G"]),
        ("vdi_create web 20G", Some("fast"), &["--label=web fast NEW 20G"]),
        ("vdi_create fast -- -x 20G", None, &["--label=-x fast NEW 20G"]),
        ("vdi_clone web copy", Some("fast"), &["--label=copy fast web NEW"]),
        ("vdi_snapshot fast/web before", None, &["--label=before fast web NEW"]),
        ("vdi_snapshot fast/web fast/before", None, &["--label=before fast web NEW"]),
        ("sr_create fast -t file -d /a", None, &["--name=fast NEW"]),
        ("vdi_import fast/new a/b.raw", None, &["--label=new fast NEW a/b.raw"]),
        ("vdi_copy fast/web slow", None, &["fast web slow NEW"]),
        ("vdi_copy fast/web slow/copy", None, &["--label=copy fast web slow NEW"]),
        ("vdi_copy fast web slow/copy", None, &["--label=copy fast web slow NEW"]),
        ("vdi_copy web slow/copy", Some("fast"), &["--label=copy fast web slow NEW"]),
        ("vdi_copy fast/web slow copy", None, &["--label=copy fast web slow NEW"]),
        // A UUID that lacks a digit, a second label, the name of an SR that is there.
        (
            "vdi_create fast/98de866e-b035-4b1a-a571-00000000000 20G",
            None,
            &["fast 98de866e-b035-4b1a-a571-00000000000 20G"],
        ),
        ("vdi_create fast/web 20G --label db", None, &["fast web 20G"]),
    ] {
        let found = arranged(line, default);
        // An option that the parser does not know leaves the line to the parser.
        if line.ends_with("-x") {
            assert_eq!(found, None, "{line}");
            continue;
        }
        assert_eq!(found.as_deref(), Some(&lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>()[..]), "{line}");
    }
}

#[test]
fn an_sr_is_no_disk_of_the_default_sr() {
    for line in ["vdi_tree slow", "vdi_tree fast", "vdi_export slow fast/web"] {
        assert_eq!(arranged(line, Some("fast")), None, "{line}");
    }
}
