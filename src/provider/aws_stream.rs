//! AWS's event streams, `application/vnd.amazon.eventstream`, as far as they tell that an answer broke off: Bedrock sends
//! `throttlingException` and `serviceUnavailableException` as messages of an answer that began with 200.
//!
//! A message is a prelude (its length, the length of its headers, and a checksum, four bytes each), then headers, a payload
//! and another checksum. A header is a name after a byte with its length, a byte with the type of its value, and the value;
//! text has two bytes with its length before it. Checksums are not checked: what a wrong one would spoil is one hint.
//! <https://smithy.io/2.0/aws/amazon-eventstream.html>

/// Bytes of a message before its headers.
const PRELUDE: u32 = 12;
/// Bytes of the checksum that ends a message.
const CHECKSUM: u32 = 4;
/// The header that names an exception.
const NAME: &[u8] = b":exception-type";
/// The exceptions that say that there is no room for the rest.
const REFUSALS: [&[u8]; 2] = [b"throttlingException", b"serviceUnavailableException"];

/// Where in a header the reader is.
#[derive(Debug, Clone, Copy, Default)]
enum Field {
    #[default]
    NameLength,
    Name {
        at: u8,
        len: u8,
    },
    Type,
    /// The first byte of a text's length, or the second after the first.
    Length(Option<u8>),
    Value {
        at: u16,
        len: u16,
    },
}

/// Reads a stream of messages as it passes: no byte is kept.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Messages {
    /// How much of this message has passed, in bytes.
    at: u32,
    len: u32,
    headers_len: u32,
    field: Field,
    /// Whether this header is the one that names an exception, as far as it has passed.
    is_exception: bool,
    /// Which of the refusals its value is, as far as it has passed.
    may_be: [bool; REFUSALS.len()],
    /// This is no stream of messages: nothing more is read.
    is_lost: bool,
}

impl Messages {
    /// Takes the next part; whether it told of a refusal.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> bool {
        let mut refused = false;
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.is_lost {
                break;
            }
            if self.at.checked_sub(PRELUDE).is_some_and(|at| at >= self.headers_len) {
                bytes = self.pass(bytes);
                continue;
            }
            match self.at {
                0..4 => self.len = (self.len << 8) | u32::from(byte),
                4..8 => self.headers_len = (self.headers_len << 8) | u32::from(byte),
                8..PRELUDE => {}
                _ => refused |= self.header(byte),
            }
            self.at += 1;
            if self.at == PRELUDE {
                let most = self.len.checked_sub(PRELUDE + CHECKSUM);
                self.is_lost = most.is_none_or(|most| self.headers_len > most);
            }
            bytes = rest;
        }
        refused
    }

    /// Passes over the payload, or what there is of it.
    fn pass<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let left = usize::try_from(self.len - self.at).unwrap_or(usize::MAX);
        let (passed, rest) = bytes.split_at(left.min(bytes.len()));
        if passed.len() == left {
            *self = Self::default();
        } else {
            self.at += u32::try_from(passed.len()).unwrap_or(u32::MAX);
        }
        rest
    }

    /// The next byte of the headers; whether it ends the name of a refusal.
    fn header(&mut self, byte: u8) -> bool {
        match self.field {
            Field::NameLength => {
                self.is_exception = usize::from(byte) == NAME.len();
                self.field = if byte == 0 { Field::Type } else { Field::Name { at: 0, len: byte } };
            }
            Field::Name { at, len } => {
                self.is_exception &= NAME.get(usize::from(at)) == Some(&byte);
                self.field = if at + 1 == len { Field::Type } else { Field::Name { at: at + 1, len } };
            }
            Field::Type => {
                let value = |len| Field::Value { at: 0, len };
                self.is_exception &= byte == 7;
                self.field = match byte {
                    // True and false are in the type.
                    0 | 1 => Field::NameLength,
                    2 => value(1),
                    3 => value(2),
                    4 => value(4),
                    5 | 8 => value(8),
                    6 | 7 => Field::Length(None),
                    9 => value(16),
                    _ => {
                        self.is_lost = true;
                        return false;
                    }
                };
            }
            Field::Length(None) => self.field = Field::Length(Some(byte)),
            Field::Length(Some(high)) => {
                let len = u16::from_be_bytes([high, byte]);
                self.may_be = REFUSALS.map(|refusal| refusal.len() == usize::from(len));
                self.field = if len == 0 { Field::NameLength } else { Field::Value { at: 0, len } };
            }
            Field::Value { at, len } => {
                for (may_be, refusal) in self.may_be.iter_mut().zip(REFUSALS) {
                    *may_be &= refusal.get(usize::from(at)) == Some(&byte);
                }
                let ends = at + 1 == len;
                self.field = if ends { Field::NameLength } else { Field::Value { at: at + 1, len } };
                return ends && self.is_exception && self.may_be.contains(&true);
            }
        }
        false
    }
}
