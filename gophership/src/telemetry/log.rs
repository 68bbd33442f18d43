//! The daemon's own log, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::{Config, LogFormat};

/// The filter directive could not be understood, or a log is already installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `telemetry.log.level` is not a `tracing` filter.
    #[error("telemetry.log.level: {level:?} is not a log level or filter: {source}")]
    Level {
        /// The value.
        level: String,
        /// What the filter's parser said.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Another subscriber is installed in this process.
    #[error("the log is already installed: {0}")]
    Installed(Box<dyn std::error::Error + Send + Sync>),
}

/// Installs the process's log.
///
/// # Errors
/// If the level is not a filter, or a subscriber is already installed.
pub fn install(config: &Config) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&config.log_level).map_err(|source| Error::Level {
        level: config.log_level.clone(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Pretty => builder.try_init(),
    }
    .map_err(Error::Installed)
}
