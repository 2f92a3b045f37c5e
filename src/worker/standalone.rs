//! Standalone mode: the connectors whose files are named run in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connector::{Connector, Shared};
use super::exit::Exit;
use super::http::{self, HttpServer, ListenError};
use super::logging;
use super::repeats::Repeats;
use super::signals::Signals;
use crate::clock::Clock;
use crate::config::{self, ConfigErrors, ConnectorConfig, Providers, WorkerConfig};
use crate::kafka::{Clients, lookup};
use crate::metrics::Metrics;
use crate::status::StatusBoard;
use crate::task::supervisor::Ended;
use crate::{COMMIT, VERSION};

/// The pause before the cluster's id is asked for again.
const CLUSTER_ID_PAUSE: Duration = Duration::from_secs(10);

/// What an older worker that was told to end may take beyond its graceful time-out, and the pause between looks.
const PORT_PATIENCE: Duration = Duration::from_secs(5);
const PORT_PAUSE: Duration = Duration::from_millis(200);

/// Runs until a signal, or until no connector may go on.
pub fn run(worker_file: &Path, connector_files: &[PathBuf]) -> Exit {
    let (worker, connectors, warnings) = match load(worker_file, connector_files) {
        Ok(loaded) => loaded,
        Err(errors) => {
            for error in errors {
                eprintln!("{error}");
            }
            return Exit::Usage;
        }
    };
    let repeats = match logging::init(&worker.log_level, worker.log_format) {
        Ok(repeats) => repeats,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Usage;
        }
    };
    tracing::info!(version = VERSION, commit = COMMIT, process = std::process::id(), "wecom-connector starts");
    let configurations = std::iter::once(&worker.effective).chain(connectors.iter().map(|it| &it.effective));
    for (file, configuration) in
        std::iter::once(worker_file).chain(connector_files.iter().map(PathBuf::as_path)).zip(configurations)
    {
        tracing::info!(file = %file.display(), "configuration: {configuration}");
    }
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let exit = run_on_runtime(worker, connectors, &repeats);
    tracing::info!(exit_code = exit as u8, "wecom-connector ends, because {}", exit.meaning());
    exit
}

fn run_on_runtime(worker: WorkerConfig, connectors: Vec<ConnectorConfig>, repeats: &Repeats) -> Exit {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime cannot be started");
            return Exit::Unavailable;
        }
    };
    let exit = runtime.block_on(serve(Arc::new(worker), connectors, repeats));
    repeats.tell_all();
    // Threads that hang in a Kafka call must not hold up the exit: what they hold is not committed and will be pulled again.
    runtime.shutdown_timeout(Duration::from_secs(1));
    exit
}

type Loaded = (WorkerConfig, Vec<ConnectorConfig>, Vec<String>);

/// Reads all files; all errors come at once.
fn load(worker: &Path, connectors: &[PathBuf]) -> Result<Loaded, Vec<ConfigErrors>> {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let mut warn = |path: &Path, more: Vec<config::Warning>| {
        warnings.extend(more.iter().map(|warning| format!("{}: {warning}", path.display())));
    };
    let providers = Providers::of_worker(worker);
    let worker = config::load_worker(worker).map(|(config, more)| {
        warn(worker, more);
        config
    });
    let mut configs = Vec::new();
    for path in connectors {
        match config::load_connector(path, providers) {
            Ok((config, more)) => {
                warn(path, more);
                configs.push(config);
            }
            Err(error) => errors.push(error),
        }
    }
    match worker {
        Ok(worker) if errors.is_empty() => match config::check_together(&worker, &configs) {
            Ok(()) => Ok((worker, configs, warnings)),
            Err(error) => Err(vec![error]),
        },
        Ok(_) => Err(errors),
        Err(error) => {
            errors.insert(0, error);
            Err(errors)
        }
    }
}

async fn serve(worker: Arc<WorkerConfig>, connectors: Vec<ConnectorConfig>, repeats: &Repeats) -> Exit {
    let clock = Clock::system();
    let metrics = Metrics::new(clock.clone());
    let board = StatusBoard::new(clock.clone(), Duration::from_millis(worker.task_progress_timeout_ms));
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "signals cannot be waited for");
            return Exit::Unavailable;
        }
    };
    let shutdown = CancellationToken::new();

    let served = tokio::select! {
        served = serve_http(&worker, &metrics, &board, &shutdown) => served,
        signal = signals.end() => {
            tracing::info!("leaving because of {signal}: nothing is in flight yet");
            return Exit::Success;
        }
    };
    match served {
        Ok(None) => {}
        Ok(Some(server)) => tracing::info!(address = %server.address, "metrics and health are served"),
        Err(error) => {
            tracing::error!(%error, "metrics and health cannot be served");
            return Exit::Unavailable;
        }
    }

    let limiters = Arc::default();
    let shared = Shared { worker: worker.clone(), metrics, limiters, clock, board: board.clone() };
    let prepared: Vec<_> = connectors.iter().map(|config| shared.prepare(config.clone())).collect();
    // One that can run is not held up by another. Where none can, whoever starts this is told at once.
    let Some(clients) = prepared.iter().find_map(|it| Some(it.as_ref().ok()?.clients.clone())) else {
        for (config, error) in connectors.iter().zip(prepared.iter().filter_map(|it| it.as_ref().err())) {
            tracing::error!(connector = config.name, %error, "the connector cannot be started");
        }
        return Exit::Usage;
    };
    tokio::spawn(tell_cluster_id(clients, board.clone()));
    let mut running = JoinSet::new();
    for (config, prepared) in connectors.into_iter().zip(prepared) {
        let connector = Connector::new(config, shared.clone());
        running.spawn(connector.run(prepared, shutdown.child_token()));
    }
    board.all_connectors_known();

    let mut ended = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let signal = loop {
        tokio::select! {
            joined = running.join_next() => match joined {
                Some(Ok(end)) => ended.push(end),
                Some(Err(_)) => return Exit::Internal,
                None => return exit(&ended),
            },
            _ = tick.tick() => {
                board.tick();
                repeats.tell();
            }
            signal = signals.end() => break signal,
        }
    };

    tracing::info!("leaving because of {signal}: what is in flight is finished and committed first");
    shutdown.cancel();
    let drained = async {
        while let Some(joined) = running.join_next().await {
            ended.extend(joined.ok());
        }
    };
    tokio::select! {
        () = drained => {}
        () = tokio::time::sleep(Duration::from_millis(worker.task_shutdown_graceful_timeout_ms)) => {
            tracing::warn!("what is in flight was not finished within task.shutdown.graceful.timeout.ms; it will be pulled again");
            return Exit::Interrupted;
        }
        signal = signals.end() => {
            tracing::warn!("leaving at once because of {signal}: what is in flight will be pulled again");
            return Exit::Interrupted;
        }
    }
    tracing::info!("everything in flight is committed");
    exit(&ended)
}

/// Serves metrics and health, where there is a listener. A port that another process has is waited for: an older
/// worker may be on its way out.
async fn serve_http(
    worker: &WorkerConfig,
    metrics: &Arc<Metrics>,
    board: &Arc<StatusBoard>,
    shutdown: &CancellationToken,
) -> Result<Option<HttpServer>, ListenError> {
    let Some(listener) = &worker.listener else { return Ok(None) };
    let patience = Duration::from_millis(worker.task_shutdown_graceful_timeout_ms) + PORT_PATIENCE;
    let until = Instant::now() + patience;
    let mut is_told = false;
    loop {
        match http::serve(listener, metrics.clone(), board.clone(), shutdown.clone()).await {
            Err(error) if error.is_port_taken() && Instant::now() < until => {
                if !std::mem::replace(&mut is_told, true) {
                    let address = listener.address;
                    let seconds = patience.as_secs();
                    tracing::warn!(%address, "another process has this port; it is waited for up to {seconds} s, as an older worker may be on its way out");
                }
                tokio::time::sleep(PORT_PAUSE).await;
            }
            other => return other.map(Some),
        }
    }
}

/// Puts the id of the Kafka cluster on the board, however long that takes. All connectors of a worker are on one cluster.
async fn tell_cluster_id(clients: Clients, board: Arc<StatusBoard>) {
    loop {
        let asked = clients.clone();
        match tokio::task::spawn_blocking(move || lookup::cluster_id(&asked)).await {
            Ok(Some(id)) => return board.set_kafka_cluster_id(id),
            Ok(None) => tokio::time::sleep(CLUSTER_ID_PAUSE).await,
            Err(_) => return,
        }
    }
}

/// The cause that somebody has to look at first.
fn exit(ended: &[Ended]) -> Exit {
    if ended.contains(&Ended::Intolerable) {
        Exit::BadRecord
    } else if ended.contains(&Ended::Fenced) {
        Exit::Fenced
    } else {
        Exit::Success
    }
}
