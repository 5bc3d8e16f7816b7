//! The newest messages of a sink that cannot keep up: on their way into the store, in it, and back.
//!
//! While anything is here every new message goes behind it. What comes back is a page's messages, older than all that
//! is left here, and takes the way that new messages take otherwise.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Message;
use super::watermark::Token;

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
    is_read: bool,
}

impl<P> Overflow<P> {
    pub(super) fn new() -> Self {
        Self { buffer: VecDeque::new(), buffer_bytes: 0, writing: 0, stored: 0, is_read: false }
    }

    /// Messages of a life before.
    pub(super) fn restore(&mut self, messages: usize) {
        self.stored = messages;
    }

    /// Whether new messages have to go behind what is here.
    pub(super) fn is_active(&self) -> bool {
        self.stored > 0 || self.writing > 0 || self.is_read || !self.buffer.is_empty()
    }

    /// Messages in the store and on their way into it.
    pub(super) fn stored(&self) -> usize {
        self.stored + self.writing
    }

    /// Messages that are in memory, and their bytes.
    pub(super) fn buffered(&self) -> (usize, usize) {
        (self.buffer.len(), self.buffer_bytes)
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
        self.writing -= messages;
        self.stored += messages;
    }

    /// The next message that need not be written, since nothing is before it any more.
    pub(super) fn take_back(&mut self) -> Option<(Token, Message<P>)> {
        if self.stored > 0 || self.writing > 0 || self.is_read {
            return None;
        }
        let (_, token, message) = self.buffer.pop_front()?;
        self.buffer_bytes -= message.bytes;
        Some((token, message))
    }

    /// Whether a page can be read; then it is being read.
    pub(super) fn start_reading(&mut self) -> bool {
        let can = self.stored > 0 && !self.is_read;
        self.is_read |= can;
        can
    }

    /// So many messages came back, or the store could not be read. Returns how many it should have had and has not.
    pub(super) fn read(&mut self, messages: Option<usize>) -> usize {
        self.is_read = false;
        match messages {
            Some(0) => std::mem::replace(&mut self.stored, 0),
            Some(messages) => {
                self.stored = self.stored.saturating_sub(messages);
                0
            }
            None => 0,
        }
    }
}
