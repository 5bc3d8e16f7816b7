//! The newest messages of a sink that cannot keep up: on their way into the store, in it, and back.
//!
//! While anything is here every new message goes behind it. What comes back is a page's messages, older than all that
//! is left here, and takes the way that new messages take otherwise.
//!
//! When a process dies, the store may still have messages that were read back and not acknowledged, and younger ones that had
//! not been written are resolved by nobody. These come again after the restart, and wait here until what is before them
//! has been read: no more than was in memory before, so it is read at once, whatever the endpoint does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::watermark::Token;
use super::{Message, Position};

/// A page is written when it has so many messages, or as many bytes as its writer allows, …
const PAGE_MESSAGES: usize = 4096;
/// … or its first message has waited so long.
pub(super) const PAGE_AFTER: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Overflow<P> {
    /// Not on their way yet.
    buffer: VecDeque<(Instant, Token, Message<P>)>,
    buffer_bytes: usize,
    /// On their way.
    writing: usize,
    /// In the store, and not read back.
    stored: usize,
    /// Read back before it was said that they are durable.
    early: usize,
    is_read: bool,
    /// Messages that came again after a restart, and may stand anywhere among what the store had then, in order.
    again: VecDeque<(Token, Message<P>)>,
    again_bytes: usize,
}

impl<P> Overflow<P> {
    pub(super) fn new() -> Self {
        let (buffer, again) = (VecDeque::new(), VecDeque::new());
        Self { buffer, buffer_bytes: 0, writing: 0, stored: 0, early: 0, is_read: false, again, again_bytes: 0 }
    }

    /// Messages of a life before.
    pub(super) fn restore(&mut self, messages: usize) {
        self.stored = messages;
    }

    /// Whether new messages have to go behind what is here.
    pub(super) fn is_active(&self) -> bool {
        self.stored > 0 || self.writing > 0 || !self.buffer.is_empty() || !self.again.is_empty()
    }

    /// Messages in the store and on their way into it.
    pub(super) fn stored(&self) -> usize {
        self.stored + self.writing.saturating_sub(self.early)
    }

    /// Messages that are in memory, and their bytes.
    pub(super) fn buffered(&self) -> (usize, usize) {
        (self.buffer.len() + self.again.len(), self.buffer_bytes + self.again_bytes)
    }

    /// Keeps a message that came again until what is before it in the store has been read. Gives it back if the store
    /// has nothing.
    pub(super) fn push_again(&mut self, token: Token, message: Message<P>) -> Option<(Token, Message<P>)> {
        if self.stored == 0 {
            return Some((token, message));
        }
        self.again_bytes += message.bytes;
        self.again.push_back((token, message));
        None
    }

    /// Whether messages that came again are kept.
    pub(super) fn has_again(&self) -> bool {
        !self.again.is_empty()
    }

    /// The next message that came again and is before this position; `None`: the store has nothing more.
    pub(super) fn take_again(&mut self, before: Option<Position>) -> Option<(Token, Message<P>)> {
        let (_, next) = self.again.front()?;
        if before.is_some_and(|before| before < next.position) {
            return None;
        }
        self.again_bytes -= next.bytes;
        self.again.pop_front()
    }

    pub(super) fn push(&mut self, now: Instant, token: Token, message: Message<P>) {
        self.buffer_bytes += message.bytes;
        self.buffer.push_back((now, token, message));
    }

    /// When the next page is to be written, if nothing else comes.
    pub(super) fn page_at(&self, bytes_max: usize) -> Option<Instant> {
        let (first, ..) = self.buffer.front()?;
        let is_full = self.buffer_bytes >= bytes_max || self.buffer.len() >= PAGE_MESSAGES;
        Some(if is_full { *first } else { *first + PAGE_AFTER })
    }

    /// The messages of the next page.
    pub(super) fn take_page(&mut self, bytes_max: usize) -> (Vec<Token>, Vec<Message<P>>) {
        let (mut tokens, mut messages, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < bytes_max
            && messages.len() < PAGE_MESSAGES
            && let Some((_, token, message)) = self.buffer.pop_front()
        {
            bytes += message.bytes;
            tokens.push(token);
            messages.push(message);
        }
        self.buffer_bytes -= bytes;
        self.writing += messages.len();
        if self.buffer.is_empty() {
            self.buffer.shrink_to(PAGE_MESSAGES);
        }
        (tokens, messages)
    }

    /// A page is durable.
    pub(super) fn written(&mut self, messages: usize) {
        let early = self.early.min(messages);
        self.early -= early;
        self.writing -= messages;
        self.stored += messages - early;
    }

    /// The next message that need not be written, since nothing is before it any more.
    pub(super) fn take_back(&mut self) -> Option<(Token, Message<P>)> {
        if self.stored > 0 || self.writing > 0 || !self.again.is_empty() {
            return None;
        }
        let (_, token, message) = self.buffer.pop_front()?;
        self.buffer_bytes -= message.bytes;
        Some((token, message))
    }

    /// Whether the store has messages that can be read.
    pub(super) fn has_stored(&self) -> bool {
        self.stored > 0
    }

    /// Whether a page can be read.
    pub(super) fn can_be_read(&self) -> bool {
        self.stored > 0 && !self.is_read
    }

    /// It is being read.
    pub(super) fn start_reading(&mut self) {
        self.is_read = true;
    }

    /// So many messages came back, or the store could not be read. Returns how many it should have had and has not.
    pub(super) fn read(&mut self, messages: Option<usize>) -> usize {
        self.is_read = false;
        match messages {
            Some(0) => std::mem::replace(&mut self.stored, 0),
            Some(messages) => {
                self.early += messages.saturating_sub(self.stored);
                self.stored = self.stored.saturating_sub(messages);
                0
            }
            None => 0,
        }
    }
}
