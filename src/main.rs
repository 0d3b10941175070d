//! Parses the command line and runs the command; errors become exit codes there.

/// Takes a sixth off what a request costs the service with the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    auth::cli::run()
}
