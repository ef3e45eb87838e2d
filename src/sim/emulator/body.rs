//! Response bodies that take their time, and the charge that ends with them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::latency::Draw;

/// The charge of an answer under way, or of one that waits for a slot. However it ends — whole, broken off, or with a client that went away — the
/// charge is settled once, with the tokens written until then.
pub(super) struct Ticket<F: FnOnce(u64)> {
    written_tokens: u64,
    settle: Option<F>,
}

impl<F: FnOnce(u64)> Ticket<F> {
    pub(super) const fn new(settle: F) -> Self {
        Self { written_tokens: 0, settle: Some(settle) }
    }

    pub(super) const fn wrote(&mut self, tokens: u64) {
        self.written_tokens += tokens;
    }
}

impl<F: FnOnce(u64)> Drop for Ticket<F> {
    fn drop(&mut self) {
        if let Some(settle) = self.settle.take() {
            settle(self.written_tokens);
        }
    }
}

/// A streamed answer: what is sent before its tokens, one event for each, and what is sent after them.
pub(super) struct Script {
    pub(super) opening: Vec<Bytes>,
    pub(super) first_token: Bytes,
    pub(super) next_token: Bytes,
    pub(super) tokens: u64,
    pub(super) closing: Vec<Bytes>,
}

impl Script {
    /// Ends with this event instead, after this part of the tokens, 0–1.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a count; casts saturate")]
    #[allow(clippy::cast_precision_loss, reason = "at most 100,000")]
    pub(super) fn break_after(&mut self, part: f64, event: Bytes) {
        self.tokens = (self.tokens as f64 * part) as u64;
        self.closing = vec![event];
    }
}

/// A server-sent event; Anthropic's have a name, OpenAI's have none.
pub(super) fn event(name: Option<&str>, data: &impl ToString) -> Bytes {
    let data = data.to_string();
    Bytes::from(name.map_or_else(|| format!("data: {data}\n\n"), |name| format!("event: {name}\ndata: {data}\n\n")))
}

/// Plays a script, each event a frame of its own: the opening at once, then a token whenever one is due.
pub(super) struct StreamBody<F: FnOnce(u64)> {
    opening: std::vec::IntoIter<Bytes>,
    first_token: Option<Bytes>,
    next_token: Bytes,
    closing: std::vec::IntoIter<Bytes>,
    tokens: u64,
    draw: Draw,
    head_at: Instant,
    due: Pin<Box<Sleep>>,
    ticket: Ticket<F>,
}

impl<F: FnOnce(u64)> StreamBody<F> {
    /// Begins now: the head is leaving.
    pub(super) fn new(script: Script, draw: Draw, ticket: Ticket<F>) -> Self {
        let head_at = Instant::now();
        Self {
            opening: script.opening.into_iter(),
            first_token: Some(script.first_token),
            next_token: script.next_token,
            closing: script.closing.into_iter(),
            tokens: script.tokens,
            draw,
            head_at,
            due: Box::pin(sleep_until(head_at + draw.head_to_token(1))),
            ticket,
        }
    }
}

impl<F: FnOnce(u64) + Unpin> HttpBody for StreamBody<F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(event) = self.opening.next() {
            return Poll::Ready(Some(Ok(Frame::data(event))));
        }
        if self.ticket.written_tokens < self.tokens {
            ready!(self.due.as_mut().poll(context));
            self.ticket.wrote(1);
            let next_at = self.head_at + self.draw.head_to_token(self.ticket.written_tokens + 1);
            self.due.as_mut().reset(next_at);
            let event = self.first_token.take().unwrap_or_else(|| self.next_token.clone());
            return Poll::Ready(Some(Ok(Frame::data(event))));
        }
        Poll::Ready(self.closing.next().map(|event| Ok(Frame::data(event))))
    }
}

/// A body of known length that arrives in one piece, later than the head.
pub(super) struct DelayedBody<F: FnOnce(u64)> {
    delay: Pin<Box<Sleep>>,
    bytes: Option<Bytes>,
    /// Held until the bytes are sent, or nobody wants them any more.
    _ticket: Ticket<F>,
}

impl<F: FnOnce(u64)> DelayedBody<F> {
    /// Begins now: the head is leaving.
    pub(super) fn new(bytes: Bytes, delay: Duration, ticket: Ticket<F>) -> Self {
        Self { delay: Box::pin(sleep(delay)), bytes: Some(bytes), _ticket: ticket }
    }
}

impl<F: FnOnce(u64) + Unpin> HttpBody for DelayedBody<F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.bytes.is_none() {
            return Poll::Ready(None);
        }
        ready!(self.delay.as_mut().poll(context));
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX)))
    }
}
