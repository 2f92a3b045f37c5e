//! Parse, run, exit with a documented code.

use std::process::ExitCode;

fn main() -> ExitCode {
    wecom_connector::cli::run()
}
