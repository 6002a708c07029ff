//! Encrypted exports: age(1) reads them, they come back, and no byte of them may change.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::scene::{A, B, Scene, has, pattern};
use super::{
    MIB, backup, current, disk, exported, imported, names, path, records, same, scene, sm, sums_of, web, write,
};

/// A pair that age-keygen made.
pub const SECRET: &str = "AGE-SECRET-KEY-1JY7TP5P6SXEW75YKQ3C9QZCCMU583JTL3WEAH0HAFLNEYCQFY83SV9QUHL";
pub const PUBLIC: &str = "age1dngda3a58ypflncxywzagvhmfmnlu23t38vw5hcl8u4rte4a7p8srfa04c";

/// Writes the keys, and a store that has them.
pub fn keys(scene: &Scene) -> (String, String) {
    let (public, secret) = (path(scene, "public"), path(scene, "secret"));
    fs::write(&public, format!("# of a test\n{PUBLIC}\n")).unwrap();
    fs::write(&secret, format!("{SECRET}\n")).unwrap();
    fs::set_permissions(&public, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    (public, secret)
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match (path.is_symlink(), path.is_dir()) {
            (false, true) => found.extend(files(&path)),
            (false, false) => found.push(fs::read(path).unwrap()),
            _ => {}
        }
    }
    found
}

#[test]
fn age_reads_an_encrypted_export_and_others_learn_no_digest() {
    let scene = scene();
    let bytes = web(&scene, "vhd");
    let (public, secret) = keys(&scene);
    fs::write(path(&scene, "agent"), "what an agent knows").unwrap();
    let line = ["define", "web", "--disk", "fast/web", "--metadata", &path(&scene, "agent"), "--recipient", &public];
    backup(&scene, &line).done();
    backup(&scene, &["export", "web", "--to", "nas"]).done();
    let dir = current(&scene, "nas", "web");
    assert_eq!(
        names(&dir),
        ["SHA256SUMS", "digests.key.age", "disk0.map", "disk0.raw.zst.age", "manifest.json", "metadata.age"]
    );
    let list = backup(&scene, &["list", "--format", "json"]).done();
    assert!(list.contains("\"encryption\":\"age\""), "{list}");
    // Whole blocks of the disk, whose digests and bytes would be known.
    let digest = sums_of(&bytes[8 * MIB as usize..12 * MIB as usize]);
    let key = fs::read(scene.root.path().join("run/backup/digests/web.key")).unwrap();
    for file in files(&scene.root.path().join("nas")) {
        let part = String::from_utf8_lossy(&file[..file.len().min(256 << 10)]).into_owned();
        let key = String::from_utf8_lossy(key.trim_ascii()).into_owned();
        for clear in [&digest, "an agent knows", &key, SECRET, &String::from_utf8_lossy(&pattern(64))] {
            assert!(!part.contains(clear), "{clear}");
        }
    }
    // Without a key its files are compared, with one its blocks.
    backup(&scene, &["verify", "web"]).done();
    let missing = backup(&scene, &["verify", "web", "--deep"]).fails("EACCES");
    assert!(missing.contains("--identity"), "{missing}");
    backup(&scene, &["verify", "web", "--deep", "--identity", &secret]).done();
    backup(&scene, &["verify", &dir.display().to_string(), "--deep", "--identity", &secret]).done();
    if has("age") && has("zstd") {
        let script = format!(
            "sha256sum --quiet -c SHA256SUMS
             age -d -i '{secret}' disk0.raw.zst.age | zstd -dcq | dd of=../../../back bs=4M conv=sparse status=none
             test \"$(age -d -i '{secret}' metadata.age)\" = 'what an agent knows'
             test \"$(age -d -i '{secret}' digests.key.age)\" = \"$(cat ../../../run/backup/digests/web.key)\""
        );
        let done = Command::new("sh").args(["-euc", &script]).current_dir(&dir).status().unwrap();
        assert!(done.success());
        let mut back = fs::read(scene.root.path().join("back")).unwrap();
        back.resize(bytes.len(), 0);
        same(&back, &bytes);
    }
    let refused = backup(&scene, &["import", "web", "--from", "nas", "--sr", "slow"]).fails("EACCES");
    assert!(refused.contains("--identity") && names(scene.root.path().join("slow")).iter().all(|n| n.starts_with('.')));
    stores_with(&scene, &format!(" identity={secret}"));
    let new = imported(&scene, "nas", "web", "slow");
    same(&exported(&scene, &format!("slow/{}", new[0])), &bytes);
    backup(&scene, &["undefine", "web"]).done();
    assert!(names(scene.root.path().join("run/backup/digests")).is_empty());
}

/// Gives the store `nas` more words.
pub fn stores_with(scene: &Scene, more: &str) {
    let table = scene.root.path().join("run/stores.conf");
    let text = fs::read_to_string(&table).unwrap().replacen("/nas\n", &format!("/nas{more}\n"), 1);
    fs::write(table, text).unwrap();
}

#[test]
fn an_encrypted_export_that_was_changed_is_found_and_leaves_no_disk() {
    let scene = scene();
    disk(&scene, A, "web", "raw", 50 * MIB, &[(5 * MIB, pattern(6 * MIB))]);
    let (public, secret) = keys(&scene);
    backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "nas", "--recipient", &public]).done();
    let dir = current(&scene, "nas", "web");
    let all = ["disk0.raw.zst.age", "digests.key.age", "manifest.json", "SHA256SUMS"];
    let good = all.map(|name| fs::read(dir.join(name)).unwrap());
    let put = |which: usize, bytes: &[u8], is_resealed: bool| {
        fs::write(dir.join(all[which]), bytes).unwrap();
        let sums = String::from_utf8(good[3].clone()).unwrap();
        // Whoever changes a file can change the sums as well.
        let sums = if is_resealed { sums.replace(&sums_of(&good[which]), &sums_of(bytes)) } else { sums };
        fs::write(dir.join("SHA256SUMS"), sums).unwrap();
    };
    let changed = |which: usize, at: usize| {
        let mut bytes = good[which].clone();
        bytes[at] ^= 1;
        bytes
    };
    let text = |from: &str, to: &str| {
        let manifest = String::from_utf8(good[2].clone()).unwrap();
        let changed = manifest.replace(from, to);
        assert_ne!(manifest, changed, "{from}");
        changed.into_bytes()
    };
    let header = good[0].windows(4).position(|part| part == b"--- ").unwrap() + 48;
    let key = good[1].len();
    let clear: serde_json::Value = serde_json::from_slice(&good[2]).unwrap();
    let clear = clear["encryption"]["digest_key"].as_str().unwrap();
    // What is looked at without a key.
    for (case, which, bytes) in [
        ("an image that is no file of age", 0, b"x".repeat(good[0].len())),
        ("a header that does not end", 0, good[0][..header - 60].to_vec()),
        ("an image of a length that there is not", 0, good[0][..header + 16 + 5].to_vec()),
        ("an image that was cut off", 0, good[0][..header + 16 + 70_000].to_vec()),
        ("another algorithm", 2, text("\"age\"", "\"rot13\"")),
        ("an encrypted image that is not packed", 2, text("\"zstd\"", "\"none\"")),
        ("names of keys that are none", 2, text("\"keys\": [\n      \"", "\"keys\": [\n      \"../")),
    ] {
        put(which, &bytes, true);
        backup(&scene, &["verify", "web"]).fails("EVERIFY");
        refused(&scene, &secret, case);
        put(which, &good[which], false);
    }
    // What a key finds.
    for (case, which, bytes) in [
        ("the MAC of the header", 0, changed(0, header - 10)),
        ("the nonce", 0, changed(0, header + 3)),
        ("a chunk", 0, changed(0, header + 16 + 70_000)),
        ("the key of the digests", 1, changed(1, key - 3)),
        ("another key of the digests", 2, text(clear, "0123456789abcdef")),
    ] {
        put(which, &bytes, false);
        backup(&scene, &["verify", "web"]).fails("EVERIFY");
        put(which, &bytes, true);
        let deep = backup(&scene, &["verify", "web", "--deep", "--identity", &secret]);
        assert!(deep.stderr().contains("EVERIFY"), "{case}: {deep}");
        refused(&scene, &secret, case);
        put(which, &good[which], false);
    }
    // The last chunk, which holds no block that is stored.
    let mut last = good[0].clone();
    *last.last_mut().unwrap() ^= 1;
    put(0, &last, true);
    backup(&scene, &["verify", "web", "--deep", "--identity", &secret]).fails("EVERIFY");
    put(0, &good[0], false);
    // Keys that are not for it, that are none, and that others can read.
    let other = path(&scene, "other");
    let wrong = "AGE-SECRET-KEY-1";
    for (text, mode, status, says) in [
        (SECRET, 0o644, "EACCES", "others can read it"),
        (wrong, 0o600, "EMODEL", "line 1"),
        (PUBLIC, 0o600, "EMODEL", "line 1"),
        (OTHER, 0o600, "EACCES", "is encrypted for the keys"),
    ] {
        fs::write(&other, text).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(mode)).unwrap();
        let said =
            backup(&scene, &["import", "web", "--from", "nas", "--sr", "slow", "--identity", &other]).fails(status);
        assert!(said.contains(says) && !said.contains(&SECRET[..24]), "{said}");
    }
    let refused = backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "nas", "--recipient", &secret]);
    let said = refused.fails("EMODEL");
    assert!(!said.contains(&SECRET[..24]), "{said}");
    let line = ["export", "web", "--disk", "fast/web", "--to", "nas", "--recipient", &public, "--compress", "none"];
    backup(&scene, &line).fails("EINVAL");
    backup(&scene, &["verify", "web", "--deep", "--identity", &secret]).done();
}

fn refused(scene: &Scene, secret: &str, case: &str) {
    let images = names(scene.root.path().join("slow"));
    let line = ["import", "web", "--from", "nas", "--sr", "slow", "--identity", secret];
    let said = backup(scene, &line);
    assert!(said.stderr().contains("EVERIFY"), "{case}: {said}");
    assert_eq!(names(scene.root.path().join("slow")), images, "{case}");
    assert!(records(scene).is_empty(), "{case}");
}

/// Puts the current export of a set in `old` into `nas`, as an increment on the only run of `web`.
fn forged(scene: &Scene, set: &str) -> PathBuf {
    let shelf = scene.root.path().join("nas/web");
    let parent = shelf.join(&names(&shelf)[0]);
    let (time, number) = parent.file_name().unwrap().to_str().unwrap().split_at(17);
    let run = format!("{time}{:08x}", u32::from_str_radix(number, 16).unwrap() + 1);
    let (from, to) = (current(scene, "old", set), parent.with_file_name(&run));
    fs::create_dir(&to).unwrap();
    for name in names(&from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
    let text = fs::read(from.join("manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    manifest["name"] = "web".into();
    manifest["run"] = run.into();
    manifest["parent"] = serde_json::json!({
        "run": format!("{time}{number}"),
        "manifest_sha256": sums_of(&fs::read(parent.join("manifest.json")).unwrap()),
    });
    let forged = manifest.to_string();
    fs::write(to.join("manifest.json"), &forged).unwrap();
    let sums = fs::read_to_string(to.join("SHA256SUMS")).unwrap();
    fs::write(to.join("SHA256SUMS"), sums.replace(&sums_of(&text), &sums_of(forged.as_bytes()))).unwrap();
    let _ = fs::remove_file(shelf.join("current"));
    to
}

#[test]
fn an_increment_that_somebody_put_on_an_encrypted_run_is_refused() {
    let scene = scene();
    let bytes = disk(&scene, A, "web", "raw", 9 * MIB, &[(5 * MIB, pattern(MIB))]);
    let (public, secret) = keys(&scene);
    let export = |set: &str, store: &str, more: &[&str]| {
        let line = ["export", set, "--disk", "fast/web", "--to", store, "--keep-others"];
        backup(&scene, &[&line[..], more].concat()).done();
    };
    export("web", "nas", &["--recipient", &public]);
    export("clear", "old", &["--compress", "zstd"]);
    export("other", "old", &["--recipient", &public]);
    let runs = || names(scene.root.path().join("nas/web"));
    // In clear, and with a key of the digests that somebody else made.
    for set in ["clear", "other"] {
        let forged = forged(&scene, set);
        let before: Vec<String> = runs();
        for line in [
            &["consolidate", "web", "--store", "nas", "--identity", &secret, "--recipient", &public][..],
            &["consolidate", "web", "--store", "nas", "--identity", &secret],
            &["import", "web", "--from", "nas", "--sr", "slow", "--identity", &secret],
            &["verify", "web"],
        ] {
            let refused = backup(&scene, line).fails("EVERIFY");
            assert!(refused.contains("not encrypted as that is"), "{refused}");
        }
        assert_eq!(runs().into_iter().filter(|name| name != "current").collect::<Vec<_>>(), before);
        fs::remove_dir_all(forged).unwrap();
    }
    let line = ["import", "web", "--from", "nas", "--sr", "slow", "--identity", &secret, "--format", "json"];
    let new: serde_json::Value = serde_json::from_str(&backup(&scene, &line).done()).unwrap();
    same(&exported(&scene, &format!("slow/{}", new["disks"][0]["uuid"].as_str().unwrap())), &bytes);
}

#[test]
fn no_disk_of_an_encrypted_set_takes_the_place_of_another() {
    let scene = scene();
    disk(&scene, A, "web", "raw", 9 * MIB, &[(5 * MIB, pattern(MIB))]);
    disk(&scene, B, "data", "raw", 9 * MIB, &[(5 * MIB, vec![7; MIB as usize])]);
    let (public, secret) = keys(&scene);
    let line = ["export", "web", "--disk", "fast/web", "--disk", "fast/data", "--to", "nas", "--recipient", &public];
    backup(&scene, &line).done();
    let dir = current(&scene, "nas", "web");
    let deep = ["verify", "web", "--deep", "--identity", &secret];
    backup(&scene, &deep).done();
    let swap = |text: &str, a: &str, b: &str| text.replace(a, "\n").replace(b, a).replace('\n', b);
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let (old, maps) = (read("manifest.json"), ["disk0.map", "disk1.map"].map(|name| sums_of(read(name).as_bytes())));
    for name in ["map", "raw.zst.age"] {
        let [a, b] = [0, 1].map(|n| dir.join(format!("disk{n}.{name}")));
        fs::rename(&a, dir.join("aside")).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(dir.join("aside"), &b).unwrap();
    }
    let compact = serde_json::from_str::<serde_json::Value>(&old).unwrap().to_string();
    let new = swap(&compact, &maps[0], &maps[1]);
    fs::write(dir.join("manifest.json"), &new).unwrap();
    let sums = read("SHA256SUMS").replace(&sums_of(old.as_bytes()), &sums_of(new.as_bytes()));
    let sums: String = sums.lines().map(|line| swap(line, "  disk0.", "  disk1.") + "\n").collect();
    fs::write(dir.join("SHA256SUMS"), sums).unwrap();
    // Its files are in order, and its blocks are those of another disk.
    backup(&scene, &["verify", "web"]).done();
    let said = backup(&scene, &deep).fails("EVERIFY");
    assert!(said.contains("is not what its digest says"), "{said}");
    refused(&scene, &secret, "disks that were exchanged");
}

#[test]
fn what_is_to_be_encrypted_is_not_made_whole_in_clear() {
    let scene = scene();
    disk(&scene, A, "web", "raw", 9 * MIB, &[(5 * MIB, pattern(MIB))]);
    let (public, _) = keys(&scene);
    for _ in 0..2 {
        backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "nas", "--since", "last"]).done();
    }
    let (line, runs) = (["consolidate", "web", "--store", "nas"], || names(scene.root.path().join("nas/web")));
    let before = runs();
    let refused = backup(&scene, &[&line[..], &["--recipient", &public]].concat()).fails("EPERM");
    assert!(refused.contains("is not encrypted") && refused.contains("--since none"), "{refused}");
    stores_with(&scene, &format!(" recipient={public}"));
    backup(&scene, &line).fails("EPERM");
    assert_eq!(runs(), before);
}

#[test]
fn an_increment_is_encrypted_as_its_parent_is() {
    let scene = scene();
    let mut bytes = web(&scene, "raw");
    disk(&scene, B, "data", "raw", MIB, &[]);
    let (public, secret) = keys(&scene);
    let export = |set: &str, more: &[&str]| {
        let disk = if set == "web" { "fast/web" } else { "fast/data" };
        let line = ["export", set, "--disk", disk, "--to", "nas", "--since", "last", "--keep", "9"];
        backup(&scene, &[&line[..], more].concat())
    };
    export("web", &[]).done();
    let first = names(scene.root.path().join("nas/web")).remove(0);
    // The first that is encrypted is whole.
    let whole = export("web", &["--recipient", &public]);
    assert!(whole.succeeded() && whole.stderr().contains("the export is whole, as run"), "{whole}");
    let made = fs::read_to_string(current(&scene, "nas", "web").join("manifest.json")).unwrap();
    assert!(!made.contains(&first), "{made}");
    let named = ["--recipient", &public, "--since", &first];
    let refused = backup(&scene, &[&["export", "web", "--disk", "fast/web", "--to", "nas"], &named[..]].concat())
        .fails("EVERIFY");
    assert!(refused.contains("is not encrypted") && refused.contains("--since none"), "{refused}");
    backup(&scene, &["remove", "web"]).done();
    export("web", &["--recipient", &public]).done();
    write(&scene, "raw", 20 * MIB, &[7; 512]);
    bytes[20 * MIB as usize..][..512].fill(7);
    export("web", &["--recipient", &public]).done();
    let map = fs::read_to_string(current(&scene, "nas", "web").join("disk0.map")).unwrap();
    assert_eq!(map.lines().count(), 1, "{map}");
    let clear = export("web", &[]).fails("EVERIFY");
    assert!(clear.contains("would not be"), "{clear}");
    // The whole one is encrypted as the increments are, and the next increment is made on it.
    let line = ["consolidate", "web", "--store", "nas"];
    backup(&scene, &line).fails("EACCES");
    let none = backup(&scene, &[&line[..], &["--identity", &secret]].concat()).fails("EINVAL");
    assert!(none.contains("--recipient"), "{none}");
    stores_with(&scene, &format!(" recipient={public} identity={secret}"));
    backup(&scene, &line).done();
    export("web", &[]).done();
    let map = fs::read_to_string(current(&scene, "nas", "web").join("disk0.map")).unwrap();
    assert_eq!(map, "");
    backup(&scene, &["verify", "web", "--deep"]).done();
    let new = imported(&scene, "nas", "web", "slow");
    same(&exported(&scene, &format!("slow/{}", new[0])), &bytes);
    // A host that has not the key of the digests cannot compare.
    fs::remove_file(scene.root.path().join("run/backup/digests/web.key")).unwrap();
    let lost = export("web", &[]).fails("EVERIFY");
    assert!(lost.contains("another key") && lost.contains("--since none"), "{lost}");
    // Another set has another key.
    export("data", &[]).done();
    let key = |set: &str| fs::read(scene.root.path().join(format!("run/backup/digests/{set}.key"))).unwrap();
    assert_ne!(key("web"), key("data"));
    assert_eq!(sm(&scene, &["vdi_get_params", "fast", A]).done().matches("(lock . 0)").count(), 1);
}

/// Of nobody.
const OTHER: &str = "AGE-SECRET-KEY-1WZL7WWUNUW04T49Z6H8Z8ZDQWNMFMGZ577K4GF5ACDUMR0JQDV0QGHHMG3";
