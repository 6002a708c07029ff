//! sr_metrics: the text is OpenMetrics, as a parser of Prometheus reads it, and says what the SRs are.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "the rule is for what we ship")]

mod scene;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Command, Stdio};

use scene::{A, B, C, Door, FILE, OTHER_SR, SR, Scene};
use serde_json::Value;

const D: &str = "98de866e-b035-4b1a-a571-00000000000d";

/// Reads the text by the strict parser of OpenMetrics, and by that of the older form that the textfile collector reads. Prints
/// what both found.
const READER: &str = r#"
import json, sys
from prometheus_client import parser
from prometheus_client.openmetrics import parser as strict
text = sys.stdin.read()
key = lambda s: (s[0], sorted(s[1].items()))
def found(module):
    return sorted(([s.name, s.labels, s.value] for f in module.text_string_to_metric_families(text) for s in f.samples), key=key)
one, two = found(strict), found(parser)
assert one == two, (one, two)
units = {f.name: f.unit for f in strict.text_string_to_metric_families(text)}
print(json.dumps({"samples": one, "units": units}))
"#;

/// That of the distribution, whose modules its packages bring: another `python3` in PATH does not have them.
const PYTHON: &str = "/usr/bin/python3";

fn has_reader() -> bool {
    let done = Command::new(PYTHON).args(["-c", "import prometheus_client.openmetrics.parser"]).output();
    let has = done.is_ok_and(|done| done.status.success());
    if !has {
        scene::skip("python3-prometheus-client is not installed");
    }
    has
}

/// The samples that the parsers find in a text, and the unit of each family.
fn read(text: &str) -> Value {
    let mut python =
        Command::new(PYTHON).args(["-c", READER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = python.wait_with_output().unwrap();
    assert!(done.status.success(), "the parsers refuse or differ:\n{text}");
    serde_json::from_slice(&done.stdout).unwrap()
}

fn value(read: &Value, name: &str, sr: &str) -> Option<f64> {
    let samples = read["samples"].as_array().unwrap();
    let found = samples.iter().find(|sample| sample[0] == name && sample[1]["name"] == sr)?;
    found[2].as_f64()
}

/// The SR `fast` with a snapshot, two disks that cannot be read and a base with one child; a name of an SR that is gone; a
/// file of the table that cannot be read.
fn scene() -> Scene {
    let scene = Scene::empty(&FILE, Door::Sm);
    scene.bare(["sr_create", "--name", "fast", "-t", "file", "-d", &scene.dconf(), SR]).done();
    scene.bare(["vdi_create", "fast", A, "4"]).done();
    scene.bare(["vdi_snapshot", "fast", A, B]).done();
    scene.bare(["vdi_delete", "fast", B]).done();
    scene.bare(["vdi_create", "fast", C, "4"]).done();
    fs::write(scene.place.join(format!("{C}.vhd")), vec![1; 4096]).unwrap();
    // Of a disk that nothing merges, the table of blocks alone is damaged: it begins behind the header.
    scene.bare(["vdi_create", "fast", D, "4"]).done();
    let image = fs::File::options().write(true).open(scene.place.join(format!("{D}.vhd"))).unwrap();
    image.write_all_at(&0x7fff_0000u32.to_be_bytes(), 1536).unwrap();
    let table = scene.root.path().join("run/sr.d");
    fs::write(table.join("gone.conf"), format!("UUID={OTHER_SR}\nTYPE=file\nDCONF=/nowhere\n")).unwrap();
    fs::write(table.join("torn.conf"), "UUID=").unwrap();
    scene
}

#[test]
fn a_parser_reads_the_metrics_of_all_srs_and_one_that_is_gone_does_not_end_them() {
    if !has_reader() {
        return;
    }
    let scene = scene();
    let text = scene.bare(["sr_metrics"]).done();
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let found = read(&text);
    let space: Value = serde_json::from_str(&scene.bare(["sr_space", "fast", "--format", "json"]).done()).unwrap();
    for (name, expected) in [
        ("sm_sr_up", Some(1.0)),
        ("sm_sr_size_bytes", space["size"].as_f64()),
        ("sm_sr_used_bytes", space["physical_utilisation"].as_f64()),
        ("sm_sr_virtual_size_bytes", Some((8 << 20) as f64)),
        ("sm_sr_collectable_bytes", space["collectable"].as_f64()),
        ("sm_sr_longest_chain", Some(2.0)),
        ("sm_sr_vdis", Some(3.0)),
        ("sm_sr_vdis_attached", Some(0.0)),
        ("sm_sr_vdis_broken", Some(2.0)),
        ("sm_sr_pool_data_used_bytes", None),
    ] {
        assert_eq!(value(&found, name, "fast"), expected, "{name}: {text}");
    }
    for name in ["gone", "torn"] {
        assert_eq!(value(&found, "sm_sr_up", name), Some(0.0), "{text}");
        assert_eq!(value(&found, "sm_sr_size_bytes", name), None, "{text}");
    }
    let labels = &found["samples"].as_array().unwrap().iter().find(|it| it[1]["name"] == "fast").unwrap()[1];
    assert_eq!((&labels["sr"], &labels["type"]), (&SR.into(), &"file".into()));
    assert_eq!((&found["units"]["sm_sr_size_bytes"], &found["units"]["sm_sr_vdis"]), (&"bytes".into(), &"".into()));
}

#[test]
fn the_srs_of_a_line_are_told_of_and_no_others() {
    if !has_reader() {
        return;
    }
    let scene = scene();
    let names = |words: &[&str]| -> Vec<String> {
        let found = read(&scene.bare([&["sr_metrics"], words].concat()).done());
        let samples = found["samples"].as_array().unwrap().iter().filter(|sample| sample[0] == "sm_sr_up");
        samples.map(|sample| sample[1]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&["fast"]), ["fast"]);
    assert_eq!(names(&["gone", SR, "fast"]), ["fast", "gone"]);
    assert_eq!(names(&["-t", "file", "-d", &scene.dconf(), SR]), [""]);
    assert!(scene.bare(["sr_metrics", "fest"]).fails("ENOSR").contains("fast"));
    let said = scene.bare(["-v", "sr_metrics", "gone"]);
    assert!(said.stderr().contains("gone: "), "{said}");
    assert_eq!(scene.bare(["sr_metrics", "gone"]).stderr(), "");
}

#[test]
fn the_file_of_the_collector_is_replaced_as_a_whole() {
    let scene = scene();
    let file = scene.root.path().join("sm.prom");
    fs::write(&file, "old").unwrap();
    assert_eq!(scene.bare(["sr_metrics", "--output", file.to_str().unwrap()]).done(), "");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("# TYPE sm_sr_up gauge\n") && text.ends_with("# EOF\n"), "{text}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o644);
    scene.bare(["sr_metrics", "--output", "/dev/null"]).fails("EINVAL");
    scene.bare(["sr_metrics", "--output", "/nowhere/sm.prom"]).fails_somehow();
}
