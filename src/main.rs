//! The `peelfs` command.

fn main() -> std::process::ExitCode {
    peelfs::cli::main()
}
