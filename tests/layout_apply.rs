//! `sm apply` and `sm layout remove` on SRs in directories: what they make, what they leave, and what a kill leaves.

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
use std::time::{Duration, Instant};

use nix::libc;
use scene::kill::{Act, End, Points, run};
use scene::{A, Door, FILE, OTHER_SR, Outcome, Scene};

const LAYOUT: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

/// A place for layouts, with a model of two SRs.
struct Bench {
    scene: Scene,
}

impl Bench {
    fn new() -> Bench {
        let scene = Scene::empty(&FILE, Door::Sm);
        fs::create_dir_all(&scene.place).unwrap();
        let bench = Bench { scene };
        bench.model("");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.root.path().join(name)
    }

    fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// Writes the model of two SRs, with further lines.
    fn model(&self, more: &str) {
        let dev = self.scene.place.join("s[0-1]");
        self.model_of(&format!("file: host={} dev={} index=[0-1]\n{more}", host(), dev.display()));
    }

    fn model_of(&self, lines: &str) {
        fs::write(self.path("rack1.model"), format!("layout: rack1\nuuid: {LAYOUT}\n{lines}")).unwrap();
    }

    fn sm(&self, words: &[&str]) -> Outcome {
        self.scene.bare(words)
    }

    fn words(&self, words: &[&str]) -> Vec<String> {
        let model = self.path("rack1.model").display().to_string();
        words.iter().map(|word| if *word == "MODEL" { model.clone() } else { (*word).to_owned() }).collect()
    }

    /// `sm` with the model in the place of the word MODEL.
    fn with_model(&self, words: &[&str]) -> Outcome {
        self.scene.bare(self.words(words))
    }

    fn apply(&self) -> Outcome {
        self.with_model(&["apply", "-m", "MODEL", "--yes"])
    }

    fn kill(&self, n: u64, words: &[&str]) -> End {
        run(n, Points::Changing, Act::Kill, &self.scene.executable(), &self.words(words), &self.run_dir()).end
    }

    /// A line for a shell that calls `sm`, and finds what is here.
    fn call(&self, words: &str) -> String {
        format!("env XCP_SM_RUN_DIR={} sm {words}", self.run_dir().display())
    }

    fn journal(&self) -> PathBuf {
        self.run_dir().join("layouts/rack1.journal")
    }

    fn claims(&self) -> serde_json::Value {
        let text = fs::read(self.run_dir().join("registry/claims.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// All that a run writes, without times, and without the place of this scene.
    fn state(&self) -> BTreeMap<String, String> {
        let root = self.scene.root.path().display().to_string();
        let mut found = BTreeMap::new();
        let mut add = |path: &Path, text: String| {
            let name = path.strip_prefix(self.scene.root.path()).unwrap().display().to_string();
            found.insert(name, text.replace(&root, "ROOT"));
        };
        for dir in ["run/sr.d", "run/layouts", "sr", "sr/s0", "sr/s1", "other"] {
            for entry in fs::read_dir(self.path(dir)).into_iter().flatten().flatten() {
                let is_file = entry.file_type().unwrap().is_file();
                let text = if is_file {
                    String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned()
                } else {
                    "/".to_owned()
                };
                add(&entry.path(), text);
            }
        }
        if self.run_dir().join("registry/claims.json").exists() {
            let mut claims = self.claims();
            claims["generation"] = 0.into();
            claims["layouts"]["rack1"]["since"] = 0.into();
            for claim in claims["claims"].as_array_mut().unwrap() {
                claim["since"] = 0.into();
            }
            add(&self.path("run/registry/claims.json"), claims.to_string());
        }
        found
    }

    /// The disk in the SR that no layout knows of.
    fn image(&self) -> Vec<u8> {
        fs::read(self.path("other").join(format!("{A}.vhd"))).unwrap()
    }

    /// An SR that no layout knows of.
    fn with_outsider(self) -> Bench {
        let other = self.path("other").display().to_string();
        self.sm(&["sr_create", "--name", "other", "-t", "file", "-d", &other, OTHER_SR]).done();
        self.sm(&["vdi_create", "other", A, "4M"]).done();
        self
    }
}

fn host() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

fn sr_of(slot: &str) -> String {
    uuid::Uuid::new_v5(&LAYOUT.parse().unwrap(), slot.as_bytes()).to_string()
}

#[test]
fn a_layout_is_applied_and_a_second_plan_is_empty() {
    let bench = Bench::new();
    let said = bench.apply().done();
    assert!(said.contains(&sr_of("file/0")) && said.contains(&sr_of("file/1")), "{said}");
    assert_eq!(bench.with_model(&["plan", "-m", "MODEL", "--detailed-exitcode"]).status(), 0);
    assert_eq!(bench.with_model(&["apply", "-m", "MODEL", "--format", "table"]).done(), "nothing to do\n");
    assert!(!bench.journal().exists());
    for (at, slot) in ["file/0", "file/1"].iter().enumerate() {
        let marker = fs::read_to_string(bench.scene.place.join(format!("s{at}/.sm-sr"))).unwrap();
        assert!(marker.contains(&sr_of(slot)) && marker.contains(&format!("(slot . \"{LAYOUT}/{slot}\")")), "{marker}");
        let claim = &bench.claims()["claims"][at];
        assert_eq!((&claim["layout"], &claim["index"]), (&"rack1".into(), &at.into()), "{claim}");
        assert_eq!(claim["sr_uuid"], sr_of(slot));
        // The name leads to the SR.
        bench.sm(&["vdi_create", &format!("rack1-file-{at}"), A, "4M"]).done();
        bench.sm(&["vdi_delete", &format!("rack1-file-{at}"), A]).done();
    }
}

#[test]
fn nothing_is_done_without_a_terminal_unless_yes_is_given_or_for_a_plan() {
    let bench = Bench::new();
    let refusal = bench.with_model(&["apply", "-m", "MODEL"]).fails("EINVAL");
    assert!(refusal.contains("--yes"), "{refusal}");
    let said = bench.with_model(&["apply", "-m", "MODEL", "--dry-run", "--format", "table"]).done();
    assert!(said.contains(&format!("make SR {}", sr_of("file/0"))), "{said}");
    bench.sm(&["apply"]).fails("EINVAL");
    bench.with_model(&["apply", "-m", "MODEL", "--allow", "colour"]).fails("EINVAL");
    assert!(!bench.scene.place.join("s0").exists() && !bench.journal().exists());
    assert!(!bench.run_dir().join("sr.d").exists() && !bench.run_dir().join("registry").exists());
}

/// Kills at every system call that changes something; `--resume`, or the same call if nothing was begun, leads to the end of an
/// uninterrupted run.
fn killed_everywhere(prepared: fn() -> Bench, words: &[&str], expected: &BTreeMap<String, String>) -> u64 {
    let mut journals = 0;
    for n in scene::sampled() {
        let bench = prepared();
        let image = bench.image();
        let end = bench.kill(n, words);
        if end != End::Killed {
            assert_eq!(end, End::Status(0));
            assert!(n > 20, "only {n} points");
            return journals;
        }
        if bench.journal().exists() {
            journals += 1;
            bench.sm(&["apply", "--resume", "--yes"]).done();
            let again = bench.sm(&["apply", "--resume", "--format", "table"]);
            assert_eq!(again.done(), "nothing to do\n", "killed at {n}");
        } else {
            let again = bench.with_model(words);
            // The last step was the removal of the layout.
            assert!(again.succeeded() || words.contains(&"remove") && again.status() == 22, "killed at {n}: {again}");
        }
        assert_eq!(bench.image(), image, "killed at {n}");
        let state = without_images(bench.state());
        let differs = |key: &&String| state.get(*key) != expected.get(*key);
        let keys: Vec<&String> = state.keys().chain(expected.keys()).filter(differs).collect();
        assert!(keys.is_empty(), "killed at {n}: {keys:?}\n{state:#?}");
    }
    unreachable!("the loop ends when nothing is killed")
}

const APPLY: &[&str] = &["apply", "-m", "MODEL", "--yes"];
const REMOVE: &[&str] = &["layout", "remove", "rack1", "--yes"];
const WIPE: &[&str] = &["layout", "remove", "rack1", "--yes", "--allow", "wipe"];

#[test]
fn a_killed_run_goes_on_to_the_end_of_one_that_was_not_killed() {
    let prepared = || Bench::new().with_outsider();
    let bench = prepared();
    bench.apply().done();
    let journals = killed_everywhere(prepared, APPLY, &without_images(bench.state()));
    assert!(journals > 30, "only {journals} kills after the journal was begun");
}

fn applied() -> Bench {
    let bench = Bench::new().with_outsider();
    bench.apply().done();
    bench.sm(&["vdi_create", "rack1-file-0", A, "4M"]).done();
    bench
}

/// VHDs have times and identities of their own; of VDIs only that they are there is compared. A killed sr_delete may leave its empty
/// directory, which sr_create takes. The directory that a killed sr_create made is none that the next one made.
fn without_images(mut state: BTreeMap<String, String>) -> BTreeMap<String, String> {
    state.iter_mut().filter(|(name, _)| name.ends_with(".vhd")).for_each(|(_, text)| text.clear());
    for text in state.iter_mut().filter(|(name, _)| name.ends_with(".sm-sr")).map(|(_, text)| text) {
        *text = text.replace("(made_directory . #f)", "(made_directory . #t)");
    }
    for dir in ["sr/s0", "sr/s1"] {
        if !state.contains_key(&format!("{dir}/.sm-sr")) {
            state.remove(dir);
        }
    }
    state
}

#[test]
fn a_removed_layout_keeps_data_and_uuids_and_takes_its_srs_again() {
    let bench = applied();
    let before = bench.scene.digest();
    let said = bench.with_model(&["layout", "remove", "rack1", "--yes", "--format", "table"]).done();
    let deletions: Vec<&str> = said.lines().filter(|line| line.contains(" sr_delete ")).map(str::trim).collect();
    let [deletion, _] = deletions.as_slice() else { panic!("{said}") };
    assert!(deletion.starts_with(&bench.call("sr_delete --yes -t file -d ")), "{deletion}");
    assert_eq!(bench.scene.digest(), before);
    assert_eq!(bench.claims()["claims"].as_array().unwrap().len(), 0);
    assert_eq!(bench.claims()["layouts"]["rack1"]["removed"], true);
    assert_eq!(bench.sm(&["layout", "list"]).done().trim(), "((layouts))");
    let names: Vec<_> = fs::read_dir(bench.run_dir().join("sr.d")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["other.conf"]);
    // Without a UUID in the model: the claims know it.
    let model = fs::read_to_string(bench.path("rack1.model")).unwrap();
    fs::write(bench.path("rack1.model"), model.replace(&format!("uuid: {LAYOUT}\n"), "")).unwrap();
    let said = bench.apply().done();
    assert!(said.contains("take SR") && !said.contains("make SR"), "{said}");
    assert_eq!(bench.scene.digest(), before);
    bench.sm(&["vdi_get_params", "rack1-file-0", A]).done();
    // What is told to be done works as it stands.
    bench.with_model(REMOVE).done();
    let path = format!("{}:/usr/bin:/bin", bench.scene.executable().parent().unwrap().display());
    let mut shell = assert_cmd::Command::new("sh");
    shell.args(["-ec", deletion]).env_remove("XCP_SM_RUN_DIR").env("PATH", path);
    let status = shell.output().unwrap().status;
    assert!(status.success() && !bench.scene.place.join("s0/.sm-sr").exists(), "{deletion}: {status}");
    bench.apply().done();
    bench.with_model(WIPE).done();
    assert!(!bench.scene.place.join("s0").exists() && !bench.scene.place.join("s1").exists());
    bench.sm(&["vdi_get_params", "other", A]).done();
    bench.with_model(REMOVE).fails("EINVAL");
}

fn killed_removal(words: &[&str]) {
    let outcome = applied();
    outcome.with_model(words).done();
    let expected = without_images(outcome.state());
    for n in scene::sampled() {
        let bench = applied();
        let end = bench.kill(n, words);
        if end != End::Killed {
            assert!(n > 20, "only {n} points");
            return;
        }
        match bench.journal().exists() {
            true => drop(bench.sm(&["apply", "--resume", "--yes"]).done()),
            false => {
                let again = bench.with_model(words);
                assert!(again.succeeded() || again.status() == 22, "killed at {n}: {again}");
            }
        }
        assert_eq!(without_images(bench.state()), expected, "killed at {n}");
    }
}

#[test]
fn a_killed_removal_goes_on() {
    killed_removal(REMOVE);
}

#[test]
fn a_killed_removal_with_its_data_goes_on() {
    killed_removal(WIPE);
}

#[test]
fn an_unfinished_run_is_resumed_or_taken_back_and_nothing_else_begins() {
    let unfinished = || {
        for n in 1.. {
            let bench = Bench::new();
            assert_eq!(bench.kill(n, APPLY), End::Killed);
            let made = bench.scene.place.join("s0/.sm-sr").exists();
            if made && bench.journal().exists() {
                return bench;
            }
        }
        unreachable!("one of the points is after the first SR was made")
    };
    let bench = unfinished();
    let refusal = bench.apply().fails("EPARTIAL");
    assert!(
        refusal.contains(&format!(
            "{} gives it up; {} goes on",
            bench.call("layout remove rack1"),
            bench.call("apply --resume rack1")
        )),
        "{refusal}"
    );
    // A line that a kill tore counts for nothing.
    let mut text = fs::read_to_string(bench.journal()).unwrap();
    text.push_str("{\"step\":{\"n\":");
    fs::write(bench.journal(), &text).unwrap();
    bench.sm(&["apply", "--resume", "rack1", "--yes"]).done();
    assert!(bench.scene.place.join("s1/.sm-sr").exists());
    let bench = unfinished();
    fs::write(bench.journal(), fs::read_to_string(bench.journal()).unwrap().replacen("\"n\":", "\"m\":", 1)).unwrap();
    bench.sm(&["apply", "--resume", "rack1", "--yes"]).fails("EIO");
    let bench = unfinished();
    bench.with_model(REMOVE).done();
    assert!(!bench.journal().exists());
    assert_eq!(bench.claims()["claims"].as_array().unwrap().len(), 0);
    assert!(bench.apply().done().contains("take SR"));
}

#[test]
fn a_run_ends_at_the_first_failure_and_goes_on_when_the_cause_is_gone() {
    for n in 1.. {
        let bench = Bench::new();
        // The directories of SRs and of locks are made with the mode 0700.
        let steps = Points::Matching(|number, args| number == libc::SYS_mkdir && args[1] == 0o700);
        let fail = Act::Fail(nix::errno::Errno::EIO);
        let failed = run(n, steps, fail, &bench.scene.executable(), &bench.words(APPLY), &bench.run_dir());
        assert_ne!(failed.end, End::Status(0), "no failure was after the first SR");
        let (first, second) = (bench.scene.place.join("s0/.sm-sr"), bench.scene.place.join("s1/.sm-sr"));
        if !first.exists() {
            continue;
        }
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert_eq!(failed.end, End::Status(111), "{said}");
        assert!(said.starts_with("EPARTIAL: ") && said.contains("--resume"), "{said}");
        assert!(!second.exists());
        bench.sm(&["apply", "--resume", "--yes"]).done();
        assert!(second.exists() && !bench.journal().exists());
        return;
    }
}

#[test]
fn a_slot_is_not_led_to_a_directory_that_is_not_its_own() {
    let bench = applied();
    let (other, empty) = (bench.path("other"), bench.path("empty"));
    fs::create_dir(&empty).unwrap();
    for place in [&other, &empty] {
        let first = bench.scene.place.join("s0");
        bench.model_of(&format!(
            "file: host={host} dev={} index=0\nfile: host={host} dev={} index=1\n",
            first.display(),
            place.display(),
            host = host()
        ));
        let before = bench.state();
        bench.apply().fails("ENODEV|EBUSY|ENOMATCH");
        assert_eq!(bench.state(), before, "{}", place.display());
        assert!(fs::read_dir(&empty).unwrap().next().is_none());
    }
}

#[test]
fn a_plan_does_not_fit_any_more_after_the_claims_or_the_layout_have_changed() {
    let bench = Bench::new();
    let plan = bench.path("plan.json").display().to_string();
    bench.with_model(&["plan", "-m", "MODEL", "-o", &plan]).done();
    bench.apply().done();
    let refusal = bench.sm(&["apply", &plan, "--yes"]).fails("ESTALEPLAN");
    assert!(refusal.contains("the installed layout is another"), "{refusal}");
    fs::write(&plan, "{}").unwrap();
    bench.sm(&["apply", &plan, "--yes"]).fails("EIO");
}

#[test]
fn of_two_runs_one_waits_and_is_told_who_the_other_is() {
    let bench = Bench::new();
    let lock = bench.run_dir().join("lock/layout/rack1");
    bench.with_model(&["plan", "-m", "MODEL"]).done();
    let file = fs::OpenOptions::new().read(true).write(true).open(lock).unwrap();
    let mut request = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&request)).unwrap();
    let start = Instant::now();
    let refusal = bench.apply().fails("ENOLCK");
    assert!(
        start.elapsed() >= Duration::from_secs(29) && refusal.contains(&format!("process {}", std::process::id())),
        "{refusal}"
    );
    assert!(!bench.scene.place.join("s0").exists());
    let waiting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        request.l_type = libc::F_UNLCK as i16;
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&request)).unwrap();
    });
    bench.apply().done();
    waiting.join().unwrap();
}

/// Every change that runs without leave keeps what the disks hold.
#[test]
fn what_runs_at_once_keeps_what_the_disks_hold() {
    let bench = applied();
    let (s0, s1) = (bench.scene.place.join("s0"), bench.scene.place.join("s1"));
    let image = || fs::read(s0.join(format!("{A}.vhd"))).unwrap();
    let before = image();
    let line = |place: &Path, rest: &str| format!("file: dev={} {rest}\n", place.display());
    let both = |first: &str| line(&s0, &format!("index=0 {first}")) + &line(&s1, "index=1");
    let third = line(&bench.scene.place.join("s2"), "index=2");
    for (lines, actions) in [
        (both("") + "description: a rack\n", &["save", "copyconf"][..]),
        (both("group=g") + "description: a rack\n", &["save", "copyconf"]),
        (both("group=g active=no"), &["check", "save", "copyconf", "tune"]),
        (both("active=manual"), &["check", "save", "copyconf", "tune"]),
        (both(""), &["check", "save", "copyconf", "tune"]),
        (both("") + "addr: host=filer addr=10.0.0.1\n", &["save", "copyconf"]),
        (both("") + &third, &["check", "save", "claim", "copyconf", "create", "start"]),
        (line(&s0, "index=0"), &["check", "stop", "wipe", "drop", "release", "save", "copyconf"]),
        (both(""), &["check", "save", "claim", "copyconf", "adopt", "start"]),
    ] {
        bench.model_of(&lines);
        let plan = bench.with_model(&["plan", "-m", "MODEL", "--format", "json"]).done();
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let mut found: Vec<&str> =
            plan["steps"].as_array().unwrap().iter().map(|step| step["action"].as_str().unwrap()).collect();
        found.dedup();
        assert_eq!(found, actions, "{lines}");
        bench.apply().done();
        assert_eq!(bench.with_model(&["plan", "-m", "MODEL", "--detailed-exitcode"]).status(), 0, "{lines}");
        assert!(image() == before, "{lines}");
        bench.sm(&["vdi_get_params", "rack1-file-0", A]).done();
    }
}

fn reformatted(bench: &Bench) {
    bench.model("file_format: preferred-image-formats=qcow2\n");
}

#[test]
fn what_loses_data_is_left_out_until_it_is_allowed() {
    let bench = applied();
    reformatted(&bench);
    let before = bench.scene.digest();
    let said = bench.with_model(&["apply", "-m", "MODEL", "--yes", "--format", "table"]).done();
    let next = bench.call("apply --resume --allow reformat rack1");
    assert!(said.contains(&format!("next steps:\n  {next}\n")), "{said}");
    assert_eq!(bench.scene.digest(), before);
    // It stays to be done, whatever is applied meanwhile.
    bench.model("file_format: preferred-image-formats=qcow2\ndescription: a rack\n");
    bench.apply().done();
    assert_eq!(bench.scene.digest(), before);
    let words = ["apply", "--resume", "--allow", "reformat", "rack1"];
    let journal = fs::read(bench.journal()).unwrap();
    bench.sm(&[&words[..], &["--dry-run"]].concat()).done();
    bench.sm(&words).fails("EINVAL");
    assert_eq!(fs::read(bench.journal()).unwrap(), journal);
    assert_eq!(bench.scene.digest(), before);
    bench.sm(&[&words[..], &["--yes"]].concat()).done();
    bench.sm(&["vdi_get_params", "rack1-file-0", A]).fails("ENOVDI");
    assert!(!bench.journal().exists());
    let entry = fs::read_to_string(bench.run_dir().join("sr.d/rack1-file-0.conf")).unwrap();
    assert!(entry.contains("preferred-image-formats=qcow2"), "{entry}");
}

#[test]
fn a_plan_that_says_that_a_loss_needs_no_leave_is_not_believed() {
    let bench = applied();
    reformatted(&bench);
    let plan = bench.path("plan.json").display().to_string();
    bench.with_model(&["plan", "-m", "MODEL", "-o", &plan]).done();
    let text = fs::read_to_string(&plan).unwrap();
    let mut edited: serde_json::Value = serde_json::from_str(&text).unwrap();
    for step in edited["steps"].as_array_mut().unwrap() {
        step["allow"] = serde_json::Value::Null;
        step["destructive"] = false.into();
    }
    fs::write(&plan, edited.to_string()).unwrap();
    let before = bench.scene.digest();
    bench.sm(&["apply", &plan, "--yes"]).done();
    assert_eq!(bench.scene.digest(), before);
    // Nor does a plan take the place of anything but a file.
    let link = bench.path("link");
    std::os::unix::fs::symlink(&plan, &link).unwrap();
    bench.with_model(&["plan", "-m", "MODEL", "-o", &link.display().to_string()]).fails("EINVAL");
    assert!(link.is_symlink());
}

/// A disk that is made in the new SR, between the kill of a run and its end, is not lost.
#[test]
fn a_killed_reformat_deletes_what_was_there_before_and_nothing_else() {
    const NEW: &str = "98de866e-b035-4b1a-a571-00000000000d";
    let words = ["apply", "-m", "MODEL", "--yes", "--allow", "reformat"];
    let mut kept = 0;
    for n in 1.. {
        let bench = applied();
        reformatted(&bench);
        let end = bench.kill(n, &words);
        if end != End::Killed {
            assert_eq!(end, End::Status(0));
            break;
        }
        let is_old = bench.sm(&["vdi_get_params", "rack1-file-0", A]).succeeded();
        let is_new = !is_old && bench.sm(&["vdi_create", "rack1-file-0", NEW, "4M"]).succeeded();
        match bench.journal().exists() {
            true => drop(bench.sm(&["apply", "--resume", "--yes"]).done()),
            false => drop(bench.with_model(&words).done()),
        }
        bench.sm(&["vdi_get_params", "rack1-file-0", A]).fails("ENOVDI");
        if is_new {
            bench.sm(&["vdi_get_params", "rack1-file-0", NEW]).done();
            kept += 1;
        }
        bench.sm(&["vdi_get_params", "other", A]).done();
    }
    assert!(kept > 3, "only {kept} kills while the new SR was there");
}

#[test]
fn a_medium_that_does_not_hold_the_sr_of_its_slot_is_not_said_to_be_wiped() {
    for words in [WIPE, &["apply", "-m", "MODEL", "--yes", "--allow", "reformat"]] {
        let bench = applied();
        reformatted(&bench);
        // The SR was moved away, and another is in its place.
        let (s0, aside) = (bench.scene.place.join("s0"), bench.path("aside"));
        bench.sm(&["sr_detach", "rack1-file-0"]).done();
        fs::rename(&s0, &aside).unwrap();
        bench.sm(&["sr_create", "-t", "file", "-d", &s0.display().to_string(), OTHER_SR]).done();
        let (before, state) = (bench.scene.digest(), bench.state());
        let refused = bench.with_model(words).fails("ENODEV");
        let expected = format!("it does not hold SR {}", sr_of("file/0"));
        assert!(refused.contains(&expected), "{refused}");
        assert_eq!((bench.scene.digest(), bench.state()), (before, state), "{words:?}");
        // Also a step that was left to be done.
        if words != WIPE {
            bench.with_model(&["apply", "-m", "MODEL", "--yes"]).done();
            let refused = bench.sm(&["apply", "--resume", "--allow", "reformat", "rack1", "--yes"]).fails("EPARTIAL");
            assert!(refused.contains(&expected), "{refused}");
            assert!(s0.join(".sm-sr").exists());
        }
    }
}

#[test]
fn a_release_after_a_wipe_keeps_no_data_and_says_so() {
    let bench = applied();
    let said = bench.with_model(&[WIPE, &["--format", "table"]].concat()).done();
    assert!(said.contains("\nrelease ") && !said.contains("keeps its data"), "{said}");
    let bench = applied();
    let said = bench.with_model(&[REMOVE, &["--format", "table"]].concat()).done();
    assert!(said.contains("keeps its data"), "{said}");
}

#[test]
fn a_device_that_no_line_fits_comes_and_goes_without_making_a_plan_stale() {
    if !scene::is_root() {
        return scene::skip("a loop device");
    }
    let bench = Bench::new().with_outsider();
    let plan = bench.path("plan.json").display().to_string();
    bench.with_model(&["plan", "-m", "MODEL", "-o", &plan]).done();
    bench.sm(&["vdi_create", "other", scene::B, "4M", "--type", "raw"]).done();
    bench.sm(&["vdi_attach", "other", scene::B]).done();
    let applied = bench.sm(&["apply", &plan, "--yes"]);
    bench.sm(&["vdi_detach", "other", scene::B]).done();
    assert!(applied.succeeded(), "{applied}");
}

#[test]
fn a_journal_whose_steps_are_not_numbered_is_refused() {
    let bench = applied();
    reformatted(&bench);
    bench.with_model(&["apply", "-m", "MODEL", "--yes"]).done();
    let journal = fs::read_to_string(bench.journal()).unwrap();
    let (head, rest) = journal.split_once('\n').unwrap();
    let mut head: serde_json::Value = serde_json::from_str(head).unwrap();
    for step in head["plan"]["steps"].as_array_mut().unwrap() {
        step["n"] = 0.into();
    }
    fs::write(bench.journal(), format!("{head}\n{rest}")).unwrap();
    let refused = bench.sm(&["apply", "--resume", "rack1", "--yes"]).fails("EIO");
    assert!(refused.contains("has the number 0"), "{refused}");
    bench.model("file_format: preferred-image-formats=qcow2\ndescription: a rack\n");
    bench.apply().fails("EIO");
}

/// Puts a hook of `layout-apply-PHASE.d` that appends its variables to the file `PHASE`, but for run and directories, and then does
/// `body`.
fn hook(bench: &Bench, phase: &str, body: &str) {
    let dir = bench.run_dir().join(format!("hooks/layout-apply-{phase}.d"));
    fs::create_dir_all(&dir).unwrap();
    let told = bench.path(phase);
    let text = format!(
        "#!/bin/sh\nenv | grep ^SM_ | sort | grep -v -e SM_RUN_ID=rack1. -e SM_HOST= -e SM_DATA_DIR= -e SM_HOOKS_PATH= | tr '\\n' ' ' \
         >> {0}\necho >> {0}\n{body}\n",
        told.display()
    );
    fs::write(dir.join("10-tell"), text).unwrap();
    fs::set_permissions(dir.join("10-tell"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// What the hooks of a phase were told since the last call of this.
fn told(bench: &Bench, phase: &str) -> Vec<String> {
    let text = fs::read_to_string(bench.path(phase)).unwrap_or_default();
    let _ = fs::remove_file(bench.path(phase));
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn variables(code: &str, phase: &str, actions: &str, allow: &str) -> String {
    format!(
        "SM_ACTIONS={actions} SM_ALLOW={allow} SM_HOOKS_PHASE={phase} SM_HOOKS_VERSION=1 SM_LAYOUT=rack1 SM_OBJECT_TYPE=LAYOUT \
         SM_OP_CODE={code}"
    )
}

#[test]
fn hooks_run_around_a_change_and_may_deny_it() {
    let bench = Bench::new();
    hook(&bench, "pre", "echo not today; exit 3");
    hook(&bench, "post", "");
    let before = bench.state();
    let refused = bench.apply().fails("EHOOKDENY");
    assert!(
        refused.contains("a hook denied the change of layout rack1: ") && refused.contains("not today"),
        "{refused}"
    );
    assert_eq!((bench.state(), bench.journal().exists()), (before, false));
    let actions = "save,claim,copyconf,create,start";
    assert_eq!(told(&bench, "pre"), [variables("LAYOUT_APPLY", "pre", actions, "")]);
    assert!(told(&bench, "post").is_empty());
    hook(&bench, "pre", "");
    bench.with_model(&["apply", "-m", "MODEL", "--dry-run"]).done();
    assert!(told(&bench, "pre").is_empty());
    bench.apply().done();
    assert_eq!(told(&bench, "pre"), [variables("LAYOUT_APPLY", "pre", actions, "")]);
    let post =
        |code, actions, result, allow| variables(code, "post", actions, allow) + &format!(" SM_POST_RESULT={result}");
    assert_eq!(told(&bench, "post"), [post("LAYOUT_APPLY", actions, "True", "")]);
    // Nothing to do is no change.
    bench.apply().done();
    assert!(told(&bench, "pre").is_empty());
    hook(&bench, "post", "echo too late >&2; exit 1");
    let removed = bench.with_model(WIPE);
    assert_eq!(removed.status(), 0, "{removed}");
    assert!(removed.stderr().starts_with("warning: a hook after the change failed: "), "{removed}");
    assert!(removed.stderr().contains("too late"), "{removed}");
    let actions = "stop,wipe,drop,release,save";
    assert_eq!(told(&bench, "post"), [post("LAYOUT_REMOVE", actions, "True", "wipe")]);
}

#[test]
fn hooks_run_around_the_rest_of_a_run_that_failed() {
    let bench = Bench::new();
    hook(&bench, "post", "");
    // The directory of the second SR is taken after all was looked at.
    let wall = bench.scene.place.join("s1");
    hook(&bench, "pre", &format!("mkdir -p {0}; touch {0}/.sm-sr", wall.display()));
    let failed = bench.apply().fails("EPARTIAL");
    assert!(failed.contains("step make SR"), "{failed}");
    let actions = "save,claim,copyconf,create,start";
    let ended = format!("{} SM_POST_RESULT=False", variables("LAYOUT_APPLY", "post", actions, ""));
    assert_eq!((told(&bench, "pre").len(), told(&bench, "post")), (1, vec![ended]));
    fs::remove_dir_all(&wall).unwrap();
    hook(&bench, "pre", "exit 1");
    let journal = fs::read(bench.journal()).unwrap();
    bench.sm(&["apply", "--resume", "--yes"]).fails("EHOOKDENY");
    assert_eq!(fs::read(bench.journal()).unwrap(), journal);
    assert_eq!(told(&bench, "pre"), [variables("LAYOUT_APPLY", "pre", "create,start", "")]);
    hook(&bench, "pre", "");
    bench.sm(&["apply", "--resume", "--yes"]).done();
    let ended = format!("{} SM_POST_RESULT=True", variables("LAYOUT_APPLY", "post", "create,start", ""));
    assert_eq!(told(&bench, "post"), [ended]);
}
