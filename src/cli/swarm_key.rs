//! `swarm-key`.

use super::Exit;
use super::args::SwarmKeyCommand;
use super::list::print_json;
use crate::admin::FailureKind;
use crate::identity::{SwarmKey, SwarmKeyError};

pub(super) fn swarm_key(command: &SwarmKeyCommand, json: bool) -> Result<(), Exit> {
    let SwarmKeyCommand::New { file } = command;
    let failed = |error: SwarmKeyError| Exit::new(FailureKind::Failed, error);
    let key = SwarmKey::generate().map_err(failed)?;
    match file {
        Some(file) => {
            key.write_new(file).map_err(failed)?;
            if json {
                return print_json(&serde_json::json!({ "file": file }));
            }
            println!(
                "{}: a new swarm's key; name it in swarm.key_file of all nodes",
                file.display()
            );
        }
        None if json => return print_json(&serde_json::json!({ "key": key.to_line() })),
        None => println!("{}", key.to_line()),
    }
    Ok(())
}
