//! What a request really used, as its answer tells: read as the body passes, whatever its size, in constant memory.
//!
//! The reader is a machine that takes one byte after another and keeps none of them. So an answer may be cut anywhere,
//! inside a character or a line's end too, and no line is too long. It does not judge whether the text is JSON; of what
//! is, it knows which key of which object it is in, as far as usage is told there:
//!
//! | answer | where |
//! |---|---|
//! | OpenAI, whole or the last chunk | `usage.{prompt_tokens,completion_tokens}` |
//! | OpenAI Responses, whole or the last event | `usage` or `response.usage`, `{input_tokens,output_tokens}` |
//! | Gemini, whole, each event, or each document of an array | `usageMetadata`: prompt and tool-use prompt are input, candidates and thoughts output |
//! | Anthropic, whole | `usage.{input_tokens,cache_creation_input_tokens,output_tokens}` |
//! | Anthropic, streamed | the same of `message_start` at `message.usage`, but output of the last `message_delta` at `usage` |
//!
//! Event streams: <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>. Of AWS's own,
//! only that an answer broke off is read.

use super::aws_stream::Messages;
use super::value::NUMBER_MAX;
use super::{anthropic, refusal};

/// What the provider says a request really used, as its limits count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// LLM tokens sent; with Anthropic those written to the cache too, but not those read from it.
    pub input_tokens: u64,
    /// LLM tokens received.
    pub output_tokens: u64,
}

impl Usage {
    /// More LLM tokens than any answer can have used: such numbers are errors, or placeholders.
    pub const TOKENS_MAX: u64 = NUMBER_MAX;
}

/// Reads usage from an answer's body as it passes.
#[derive(Debug, Clone)]
pub struct UsageReader {
    form: Form,
    document: Document,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    /// Neither JSON nor events: nothing is read.
    Other,
    Json,
    Events {
        line: Line,
        after_cr: bool,
    },
    AwsMessages(Messages),
}

/// Where in a line of an event stream the reader is.
#[derive(Debug, Clone, Copy)]
enum Line {
    /// So many bytes of `data:` have been seen, and nothing else.
    Begun(usize),
    /// After `data:`.
    Data,
    /// Another field, or a comment.
    Skipped,
}

const DATA: &[u8] = b"data:";

impl UsageReader {
    /// A reader for a body of this content type; of what is neither `application/json` nor `text/event-stream` it reads
    /// no usage, and nothing at all of what is not `application/vnd.amazon.eventstream` either.
    #[must_use]
    pub fn new(content_type: Option<&str>) -> Self {
        let essence = content_type.and_then(|text| text.split(';').next()).unwrap_or_default().trim();
        let form = match essence {
            _ if essence.eq_ignore_ascii_case("text/event-stream") => {
                Form::Events { line: Line::Begun(0), after_cr: false }
            }
            _ if essence.eq_ignore_ascii_case("application/json") => Form::Json,
            _ if essence.eq_ignore_ascii_case("application/vnd.amazon.eventstream") => {
                Form::AwsMessages(Messages::default())
            }
            _ => Form::Other,
        };
        Self { form, document: Document::default() }
    }

    /// Takes the next part of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        match &mut self.form {
            Form::Other => {}
            Form::Json => self.document.feed(bytes),
            Form::Events { line, after_cr } => events(line, after_cr, &mut self.document, bytes),
            Form::AwsMessages(messages) => self.document.overloaded |= messages.feed(bytes),
        }
    }

    /// The usage, once both input and output were told. Counts of a stream are cumulative: the largest stand.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        let told = self.document.told;
        let input_tokens = told.input?.saturating_add(told.input_beside.unwrap_or(0));
        // An answer may be cut off while it thinks.
        let output_tokens = told.output.or(told.thoughts.map(|_| 0))?.saturating_add(told.thoughts.unwrap_or(0));
        Some(Usage { input_tokens, output_tokens })
    }

    /// Whether the answer told that the provider is overloaded, be it in the middle of a stream that began well. A stream
    /// that breaks off because something is throttled counts as one: it had been admitted, and no limit is named.
    #[must_use]
    pub fn overloaded(&self) -> bool {
        self.document.overloaded
    }
}

fn events(line: &mut Line, after_cr: &mut bool, document: &mut Document, mut bytes: &[u8]) {
    while let Some((&byte, rest)) = bytes.split_first() {
        let second_of_two = std::mem::replace(after_cr, byte == b'\r') && byte == b'\n';
        if matches!(byte, b'\r' | b'\n') {
            match line {
                _ if second_of_two => {}
                // An empty line ends an event.
                Line::Begun(0) => document.restart(),
                // Several lines of data are one text with line ends between.
                Line::Data => document.feed(b"\n"),
                Line::Begun(_) | Line::Skipped => {}
            }
            *line = Line::Begun(0);
            bytes = rest;
            continue;
        }
        if let Line::Begun(seen) = line {
            *line = match *seen + 1 {
                seen if DATA[seen - 1] != byte => Line::Skipped,
                seen if seen == DATA.len() => Line::Data,
                seen => Line::Begun(seen),
            };
            bytes = rest;
            continue;
        }
        let end = bytes.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
        let (inside, rest) = bytes.split_at(end);
        if matches!(line, Line::Data) {
            document.feed(inside);
        }
        bytes = rest;
    }
}

// === one JSON text, or an array of them ===

/// An object in which something may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    /// `message` of Anthropic's `message_start`.
    Message,
    /// `response` of an event of OpenAI's Responses.
    Response,
    /// `usage` as it is when an answer begins.
    FirstUsage,
    Usage,
    Error,
}

/// A key that matters in some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Usage,
    Message,
    Response,
    Error,
    Type,
    Code,
    Status,
    Input,
    /// Input that is counted beside the prompt: what a cache took, what tools brought. No provider has both.
    InputBeside,
    Output,
    Thoughts,
}

const KEYS: [(&str, Key); 17] = [
    ("usage", Key::Usage),
    ("usageMetadata", Key::Usage),
    ("message", Key::Message),
    ("response", Key::Response),
    ("error", Key::Error),
    ("type", Key::Type),
    ("code", Key::Code),
    ("status", Key::Status),
    ("prompt_tokens", Key::Input),
    ("input_tokens", Key::Input),
    ("cache_creation_input_tokens", Key::InputBeside),
    ("completion_tokens", Key::Output),
    ("output_tokens", Key::Output),
    // Cached content is part of the prompt's count.
    ("promptTokenCount", Key::Input),
    ("toolUsePromptTokenCount", Key::InputBeside),
    ("candidatesTokenCount", Key::Output),
    ("thoughtsTokenCount", Key::Thoughts),
];

/// Most bytes of a string that are looked at: longer ones are neither a key nor a word that matters.
const WORD_BYTES_MAX: usize = 32;
/// The deepest chain of places: top, response, usage.
const PLACES_MAX: usize = 3;

/// A string's beginning.
#[derive(Debug, Clone, Copy)]
struct Word {
    bytes: [u8; WORD_BYTES_MAX],
    len: usize,
}

impl Word {
    const EMPTY: Self = Self { bytes: [0; WORD_BYTES_MAX], len: 0 };

    fn push(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        } else {
            self.spoil();
        }
    }

    /// Too long, or with an escape: no word that matters.
    fn spoil(&mut self) {
        self.len = WORD_BYTES_MAX + 1;
    }

    fn text(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    None,
    String {
        escaped: bool,
    },
    /// Digits, as far as they are a whole number that fits.
    Number(Option<u64>),
}

#[derive(Debug, Clone, Copy, Default)]
struct Told {
    input: Option<u64>,
    input_beside: Option<u64>,
    output: Option<u64>,
    thoughts: Option<u64>,
}

#[derive(Debug, Clone)]
struct Document {
    /// The places from the top to here; as many as `depth` where everything around is one.
    places: [Place; PLACES_MAX],
    places_len: usize,
    /// Google's streams that are no event streams are one array, of a document for each part: its bracket is open, and is
    /// not counted in `depth`.
    in_array: bool,
    /// How many objects and arrays are open in this document.
    depth: usize,
    /// Before the colon.
    key_is_next: bool,
    key: Option<Key>,
    token: Token,
    word: Word,
    /// `error.type` of this text.
    kind: Word,
    message: Word,
    told: Told,
    overloaded: bool,
}

impl Default for Document {
    fn default() -> Self {
        Self {
            places: [Place::Top; PLACES_MAX],
            places_len: 0,
            in_array: false,
            depth: 0,
            key_is_next: false,
            key: None,
            token: Token::None,
            word: Word::EMPTY,
            kind: Word::EMPTY,
            message: Word::EMPTY,
            told: Told::default(),
            overloaded: false,
        }
    }
}

impl Document {
    /// Another text begins. What was told stays.
    fn restart(&mut self) {
        *self = Self { told: self.told, overloaded: self.overloaded, ..Self::default() };
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let Token::String { escaped } = self.token {
                if escaped {
                    self.token = Token::String { escaped: false };
                    bytes = rest;
                } else {
                    let end = bytes.iter().position(|b| matches!(b, b'"' | b'\\')).unwrap_or(bytes.len());
                    let (inside, rest) = bytes.split_at(end);
                    if self.place().is_some() {
                        self.word.push(inside);
                    }
                    bytes = self.string_goes_on(rest);
                }
            } else {
                self.outside_strings(byte);
                bytes = rest;
            }
        }
    }

    /// At a string's end, at an escape, or where this part of the body ends.
    fn string_goes_on<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some((&byte, rest)) = bytes.split_first() else { return bytes };
        if byte == b'\\' {
            self.word.spoil();
            self.token = Token::String { escaped: true };
        } else {
            self.token = Token::None;
            self.string_ended();
        }
        rest
    }

    /// The object that everything here stands in, if it is one that matters.
    fn place(&self) -> Option<Place> {
        let here = self.places_len == self.depth;
        self.places_len.checked_sub(1).filter(|_| here).and_then(|last| self.places.get(last)).copied()
    }

    fn outside_strings(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.token = Token::String { escaped: false };
                self.word = Word::EMPTY;
            }
            b'{' | b'[' => self.open(byte == b'{'),
            b'}' | b']' => {
                self.number_ended();
                self.close();
            }
            b',' => {
                self.number_ended();
                (self.key_is_next, self.key) = (true, None);
            }
            b':' => self.key_is_next = false,
            b' ' | b'\t' | b'\r' | b'\n' => {}
            _ if matches!(self.place(), Some(Place::Usage | Place::FirstUsage | Place::Error)) => {
                let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
                let before = match self.token {
                    Token::Number(digits) => digits,
                    Token::None | Token::String { .. } => Some(0),
                };
                let sum = |n: u64, digit: u64| n.checked_mul(10)?.checked_add(digit);
                self.token = Token::Number(before.zip(digit).and_then(|(n, digit)| sum(n, digit)));
            }
            _ => {}
        }
    }

    fn open(&mut self, object: bool) {
        if self.depth == 0 {
            // One document's error says nothing of the next.
            (self.kind, self.message) = (Word::EMPTY, Word::EMPTY);
            if !object && !std::mem::replace(&mut self.in_array, true) {
                return;
            }
        }
        let inner = match (self.place(), self.key) {
            (None, _) if self.depth == 0 => Some(Place::Top),
            (Some(Place::Top | Place::Response), Some(Key::Usage)) => Some(Place::Usage),
            (Some(Place::Message), Some(Key::Usage)) => Some(Place::FirstUsage),
            (Some(Place::Top), Some(Key::Message)) => Some(Place::Message),
            (Some(Place::Top), Some(Key::Response)) => Some(Place::Response),
            (Some(Place::Top), Some(Key::Error)) => Some(Place::Error),
            _ => None,
        };
        if let Some(inner) = inner.filter(|_| object)
            && let Some(slot) = self.places.get_mut(self.places_len)
        {
            *slot = inner;
            self.places_len += 1;
        }
        self.depth += 1;
        (self.key_is_next, self.key) = (true, None);
    }

    fn close(&mut self) {
        self.in_array &= self.depth > 0;
        self.depth = self.depth.saturating_sub(1);
        self.places_len = self.places_len.min(self.depth);
        (self.key_is_next, self.key) = (false, None);
    }

    fn string_ended(&mut self) {
        let Some(place) = self.place() else { return };
        if self.key_is_next {
            let text = self.word.text();
            self.key = KEYS.iter().find(|(name, _)| *name == text).map(|(_, key)| *key);
            return;
        }
        match (place, self.key) {
            (Place::Error, Some(Key::Type)) => self.kind = self.word,
            (Place::Error, Some(Key::Message)) => self.message = self.word,
            (Place::Error, Some(Key::Code | Key::Status)) => {}
            _ => return,
        }
        self.overloaded |= anthropic::overloaded(self.kind.text(), self.message.text());
        self.overloaded |= self.key != Some(Key::Message) && refusal::breaks_off(self.word.text());
    }

    fn number_ended(&mut self) {
        let Token::Number(digits) = std::mem::replace(&mut self.token, Token::None) else { return };
        // A number that no answer can have used is none.
        let digits = digits.filter(|number| *number <= NUMBER_MAX);
        let (Some(number), Some(key), Some(place)) = (digits, self.key, self.place()) else { return };
        let told = match (key, place) {
            (Key::Code, Place::Error) => {
                self.overloaded |= matches!(number, 429 | 503 | 529);
                return;
            }
            (_, Place::Error) => return,
            (Key::Input, _) => &mut self.told.input,
            (Key::InputBeside, _) => &mut self.told.input_beside,
            (Key::Thoughts, _) => &mut self.told.thoughts,
            // When an answer begins, its output is yet to come.
            (Key::Output, Place::Usage) => &mut self.told.output,
            _ => return,
        };
        *told = (*told).max(Some(number));
    }
}
