//! `sm target` where nothing is published: what is refused before the kernel is asked, and the answers of an empty host.

use assert_cmd::Command;
use tempfile::TempDir;

const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";

fn sm(scratch: &TempDir, line: &str) -> Command {
    let mut command = Command::cargo_bin("sm").expect("sm is built");
    command.env("XCP_SM_RUN_DIR", scratch.path().join("run")).args(line.split(' '));
    command
}

fn scene() -> TempDir {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    std::fs::create_dir(scratch.path().join("run")).expect("it is empty");
    let sr = scratch.path().join("sr").display().to_string();
    sm(&scratch, &format!("sr_create --name fast -t file -d {sr} {SR}")).assert().success();
    sm(&scratch, "vdi_create fast 1M --type raw --label web").assert().success();
    scratch
}

#[test]
fn a_host_that_publishes_nothing_says_so() {
    let scratch = scene();
    sm(&scratch, "target list --format json")
        .assert()
        .success()
        .stdout("{\"schema\":1,\"publications\":[],\"problems\":[]}\n");
    sm(&scratch, "target check --format table").assert().success().stdout("");
    let shown = sm(&scratch, "target show fast/web").assert().code(22);
    let said = String::from_utf8(shown.get_output().stderr.clone()).unwrap();
    assert!(said.contains("is not published by this host"), "{said}");
}

#[test]
fn a_line_that_cannot_be_meant_changes_nothing() {
    let scratch = scene();
    let me = "iqn.2003-01.org.example:host1";
    let host = "nqn.2014-08.org.nvmexpress:uuid:98de866e-b035-4b1a-a571-613bff542b89";
    let secrets = scratch.path().join("secrets");
    std::fs::write(&secrets, "userid=host1\npassword=hunter2-hunter2\n").unwrap();
    let auth = secrets.display();
    for (line, status, words) in [
        ("target publish fast/web --to host1 --portal 127.0.0.1 --no-auth".to_owned(), 22, "iSCSI name"),
        (format!("target publish fast/web --to {me} --no-auth"), 22, "the address is missing"),
        (format!("target publish fast/web --to {me} --portal nowhere --no-auth"), 22, "portal"),
        (format!("target publish fast/web --to {me} --portal 0.0.0.0 --no-auth"), 22, "portal"),
        (format!("target publish fast/web --to {me} --portal 127.0.0.1 --auth {auth}"), 22, "chmod 600"),
        (format!("target publish fast/web --to {me} --fabric loopback"), 22, "--to is of the fabrics between hosts"),
        (format!("target publish fast/web --to {me} --fabric nvme-tcp --portal 127.0.0.1 --no-auth"), 22, "NVMe name"),
        (format!("target publish fast/web --to {host} --portal 127.0.0.1 --no-auth"), 22, "iSCSI name"),
        (format!("target publish fast/web --to {host} --fabric nvme-tcp --portal 127.0.0.1"), 22, "--no-auth"),
        (format!("target publish fast/web --to {host} --fabric nvme-tcp --auth {auth}"), 22, "has no secrets"),
        ("target publish fast/nobody --fabric loopback".to_owned(), 101, "nobody"),
        ("target publish nowhere/web --fabric loopback".to_owned(), 100, "nowhere"),
        ("target publish web --fabric loopback".to_owned(), 22, "SR/VDI"),
    ] {
        let refused = sm(&scratch, &line).assert().code(status);
        let output = refused.get_output();
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(said.contains(words) && !said.contains("hunter2") && output.stdout.is_empty(), "{line}: {said}");
        assert!(!scratch.path().join("run/targets").exists(), "{line} left a record");
    }
}

#[test]
fn a_record_that_cannot_be_read_is_told_and_hides_no_other() {
    let scratch = scene();
    let targets = scratch.path().join("run/targets");
    std::fs::create_dir(&targets).unwrap();
    let vdi = "98de866e-b035-4b1a-a571-613bff542b89";
    std::fs::write(targets.join(format!("{vdi}.json")), "{").unwrap();
    let list = sm(&scratch, "target list --format table").assert().code(116);
    let output = list.get_output();
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(vdi) && said.contains("it is no record"), "{said}");
    assert!(error.starts_with("EDRIFT: 1 publication"), "{error}");
    // Nor is one of another VDI.
    let record = r#"{"version":1,"sr":"87b8646b-b800-9500-cb7b-af3b74e02f5c","vdi":"98de866e-b035-4b1a-a571-00000000000b",
        "fabric":"loopback","stage":"removing","read_only":false,"shared":false,"authenticated":false,"target":"naa.6001405",
        "backstore":0,"portals":[],"initiators":[],"created":0}"#;
    std::fs::write(targets.join(format!("{vdi}.json")), record).unwrap();
    let list = sm(&scratch, "target list --format table").assert().code(116);
    let said = String::from_utf8_lossy(&list.get_output().stdout).into_owned();
    assert!(said.contains("it is the record of VDI 98de866e-b035-4b1a-a571-00000000000b"), "{said}");
}

#[test]
fn records_of_the_first_release_are_read_and_those_of_later_ones_are_refused() {
    let scratch = scene();
    let targets = scratch.path().join("run/targets");
    std::fs::create_dir(&targets).unwrap();
    let vdi = "98de866e-b035-4b1a-a571-613bff542b89";
    let first = |version: u32, sr: &str| {
        format!(
            r#"{{"version": {version}, {sr} "vdi": "{vdi}", "fabric": "iscsi", "stage": "published", "read_only": false,
            "shared": false, "authenticated": true, "target": "iqn.2003-01.org.example:{vdi}", "backstore": 3,
            "portals": ["10.0.0.1:3260"], "initiators": [{{"name": "iqn.2003-01.org.example:host1", "read_only": true}}],
            "created": 7}}"#
        )
    };
    let put = |text: String| std::fs::write(targets.join(format!("{vdi}.json")), text).unwrap();
    let sr = format!(r#""sr": "{SR}","#);
    put(first(1, &sr));
    let list = sm(&scratch, "target list --format json").assert().success();
    let answer: serde_json::Value = serde_json::from_slice(&list.get_output().stdout).unwrap();
    let it = &answer["publications"][0];
    assert_eq!((&it["sr"], &it["fabric"], &it["state"]), (&SR.into(), &"iscsi".into(), &"down".into()), "{answer}");
    assert_eq!((&it["hctl"], &it["initiators"][0]["logged_in"]), (&serde_json::Value::Null, &false.into()), "{answer}");
    for (text, words) in [
        (first(3, &sr), "it is of version 3"),
        (first(1, ""), "neither an SR nor a device"),
        (first(2, &sr), "neither an SR nor a device"),
    ] {
        put(text);
        let list = sm(&scratch, "target list --format table").assert().code(116);
        let said = String::from_utf8_lossy(&list.get_output().stdout).into_owned();
        assert!(said.contains(words), "{said}");
    }
}
