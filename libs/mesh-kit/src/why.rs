//! Why: walks backwards from a fact to what caused it. Each cause is an address, read by direct get.

use mesh_bus::{Bus, LogError, Stored};

/// Steps that one walk takes at most.
const STEPS_MAX: usize = 200;

/// The chain from a fact back to its first cause, newest first.
pub async fn chain(bus: &Bus, fact: Stored) -> Result<Vec<Stored>, LogError> {
    let mut chain = vec![fact];
    while chain.len() < STEPS_MAX {
        let Some(cause) = chain.last().and_then(|s| s.cause.clone()).filter(|c| !c.stream.is_empty()) else { break };
        match bus.log(&cause.stream).get(cause.sequence).await? {
            Some(stored) => chain.push(stored),
            None => break,
        }
    }
    Ok(chain)
}

/// All facts of an entity, oldest first; `entity` is a subject filter such as `intent.*.*.local.my-intent`.
pub async fn facts(bus: &Bus, stream: &str, entity: &str) -> Result<Vec<Stored>, LogError> {
    let mut found: Vec<Stored> = vec![];
    loop {
        let from = found.last().map_or(1, |stored| stored.sequence + 1);
        let read = bus.log(stream).read(entity, from, 1_000).await?;
        if read.is_empty() {
            return Ok(found);
        }
        found.extend(read);
    }
}
