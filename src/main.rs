//! The `peersync` command.

fn main() -> std::process::ExitCode {
    peersync::cli::main()
}
