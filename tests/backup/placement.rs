//! sm backup import --placement: a program chooses the SR of each disk.

use super::*;

/// A program that runs a script, in which `q` is the file of the question.
fn program(scene: &Scene, script: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let file = path(scene, "place");
    fs::write(&file, format!("#!/bin/sh\nq=$1\n{script}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn a_program_chooses_the_sr_of_each_disk() {
    let scene = scene();
    let bytes = [web(&scene, "vhd"), disk(&scene, B, "data", "raw", 9 * MIB, &[(8 * MIB, pattern(MIB))])];
    backup(&scene, &["export", "web", "--disk", "fast/web", "--disk", "fast/data", "--to", "nas"]).done();
    let sr_list = sm(&scene, &["sr_list", "--format", "json"]).done();
    let srs: serde_json::Value = serde_json::from_str(&sr_list).unwrap();
    let slow = srs["srs"].as_array().unwrap().iter().find(|sr| sr["name"] == "slow").unwrap();
    let slow = slow["uuid"].as_str().unwrap().to_owned();
    let answer = |srs: &[&str]| {
        let quoted: Vec<String> = srs.iter().map(|sr| format!("\"{sr}\"")).collect();
        format!("echo '{{\"success\":true,\"info\":\"\",\"result\":[{}]}}'", quoted.join(","))
    };
    let keep = format!("[ $# = 1 ] || exit 9; env > {0}.env; cat $q > {0}", path(&scene, "question"));
    let both = program(&scene, &format!("{keep}\n{}", answer(&[SR, &slow])));
    let import =
        |more: &[&str]| backup(&scene, &[&["import", "web", "--from", "nas", "--format", "json"], more].concat());
    let made: serde_json::Value =
        serde_json::from_str(&import(&["--placement", &both, "--size", "1=10M"]).done()).unwrap();
    assert_eq!(made["disks"][0]["sr"], SR);
    assert_eq!(made["disks"][1]["sr"], *slow);
    let vdi = |n: usize| made["disks"][n]["uuid"].as_str().unwrap();
    same(&exported(&scene, &format!("fast/{}", vdi(0))), &bytes[0]);
    same(&exported(&scene, &format!("slow/{}", vdi(1)))[..9 * MIB as usize], &bytes[1]);
    let question: serde_json::Value = serde_json::from_slice(&fs::read(path(&scene, "question")).unwrap()).unwrap();
    assert_eq!(question["version"], 1);
    let known = question["srs"].as_array().unwrap();
    assert_eq!(known.len(), 2);
    for sr in known {
        assert!(sr["uuid"] == SR || sr["uuid"] == *slow);
        assert_eq!(sr["type"], "file");
        assert!(sr["size"].as_u64() > sr["used"].as_u64() && sr["tags"].as_array().unwrap().is_empty(), "{sr}");
    }
    let expected = serde_json::json!({
        "name": "web",
        "disks": [{"index": 0, "size": 50 * MIB}, {"index": 1, "size": 10 * MIB}],
        "space_total": 60 * MIB,
    });
    assert_eq!(question["request"], expected);
    let env = fs::read_to_string(path(&scene, "question.env")).unwrap();
    assert!(!env.contains("XCP_SM_RUN_DIR") && env.contains("PATH="), "{env}");
    // Disks that have a place are not asked about.
    let one = program(&scene, &format!("{keep}\n{}", answer(&[&slow])));
    import(&["--placement", &one, "--map", "0=fast"]).done();
    let question: serde_json::Value = serde_json::from_slice(&fs::read(path(&scene, "question")).unwrap()).unwrap();
    assert_eq!(question["request"]["disks"], serde_json::json!([{"index": 1, "size": 9 * MIB}]));
    let all = program(&scene, "exit 1");
    import(&["--placement", &all, "--map", "0=fast", "--map", "1=slow"]).done();
}

#[test]
fn a_program_that_fails_or_answers_nonsense_makes_no_disk() {
    let scene = scene();
    web(&scene, "vhd");
    backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "nas"]).done();
    let images = names(scene.dconf());
    let refused = |program: &str, why: &str| {
        let said = backup(&scene, &["import", "web", "--from", "nas", "--placement", program]).fails("EINVAL");
        assert!(said.contains(why), "{why}: {said}");
        assert!(names(scene.root.path().join("slow")).iter().all(|name| name.starts_with('.')), "{why}");
        assert_eq!(names(scene.dconf()), images, "{why}");
        assert!(records(&scene).is_empty(), "{why}");
    };
    for (script, why) in [
        ("echo no room >&2; exit 3", "no room"),
        ("echo no room today; exit 3", "no room today"),
        ("echo '{\"success\":false,\"info\":\"all are full\"}'", "all are full"),
        ("echo 'not JSON\u{1b}[2J'", "not JSON\\u{1b}"),
        (":", "cannot be read"),
        ("echo '{\"success\":true,\"result\":[]}'", "0 SRs for 1 disks"),
        ("echo '{\"success\":true,\"result\":[\"slow\"]}'", "\"slow\""),
        (
            "echo '{\"success\":true,\"result\":[\"11111111-1111-4111-8111-111111111111\"]}'",
            "no SR that it was offered",
        ),
        ("yes", "wrote more than"),
    ] {
        refused(&program(&scene, script), why);
    }
    refused("/nowhere/at-all", "No such file");
    let loose = program(&scene, "exit 0");
    fs::set_permissions(&loose, std::os::unix::fs::PermissionsExt::from_mode(0o757)).unwrap();
    refused(&loose, "others can write");
    for line in [
        &["import", "web", "--from", "nas"][..],
        &["import", "web", "--from", "nas", "--sr", "slow", "--placement", &loose],
    ] {
        backup(&scene, line).fails("EINVAL");
    }
}
