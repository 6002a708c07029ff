//! The JSON of `sm` is what docs/json.md says: the keys, their types, and all of them at all times.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use scene::{A, B, C, Door, FILE, NONE, SR, Scene};
use serde_json::Value;
use xcp_sm::types::Utc;
use xcp_sm::types::seconds_now;

/// Key and type of each row of the table below a heading.
fn documented(heading: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows = section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        Some((cells.next()?.trim_matches('`').to_owned(), cells.next()?.to_owned()))
    });
    let rows: BTreeMap<String, String> = rows.collect();
    assert!(rows.len() > 2, "{heading}: {rows:?}");
    rows
}

/// It has these keys and no others, besides `schema`, and each has its type.
#[track_caller]
fn complies(document: &Value, heading: &str) {
    let documented = documented(heading);
    let object = document.as_object().unwrap_or_else(|| panic!("no object: {document}"));
    let keys: Vec<&String> = object.keys().filter(|key| *key != "schema").collect();
    assert_eq!(keys, documented.keys().collect::<Vec<_>>(), "{heading}");
    for (key, kind) in documented {
        let is = match &object[&key] {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "text",
            Value::Array(_) => "list",
            Value::Object(_) => "object",
        };
        assert!(kind.split(" or ").any(|kind| kind == is), "{heading} {key} is {is}, not {kind}");
    }
}

struct Json(Scene);

impl Json {
    /// A scene with VDIs of several kinds.
    fn new() -> Json {
        let json = Json(Scene::empty(&FILE, Door::Sm));
        json.0.call(["sr_create", SR]).done();
        json.0.call(["vdi_create", SR, A, "4", "--type", "vhd", "--label", "web", "--description", "d"]).done();
        json.0.call(["vdi_snapshot", SR, A, B]).done();
        json.0.call(["vdi_create", SR, C, "4", "--type", "raw"]).done();
        json.0.call(["vdi_lock", SR, A, "FALSE", "host1/vm7"]).done();
        json
    }

    fn answer(&self, words: &[&str]) -> Value {
        let answer = self.0.call([words, &["--format", "json"]].concat()).done();
        assert_eq!(answer.matches('\n').count(), 1, "{answer}");
        let document: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(document["schema"], 1, "{answer}");
        document
    }

    fn failure(&self, words: &[&str]) -> Value {
        let outcome = self.0.call([words, &["--format", "json"]].concat());
        assert_eq!(outcome.stdout(), "", "{outcome}");
        let document: Value = serde_json::from_str(&outcome.stderr()).unwrap();
        assert_eq!((&document["schema"], &document["status"]), (&1.into(), &outcome.status().into()), "{outcome}");
        document
    }
}

#[test]
fn a_vdi_has_every_key_at_all_times() {
    let json = Json::new();
    for vdi in [A, B, C] {
        complies(&json.answer(&["vdi_get_params", SR, vdi]), "VDI");
    }
    let web = json.answer(&["vdi_get_params", SR, A]);
    assert_eq!((&web["label"], &web["locked"], &web["users"][0]), (&"web".into(), &true.into(), &"host1/vm7".into()));
    let of_snapshot = json.answer(&["vdi_get_params", SR, B]);
    assert_eq!((&web["snapshot_of"], &of_snapshot["snapshot_of"]), (&Value::Null, &A.into()));
    // A raw disk without a name has no record, and so no time.
    assert_eq!(json.answer(&["vdi_get_params", SR, C])["created"], Value::Null);
    let now = seconds_now().unwrap();
    for vdi in [&web, &of_snapshot] {
        let created = vdi["created"].as_str().unwrap();
        assert!((now - 60..=now).any(|seconds| Utc(seconds).to_string() == created), "{created}");
    }
    assert_eq!((&web["attached"], &web["device"], &web["state"]), (&false.into(), &Value::Null, &"healthy".into()));
    fs::write(json.0.place.join(format!("{C}.raw")), "").unwrap();
    fs::write(json.0.place.join(format!("{C}.params")), "no record").unwrap();
    let scan = json.answer(&["sr_scan", SR]);
    let broken = scan["vdis"].as_array().unwrap().iter().find(|vdi| vdi["uuid"] == C).unwrap();
    complies(broken, "VDI");
    assert_eq!(broken["state"], "broken");
    assert!(broken["reason"].as_str().unwrap().contains(".params"), "{broken}");
}

#[test]
fn an_attached_vdi_has_its_device() {
    if !scene::is_root() {
        return;
    }
    let json = Json::new();
    let device = json.answer(&["vdi_attach", SR, C])["device"].as_str().unwrap().to_owned();
    for vdi in [json.answer(&["vdi_get_params", SR, C]), json.answer(&["sr_scan", SR])["vdis"][0].clone()] {
        complies(&vdi, "VDI");
        if vdi["uuid"] == C {
            assert_eq!((&vdi["attached"], &vdi["device"]), (&true.into(), &device.as_str().into()));
        }
    }
    let table = json.0.call(["sr_scan", SR, "--format", "table"]).done();
    assert!(table.contains(&format!("  attached {device}")), "{table}");
    json.0.call(["vdi_detach", SR, C]).done();
}

#[test]
fn an_sr_has_every_key_at_all_times() {
    let json = Json::new();
    for verb in ["sr_get_params", "sr_scan", "vdi_tree"] {
        let sr = json.answer(&[verb, SR]);
        complies(&sr, "SR");
        for vdi in sr["vdis"].as_array().unwrap() {
            complies(vdi, "VDI");
        }
    }
    assert_eq!(json.answer(&["vdi_tree", SR])["vdis"].as_array().unwrap().len(), 4);
    complies(&json.answer(&["sr_probe"])["srs"][0], "SR");
}

#[test]
fn the_space_of_an_sr_has_every_key_at_all_times() {
    let json = Json::new();
    let space = json.answer(&["sr_space", SR]);
    complies(&space, "Space of an SR");
    let images = space["images"].as_array().unwrap();
    assert_eq!(images.len(), 4, "{space}");
    images.iter().for_each(|image| complies(image, "Image of sr_space"));
    assert_eq!((&images[3]["frees"], &images[3]["disks"]), (&Value::Null, &2.into()), "{space}");
}

#[test]
fn a_line_of_the_list_has_every_key_at_all_times() {
    let json = Json::new();
    let table = json.0.root.path().join("run/sr.d");
    fs::create_dir_all(&table).unwrap();
    let entries = [("fast", format!("UUID={SR}\nTYPE=file\nDCONF={}\n", json.0.dconf())), ("torn", "UUID=".to_owned())];
    for (name, text) in entries {
        fs::write(table.join(format!("{name}.conf")), text).unwrap();
    }
    let outcome = json.0.bare(["sr_list", "--format", "json"]).done();
    let list: Value = serde_json::from_str(&outcome).unwrap();
    assert_eq!(list["schema"], 1);
    let lines = list["srs"].as_array().unwrap();
    lines.iter().for_each(|line| complies(line, "Line of sr_list"));
    assert_eq!((&lines[0]["name"], &lines[1]["state"]), (&"fast".into(), &"failed".into()), "{list}");
}

#[test]
fn a_plan_and_a_layout_have_every_key_at_all_times() {
    let json = Json::new();
    let layouts = json.0.root.path().join("run/layouts");
    fs::create_dir_all(&layouts).unwrap();
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let dir = json.0.root.path().join("layout");
    let model = format!("layout: r\nfile: host={host} dev={}\nfile: host=x dev=/x mode=external\n", dir.display());
    fs::write(layouts.join("r.model"), model).unwrap();
    let answer = |words: &[&str]| -> Value {
        serde_json::from_str(&json.0.bare([words, &["--format", "json"]].concat()).done()).unwrap()
    };
    let file = json.0.root.path().join("plan.json");
    let plan = answer(&["plan", "-m", "r", "-o", file.to_str().unwrap()]);
    complies(&plan, "Plan");
    plan["steps"].as_array().unwrap().iter().for_each(|step| complies(step, "Step of a plan"));
    let written: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(written["steps"], plan["steps"]);
    fs::write(layouts.join("r.layout"), written["target"].as_str().unwrap()).unwrap();
    assert_eq!(answer(&["layout", "list"])["layouts"], serde_json::json!(["r"]));
    let layout = answer(&["layout", "info", "r"]);
    complies(&layout, "Layout");
    let slots = layout["slots"].as_array().unwrap();
    slots.iter().for_each(|slot| complies(slot, "Slot of a layout"));
    assert_eq!((&slots[0]["state"], &slots[1]["state"]), (&"missing".into(), &Value::Null), "{layout}");
    assert_eq!(answer(&["layout", "show", "r"])["text"], written["target"]);
}

#[test]
fn what_is_made_and_what_would_be_done_is_told() {
    let json = Json::new();
    let made = json.answer(&["vdi_create", SR, "1M", "--label", "x"]);
    assert_eq!(json.answer(&["vdi_get_params", SR, "x"])["uuid"], made["uuid"]);
    let plan = json.answer(&["vdi_delete", "-n", SR, "x"]);
    assert!(plan["plan"][0].as_str().unwrap().starts_with("delete VDI "), "{plan}");
    assert_eq!(json.answer(&["sr_content_type", SR])["text"], "raw");
    assert_eq!(json.0.call(["vdi_delete", SR, "x", "--format", "json"]).done(), "");
}

#[test]
fn a_failure_is_an_object_too() {
    let json = Json::new();
    for (call, name) in [
        (&["vdi_get_params", SR, NONE][..], "ENOVDI"),
        (&["vdi_get_params", SR, "nothing"], "ENOVDI"),
        (&["vdi_delete", SR, A], "EVDIBUSY"),
        (&["vdi_fly", SR, A], "ENOMSG"),
        (&["vdi_create", SR, "1.5"], "EINVAL"),
        (&["sr_scan", SR, "--explode"], "EINVAL"),
    ] {
        let failure = json.failure(call);
        complies(&failure, "Failures");
        assert_eq!(failure["error"], name, "{call:?}");
    }
}
