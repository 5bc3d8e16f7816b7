//! Deliveries of which no request is made as they are: a message lacks what was too large, or is damaged.

use super::content::Delivery;
use crate::deliver::frozen::Frozen;
use crate::deliver::omitted;
use crate::store::DamagedMessage;
use crate::store::damaged::{is_damaged, is_somewhere};

/// What is said of such an attempt.
pub(super) const DAMAGED: &str = "what the store has of a message is not what was written";

/// Why a delivery cannot be sent as it is.
pub(super) enum Unsendable {
    /// A message lacks what was too large to be taken in. It is alone.
    TooLarge(String),
    /// A message is damaged. Others may be with it.
    Damaged,
}

pub(super) fn unsendable(frozen: &Frozen) -> Option<Unsendable> {
    if frozen.members.iter().any(|member| is_damaged(frozen.message(member))) {
        return Some(Unsendable::Damaged);
    }
    let left_out = frozen.members.iter().find_map(|member| omitted::too_large(frozen.message(member)))?;
    let columns: Vec<String> = left_out.iter().map(|(column, bytes)| format!("{column} of {bytes} bytes")).collect();
    let why = format!("the change is larger than limits.max_message: {} left out", columns.join(", "));
    Some(Unsendable::TooLarge(why))
}

/// The message of a delivery that was given up because it is damaged.
pub(super) fn damaged_message(delivery: &Delivery) -> DamagedMessage {
    let facts = delivery.members.first().map(|member| &member.facts);
    DamagedMessage {
        delivery: delivery.stored,
        id: facts.map_or_else(String::new, |facts| format!("msg_{}", facts.id)),
        position: facts.map(|facts| facts.position).filter(|position| is_somewhere(*position)),
        group: delivery.facts.group,
        blocked: delivery.blocked,
    }
}
