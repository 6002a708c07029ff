//! `seeds DIRECTORY`: writes what each target starts from to DIRECTORY/TARGET, its words to DIRECTORY/TARGET.dict in
//! libFuzzer's form, and prints the names of the targets.

#[path = "../tests/fuzz/targets.rs"]
mod targets;

use std::path::PathBuf;
use std::{env, fs};

// Instrumented code calls functions of libFuzzer, also where nothing is fuzzed.
use libfuzzer_sys as _;

fn main() {
    let dir = PathBuf::from(env::args_os().nth(1).expect("a directory"));
    for target in targets::TARGETS {
        let into = dir.join(target.name);
        fs::create_dir_all(&into).unwrap();
        for (n, seed) in (target.seeds)().iter().enumerate() {
            fs::write(into.join(format!("seed-{n:02}")), seed).unwrap();
        }
        let hex = |byte: u8| format!("\\x{byte:02x}");
        let words = target.words.iter().map(|word| format!("\"{}\"\n", word.bytes().map(hex).collect::<String>()));
        fs::write(dir.join(format!("{}.dict", target.name)), words.collect::<String>()).unwrap();
        println!("{}", target.name);
    }
}
