//! Layouts of directories: models, plans, and what is refused. A plan is installed here as `sm apply` would, by the file of the
//! layout that it leads to.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use scene::{Door, FILE, Outcome, Scene};
use serde_json::Value;

struct Host(Scene);

impl Host {
    fn new() -> Host {
        let host = Host(Scene::empty(&FILE, Door::Sm));
        fs::create_dir_all(host.run().join("layouts")).unwrap();
        host
    }

    fn run(&self) -> PathBuf {
        self.0.root.path().join("run")
    }

    fn name() -> String {
        nix::unistd::gethostname().unwrap().into_string().unwrap()
    }

    /// Where the directories of the layout are.
    fn srv(&self) -> String {
        self.0.root.path().join("srv").display().to_string()
    }

    /// A text in which HOST and SRV stand for the name of this host and its directories.
    fn text(&self, text: &str) -> String {
        text.replace("HOST", &Host::name()).replace("SRV", &self.srv())
    }

    /// Writes the model `r`.
    fn model(&self, lines: &str) {
        fs::write(self.run().join("layouts/r.model"), self.text(&format!("layout: r\n{lines}\n"))).unwrap();
    }

    /// An inventory of directories instead of a scan.
    fn inventory(&self, lines: &str) {
        fs::write(self.run().join("sm.conf"), "backend=file\n").unwrap();
        fs::write(self.run().join("storage.conf"), self.text(lines)).unwrap();
    }

    fn sm(&self, words: &[&str]) -> Outcome {
        self.0.bare(words)
    }

    fn plan(&self) -> Value {
        serde_json::from_str(&self.sm(&["plan", "-m", "r", "--format", "json"]).done()).unwrap()
    }

    /// Makes a plan and installs the layout that it leads to.
    fn install(&self) {
        let file = self.0.root.path().join("plan.json");
        self.sm(&["plan", "-m", "r", "-o", file.to_str().unwrap()]).done();
        let plan: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        fs::write(self.run().join("layouts/r.layout"), plan["target"].as_str().unwrap()).unwrap();
    }

    /// Every file that there is, but for locks.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut left = vec![self.0.root.path().to_owned()];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() && entry.file_name() != "lock" => left.push(entry.path()),
                    kind if kind.is_file() => drop(found.insert(entry.path(), fs::read(entry.path()).unwrap())),
                    _ => {}
                }
            }
        }
        found
    }
}

/// The steps of a plan as `action object`.
fn steps(plan: &Value) -> Vec<String> {
    let text = |step: &Value, key: &str| step[key].as_str().unwrap().to_owned();
    let one = |step: &Value| {
        let allow = step["allow"].as_str().map(|allow| format!(" !{allow}")).unwrap_or_default();
        format!("{} {}{allow}", text(step, "action"), text(step, "object"))
    };
    plan["steps"].as_array().unwrap().iter().map(one).collect()
}

/// The slots of the layout `r` that is installed, as `slot name-of-directory`.
fn slots(host: &Host) -> Vec<String> {
    let about: Value = serde_json::from_str(&host.sm(&["layout", "info", "r", "--format", "json"]).done()).unwrap();
    let name =
        |slot: &Value| Path::new(slot["dev"].as_str().unwrap()).file_name().unwrap().to_str().unwrap().to_owned();
    about["slots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|slot| format!("{} {}", slot["slot"].as_str().unwrap(), name(slot)))
        .collect()
}

#[test]
fn a_plan_changes_nothing_and_the_plan_after_it_is_empty() {
    let host = Host::new();
    host.model("description: test\nfile: host=HOST dev=SRV/sr[0-1] group=iso\nfile: host=HOST dev=SRV/later index=7 active=manual");
    let before = host.files();
    let plan = host.plan();
    assert_eq!(
        steps(&plan),
        [
            "check file/0",
            "check file/1",
            "check file/7",
            "save layout",
            "claim file/0",
            "claim file/1",
            "claim file/7",
            "copyconf layout",
            "create file/0",
            "create file/1",
            "create file/7",
            "start file/0",
            "start file/1",
        ]
    );
    assert_eq!((&plan["installed"], &plan["changes"]), (&false.into(), &true.into()));
    assert!(plan["steps"].as_array().unwrap().iter().all(|step| step["host"] == Host::name().as_str()), "{plan}");
    let code = host.sm(&["plan", "-m", "r", "--detailed-exitcode"]);
    assert_eq!((code.status(), code.stderr().as_str()), (2, ""));
    assert_eq!(host.files(), before);

    host.install();
    let again = host.sm(&["plan", "-m", "r", "--detailed-exitcode", "--format", "table"]);
    assert_eq!((again.status(), again.stdout().as_str()), (0, "layout r: nothing to change\n"));
    assert_eq!(host.plan()["changes"], false);
    // The UUIDs are those of the installed layout from now on.
    let text = host.sm(&["layout", "show", "r"]).done();
    host.model("description: other\nfile: host=HOST dev=SRV/sr[0-1] group=iso\nfile: host=HOST dev=SRV/later index=7 active=manual");
    host.install();
    assert_eq!(host.sm(&["layout", "show", "r"]).done(), text.replace("description: test", "description: other"));
}

#[test]
fn a_line_without_a_host_is_for_this_host() {
    let host = Host::new();
    let uuid = "uuid: 87b8646b-b800-9500-cb7b-af3b74e02f5c";
    host.model(&format!("{uuid}\nfile: host=HOST dev=SRV/sr[0-1]"));
    let plan = host.plan();
    host.model(&format!("{uuid}\nfile: dev=SRV/sr[0-1]"));
    assert_eq!(host.plan(), plan);
    host.model(&format!("{uuid}\nnfs: dev=/export"));
    let refused = host.sm(&["plan", "-m", "r"]).fails("EMODEL");
    assert!(refused.contains("line 3: host= is missing, which names the server"), "{refused}");
}

#[test]
fn what_a_plan_says_is_true_of_the_directory_of_this_run() {
    let host = Host::new();
    host.model("file: dev=SRV/sr0");
    let names = host.run().join("sr.d").display().to_string();
    let plan = host.sm(&["plan", "-m", "r", "--format", "table"]).done();
    assert!(plan.contains(&format!("write the names of the SRs of layout r to {names}")), "{plan}");
    fs::write(host.run().join("sm.conf"), "backend=none\n").unwrap();
    let off = host.sm(&["devices", "--format", "table"]).done();
    assert_eq!(off, format!("the inventory is off: the backend of {} is none\n", host.run().join("sm.conf").display()));
    fs::create_dir(host.run().join("backends")).unwrap();
    fs::write(host.run().join("backends/db"), "").unwrap();
    let known = host.sm(&["backends", "--format", "table"]).done();
    assert!(known.contains(&format!("a program in {}", host.run().join("backends").display())), "{known}");
}

#[test]
fn a_pattern_takes_the_indexes_that_are_left_in_an_order_that_no_inventory_decides() {
    let host = Host::new();
    let lines = ["sr0", "sr1", "sr2", "db"].map(|name| format!("file: host=HOST dev=SRV/{name} tag={}\n", &name[..2]));
    let mut texts = Vec::new();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        host.inventory(&order.map(|at| lines[at].as_str()).concat());
        host.model("uuid: 87b8646b-b800-9500-cb7b-af3b74e02f5c\nfile: host=HOST dev=SRV/sr. tag=sr");
        host.install();
        assert_eq!(slots(&host), ["file/0 sr0", "file/1 sr1", "file/2 sr2"]);
        fs::remove_file(host.run().join("layouts/r.layout")).unwrap();
        host.model("uuid: 87b8646b-b800-9500-cb7b-af3b74e02f5c\nfile: host=HOST dev=.* tag=s.\nfile: host=.* dev=.*/db index=1");
        host.install();
        assert_eq!(slots(&host), ["file/0 sr0", "file/1 db", "file/2 sr1", "file/3 sr2"]);
        texts.push(host.sm(&["layout", "show", "r"]).done());
        fs::remove_file(host.run().join("layouts/r.layout")).unwrap();
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

#[test]
fn each_fault_of_a_model_has_its_code_and_its_line_and_nothing_is_written() {
    let host = Host::new();
    host.inventory("file: host=HOST dev=SRV/sr[0-2]\n");
    for (lines, status, said) in [
        (
            "file: host=HOST dev=.*/sr0 index=1\nfile: host=HOST dev=.*/sr1 index=1",
            107,
            "line 3: index 1 of class file is used twice: by lines 2 and 3",
        ),
        (
            "file: host=HOST dev=.*/sr0 uuid=87b8646b-b800-9500-cb7b-af3b74e02f5c\n\
             file: host=HOST dev=.*/sr1 uuid=87b8646b-b800-9500-cb7b-af3b74e02f5c",
            105,
            "line 3: SR 87b8646b-b800-9500-cb7b-af3b74e02f5c is that of file/0 already",
        ),
        ("file: host=HOST dev=.* index=65535", 107, "line 2: index 65535 of class file is out of range"),
        ("file: host=HOST dev=SRV/(", 105, "line 2: the pattern of dev is not valid"),
        ("file: host=a[0-1] dev=/b[0-2]", 105, "line 2: the range [0-2] has 3 members"),
        (
            "nfs: host=filer dev=/e\nattach: host=HOST class=nfs",
            106,
            "line 2: no medium fits: there is no medium of class nfs",
        ),
        (
            "# a comment\nfile: host=HOST dev=/nowhere",
            106,
            "line 3: no medium fits: SRV/sr0 comes nearest, and its dev is SRV/sr0",
        ),
        ("file: host=HOST dev=.* colour=red", 105, "line 2: there is no key \"colour\""),
        ("colour: red", 105, "line 2: there is no key \"colour\""),
        ("layout: s", 105, "line 2: layout is there twice"),
        // What this release does not do.
        ("file: host=HOST dev=.*\nlimit: 5", 105, "line 3: limit is not supported by this release"),
        ("file: host=HOST dev=.* active=nocreate", 105, "line 2: active=nocreate is not supported by this release"),
        ("file: host=HOST dev=.* prep=x", 105, "line 2: prep is not supported by this release"),
        (
            "file: host=HOST dev=.*\nfile_attach_path: /x",
            105,
            "line 3: file_attach_path is not supported by this release",
        ),
        (
            "file: host=HOST dev=.*\nfile_format: colour=red",
            105,
            "line 3: there is no key \"colour\" of file_format; there are preferred",
        ),
        (
            "file: host=HOST dev=.* publish=yes\ngateway: host=HOST fabric=iscsi",
            105,
            "line 3: a gateway is not supported",
        ),
    ] {
        host.model(lines);
        let before = host.files();
        let refused = host.sm(&["plan", "-m", "r"]);
        let said = host.text(&format!("r.model: {said}"));
        assert_eq!(refused.status(), status, "{refused}");
        assert!(refused.stderr().contains(&said), "{said} is not in {refused}");
        assert_eq!(host.files(), before);
    }
    host.inventory("");
    host.model("nfs: host=filer dev=/e\nattach: host=HOST class=nfs");
    fs::write(host.run().join("sm.conf"), "backend=scan\n").unwrap();
    let refused = host.sm(&["plan", "-m", "r"]);
    assert!(
        refused.status() == 105 && refused.stderr().contains("line 2: no address for filer, check addr lines"),
        "{refused}"
    );
    host.model("file: host=elsewhere dev=/srv/a");
    let refused = host.sm(&["plan", "-m", "r"]);
    assert!(refused.status() == 105 && refused.stderr().contains("line 2: a host besides this one"), "{refused}");
    let refused = host.sm(&["plan", "-m", "/nowhere/x.model"]);
    assert!(
        refused.status() == 105 && refused.stderr().contains("/nowhere/x.model: the model cannot be read"),
        "{refused}"
    );
}

#[test]
fn a_directory_is_no_two_media_and_a_model_is_a_file() {
    let host = Host::new();
    fs::create_dir_all(PathBuf::from(host.srv()).join("sr0")).unwrap();
    std::os::unix::fs::symlink("sr0", PathBuf::from(host.srv()).join("sr1")).unwrap();
    host.inventory("file: host=HOST dev=SRV/sr[0-1]\n");
    host.model("file: host=HOST dev=.*");
    let refused = host.sm(&["plan", "-m", "r"]);
    assert_eq!(refused.status(), 105, "{refused}");
    let said = host.text("SRV/sr1 is the directory of file/0 already, by another name");
    assert!(refused.stderr().contains(&said), "{refused}");
    let pipe = host.run().join("layouts/p.model");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    for odd in ["p", "/dev/zero"] {
        let refused = host.0.under("timeout 60", ["plan", "-m", odd]);
        assert!(refused.status() == 105 && refused.stderr().contains("it is no regular file"), "{refused}");
    }
}

#[test]
fn a_change_of_a_model_gives_its_steps() {
    let host = Host::new();
    let lines = "file: host=HOST dev=SRV/sr[0-1] index=[0-1]";
    host.model(lines);
    host.install();
    for (model, wanted) in [
        ("description: x\nfile: host=HOST dev=SRV/sr[0-1] index=[0-1]", "save layout, copyconf layout"),
        ("file: host=HOST dev=SRV/sr[0-1] index=[0-1] group=g", "save layout, copyconf layout"),
        (
            "file: host=HOST dev=SRV/sr0 index=0",
            "check file/1, stop file/1, wipe file/1 !wipe, drop file/1, release file/1, save layout, copyconf layout",
        ),
        (
            "file: host=HOST dev=SRV/sr[0-2] index=[0-2]",
            "check file/2, save layout, claim file/2, copyconf layout, create file/2, start file/2",
        ),
        (
            "file: host=HOST dev=SRV/sr0 index=0 active=no\nfile: host=HOST dev=SRV/sr1 index=1",
            "check file/0, save layout, copyconf layout, tune file/0",
        ),
        (
            "file_format: preferred-image-formats=qcow2\nfile: host=HOST dev=SRV/sr[0-1]",
            "check file/0, check file/1, save layout, copyconf layout, reformat file/0 !reformat, reformat file/1 !reformat",
        ),
    ] {
        host.model(model);
        assert_eq!(steps(&host.plan()).join(", "), wanted, "{model}");
    }
    let table = host.sm(&["plan", "-m", "r", "--format", "table"]).done();
    let rows: Vec<&str> = table.lines().collect();
    let gated = rows.iter().position(|row| row.contains("if it is allowed")).unwrap();
    assert!(rows[..gated].iter().all(|row| !row.contains("--allow")), "{table}");
    assert!(rows[gated + 1].contains("--allow reformat, data are lost"), "{table}");
    for (model, status, said) in [
        ("uuid: 87b8646b-b800-9500-cb7b-af3b74e02f5d\nfile: host=HOST dev=SRV/sr[0-1]", 108, "its UUID is"),
        ("file: host=HOST dev=SRV/sr[0-1] index=[1-2]", 107, "is file/0 already and keeps that index"),
        ("file: host=HOST dev=SRV/sr1 mode=external", 108, "mode of file/1 cannot be changed"),
        // Another directory is another medium, which does not have the SR.
        (
            "file: host=HOST dev=SRV/foreign index=0\nfile: host=HOST dev=SRV/sr1 index=1",
            19,
            "it is another medium than that of file/0",
        ),
    ] {
        host.model(model);
        let refused = host.sm(&["plan", "-m", "r"]);
        assert_eq!(refused.status(), status, "{refused}");
        assert!(refused.stderr().contains(said), "{refused}");
    }
}

#[test]
fn a_directory_with_an_sr_of_somebody_else_is_never_taken() {
    let host = Host::new();
    fs::create_dir_all(host.srv()).unwrap();
    let dir = format!("{}/sr0", host.srv());
    host.sm(&["sr_create", "-t", "file", "-d", &dir, "87b8646b-b800-9500-cb7b-af3b74e02f5c"]).done();
    host.model("file: host=HOST dev=SRV/sr0");
    let refused = host.sm(&["plan", "-m", "r"]);
    assert_eq!(refused.status(), 106, "{refused}");
    assert!(refused.stderr().contains("in use: it holds SR 87b8646b-b800-9500-cb7b-af3b74e02f5c"), "{refused}");
}

#[test]
fn installed_layouts_are_listed_shown_and_explained() {
    let host = Host::new();
    assert_eq!(host.sm(&["layout", "list", "--format", "table"]).done(), "");
    for words in [["layout", "show", "r"], ["layout", "info", "r"]] {
        let refused = host.sm(&words);
        assert!(refused.status() == 22 && refused.stderr().contains("no such layout is installed"), "{refused}");
    }
    host.model("file: host=HOST dev=SRV/sr0\nfile: host=other dev=/x mode=external");
    host.install();
    assert_eq!(host.sm(&["layout", "list", "--format", "table"]).done(), "r\n");
    let table = host.sm(&["layout", "info", "r", "--format", "table"]).done();
    let row = table.lines().find(|line| line.starts_with("file/0")).unwrap();
    assert!(row.contains("  missing  ") && row.ends_with("  r-file-0"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("file/1") && line.contains("  external  ")), "{table}");
    fs::write(host.run().join("layouts/r.layout"), "layout: r\n").unwrap();
    for words in [&["layout", "info", "r"][..], &["plan", "-m", "r"]] {
        let refused = host.sm(words);
        assert!(refused.status() == 5 && refused.stderr().contains("r.layout: it has no line"), "{refused}");
    }
}
