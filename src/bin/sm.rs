//! `sm`: the front end for people.

use std::process::ExitCode;

fn main() -> ExitCode {
    xcp_sm::door::sm_main()
}
