//! Parses the command line and runs the command; errors become exit codes there.

fn main() -> std::process::ExitCode {
    auth::cli::run()
}
