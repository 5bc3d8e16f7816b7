//! The body of a delivery that only the store has.

use crate::config::SinkConfig;
use crate::deliver::frozen::{self, DeliveryId, Frozen};
use crate::memory::Memory;
use crate::store::damaged::stand_in;
use crate::store::{KeptBody, Member, SinkKey, Store};

/// For a message of it that is damaged another stands that says so.
pub(super) async fn fetch(
    (store, sink): &(Store, SinkKey),
    config: &SinkConfig,
    id: DeliveryId,
    members: &[Member],
    memory: &Memory,
) -> Result<Frozen, String> {
    let KeptBody { bytes: body, damaged } = match store.body(*sink, id).await {
        Ok(Some(body)) => body,
        Ok(None) => return Err("the store has lost the body".to_owned()),
        Err(error) => return Err(crate::fault::chain(&error)),
    };
    let is_whole = |index: usize, member: &Member| !damaged.contains(&index) && member.bytes.end <= body.len();
    if members.iter().enumerate().all(|(index, member)| is_whole(index, member)) {
        let members = members.iter().map(|member| frozen::Member { id: member.facts.id, bytes: member.bytes.clone() });
        return Ok(Frozen { id, body: memory.hold(body.into()), members: members.collect() });
    }
    let ids = members.iter().map(|member| member.facts.id);
    let frozen = Frozen::build(memory, &config.name, config.body, body.len(), ids, |index, id, out| {
        match members.get(index).filter(|member| is_whole(index, member)) {
            Some(member) => out.extend_from_slice(body.get(member.bytes.clone()).unwrap_or_default()),
            None => out.extend_from_slice(&stand_in(&config.name, id, members.get(index).map(|it| it.facts.position))),
        }
    });
    Ok(Frozen { id, ..frozen })
}
