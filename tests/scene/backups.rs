//! Stores, sets of disks and the calls of `sm backup`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::{Door, FILE, Outcome, SR, Scene};

/// A scene with the file SRs `fast` and `slow`, and these stores.
pub fn with_stores(names: &[&str]) -> Scene {
    let scene = Scene::empty(&FILE, Door::Sm);
    sm(&scene, &["sr_create", "--name", "fast", "-t", "file", "-d", &scene.dconf(), SR]).done();
    sm(&scene, &["sr_create", "--name", "slow", "-t", "file", "-d", &path(&scene, "slow")]).done();
    stores(&scene, names);
    scene
}

/// Makes stores at directories of their names, and a table that names them.
fn stores(scene: &Scene, names: &[&str]) {
    let line = |name: &&str| format!("store: name={name} path={}\n", path(scene, name));
    fs::write(scene.root.path().join("run/stores.conf"), names.iter().map(line).collect::<String>()).unwrap();
    for name in names {
        fs::create_dir(scene.root.path().join(name)).unwrap();
        backup(scene, &["store-init", name]).done();
    }
}

pub fn sm(scene: &Scene, words: &[&str]) -> Outcome {
    scene.bare(words)
}

pub fn backup(scene: &Scene, words: &[&str]) -> Outcome {
    scene.bare([&["backup"], words].concat())
}

pub fn path(scene: &Scene, name: &str) -> String {
    scene.root.path().canonicalize().unwrap().join(name).display().to_string()
}

/// Makes a disk of `size` bytes in `fast` with these bytes at these places. Answers all of its bytes.
pub fn disk(scene: &Scene, vdi: &str, label: &str, format: &str, size: u64, data: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let source = path(scene, "source.raw");
    let file = File::create(&source).unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in data {
        file.write_all_at(bytes, *at).unwrap();
    }
    sm(scene, &["vdi_import", "fast", vdi, &source, "--type", format, "--label", label]).done();
    fs::read(source).unwrap()
}
