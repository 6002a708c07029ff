//! Any Lisp reads the answers, and reads the same in them as we do.
//!
//! The default format writes booleans as `#t` and `#f`. That is Scheme; Emacs and Common Lisp refuse to read it
//! (`invalid-read-syntax`; no dispatch function for `#\t`), so they ask for `--format lisp`, which has `t` and
//! `nil`. Common Lisp folds case unless told otherwise, and `VDIs` and `vdis` are two keys.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::fs;

use assert_cmd::Command;
use scene::{A, B, C, SR, Scene, has};
use xcp_sm::door::v1::wire::Datum;

/// An SR with texts that are not easy to read.
fn scene() -> Scene {
    let scene = Scene::file();
    let texts = [(A, "a \"quoted\" \\ backslash"), (B, "ü λ 🖴 ) (x . y) ; '`,@ #t |"), (C, "")];
    for (vdi, label) in texts {
        scene.call(["vdi_create", SR, vdi, "3", "--label", label, "--shareable"]).done();
    }
    scene.call(["vdi_lock", SR, B, "FALSE", "host1/vm7"]).done();
    scene.call(["vdi_lock", SR, B, "FALSE", "nil"]).done();
    scene.call(["vdi_lock", SR, B, "FALSE", "(\\\""]).done();
    scene
}

/// What the other readers print too: a line each of uuid, label, size, shareable, attached, holders.
fn as_we_read(text: &str) -> String {
    let Datum::Sr(sr) = serde_lexpr::from_str(text).unwrap() else { panic!("{text}") };
    let truth = |value| if value { "yes" } else { "no" };
    let mut lines = String::new();
    for tagged in sr.vdis {
        let Datum::Vdi(vdi) = tagged else { panic!("an SR within an SR") };
        let label = if vdi.label.is_empty() { "none" } else { &vdi.label };
        let (shareable, attached) = (truth(vdi.shareable), truth(vdi.attached));
        lines +=
            &format!("{} {label} {} {shareable} {attached} {}\n", vdi.uuid, vdi.virtual_size, vdi.vbds.join(" + "));
    }
    lines
}

/// What a program prints that reads the answer from `$DATA`.
fn read_by(scene: &Scene, format: &str, program: &str, args: &[&str]) -> (String, String) {
    let answer = scene.call(["sr_scan", SR, "--format", format]).done();
    let file = scene.root.path().join("answer");
    fs::write(&file, answer).unwrap();
    let output = Command::new(program).args(args).env("DATA", file).env("LC_ALL", "C.UTF-8").output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn we_read_what_we_wrote() {
    let scene = scene();
    let read = as_we_read(&scene.call(["sr_scan", SR]).done());
    let first = format!("{A} a \"quoted\" \\ backslash 3145728 yes no \n");
    assert!(read.starts_with(&first), "{read}");
    assert!(read.contains("🖴 ) (x . y) ; '`,@ #t | 3145728 yes no host1/vm7 + nil + (\\\"\n"), "{read}");
}

const GUILE: &str = r#"
(use-modules (ice-9 format))
(let* ((sr (call-with-input-file (getenv "DATA") read #:encoding "UTF-8"))
       (get (lambda (object key) (let ((pair (assq key (cdr object)))) (and pair (cdr pair)))))
       (truth (lambda (value) (if value "yes" "no"))))
  (for-each
    (lambda (vdi)
      (format #t "~a ~a ~a ~a ~a ~a~%" (get vdi 'uuid) (or (get vdi 'label) "none") (get vdi 'virtual_size)
        (truth (get vdi 'shareable)) (truth (get vdi 'attached)) (string-join (get vdi 'VBDs) " + ")))
    (get sr 'vdis)))"#;

#[test]
fn guile_reads_the_same() {
    if has("guile") {
        let scene = scene();
        let expected = as_we_read(&scene.call(["sr_scan", SR]).done());
        let (read, said) = read_by(&scene, "sexp", "guile", &["--no-auto-compile", "-c", GUILE]);
        assert_eq!(read, expected, "{said}");
    }
}

const EMACS: &str = r#"
(with-temp-buffer
  (insert-file-contents (getenv "DATA"))
  (let ((sr (read (current-buffer))))
    (dolist (vdi (cdr (assq 'vdis (cdr sr))))
      (let ((get (lambda (key) (cdr (assq key (cdr vdi))))) (truth (lambda (value) (if value "yes" "no"))))
        (princ (format "%s %s %s %s %s %s\n" (funcall get 'uuid) (or (funcall get 'label) "none")
          (funcall get 'virtual_size) (funcall truth (funcall get 'shareable)) (funcall truth (funcall get 'attached))
          (mapconcat 'identity (funcall get 'VBDs) " + ")))))))"#;

#[test]
fn emacs_reads_the_same_in_the_lisp_format_and_refuses_the_default() {
    if has("emacs") {
        let scene = scene();
        let expected = as_we_read(&scene.call(["sr_scan", SR]).done());
        let (read, said) = read_by(&scene, "lisp", "emacs", &["-Q", "--batch", "--eval", EMACS]);
        assert_eq!(read, expected, "{said}");
        let (read, said) = read_by(&scene, "sexp", "emacs", &["-Q", "--batch", "--eval", EMACS]);
        assert!(
            read.is_empty() && said.to_lowercase().replace('-', " ").contains("invalid read syntax"),
            "{read}{said}"
        );
    }
}

const SBCL: &str = r#"
(let* ((sr (with-open-file (data (sb-posix:getenv "DATA") :external-format :utf-8)
             (let ((*readtable* (copy-readtable nil)))
               (setf (readtable-case *readtable*) :preserve)
               (read data))))
       (get (lambda (object key) (cdr (assoc key (cdr object) :key #'symbol-name :test #'string=))))
       (truth (lambda (value) (if (and value (string/= value "nil")) "yes" "no"))))
  (dolist (vdi (funcall get sr "vdis"))
    (format t "~a ~a ~a ~a ~a ~{~a~^ + ~}~%" (funcall get vdi "uuid") (or (funcall get vdi "label") "none")
      (funcall get vdi "virtual_size") (funcall truth (funcall get vdi "shareable"))
      (funcall truth (funcall get vdi "attached")) (funcall get vdi "VBDs"))))"#;

#[test]
fn common_lisp_reads_the_same_in_the_lisp_format_and_refuses_the_default() {
    if has("sbcl") {
        let scene = scene();
        let expected = as_we_read(&scene.call(["sr_scan", SR]).done());
        let args =
            ["--noinform", "--no-userinit", "--non-interactive", "--eval", "(require :sb-posix)", "--eval", SBCL];
        let (read, said) = read_by(&scene, "lisp", "sbcl", &args);
        assert_eq!(read, expected, "{said}");
        let (read, said) = read_by(&scene, "sexp", "sbcl", &args);
        assert!(!read.contains(A) && said.contains("no dispatch function defined for"), "{read}{said}");
    }
}
