//! sm backup: manifests that are signed, changed by hand, and not signed.

use super::*;

fn secret(scene: &Scene, text: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    let file = scene.root.path().join("run/domain.secret");
    fs::write(&file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

/// Changes the manifest of the current export, and what is said of it in the sums.
fn edit(scene: &Scene, change: impl Fn(&str) -> String) -> Vec<u8> {
    let dir = current(scene, "nas", "web");
    let (file, sums) = (dir.join("manifest.json"), dir.join("SHA256SUMS"));
    let before = fs::read(&file).unwrap();
    let after = change(std::str::from_utf8(&before).unwrap()).into_bytes();
    assert_ne!(before, after);
    let text = fs::read_to_string(&sums).unwrap().replace(&sums_of(&before), &sums_of(&after));
    fs::write(file, &after).unwrap();
    fs::write(sums, text).unwrap();
    before
}

const LINE: [&str; 6] = ["export", "web", "--disk", "fast/web", "--to", "nas"];

#[test]
fn a_manifest_that_was_changed_by_hand_is_refused() {
    let scene = scene();
    let bytes = web(&scene, "vhd");
    backup(&scene, &LINE).done();
    let manifest = || fs::read_to_string(current(&scene, "nas", "web").join("manifest.json")).unwrap();
    assert!(manifest().ends_with("\n  \"hmac\": null\n}\n"), "{}", manifest());
    // From now on the host has a secret.
    secret(&scene, "a secret of a domain\n", 0o600);
    for line in [&["verify", "web"][..], &["import", "web", "--from", "nas", "--sr", "slow"]] {
        let said = backup(&scene, line).fails("EVERIFY");
        assert!(said.contains("not signed") && said.contains("--unsigned"), "{said}");
        backup(&scene, &[line, &["--unsigned"]].concat()).done();
    }
    backup(&scene, &[&LINE[..], &["--since", "last"]].concat()).succeeded();
    assert!(manifest().contains("\"alg\": \"HMAC-SHA256\"") && !manifest().contains("a secret of"), "{}", manifest());
    assert!(manifest().contains("\"parent\": null"), "a whole one: {}", manifest());
    backup(&scene, &["verify", "web", "--deep"]).done();
    write(&scene, "vhd", 3 * MIB, &[9; 512]);
    backup(&scene, &[&LINE[..], &["--since", "last", "--keep", "5"]].concat()).done();
    assert!(!manifest().contains("\"parent\": null"), "an increment: {}", manifest());
    backup(&scene, &["verify", "web"]).done();
    type Change = fn(&str) -> String;
    let cases: [(&str, Change); 5] = [
        ("a label", |text| text.replace("\"label\": \"web\"", "\"label\": \"wob\"")),
        ("no signature", |text| {
            let at = text.find("  \"hmac\"").unwrap();
            format!("{}  \"hmac\": null\n}}\n", &text[..at])
        }),
        ("another salt", |text| text.replace("\"salt\": \"", "\"salt\": \"0")),
        ("a field more", |text| text.replacen("{\n", "{\n  \"more\": 1,\n", 1)),
        ("blanks", |text| format!("{text}\n")),
    ];
    for (case, change) in cases {
        let before = edit(&scene, change);
        for line in [&["verify", "web"][..], &["import", "web", "--from", "nas", "--sr", "slow"]] {
            let said = backup(&scene, line).fails("EVERIFY");
            assert!(said.contains("signed"), "{case}: {said}");
        }
        backup(&scene, &["consolidate", "web"]).fails("EVERIFY");
        edit(&scene, |_| String::from_utf8(before.clone()).unwrap());
    }
    backup(&scene, &["consolidate", "web"]).done();
    backup(&scene, &["verify", "web", "--deep"]).done();
    let new = imported(&scene, "nas", "web", "slow");
    let mut bytes = bytes;
    bytes[3 * MIB as usize..][..512].fill(9);
    same(&exported(&scene, &format!("slow/{}", new[0])), &bytes);
    // Of another domain, and of none.
    secret(&scene, "another secret of a domain\n", 0o600);
    let said = backup(&scene, &["verify", "web"]).fails("EVERIFY");
    assert!(said.contains("another secret than"), "{said}");
    fs::remove_file(scene.root.path().join("run/domain.secret")).unwrap();
    backup(&scene, &["verify", "web", "--deep"]).done();
}

#[test]
fn a_secret_that_is_none_signs_nothing() {
    let scene = scene();
    web(&scene, "raw");
    secret(&scene, "a secret of a domain\n", 0o640);
    let said = backup(&scene, &LINE).fails("EACCES");
    assert!(said.contains("domain.secret") && !said.contains("a secret of"), "{said}");
    secret(&scene, "short\n", 0o600);
    let said = backup(&scene, &LINE).fails("EIO");
    assert!(said.contains("16 characters") && !said.contains("short"), "{said}");
    assert_eq!(names(scene.root.path().join("nas")), [".sm-store"]);
    assert!(records(&scene).is_empty());
}

#[test]
fn hooks_do_not_see_the_secret_and_other_programs_find_the_same_signature() {
    if !has("openssl") || !has("python3") {
        return;
    }
    let scene = scene();
    web(&scene, "vhd");
    secret(&scene, "a secret of a domain\n", 0o600);
    hook(&scene, "backup-export-pre.d", "a", "env >> $log");
    backup(&scene, &LINE).done();
    assert!(!log(&scene).contains("a secret of"));
    let dir = current(&scene, "nas", "web");
    let script = "import json,subprocess,sys\n\
        text = open('manifest.json').read()\n\
        said = json.loads(text)['hmac']\n\
        plain = said['salt'] + text[:text.rindex('\"hmac\": ')] + '\"hmac\": null\\n}\\n'\n\
        made = subprocess.run(['openssl', 'dgst', '-sha256', '-mac', 'HMAC', '-macopt', 'key:a secret of a domain'],\n\
            input=plain.encode(), capture_output=True, check=True).stdout.decode().split()[-1]\n\
        sys.exit(made != said['value'])\n";
    assert!(Command::new("python3").args(["-c", script]).current_dir(dir).status().unwrap().success());
}

#[test]
fn what_nobody_signed_is_not_signed_by_sending_it_whole() {
    let scene = scene();
    web(&scene, "vhd");
    backup(&scene, &LINE).done();
    write(&scene, "vhd", 3 * MIB, &[9; 512]);
    backup(&scene, &[&LINE[..], &["--since", "last", "--keep", "5"]].concat()).done();
    backup(&scene, &["send", "web", "--whole"]).done();
    secret(&scene, "a secret of a domain\n", 0o600);
    let said = backup(&scene, &["send", "web", "--whole"]).fails("EVERIFY");
    assert!(said.contains("not signed"), "{said}");
}

#[test]
fn a_link_to_a_secret_that_is_away_is_not_the_lack_of_one() {
    let scene = scene();
    web(&scene, "raw");
    std::os::unix::fs::symlink("/nonexistent/secret", scene.root.path().join("run/domain.secret")).unwrap();
    let said = backup(&scene, &LINE).fails("ENOENT|EIO");
    assert!(said.contains("domain.secret"), "{said}");
}
