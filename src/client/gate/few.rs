//! Units that are counted in few bytes, beside what an admission reads anyway.

use crate::quota::Cost;

/// LLM tokens reserved since they were last put to the others, by requests of which each counted as one.
#[derive(Debug, Default)]
pub(super) struct FewTokens {
    pub(super) input: u32,
    pub(super) output: u32,
}

impl FewTokens {
    /// Adds a cost; says whether there was room for it.
    #[inline]
    pub(super) fn add(&mut self, cost: &Cost) -> bool {
        let sum = |few: u32, more: u64| few.checked_add(u32::try_from(more).ok()?);
        let (input, output) = (sum(self.input, cost.input_tokens), sum(self.output, cost.output_tokens));
        let (1, Some(input), Some(output)) = (cost.requests, input, output) else { return false };
        *self = Self { input, output };
        true
    }
}
