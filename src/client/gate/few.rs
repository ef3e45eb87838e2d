//! Units that are counted in few bytes, beside what an admission reads anyway.

use crate::quota::Cost;

/// Units counted since they were last put to the others.
#[derive(Debug, Default)]
pub(super) struct FewUnits {
    requests: u32,
    input_tokens: u32,
    output_tokens: u32,
}

impl FewUnits {
    /// Adds a cost; says whether there was room for it.
    #[inline]
    pub(super) fn add(&mut self, cost: &Cost) -> bool {
        let sum = |few: u32, more: u64| few.checked_add(u32::try_from(more).ok()?);
        let requests = self.requests.checked_add(cost.requests);
        let (input, output) = (sum(self.input_tokens, cost.input_tokens), sum(self.output_tokens, cost.output_tokens));
        let (Some(requests), Some(input_tokens), Some(output_tokens)) = (requests, input, output) else { return false };
        *self = Self { requests, input_tokens, output_tokens };
        true
    }

    pub(super) fn cost(&self) -> Cost {
        let Self { requests, input_tokens, output_tokens } = *self;
        Cost { requests, input_tokens: input_tokens.into(), output_tokens: output_tokens.into() }
    }
}
