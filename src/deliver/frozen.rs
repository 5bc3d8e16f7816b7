//! A delivery as it is sent: its id, its members and its body, the same bytes over all attempts.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use http::HeaderValue;
use xxhash_rust::xxh3::Xxh3;

use crate::config::BodyForm;
use crate::memory::Memory;
use crate::record::message::MessageId;

/// The id of a delivery and its `webhook-id`: `dlv_` and 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u128);

impl DeliveryId {
    /// The id of the delivery of `messages`, in their order, to the sink `sink`. It depends on nothing else, so that the same
    /// messages frozen together again after a crash are the same delivery to the receiver.
    pub fn of(sink: &str, messages: impl IntoIterator<Item = MessageId>) -> Self {
        let mut hash = Xxh3::new();
        hash.update(sink.as_bytes());
        hash.update(&[0]);
        for message in messages {
            hash.update(&prefixed_hex(*b"msg_", message.0));
        }
        Self(hash.digest128())
    }

    /// As the value of `webhook-id`.
    pub fn header(self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text()).expect("hex digits are allowed in a header value")
    }

    fn text(self) -> [u8; 36] {
        prefixed_hex(*b"dlv_", self.0)
    }
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dlv_{:032x}", self.0)
    }
}

impl fmt::Debug for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One message of a [`Frozen`] delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which message.
    pub id: MessageId,
    /// Where its JSON stands in the body.
    pub bytes: Range<usize>,
}

/// A delivery whose members and body no longer change. Clones share the body.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// Its id.
    pub id: DeliveryId,
    /// What is sent, charged to the gauge it was built with until the last clone is gone.
    pub body: Bytes,
    /// Its messages in order; at least one.
    pub members: Vec<Member>,
}

impl Frozen {
    /// Renders a delivery into a buffer of `capacity` bytes at first. `append(n, id, buffer)` is called once for each message,
    /// in order, and appends the JSON of the `n`-th. With [`BodyForm::Single`] there is exactly one.
    pub fn build(
        memory: &Memory,
        sink: &str,
        form: BodyForm,
        capacity: usize,
        messages: impl IntoIterator<Item = MessageId>,
        mut append: impl FnMut(usize, MessageId, &mut Vec<u8>),
    ) -> Self {
        let (open, close) = frame(form);
        let messages = messages.into_iter();
        let mut members = Vec::with_capacity(messages.size_hint().0);
        let mut body = Vec::with_capacity(capacity);
        body.extend_from_slice(open);
        for (index, id) in messages.enumerate() {
            if index > 0 {
                body.push(b',');
            }
            let start = body.len();
            append(index, id, &mut body);
            members.push(Member { id, bytes: start..body.len() });
        }
        body.extend_from_slice(close);
        debug_assert!(form != BodyForm::Single || members.len() == 1, "a single body holds one message");
        // What is charged is the capacity; a body may wait for days, so the slack of growing is given back.
        if body.capacity() - body.len() > body.len() / 4 {
            body.shrink_to_fit();
        }
        Self { id: DeliveryId::of(sink, members.iter().map(|member| member.id)), body: memory.hold(body), members }
    }

    /// The bytes of a member's message.
    pub fn message(&self, member: &Member) -> &[u8] {
        self.body.get(member.bytes.clone()).unwrap_or_default()
    }

    /// The delivery of these of its messages, order and message bytes kept.
    pub fn part(&self, memory: &Memory, sink: &str, form: BodyForm, indexes: &[usize]) -> Self {
        let members: Vec<&Member> = indexes.iter().filter_map(|&index| self.members.get(index)).collect();
        let capacity = members.iter().map(|member| member.bytes.len() + 1).sum::<usize>() + 16;
        Self::build(memory, sink, form, capacity, members.iter().map(|member| member.id), |index, _, body| {
            body.extend_from_slice(members.get(index).map_or(&[], |member| self.message(member)));
        })
    }
}

fn frame(form: BodyForm) -> (&'static [u8], &'static [u8]) {
    match form {
        BodyForm::Batch => (br#"{"data":["#, b"]}"),
        BodyForm::Array => (b"[", b"]"),
        BodyForm::Single => (b"", b""),
    }
}

fn prefixed_hex(prefix: [u8; 4], value: u128) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 36];
    let (head, digits) = text.split_at_mut(4);
    head.copy_from_slice(&prefix);
    for (pair, byte) in digits.chunks_exact_mut(2).zip(value.to_be_bytes()) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frozen(memory: &Memory, form: BodyForm, ids: &[u128]) -> Frozen {
        let messages = ids.iter().map(|&id| MessageId(id));
        Frozen::build(memory, "orders", form, 16, messages, |index, _, body| {
            body.extend_from_slice(format!(r#"{{"n":{}}}"#, ids[index]).as_bytes());
        })
    }

    #[test]
    fn bodies_have_the_three_forms_and_members_know_their_bytes() {
        let memory = Memory::new(1 << 20);
        let batch = frozen(&memory, BodyForm::Batch, &[1, 2]);
        assert_eq!(batch.body, r#"{"data":[{"n":1},{"n":2}]}"#);
        assert_eq!(batch.message(&batch.members[1]), br#"{"n":2}"#);
        assert_eq!(frozen(&memory, BodyForm::Batch, &[1]).body, r#"{"data":[{"n":1}]}"#);
        assert_eq!(frozen(&memory, BodyForm::Array, &[1, 2]).body, r#"[{"n":1},{"n":2}]"#);
        assert_eq!(frozen(&memory, BodyForm::Single, &[1]).body, r#"{"n":1}"#);
    }

    #[test]
    fn the_id_is_of_the_sink_and_the_ordered_messages_and_never_changes() {
        let memory = Memory::new(1 << 20);
        let id = frozen(&memory, BodyForm::Batch, &[1, 2]).id;
        assert_eq!(frozen(&memory, BodyForm::Array, &[1, 2]).id, id);
        assert_ne!(frozen(&memory, BodyForm::Batch, &[2, 1]).id, id);
        assert_ne!(DeliveryId::of("order", [MessageId(1), MessageId(2)]), id);
        let text = format!("orders\0msg_{:032x}msg_{:032x}", 1, 2);
        assert_eq!(id.0, xxhash_rust::xxh3::xxh3_128(text.as_bytes()));
        assert_eq!(id.header().to_str().unwrap(), id.to_string());
        assert_eq!(DeliveryId(0xAB).to_string(), "dlv_000000000000000000000000000000ab");
    }

    #[test]
    fn a_body_is_charged_by_what_it_holds_until_its_last_clone_is_gone() {
        let memory = Memory::new(1 << 20);
        let one = frozen(&memory, BodyForm::Single, &[1]);
        assert!((one.body.len()..one.body.len() + 100).contains(&memory.held()), "{}", memory.held());
        let body = one.body.clone();
        drop(one);
        assert!(memory.held() > 0);
        drop(body);
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn a_part_keeps_order_and_bytes() {
        let memory = Memory::new(1 << 20);
        let whole = frozen(&memory, BodyForm::Batch, &[1, 2, 3]);
        let (first, second) = (
            whole.part(&memory, "orders", BodyForm::Batch, &[0, 2]),
            whole.part(&memory, "orders", BodyForm::Batch, &[1]),
        );
        assert_eq!(first.body, r#"{"data":[{"n":1},{"n":3}]}"#);
        assert_eq!(second.body, r#"{"data":[{"n":2}]}"#);
        assert_eq!(first.id, frozen(&memory, BodyForm::Batch, &[1, 3]).id);
    }
}
