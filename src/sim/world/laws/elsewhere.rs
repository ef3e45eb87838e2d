//! Where members of a simulated world count together, as the client sees it.

use async_trait::async_trait;

use crate::client::{Tally, Uncounted};
use crate::limiter::{Question, Settlement, Taken};

/// Where members count together: the world's messages go there, the client's own way is not used.
#[derive(Debug)]
pub(super) struct Elsewhere;

#[async_trait]
impl Tally for Elsewhere {
    async fn take(&self, _question: &Question) -> Result<Taken, Uncounted> {
        Err(Uncounted { kind: "simulated", what: "only the world's messages go there".to_owned() })
    }

    async fn settle(&self, _settlement: &Settlement) -> Result<(), Uncounted> {
        Ok(())
    }

    async fn hail(&self) -> Result<(), Uncounted> {
        Ok(())
    }

    fn start_over(&self) {}
}
