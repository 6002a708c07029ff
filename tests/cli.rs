//! SR API v1.0 as a caller sees it: exact answers, statuses and messages, through a driver and through `sm`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_types,
    reason = "a test ends where it cannot go on, and starts other programs directly"
)]

mod scene;

use scene::{A, B, C, Door, FILE, MIB, NONE, OTHER_SR, Outcome, Row, SR, Scene};
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Every promise of this file, kept by a driver through both doors.
macro_rules! battery {
    ($driver:ident, $row:expr) => {
        battery!($driver, $row;
            a_new_sr_has_nothing_in_it
            a_new_vdi_is_what_was_asked_for
            what_is_optional_is_left_out_or_there
            an_sr_is_created_once
            a_vdi_is_created_once
            what_is_idempotent_succeeds_again
            a_refusal_has_its_status_and_one_line_and_changes_nothing
            options_stand_anywhere
            every_command_explains_itself
            a_size_is_what_its_unit_says
            what_is_read_only_keeps_its_size
            a_disk_that_only_grows_says_so_at_once
            a_user_of_any_text_can_hold_a_lock
            each_format_of_an_answer_says_the_same
            sr_probe_finds_what_is_there
        );
    };
    ($driver:ident, $row:expr; $($promise:ident)*) => {
        mod $driver {
            use super::*;
            mod through_the_driver {
                use super::*;
                $(#[test] fn $promise() { super::super::$promise(&with_sr($row, Door::Driver)) })*
            }
            mod through_sm {
                use super::*;
                $(#[test] fn $promise() { super::super::$promise(&with_sr($row, Door::Sm)) })*
            }
        }
    };
}

battery!(file, &FILE);

fn with_sr(row: &'static Row, door: Door) -> Scene {
    let scene = Scene::empty(row, door);
    assert_eq!(scene.call(["sr_create", SR]).done(), "");
    assert_eq!(scene.call(["sr_attach", SR]).done(), "");
    scene
}

/// The text between `start` and `end`.
fn between<'a>(text: &'a str, start: &str, end: char) -> &'a str {
    let text = &text[text.find(start).unwrap_or_else(|| panic!("no {start} in {text}")) + start.len()..];
    &text[..text.find(end).unwrap()]
}

fn a_new_sr_has_nothing_in_it(scene: &Scene) {
    let answer = scene.call(["sr_get_params", SR]).done();
    let (size, location) = (between(&answer, "(size . ", ')'), scene.place.display());
    let expected = format!(
        "(sr (uuid . \"{SR}\") (VDIs) (physical_utilisation . 0) (virtual_allocation . 0) (size . {size}) \
         (type . \"{}\") (location . \"{location}\"))\n",
        scene.row.sr_type
    );
    assert_eq!(answer, expected);
    assert_eq!(scene.call(["sr_scan", SR]).done(), expected);
}

fn a_new_vdi_is_what_was_asked_for(scene: &Scene) {
    assert_eq!(scene.call(["vdi_create", SR, A, "4"]).done(), "");
    let answer = scene.call(["vdi_get_params", SR, A]).done();
    let used = between(&answer, "(physical_utilisation . ", ')');
    let expected = format!(
        "(vdi (uuid . \"{A}\") (SR . \"{SR}\") (VBDs) (virtual_size . 4194304) (physical_utilisation . {used}) \
         (sector_size . 512) (type . \"raw\") (children) (shareable . #f) (attached . #f) (lock . 0) (read_only . 0))"
    );
    assert_eq!(answer, format!("{expected}\n"));
    let scan = scene.call(["sr_scan", SR]).done();
    assert!(scan.contains(&format!("(VDIs \"{A}\")")), "{scan}");
    assert!(scan.ends_with(&format!(" (vdis {expected}))\n")), "{scan}");
}

fn what_is_optional_is_left_out_or_there(scene: &Scene) {
    let call =
        ["vdi_create", SR, A, "1", "--label", "-a \"label\"", "--description=é\\n", "--shareable", "--read-only"];
    scene.call(call).done();
    scene.call(["vdi_lock", SR, A, "FALSE", "host1/vm7"]).done();
    scene.call(["vdi_lock", SR, A, "false", "host 2"]).done();
    let answer = scene.call(["vdi_get_params", SR, A]).done();
    for part in [
        r#"(label . "-a \"label\"")"#,
        r#"(description . "é\\n")"#,
        "(shareable . #t)",
        "(read_only . 1)",
        "(lock . 1)",
        r#"(VBDs "host1/vm7" "host 2")"#,
    ] {
        assert!(answer.contains(part), "no {part} in {answer}");
    }
}

fn an_sr_is_created_once(scene: &Scene) {
    let message = scene.call(["sr_create", SR]).fails("EEXIST");
    assert_eq!(message, format!("SR {SR} exists already (in {})", scene.place.display()));
    let message = scene.call(["sr_create", OTHER_SR]).fails("EBUSY");
    assert_eq!(
        message,
        format!("{} is in use: it holds SR {SR}, which sr_attach makes available", scene.place.display())
    );
}

fn a_vdi_is_created_once(scene: &Scene) {
    scene.call(["vdi_create", SR, A, "1"]).done();
    scene.call(["vdi_create", SR, B, "1"]).done();
    let exists = |vdi| format!("VDI {vdi} exists already on SR {SR}");
    assert_eq!(scene.call(["vdi_create", SR, A, "1"]).fails("EEXIST"), exists(A));
    assert_eq!(scene.call(["vdi_create", SR, &A.to_uppercase(), "1"]).fails("EEXIST"), exists(A));
    assert_eq!(scene.call(["vdi_clone", SR, A, B]).fails("EEXIST"), exists(B));
    assert_eq!(scene.call(["vdi_snapshot", SR, A, B]).fails("EEXIST"), exists(B));
    assert_eq!(scene.call(["vdi_clone", SR, A, A]).fails("EEXIST"), exists(A));
}

fn what_is_idempotent_succeeds_again(scene: &Scene) {
    scene.call(["vdi_create", SR, A, "1"]).done();
    for call in [
        &["sr_attach", SR][..],
        &["sr_detach", SR],
        &["vdi_detach", SR, A],
        &["vdi_resize", SR, A, "2"],
        &["vdi_delete", SR, A],
        &["vdi_delete", SR, NONE],
        &["sr_delete", SR],
        &["sr_delete", OTHER_SR],
    ] {
        for _ in 0..2 {
            assert_eq!(scene.call(call).done(), "", "{call:?}");
        }
    }
}

/// (what is asked, the name of the error, words of its message)
const REFUSALS: &[(&[&str], &str, &str)] = &[
    (&["vdi_create", SR, C, "17TiB", "--type", "qcow2"], "E2BIG", "qcow2 holds"),
    (
        &["vdi_create", SR, C, "3TiB", "--type", "vhd"],
        "E2BIG",
        "2040GiB at most; one made with --type qcow2 holds 15.9TiB",
    ),
    (&["vdi_create", SR, C, "1", "--type", "vdi"], "EINVAL", "expected raw, vhd or qcow2"),
    (&["vdi_create", SR, C, "99999999TiB"], "E2BIG", "8 EiB"),
    (&["vdi_resize", SR, A, "99999999999999999999"], "E2BIG", "8 EiB"),
    (&["sr_get_params", SR, A], "E2BIG", "is one too many; usage: "),
    (
        &["vdi_create", SR, C, "21474836480", "--type", "vhd"],
        "E2BIG",
        "SIZE 21474836480, in MiB, is too big: it is 20480TiB",
    ),
    (&["vdi_create", SR, C, "21474836480", "--type", "vhd"], "E2BIG", "for bytes write 21474836480B"),
    (&["sr_create", SR], "EEXIST", SR),
    (&["sr_create", OTHER_SR], "EBUSY", SR),
    (&["vdi_create", SR, A, "1"], "EEXIST", A),
    (&["vdi_clone", SR, B, A], "EEXIST", A),
    (&["vdi_lock", SR, A], "EINVAL", "<USER> is missing"),
    (&["sr_attach", "../../etc"], "EINVAL", "SR-UUID \"../../etc\" is not valid"),
    (&["vdi_create", SR, C, "--", "-1"], "EINVAL", "SIZE \"-1\" is not valid: a size cannot be negative"),
    (&["vdi_create", SR, C, "-5G"], "EINVAL", "SIZE -5… is not valid: a size cannot be negative"),
    (&["vdi_resize", SR, A, "-10GiB"], "EINVAL", "SIZE -1… is not valid: a size cannot be negative"),
    (&["vdi_create", SR, C, "1GB"], "EINVAL", "for units of 1,024 write 1GiB"),
    (&["vdi_resize", SR, A, "1"], "EINVAL", "--allow-shrink"),
    (&["vdi_lock", SR, B, "PERHAPS", "u"], "EINVAL", "expected TRUE or FALSE"),
    (&["vdi_lock", SR, B, "FALSE", ""], "EINVAL", "expected 1 to 1024 bytes"),
    (&["vdi_lock", SR, B, "FALSE", "two\nlines"], "EINVAL", "control characters"),
    (&["vdi_create", SR, C, "1", "--label", "bell\u{7}"], "EINVAL", "control characters"),
    (&["sr_scan", SR, "--explode"], "EINVAL", "'--explode'"),
    (&["sr_scan", SR, "--wait", "soon"], "EINVAL", "soon"),
    (&["sr_create", SR, "8388608TiB"], "E2BIG", "8 EiB"),
    (&["vdi_lock", SR, A, "FALSE", "another"], "ENOLCK", "is locked by \"user\""),
    (&["vdi_lock", SR, A, "TRUE", "user"], "ENOLCK", "is locked by \"user\" already"),
    (&["vdi_unlock", SR, A, "FALSE", "another"], "ENOLCK", "\"user\" does"),
    (&["vdi_unlock", SR, B, "TRUE", "user"], "ENOLCK", "it is not locked"),
    (&["vdi_explode", SR, A], "ENOMSG", "no such command \"vdi_explode\""),
    (&["vdi_atach", SR, A], "ENOMSG", "no such command \"vdi_atach\"; did you mean vdi_attach? `--help` lists them"),
    (&["VDI_CREATE", SR, C, "1"], "ENOMSG", "no such command"),
    (&["vdi-create", SR, C, "1"], "ENOMSG", "no such command"),
    (&["vdi_fly", SR, A], "ENOMSG", "no such command \"vdi_fly\"; `--help` lists them"),
    (
        &["vdi_create", SR, C, "1", "--lable", "x"],
        "EINVAL",
        "no option '--lable'; did you mean --label? `--help` after",
    ),
    (&["vdi_create", SR, C, "1", "--raed-only"], "EINVAL", "did you mean --read-only?"),
    (&["sr_scan", SR, "-1"], "EINVAL", "no option '-1'; `--help` after"),
    (&["sr_scan", SR, "--wait", "abc"], "EINVAL", "`--help` after"),
    (&["sr_get_params", OTHER_SR], "ENOSR", OTHER_SR),
    (&["vdi_create", OTHER_SR, C, "1"], "ENOSR", OTHER_SR),
    (&["vdi_get_params", SR, NONE], "ENOVDI", NONE),
    (&["vdi_attach", SR, NONE], "ENOVDI", NONE),
    (&["vdi_detach", SR, NONE], "ENOVDI", NONE),
    (&["vdi_resize", SR, NONE, "1"], "ENOVDI", NONE),
    (&["vdi_clone", SR, NONE, C], "ENOVDI", NONE),
    (&["vdi_snapshot", SR, NONE, C], "ENOVDI", NONE),
    (&["vdi_lock", SR, NONE, "FALSE", "u"], "ENOVDI", NONE),
    (&["vdi_unlock", SR, NONE, "TRUE", "u"], "ENOVDI", NONE),
    (&["vdi_delete", SR, A], "EVDIBUSY", "\"user\", who locked it"),
    (&["vdi_clone", SR, A, C], "EVDIBUSY", "\"user\", who locked it"),
    (&["sr_delete", SR, "--yes"], "EVDIBUSY", A),
];

/// What an agent is refused and a person is not, or in other words: a person calls a VDI by its label too, and names several.
const REFUSALS_OF_AGENTS: &[(&[&str], &str, &str)] = &[
    (&["vdi_delete", SR, A, B], "E2BIG", B),
    (&["vdi_get_params", SR], "EINVAL", "<VDI-UUID> is missing"),
    (&["vdi_get_params", SR, "not-a-uuid"], "EINVAL", "VDI-UUID \"not-a-uuid\" is not valid"),
    (&["vdi_create", SR, "1"], "EINVAL", "<SIZE> is missing"),
    (&["sr_attach"], "EINVAL", "<SR-UUID> is missing"),
    (&["vdi_lock", SR, A], "EINVAL", "<FORCE> <USER> is missing"),
    (&["vdi_lock", SR, B, "u"], "EINVAL", "<USER> is missing"),
    (&["sr_create", SR, "--name", "fast"], "EINVAL", "no option '--name'"),
    (&["sr_list"], "ENOMSG", "no such command \"sr_list\""),
];

const REFUSALS_OF_PEOPLE: &[(&[&str], &str, &str)] = &[
    (&["vdi_get_params", SR], "EINVAL", "<VDI> is missing"),
    (
        &["vdi_get_params", SR, "not-a-uuid"],
        "ENOVDI",
        "no VDI on SR 87b8646b-b800-9500-cb7b-af3b74e02f5c has the label",
    ),
    (&["vdi_create", SR, C, "+1G"], "EINVAL", "SIZE \"+1G\" is not valid"),
];

fn a_refusal_has_its_status_and_one_line_and_changes_nothing(scene: &Scene) {
    scene.call(["vdi_create", SR, A, "2"]).done();
    scene.call(["vdi_create", SR, B, "2", "--label", "b"]).done();
    scene.call(["vdi_lock", SR, A, "FALSE", "user"]).done();
    let before = scene.digest();
    let of_door = if scene.door == Door::Sm { REFUSALS_OF_PEOPLE } else { REFUSALS_OF_AGENTS };
    for (call, name, words) in REFUSALS.iter().chain(of_door) {
        let message = scene.call(*call).fails(name);
        assert!(message.contains(words), "{call:?}: no {words:?} in {message:?}");
        assert_eq!(scene.digest(), before, "after {call:?}");
    }
}

fn options_stand_anywhere(scene: &Scene) {
    let dconf = scene.dconf();
    let expected = scene.call(["sr_get_params", SR]).done();
    let list = format!("((location . \"{dconf}\"))");
    let (glued, equals) = (format!("-d{dconf}"), format!("--dconf={dconf}"));
    let lines: [&[&str]; 6] = [
        &[&glued, "sr_get_params", SR],
        &["sr_get_params", &glued, SR],
        &["sr_get_params", SR, "-d", &dconf],
        &["sr_get_params", SR, &equals],
        &["sr_get_params", "-d", &list, SR],
        &["-d", &dconf, "sr_get_params", "--", SR],
    ];
    for line in lines {
        let types: [&[&str]; 3] = [&["-tfile"], &["-t", "file"], &["--sr-type=file"]];
        for sr_type in types {
            let (mut first, mut last) = (line.to_vec(), line.to_vec());
            if scene.door == Door::Sm {
                first.splice(0..0, sr_type.iter().copied());
                let end = last.iter().position(|word| *word == "--").unwrap_or(last.len());
                last.splice(end..end, sr_type.iter().copied());
            }
            assert_eq!(scene.bare(&first).done(), expected);
            assert_eq!(scene.bare(&last).done(), expected);
        }
    }
}

fn every_command_explains_itself(scene: &Scene) {
    let help = scene.bare(["--help"]).done();
    for verb in [
        "sr_create",
        "sr_delete",
        "sr_attach",
        "sr_detach",
        "sr_get_params",
        "sr_scan",
        "sr_content_type",
        "sr_probe",
        "vdi_create",
        "vdi_delete",
        "vdi_attach",
        "vdi_detach",
        "vdi_clone",
        "vdi_snapshot",
        "vdi_resize",
        "vdi_lock",
        "vdi_unlock",
        "vdi_get_params",
    ] {
        assert!(help.contains(verb), "{verb} is not in --help");
        let of_verb = scene.bare([verb, "--help"]).done();
        assert!(of_verb.contains(&format!("{verb} [OPTIONS]")), "{of_verb}");
    }
    assert!(scene.bare(["--version"]).done().ends_with(concat!(" ", env!("CARGO_PKG_VERSION"), "\n")));
    let message = scene.bare::<&str>([]).fails("EINVAL");
    assert!(message.contains("--help"), "{message}");
}

fn a_size_is_what_its_unit_says(scene: &Scene) {
    for (size, bytes) in
        [("3", 3 * MIB), ("3MiB", 3 * MIB), ("1GiB", 1024 * MIB), ("1TiB", MIB * MIB), ("4KiB", 4096), ("513B", 1024)]
    {
        scene.call(["vdi_create", SR, A, size]).done();
        let answer = scene.call(["vdi_get_params", SR, A]).done();
        assert_eq!(between(&answer, "(virtual_size . ", ')'), bytes.to_string(), "{size}");
        scene.call(["vdi_delete", SR, A]).done();
    }
}

fn what_is_read_only_keeps_its_size(scene: &Scene) {
    scene.call(["vdi_create", SR, A, "4", "--type", "vhd"]).done();
    scene.call(["vdi_snapshot", SR, A, B]).done();
    scene.call(["vdi_create", SR, C, "4", "--read-only"]).done();
    let before = scene.digest();
    for vdi in [B, C] {
        for sizes in [&["8"][..], &["4"], &["2"], &["2", "--allow-shrink"]] {
            let message = scene.call([&["vdi_resize", SR, vdi], sizes].concat()).fails("EPERM");
            assert_eq!(message, format!("vdi_resize is not supported: VDI {vdi} is read-only"));
            assert_eq!(scene.digest(), before, "after {vdi} {sizes:?}");
        }
    }
}

fn a_disk_that_only_grows_says_so_at_once(scene: &Scene) {
    for (vdi, format) in [(A, "vhd"), (B, "qcow2")] {
        scene.call(["vdi_create", SR, vdi, "8", "--type", format]).done();
        for sizes in [&["4"][..], &["4", "--allow-shrink"]] {
            let message = scene.call([&["vdi_resize", SR, vdi], sizes].concat()).fails("EPERM");
            let expected = format!("a {format} disk can only grow; VDI {vdi} has 8MiB; make a smaller one");
            assert!(message.contains(&expected) && !message.contains("--allow-shrink"), "{message}");
        }
    }
}

fn a_user_of_any_text_can_hold_a_lock(scene: &Scene) {
    scene.call(["vdi_create", SR, A, "1"]).done();
    for user in ["-f", "--", "(a . b)", "\"", "\\", "λ", "a b", "../../x", &"long".repeat(256)] {
        // `--` ends the options, so it takes another one to be said.
        let line = ["vdi_lock", SR, A, "FALSE", "--", user];
        let line =
            if user == "--" { line.to_vec() } else { line.iter().copied().filter(|word| *word != "--").collect() };
        scene.call(&line).done();
        let answer = scene.call(["vdi_get_params", SR, A]).done();
        let quoted = user.replace('\\', "\\\\").replace('"', "\\\"");
        assert!(answer.contains(&format!("(VBDs \"{quoted}\")")), "{user}: {answer}");
        scene.call(["vdi_unlock", SR, A, "TRUE", "whoever"]).done();
    }
}

fn each_format_of_an_answer_says_the_same(scene: &Scene) {
    scene.call(["vdi_create", SR, A, "1", "--label", "a"]).done();
    let json = scene.call(["sr_scan", SR, "--format", "json"]).done();
    // The JSON of sm has a form of its own (tests/json.rs).
    let start = if scene.door == Door::Sm { "{\"schema\":1,\"uuid\":" } else { "{\"sr\":{" };
    assert!(json.starts_with(start) && json.ends_with("}\n") && json.contains("\"attached\":false"), "{json}");
    let lisp = scene.call(["sr_scan", SR, "--format", "lisp"]).done();
    let sexp = scene.call(["sr_scan", SR, "--format", "sexp"]).done();
    assert_eq!(lisp, sexp.replace("#f", "nil"));
    let table = scene.call(["vdi_get_params", SR, A, "--format", "table"]).done();
    assert!(table.starts_with(&format!("VDI           {A}\n")) && table.contains("1.0 MiB (1048576 bytes)"), "{table}");
    let table = scene.call(["sr_get_params", SR, "--format", "table"]).done();
    assert!(table.contains("\nfree          "), "{table}");
    let message = scene.call(["sr_scan", SR, "--format", "xml"]).fails("EINVAL");
    assert!(message.contains("[possible values: sexp, lisp, json, table]; ") && !message.contains('\\'), "{message}");
}

fn sr_probe_finds_what_is_there(scene: &Scene) {
    let expected = scene.call(["sr_get_params", SR]).done();
    assert_eq!(scene.call(["sr_probe"]).done(), format!("(srs {})\n", expected.trim_end()));
    scene.call(["sr_delete", SR]).done();
    let outcome: Outcome = scene.call(["sr_probe"]);
    outcome.fails("ENODEV");
}

#[test]
fn sm_deletes_no_sr_with_vdis_in_it_unasked() {
    let scene = with_sr(&FILE, Door::Sm);
    scene.call(["vdi_create", SR, A, "1"]).done();
    let before = scene.digest();
    let message = scene.call(["sr_delete", SR]).fails("EINVAL");
    assert_eq!(message, format!("SR {SR} has 1 VDIs, which would be lost; --yes deletes them"));
    assert_eq!(scene.digest(), before);
    scene.call(["sr_delete", SR, "--yes"]).done();
    assert!(!scene.place.exists());
}

/// `script` gives the call a terminal; what it prints there, stdout and stderr, comes back.
#[test]
fn sm_says_at_a_terminal_that_there_is_nothing_to_delete_and_a_driver_does_not() {
    for door in [Door::Sm, Door::Driver] {
        let scene = with_sr(&FILE, door);
        scene.call(["vdi_create", SR, A, "1"]).done();
        let place = scene.place.display();
        let notes = [
            (&["sr_delete", OTHER_SR][..], format!("no SR {OTHER_SR} ({place} holds SR {SR})")),
            (&["vdi_delete", SR, NONE], format!("no VDI {NONE} on SR {SR} (looked in {place})")),
        ];
        for (call, note) in notes {
            let line = format!("'{}' {}", scene.executable().display(), scene.line(call).join(" "));
            let mut command = assert_cmd::Command::new("script");
            command.args(["-qec", &line, "/dev/null"]).env("XCP_SM_RUN_DIR", scene.root.path().join("run"));
            let printed = String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap();
            let expected = if door == Door::Sm { format!("nothing to delete: {note}") } else { String::new() };
            assert_eq!(printed.trim_end(), expected, "{line}");
            assert_eq!(scene.call(call).done(), "");
        }
    }
}

#[test]
fn a_lock_that_is_there_already_is_made_durable_without_the_image() {
    let scene = Scene::file_with_a();
    scene.call(["vdi_lock", SR, A, "FALSE", "host1"]).done();
    if !scene::has("strace") {
        return;
    }
    let trace = scene.root.path().join("trace");
    let traced = |verb: &str| {
        let strace = format!("strace -f -y -qq -e trace=fsync,fdatasync -o {}", trace.display());
        scene.under(&strace, scene.line([verb, SR, A, "FALSE", "host1"])).fails("ENOLCK");
        let synced = std::fs::read_to_string(&trace).unwrap();
        assert!(synced.contains(&format!("<{}>", scene.place.display())), "nothing was made durable: {synced}");
        assert!(!synced.contains(".raw"), "the image was synced as well: {synced}");
    };
    traced("vdi_lock");
    scene.call(["vdi_unlock", SR, A, "FALSE", "host1"]).done();
    traced("vdi_unlock");
}

#[test]
fn sm_wants_a_type_it_knows() {
    let scene = with_sr(&FILE, Door::Sm);
    let message = scene.bare(["sr_scan", "-d", "/srv/sr", SR]).fails("EINVAL");
    assert!(message.contains("-t TYPE is missing") && message.contains("file"), "{message}");
    let message = scene.bare(["sr_scan", "-t", "nonsense", "-d", "/srv/sr", SR]).fails("EINVAL");
    assert!(message.contains("nonsense") && message.contains("file"), "{message}");
    let message = scene.bare(["sr_scan", "-t", "file", SR]).fails("EINVAL");
    assert!(message.contains("-d DCONF is missing"), "{message}");
}

#[test]
fn a_driver_knows_its_type_and_takes_no_other() {
    let scene = with_sr(&FILE, Door::Driver);
    scene.bare(["sr_scan", "-t", "file", "-d", "/srv/sr", SR]).fails("EINVAL");
}

#[test]
fn files_are_for_their_owner_only() {
    let scene = Scene::empty(&FILE, Door::Driver);
    scene.call(["sr_create", SR]).done();
    scene.call(["vdi_create", SR, A, "1", "--label", "a"]).done();
    scene.call(["vdi_lock", SR, A, "FALSE", "u"]).done();
    for (path, what) in scene.digest() {
        let expected = if what.contains("directory") { "40700 " } else { "100600 " };
        assert!(what.starts_with(expected), "{}: {what}", path.display());
    }
}

#[test]
fn a_directory_of_another_storage_manager_is_adopted_by_sr_attach_and_by_nothing_else() {
    let scene = Scene::file_with_a();
    std::fs::remove_file(scene.place.join(".sm-sr")).unwrap();
    let before = scene.digest();
    for call in [&["sr_get_params", SR][..], &["sr_scan", SR], &["vdi_get_params", SR, A], &["vdi_create", SR, B, "1"]]
    {
        let message = scene.call(call).fails("ENOSR");
        assert!(message.contains("sr_attach takes it over"), "{message}");
    }
    scene.call(["sr_create", SR]).fails("EBUSY");
    scene.call(["sr_delete", SR]).fails("ESRBUSY");
    assert_eq!(scene.digest(), before);
    scene.call(["sr_attach", SR]).done();
    assert!(scene.call(["sr_get_params", SR]).done().contains(A));
}

#[test]
fn sr_attach_says_what_a_directory_of_other_files_lacks() {
    let scene = Scene::empty(&FILE, Door::Driver);
    std::fs::create_dir(&scene.place).unwrap();
    std::fs::write(scene.place.join("notes.txt"), "not a disk").unwrap();
    let message = scene.call(["sr_attach", SR]).fails("ENOSR");
    assert!(message.contains("neither .sm-sr nor disks") && !message.contains("takes it over"), "{message}");
    assert_eq!(scene.names(), ["", "notes.txt"]);
}

#[test]
fn a_directory_that_lost_its_mount_is_never_an_empty_sr() {
    let scene = Scene::file_with_a();
    let away = scene.root.path().join("away");
    std::fs::rename(&scene.place, &away).unwrap();
    std::fs::create_dir(&scene.place).unwrap();
    for call in [&["sr_get_params", SR][..], &["sr_scan", SR], &["sr_attach", SR], &["vdi_create", SR, B, "1"]] {
        scene.call(call).fails("ENOSR");
    }
    assert_eq!(scene.names(), [""]);
}

/// What deletes until nothing is there is idempotent, and to end the availability of nothing succeeds. Every other command
/// says that there is no such SR, or no such device.
#[test]
fn a_missing_sr_is_told_by_every_command_of_every_driver_but_those_that_end_it() {
    let rows: [(&str, &str, &str); 4] = [
        ("file", "", "ENOSR"),
        ("iso", "", "ENOSR"),
        ("lvm", "/dev/sm-none", "ENODEV"),
        ("ext", "/dev/sm-none", "ESRBUSY"),
    ];
    for (sr_type, device, status) in rows {
        let scene = Scene::empty(&FILE, Door::Sm);
        let place = if device.is_empty() { scene.dconf() } else { device.to_owned() };
        let call = |words: &[&str]| scene.bare([&["-t", sr_type, "-d", &place], words].concat());
        for words in [
            &["sr_get_params", SR][..],
            &["sr_scan", SR],
            &["sr_collect", SR],
            &["vdi_tree", SR],
            &["vdi_create", SR, A, "1"],
            &["vdi_delete", SR, A],
            &["vdi_delete", SR, A, "--yes"],
            &["vdi_attach", SR, A],
            &["vdi_detach", SR, A],
            &["vdi_clone", SR, A, B],
            &["vdi_snapshot", SR, A, B],
            &["vdi_resize", SR, A, "8"],
            &["vdi_lock", SR, A, "FALSE", "u"],
            &["vdi_unlock", SR, A, "FALSE", "u"],
            &["vdi_get_params", SR, A],
            &["vdi_export", SR, A, "-"],
        ] {
            call(words).fails(status);
        }
        call(&["sr_attach", SR]).fails(if status == "ENOSR" { "ENOSR" } else { "ENODEV" });
        call(&["sr_detach", SR]).done();
    }
}

#[test]
fn no_sr_is_made_inside_the_directory_of_another() {
    for door in [Door::Driver, Door::Sm] {
        let scene = Scene::empty(&FILE, door);
        scene.call(["sr_create", SR]).done();
        std::fs::create_dir_all(scene.place.join("sub/deep")).unwrap();
        let inner = |at: &str| {
            let dconf = format!("-d{}", scene.place.join(at).display());
            let words = ["-tfile", dconf.as_str(), "sr_create", OTHER_SR];
            scene.bare(&words[if door == Door::Sm { 0 } else { 1 }..])
        };
        let before = scene.digest();
        for at in ["new", "sub/new", "sub/deep"] {
            let message = inner(at).fails("EBUSY");
            assert!(message.contains(&format!("which holds SR {SR}; choose a directory outside of it")), "{message}");
            assert_eq!(scene.digest(), before, "{at}");
        }
        // A directory with an SR below it is not empty.
        std::fs::remove_file(scene.place.join(".sm-sr")).unwrap();
        inner("sub/deep").done();
        scene.call(["sr_create", SR]).fails("EBUSY");
        assert!(scene.place.join("sub/deep/.sm-sr").exists());
    }
}

/// Earlier releases made an SR inside the directory of another. The outer one has only the files that are its own.
#[test]
fn an_sr_inside_the_directory_of_another_outlives_it() {
    for door in [Door::Driver, Door::Sm] {
        let scene = Scene::empty(&FILE, door);
        let (away, inside) = (scene.place.with_extension("away"), scene.place.join("sub"));
        let inner = |at: &Path, call: &[&str]| {
            let dconf = format!("-d{}", at.display());
            let words: Vec<&str> = ["-tfile", dconf.as_str()].into_iter().chain(call.iter().copied()).collect();
            scene.bare(&words[if door == Door::Sm { 0 } else { 1 }..])
        };
        // The outer sr_create makes its directory, so sr_delete removes it if nothing is left in it.
        scene.call(["sr_create", SR]).done();
        scene.call(["vdi_create", SR, A, "8"]).done();
        inner(&away, &["sr_create", OTHER_SR]).done();
        inner(&away, &["vdi_create", OTHER_SR, A, "8"]).done();
        std::fs::rename(&away, &inside).unwrap();
        let names = || {
            let entries = std::fs::read_dir(&inside).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
        };
        let before = names();
        match door {
            Door::Driver => scene.call(["sr_delete", SR]).done(),
            Door::Sm => scene.call(["sr_delete", SR, "--yes"]).done(),
        };
        scene.call(["sr_attach", SR]).fails("ENOSR");
        assert_eq!(names(), before);
        inner(&inside, &["sr_attach", OTHER_SR]).done();
        inner(&inside, &["vdi_get_params", OTHER_SR, A]).done();
    }
}

/// A person may have mistyped it. An agent's records have keys of other releases.
#[test]
fn sm_refuses_a_key_that_the_driver_does_not_know_and_the_drivers_do_not() {
    for door in [Door::Driver, Door::Sm] {
        let scene = Scene::empty(&FILE, door);
        let call = |key: &str| {
            let dconf = format!("-d((location . \"{}\") ({key} . \"true\"))", scene.place.display());
            let words = ["-tfile", dconf.as_str(), "sr_create", SR];
            scene.bare(&words[if door == Door::Sm { 0 } else { 1 }..])
        };
        match door {
            Door::Driver => drop(call("locaton").done()),
            Door::Sm => {
                let message = call("locaton").fails("EINVAL");
                let words = "did you mean location? an SR of type file has the keys location, preferred-image-formats";
                assert!(message.contains("key of device_config \"locaton\"") && message.contains(words), "{message}");
                assert!(!scene.place.exists());
                call("SRmaster").done();
            }
        }
    }
}

#[test]
fn the_tree_of_an_sr_is_data_where_data_is_asked_for() {
    for door in [Door::Driver, Door::Sm] {
        let scene = with_sr(&FILE, door);
        scene.call(["vdi_create", SR, A, "8", "--type", "vhd"]).done();
        scene.call(["vdi_snapshot", SR, A, B]).done();
        let drawn = scene.call(["vdi_tree", SR]).done();
        assert!(!drawn.starts_with('('), "{drawn}");
        assert_eq!(scene.call(["vdi_tree", SR, "--format", "table"]).done(), drawn);
        let data = scene.call(["vdi_tree", SR, "--format", "sexp"]).done();
        assert!(data.starts_with("(tree (uuid . ") && data.matches("(vdi (uuid").count() == 3, "{data}");
        assert!(data.contains("(hidden . #t)"), "{data}");
        assert!(scene.call(["vdi_tree", SR, "--format", "lisp"]).done().contains("(hidden . t)"));
    }
}

#[test]
fn sm_help_says_what_the_option_says() {
    let scene = Scene::empty(&FILE, Door::Sm);
    let help = scene.bare(["--help"]).done();
    assert!(help.contains("vdi_create"), "{help}");
    assert_eq!(scene.bare(["help"]).done(), help);
    for verb in ["vdi_create", "sr_delete", "sr_probe"] {
        let of_verb = scene.bare([verb, "--help"]).done();
        assert!(of_verb.contains(&format!("sm {verb}")), "{of_verb}");
        assert_eq!(scene.bare(["help", verb]).done(), of_verb);
    }
    scene.bare(["help", "vdi_fly"]).fails("ENOMSG");
}

#[test]
fn vdi_set_changes_what_is_given_and_nothing_else() {
    let scene = Scene::file();
    scene.call(["vdi_create", SR, A, "1", "--label", "a", "--description", "the first", "--shareable"]).done();
    let known = || scene.call(["vdi_get_params", SR, A]).done();
    let before = known();
    scene.call(["vdi_set", SR, A, "--label", "web"]).done();
    assert_eq!(known(), before.replace("(label . \"a\")", "(label . \"web\")"));
    scene.call(["vdi_set", SR, A, "--description", "--odd"]).done();
    scene.call(["vdi_set", SR, A, "--description", "--odd"]).done();
    scene.call(["vdi_set", SR, A, "--label="]).done();
    assert_eq!(known(), before.replace(" (label . \"a\")", "").replace("the first", "--odd"));
    let now = scene.digest();
    scene.call(["vdi_set", SR, A]).fails("EINVAL");
    scene.call(["vdi_set", SR, A, "--label", &"l".repeat(5000)]).fails("EINVAL");
    scene.call(["vdi_set", SR, scene::NONE, "--label", "x"]).fails("ENOVDI");
    assert_eq!(scene.digest(), now);
}

#[test]
fn vdi_set_makes_a_vdi_read_only_and_shareable_and_takes_it_back() {
    let scene = Scene::file();
    for format in ["vhd", "qcow2", "raw"] {
        scene.call(["vdi_create", SR, A, "4", "--type", format]).done();
        let known = || scene.call(["vdi_get_params", SR, A]).done();
        let before = known();
        for _ in 0..2 {
            scene.call(["vdi_set", SR, A, "--read-only", "--shareable=true"]).done();
            let now = known();
            assert!(now.contains("(shareable . #t)") && now.contains("(read_only . 1)"), "{now}");
        }
        scene.call(["vdi_resize", SR, A, "8"]).fails("EPERM");
        for user in ["first", "second"] {
            scene.call(["vdi_lock", SR, A, "FALSE", user]).done();
        }
        // What its users rely on stays.
        let now = scene.digest();
        let refused = scene.call(["vdi_set", SR, A, "--shareable=false"]).fails("EVDIBUSY");
        assert!(refused.contains("first, second"), "{refused}");
        scene.call(["vdi_set", SR, A, "--read-only=false"]).fails("EVDIBUSY");
        scene.call(["vdi_set", SR, A, "--shareable=maybe"]).fails("EINVAL");
        assert_eq!(scene.digest(), now);
        scene.call(["vdi_unlock", SR, A, "FALSE", "first"]).done();
        scene.call(["vdi_unlock", SR, A, "FALSE", "second"]).done();
        scene.call(["vdi_set", SR, A, "--shareable=false", "--read-only=false"]).done();
        assert_eq!(known(), before);
        scene.call(["vdi_resize", SR, A, "8"]).done();
        scene.call(["vdi_delete", SR, A]).done();
    }
}

/// What is said while no other program has the device: one that looks at all devices of the host may have it open for a moment.
fn without_onlookers(say: impl Fn() -> String, is_wanted: impl Fn(&str) -> bool) {
    let begun = Instant::now();
    loop {
        let said = say();
        if is_wanted(&said) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{said}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_process_that_has_a_disk_open_is_named() {
    if !scene::is_root() {
        return;
    }
    let scene = with_sr(&FILE, Door::Sm);
    scene.call(["vdi_create", SR, A, "4"]).done();
    let device = scene.loop_device(&scene.call(["vdi_attach", SR, A]).done());
    let shown = |format: &str| scene.call(["vdi_get_params", SR, A, "--format", format]).done();
    let planned = format!("detach VDI {A} from {}\n", device.display());
    without_onlookers(|| scene.call(["vdi_detach", "-n", SR, A]).stdout(), |said| said == planned);
    let unopened = format!("in use by this host, which has it attached as {}", device.display());
    without_onlookers(|| scene.call(["vdi_delete", SR, A]).fails("EVDIBUSY"), |said| said.ends_with(&unopened));
    without_onlookers(|| shown("json"), |said| said.contains("\"opened_by\":null"));
    without_onlookers(|| shown("table"), |said| !said.contains("opened by"));

    // A process of its own opens it, and waits for us to read: a descriptor of this one is for a moment also one of what other tests start.
    let mut user = Command::new("cat").arg(&device).stdout(Stdio::piped()).spawn().unwrap();
    user.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let who = format!("process {} (cat)", user.id());
    for line in [&["vdi_delete", SR, A][..], &["vdi_delete", "-n", SR, A], &["sr_delete", "-n", SR]] {
        let told = format!("attached as {}, which {who} has open", device.display());
        without_onlookers(|| scene.call(line).fails("EVDIBUSY"), |said| said.ends_with(&told));
    }
    for options in [&["-n"][..], &[]] {
        let told = format!("in use by {who}, through {}", device.display());
        let line = [&["vdi_detach", SR, A], options].concat();
        without_onlookers(|| scene.call(line.clone()).fails("EVDIBUSY"), |said| said.ends_with(&told));
    }
    without_onlookers(|| shown("json"), |said| said.contains(&format!("\"opened_by\":\"{who}\"")));
    without_onlookers(|| shown("table"), |said| said.contains(&format!("opened by     {who}\n")));
    assert!(!shown("sexp").contains("process"));
    user.kill().unwrap();
    user.wait().unwrap();
    scene.call(["vdi_detach", SR, A]).done();
    assert!(scene.call(["vdi_detach", "-n", SR, A]).done().starts_with("nothing to detach"));
}

#[test]
fn vdi_set_leaves_an_attached_vdi_as_its_users_have_it() {
    if !scene::is_root() {
        return;
    }
    let scene = Scene::file();
    for format in ["vhd", "raw"] {
        scene.call(["vdi_create", SR, A, "4", "--type", format]).done();
        scene.call(["vdi_attach", SR, A]).done();
        scene.call(["vdi_set", SR, A, "--read-only"]).fails("EVDIBUSY");
        scene.call(["vdi_set", SR, A, "--label", "x", "--shareable", "--read-only=false"]).done();
        scene.call(["vdi_detach", SR, A]).done();
        scene.call(["vdi_set", SR, A, "--read-only"]).done();
        let device = scene.call(["vdi_attach", SR, A]).done();
        let name = Path::new(device.trim()).file_name().unwrap().to_str().unwrap();
        assert_eq!(fs::read_to_string(format!("/sys/class/block/{name}/ro")).unwrap().trim(), "1", "{device}");
        scene.call(["vdi_set", SR, A, "--read-only=false"]).fails("EVDIBUSY");
        scene.call(["vdi_detach", SR, A]).done();
        scene.call(["vdi_delete", SR, A]).done();
    }
}

#[test]
fn a_base_can_get_a_name_and_nothing_else() {
    let scene = Scene::file();
    scene.call(["vdi_create", SR, A, "4", "--type", "vhd"]).done();
    scene.call(["vdi_snapshot", SR, A, B]).done();
    let tree = scene.call(["vdi_get_params", SR, A]).done();
    let base = tree.split("(parent . \"").nth(1).unwrap()[..36].to_owned();
    for flag in ["--read-only=true", "--shareable"] {
        scene.call(["vdi_set", SR, &base, flag]).fails("EPERM");
    }
}

#[test]
fn a_copy_has_the_names_of_the_disk_unless_others_are_given() {
    let scene = Scene::file();
    for format in ["vhd", "qcow2", "raw"] {
        scene.call(["vdi_create", SR, A, "1", "--type", format, "--label", "web", "--description", "d"]).done();
        for verb in ["vdi_snapshot", "vdi_clone"] {
            for (options, label, description) in [
                (&[][..], "(label . \"web\")", "(description . \"d\")"),
                (&["--label", "-x y"], "(label . \"-x y\")", "(description . \"d\")"),
                (&["--description=e", "--label="], "(uuid", "(description . \"e\")"),
            ] {
                scene.call([&[verb, SR, A, B], options].concat()).done();
                let copy = scene.call(["vdi_get_params", SR, B]).done();
                assert!(copy.contains(label) && copy.contains(description), "{copy}");
                assert!(options.len() < 2 || label != "(uuid" || !copy.contains("(label"), "{copy}");
                scene.call(["vdi_delete", SR, B]).done();
            }
            scene.call([verb, SR, A, B, "--label", &"l".repeat(5000)]).fails("EINVAL");
            scene.call(["vdi_get_params", SR, B]).fails("ENOVDI");
        }
        scene.call(["vdi_delete", SR, A]).done();
    }
}

#[test]
fn a_raw_disk_goes_back_to_its_own_snapshots_alone() {
    let scene = Scene::file();
    scene.call(["vdi_create", SR, A, "4", "--type", "raw", "--label", "web"]).done();
    let write = |bytes: &[u8]| fs::write(scene.image(A), bytes).unwrap();
    write(&scene::pattern(4 * MIB));
    scene.call(["vdi_snapshot", SR, A, B, "--label", "before"]).done();
    scene.call(["vdi_create", SR, C, "4", "--type", "raw"]).done();
    scene.call(["vdi_create", SR, scene::NONE, "4", "--type", "vhd", "--read-only"]).done();
    let known = scene.call(["vdi_get_params", SR, A]).done();
    for _ in 0..2 {
        write(&[7; 8 * MIB as usize]);
        scene.call(["vdi_revert", SR, A, B]).done();
        assert!(fs::read(scene.image(A)).unwrap() == scene::pattern(4 * MIB));
        assert_eq!(fs::read(scene.image(B)).unwrap(), scene::pattern(4 * MIB));
    }
    let now = scene.call(["vdi_get_params", SR, A]).done();
    let without_use = |answer: &str| answer.split(" (").filter(|f| !f.starts_with("physical")).collect::<String>();
    assert_eq!(without_use(&now), without_use(&known));
    let before = scene.digest();
    for (disk, snapshot, status, why) in [
        (C, B, "EPERM", format!("a snapshot of VDI {A}, not of VDI {C}")),
        (A, C, "EPERM", "it can be written to".to_owned()),
        (A, A, "EPERM", "it can be written to".to_owned()),
        (B, B, "EPERM", "is read-only".to_owned()),
        (A, scene::NONE, "EPERM", format!("VDI {} is vhd", scene::NONE)),
        (A, &scene::NONE.replace('f', "e"), "ENOVDI", String::new()),
    ] {
        let refused = scene.call(["vdi_revert", SR, disk, snapshot]).fails(status);
        assert!(refused.contains(&why), "{refused}");
    }
    assert_eq!(scene.digest(), before);
    scene.call(["vdi_lock", SR, A, "FALSE", "me"]).done();
    scene.call(["vdi_revert", SR, A, B]).fails("EVDIBUSY");
    scene.call(["vdi_unlock", SR, A, "FALSE", "me"]).done();
    // Of what an earlier release made nothing tells whose snapshot it is.
    fs::write(scene.place.join(format!("{B}.params")), "(vdi (read_only . #t))\n").unwrap();
    let refused = scene.call(["vdi_revert", SR, A, B]).fails("EPERM");
    assert!(refused.contains("an earlier release made it") && refused.contains("vdi_clone"), "{refused}");
}

#[test]
fn a_disk_goes_back_to_its_own_snapshots_alone() {
    let scene = Scene::file();
    for format in ["vhd", "qcow2"] {
        scene.call(["vdi_create", SR, A, "4", "--type", format]).done();
        scene.call(["vdi_snapshot", SR, A, B]).done();
        scene.call(["vdi_clone", SR, B, C]).done();
        // What SR API v1.0 answers has no fields but its own.
        let answer = scene.call(["vdi_get_params", SR, B]).done();
        assert!(!answer.contains("snapshot_of") && !answer.contains("created"), "{answer}");
        let before = scene.digest();
        let refused = scene.call(["vdi_revert", SR, C, B]).fails("EPERM");
        assert!(refused.contains(&format!("a snapshot of VDI {A}, not of VDI {C}")), "{refused}");
        assert!(refused.contains("vdi_clone"), "{refused}");
        assert_eq!(scene.digest(), before);
        scene.call(["vdi_revert", SR, A, B]).done();
        // An earlier release wrote the record of the snapshot: what the images share tells.
        fs::write(scene.place.join(format!("{B}.params")), "(vdi (read_only . #t))\n").unwrap();
        scene.call(["vdi_revert", SR, C, B]).done();
        scene.call(["vdi_revert", SR, A, B]).done();
        // Written to, a snapshot is none any more.
        scene.call(["vdi_snapshot", SR, A, scene::NONE]).done();
        scene.call(["vdi_set", SR, scene::NONE, "--read-only=false"]).done();
        scene.call(["vdi_revert", SR, A, scene::NONE]).fails("EPERM");
        for vdi in [A, B, C, scene::NONE] {
            scene.call(["vdi_delete", SR, vdi]).done();
        }
    }
}

#[test]
fn an_sr_attach_that_fails_leaves_no_directory_but_the_one_of_all_mountpoints() {
    if !scene::is_root() {
        return scene::skip("mounting");
    }
    let scene = Scene::empty(&scene::FILE, Door::Sm);
    let attach = |base: &Path| {
        let place = format!("nfs@127.0.0.1:/nowhere@{}", base.display());
        scene.bare(["sr_attach", "-t", "nfs", "-d", &place, "--wait", "1", SR]).fails_somehow();
    };
    attach(&scene.root.path().join("made/for/it"));
    assert!(!scene.root.path().join("made").exists());
    let kept = scene.root.path().join("kept");
    fs::create_dir(&kept).unwrap();
    attach(&kept.join("for/it"));
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
    let common = scene.root.path().join("run/sr-mount");
    attach(&common);
    assert_eq!(fs::read_dir(&common).unwrap().count(), 0);
}

#[test]
fn an_export_of_a_disk_in_use_says_what_to_do() {
    if !scene::is_root() {
        return scene::skip("attaching");
    }
    let scene = Scene::file_with_a();
    scene.call(["vdi_attach", SR, A]).done();
    let file = scene.root.path().join("out.raw").display().to_string();
    let refused = scene.call(["vdi_export", SR, A, &file]).fails("EVDIBUSY");
    scene.call(["vdi_detach", SR, A]).done();
    assert!(refused.contains("; detach it, or take a snapshot of it and use that"), "{refused}");
}
