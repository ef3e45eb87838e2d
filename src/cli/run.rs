//! `tidegate run`: the controller.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::{info, warn};

use super::signals::Signals;
use super::{Failure, check, reach};
use crate::config::Config;
use crate::controller::{Controller, ListenError};
use crate::store::{EtcdStore, MemoryStore, Store};
use crate::telemetry::Telemetry;

/// Arguments of `tidegate run`.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "config/tidegate.toml")]
    config: PathBuf,
}

/// Runs the controller until a signal.
pub(super) async fn run(args: RunArgs) -> Result<(), Failure> {
    let config = Config::load(&args.config).map_err(|mistakes| {
        let _ = writeln!(std::io::stderr(), "{mistakes}");
        Failure::Usage(format!("{}; the controller is not started", check::count(&mistakes)))
    })?;
    if !config.warnings.list.is_empty() {
        let _ = writeln!(std::io::stderr(), "{}", config.warnings);
    }
    let mut signals = Signals::watch()?;
    let store: Arc<dyn Store> = if let Some(etcd) = &config.etcd {
        let access = reach::access_of(etcd)?;
        let store = EtcdStore::connect_with(&etcd.endpoints, access).await;
        let store = store.map_err(|error| Failure::Usage(error.to_string()))?;
        info!("records live in etcd at {}", etcd.endpoints.join(", "));
        Arc::new(store)
    } else {
        warn!("no [etcd] in the configuration: records live in this process's memory, for members inside it only");
        Arc::new(MemoryStore::new())
    };
    let controller = Controller::start(config.controller, store, Arc::new(Telemetry::new())).await;
    let mut controller = controller.map_err(|error| match error {
        ListenError::OffLoopback(_) | ListenError::Tls(_) | ListenError::Prometheus(_) => {
            Failure::Usage(error.to_string())
        }
        ListenError::Bind(..) => Failure::Run(error.to_string()),
    })?;
    {
        let mut out = std::io::stdout().lock();
        // Nobody listening on stdout is no reason not to serve.
        let _ = writeln!(out, "controller listening on {}", controller.url());
        let _ = out.flush();
    }
    tokio::select! {
        () = signals.received() => {}
        () = controller.ended() => return Err(Failure::Run("the control loop has ended; see the log above".into())),
    }
    controller.stop().await;
    Ok(())
}
