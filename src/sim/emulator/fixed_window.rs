//! A provider of fixed windows: OpenAI's bodies, and OpenAI's names with resets in seconds since 1970, as `SambaNova`'s are
//! documented. All that was used is given back at the window's end, and a refusal waits for that.

use super::wire::Wire;

pub(super) struct FixedWindow;

impl Wire for FixedWindow {
    fn routes(&self) -> &'static [&'static str] {
        &["/v1/chat/completions"]
    }
}
