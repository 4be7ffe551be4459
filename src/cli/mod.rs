//! The command line: one file for each group of commands.

mod args;
mod daemon;
mod doctor;
mod examples;
mod exit;
mod gc;
mod list;
mod mount;
mod owner;
mod progress;
mod pull;
mod swarm;
mod swarm_key;

pub use exit::Exit;

use args::{Args, Command, IndexCommand, SwarmCommand};
use owner::Owner;

/// Runs the command that the process was started with and gives its exit code.
pub fn main() -> std::process::ExitCode {
    let args = Args::of_process();
    let json = args.json;
    match run(args) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(exit) => exit.report(json),
    }
}

fn run(args: Args) -> Result<(), Exit> {
    if let Command::Completions { shell } = args.command {
        args::completions(shell);
        return Ok(());
    }
    if let Command::SwarmKey(command) = &args.command {
        return swarm_key::swarm_key(command, args.json);
    }
    let owner = Owner::from_args(&args)?;
    match args.command {
        Command::Mount(mount) => mount::mount(&owner, &mount),
        Command::Umount { dir, lazy } => mount::umount(&dir, lazy),
        Command::Pull { image, plain_http } => pull::pull(&owner, &image, plain_http),
        Command::Images => list::images(&owner),
        Command::Layers => list::layers(&owner),
        Command::Peers => list::peers(&owner),
        Command::Status => list::status(&owner),
        Command::Gc { dry_run } => gc::gc(&owner, dry_run),
        Command::Pin { name: Some(name) } => gc::pin(&owner, &name),
        Command::Pin { name: None } => gc::pins(&owner),
        Command::Unpin { name } => gc::unpin(&owner, &name),
        Command::Index(IndexCommand::Build { image, plain_http }) => {
            pull::index_build(&owner, &image, plain_http)
        }
        Command::Index(IndexCommand::Push { image, plain_http }) => {
            pull::index_push(&owner, &image, plain_http)
        }
        Command::Index(IndexCommand::Show { image }) => list::index_show(&owner, &image),
        Command::Swarm(SwarmCommand::Remembered) => swarm::remembered(&owner),
        Command::Swarm(SwarmCommand::Reset { here }) => swarm::reset(&owner, here),
        Command::Daemon(limits) => daemon::daemon(owner, &limits),
        Command::Doctor { containerd_config } => doctor::doctor(&owner, containerd_config),
        Command::Serve => daemon::serve(&owner),
        Command::Completions { .. } | Command::SwarmKey(_) => Ok(()),
    }
}
