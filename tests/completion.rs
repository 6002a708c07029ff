//! Completion of `sm` in bash, zsh and fish: each shell is asked as a key would ask it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::path::Path;

use assert_cmd::Command;
use scene::{A, B, Door, FILE, SR, Scene};

/// An SR `fast` with the disks `root disk` (A), `web` (B), and a base; the installed layout `rack1`, the set `nightly`, and the store `nas`.
fn scene() -> Scene {
    let scene = Scene::empty(&FILE, Door::Sm);
    scene.bare(["sr_create", "--name", "fast", "-t", "file", "-d", &scene.dconf(), SR]).done();
    scene.bare(["vdi_create", "fast", A, "1M", "--label", "root disk"]).done();
    scene.bare(["vdi_clone", "fast", A, B]).done();
    scene.bare(["vdi_delete", "fast", B]).done();
    scene.bare(["vdi_create", "fast", B, "1M", "--label", "web"]).done();
    let layouts = scene.root.path().join("run/layouts");
    std::fs::create_dir_all(&layouts).unwrap();
    std::fs::write(layouts.join("rack1.layout"), "").unwrap();
    std::fs::write(layouts.join("rack2.model"), "").unwrap();
    std::fs::write(scene.root.path().join("run/stores.conf"), "store: name=nas path=/mnt/nas\n").unwrap();
    scene.bare(["backup", "define", "nightly", "--disk", "fast/web"]).done();
    assert!(scene.bare(["vdi_tree", "fast"]).done().contains("base"));
    scene
}

/// (what is typed, what is offered)
const OFFERS: &[(&[&str], &[&str])] = &[
    (&["sr_l"], &["sr_list"]),
    (&["vdi_sn"], &["vdi_snapshot"]),
    (&["vdi_create", "fast", "1G", "--lab"], &["--label"]),
    (&["sr_scan", "fast", "--format", "js"], &["json"]),
    (&["sr_scan", ""], &["fast"]),
    (&["devices", "re"], &["release", "rebuild"]),
    (&["devices", "claim", "--lay"], &["--layout"]),
    (&["layout", "sh"], &["show"]),
    (&["layout", "show", ""], &["rack1"]),
    (&["layout", "info", ""], &["rack1"]),
    (&["backup", "show", ""], &["nightly"]),
    (&["backup", "export", "nightly", "--to", ""], &["nas"]),
    (&["backup", "define", "x", "--disk", "fast/w"], &["fast/web"]),
    (&["target", "publish", "fast/w"], &["fast/web"]),
    (&["backup", "import", "nightly", "--sr", ""], &["fast", "auto"]),
    (&["backup", "verify", ""], &["nightly"]),
    (&["plan", "--det"], &["--detailed-exitcode"]),
    (&["plan", "-m", ""], &["rack1", "rack2"]),
    (&["sr_create", "--destroy-sr", ""], &["fast"]),
    (&["help", "sr_l"], &["sr_list"]),
    (&["doctor", "--wai"], &["--wait"]),
    (&["backends", "--"], &["--format"]),
    (&["vdi_get_params", "f"], &["fast"]),
    (&["vdi_get_params", "fast", ""], &["root disk", "web", A, B]),
    (&["vdi_get_params", "fast", "w"], &["web"]),
    (&["vdi_delete", "fast", "web", "r"], &["root disk"]),
    (&["vdi_attach", "fast/w"], &["fast/web"]),
];

fn program(scene: &Scene, program: &str) -> Command {
    let sm = Path::new(env!("CARGO_BIN_EXE_sm")).parent().unwrap();
    let path = format!("{}:{}", sm.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(program);
    command.env("PATH", path).env("XCP_SM_RUN_DIR", scene.root.path().join("run")).env("HOME", scene.root.path());
    command.env("LC_ALL", "C.UTF-8").current_dir(scene.root.path()).timeout(std::time::Duration::from_secs(120));
    command
}

fn script(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("completions").join(name).display().to_string()
}

#[track_caller]
fn offers(shell: &str, typed: &[&str], found: &str, offered: &[&str]) {
    let mut found: Vec<&str> = found.lines().filter(|line| !line.is_empty()).collect();
    let mut offered = offered.to_vec();
    found.sort_unstable();
    offered.sort_unstable();
    assert_eq!(found, offered, "{shell}: {typed:?}");
}

#[test]
fn sm_says_what_a_word_may_be() {
    let scene = scene();
    for (typed, offered) in OFFERS {
        let answer = scene.bare([&["__complete"], *typed].concat()).done();
        let words: Vec<&str> = answer.lines().map(|line| line.split('\t').next().unwrap()).collect();
        offers("sm", typed, &words.join("\n"), offered);
    }
    for nothing in
        [&["__complete"][..], &["__complete", "vdi_fly", ""], &["__complete", "vdi_export", "fast", "web", "x"]]
    {
        assert_eq!(scene.bare(nothing).done(), "");
    }
}

#[test]
fn bash_offers_names_and_labels_quoted() {
    let scene = scene();
    let ask = r#". "$1"; shift; COMP_WORDS=(sm "$@"); COMP_CWORD=$#; _sm; printf '%s\n' "${COMPREPLY[@]}""#;
    for (typed, offered) in OFFERS {
        let mut bash = program(&scene, "bash");
        let output = bash.args(["-c", ask, "bash", &script("sm.bash")]).args(*typed).output().unwrap();
        let quoted: Vec<String> = offered.iter().map(|word| word.replace(' ', "\\ ")).collect();
        let quoted: Vec<&str> = quoted.iter().map(String::as_str).collect();
        offers("bash", typed, &String::from_utf8_lossy(&output.stdout), &quoted);
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn fish_offers_names_and_labels() {
    if !scene::has("fish") {
        return;
    }
    let scene = scene();
    for (typed, offered) in OFFERS {
        let ask = format!("source '{}'; complete -C 'sm {}'", script("sm.fish"), typed.join(" "));
        let output = program(&scene, "fish").args(["-N", "-c", &ask]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<String> =
            text.lines().map(|line| line.split('\t').next().unwrap().replace("\\ ", " ")).collect();
        offers("fish", typed, &words.join("\n"), offered);
    }
}

/// zsh completes in its line editor only, so it gets a terminal, and a key is pressed.
#[test]
fn zsh_completes_at_a_terminal() {
    if !scene::has("zsh") {
        return;
    }
    let scene = scene();
    let ask = format!(
        "zmodload zsh/zpty; zpty -b z zsh -f -i
         settle() {{ local got; while zpty -r -t z got; do print -rn -- $got; done; }}
         type() {{ zpty -w -n z \"$1\"; sleep ${{2:-0.5}}; settle }}
         type $'PS1=\"> \"; autoload -U compinit; compinit -u -D; source \\'{}\\'\\n' 2
         type $'show() {{{{ print -r -- \"[$BUFFER]\"; BUFFER= }}}}; zle -N show; bindkey ^X show\\n'
         for line in 'vdi_sn' 'vdi_get_params fa' 'vdi_get_params fast w' 'vdi_get_params fast ro' 'vdi_attach fast/w'; do
             type \"sm $line\"; type $'\\t' 1.5; type $'\\x18'
         done
         zpty -d z",
        script("_sm")
    );
    let output = program(&scene, "zsh").args(["-f", "-c", &ask]).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in [
        "vdi_snapshot",
        "vdi_get_params fast",
        "vdi_get_params fast web",
        "vdi_get_params fast root\\ disk",
        "vdi_attach fast/web",
    ] {
        assert!(
            shown.contains(&format!("[sm {line} ]")),
            "no {line} in {shown}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
