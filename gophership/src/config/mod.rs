//! YAML and environment → the validated configuration of every module.
//!
//! All problems are reported at once, each with its line, key and value. The keys are listed in
//! [`schema`], and nothing else is accepted.

mod build;
pub mod describe;
mod destinations;
mod enrich;
pub mod formats;
mod levels;
mod problems;
pub mod schema;
mod settings;
mod tree;
pub mod units;
mod xdp;

use std::{net::SocketAddr, path::Path};

pub use problems::{Errors, Kind, Origin, Problem};
pub use settings::Effective;
use settings::Settings;

/// Read when no file is named, if it is there.
pub const DEFAULT_PATH: &str = "/etc/gophership/gophership.yaml";

/// What the defaults that are `auto` depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Cores this process may run on.
    pub cores: usize,
    /// The smallest memory limit that holds for this process, in bytes.
    pub memory_limit_bytes: u64,
}

impl Host {
    /// The machine we run on.
    pub fn this() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_limit_bytes: crate::pressure::memory_limit_bytes(),
        }
    }
}

/// Reads the file at `path`, or the one at [`DEFAULT_PATH`] if it exists, or only defaults; then
/// the environment over it.
///
/// # Errors
/// Everything that is wrong.
pub fn load(
    path: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<crate::app::Config, Errors> {
    let (path, text) = read(path)?;
    let file = text.is_some().then(|| path.to_owned());
    let text = text.unwrap_or_default();
    let config = parse(&text, &path.display().to_string(), env)?;
    Ok(crate::app::Config { file, ..config })
}

/// The value of every key, as [`load`] takes it.
///
/// # Errors
/// Everything that is wrong.
pub fn effective(
    path: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Vec<Effective>, Errors> {
    let (path, text) = read(path)?;
    let text = text.unwrap_or_default();
    let mut settings = settings(&text, &path.display().to_string(), env)?;
    match build::app(&mut settings, Host::this()) {
        Some(_) if settings.is_sound() => Ok(settings.effective()),
        _ => Err(Errors::new(settings.into_problems())),
    }
}

/// Where the daemon that [`load`] configures tells of its health. Whoever asks that needs no more of the
/// configuration to be right, or readable: certificates, secrets, the environment's variables.
///
/// # Errors
/// The file can't be read, or the address.
pub fn load_telemetry_listen(
    path: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<SocketAddr, Errors> {
    let (path, text) = read(path)?;
    let text = text.unwrap_or_default();
    let mut settings = settings(&text, &path.display().to_string(), env)?;
    let key = &schema::TELEMETRY_LISTEN;
    settings.get(key).ok_or_else(|| {
        let mut problems = settings.into_problems();
        problems.retain(|problem| problem.key == key.entry.path);
        Errors::new(problems)
    })
}

/// The file to read, and its text; none if nobody named it and it isn't there.
fn read(path: Option<&Path>) -> Result<(&Path, Option<String>), Errors> {
    let (path, optional) = match path {
        Some(path) => (path, false),
        None => (Path::new(DEFAULT_PATH), true),
    };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((path, Some(text))),
        Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => Ok((path, None)),
        Err(error) => Err(Errors::new(vec![Problem {
            origin: Origin::File {
                file: path.display().to_string(),
                line: 1,
            },
            key: String::new(),
            value: None,
            kind: Kind::Unreadable(error.to_string()),
        }])),
    }
}

/// Reads `text`, which problems call `file_name`, and the environment over it.
///
/// # Errors
/// Everything that is wrong.
pub fn parse(
    text: &str,
    file_name: &str,
    env: impl Iterator<Item = (String, String)>,
) -> Result<crate::app::Config, Errors> {
    parse_for(text, file_name, env, Host::this())
}

/// As [`parse`], for another machine.
///
/// # Errors
/// Everything that is wrong.
pub fn parse_for(
    text: &str,
    file_name: &str,
    env: impl Iterator<Item = (String, String)>,
    host: Host,
) -> Result<crate::app::Config, Errors> {
    let mut settings = settings(text, file_name, env)?;
    let config = build::app(&mut settings, host);
    match (config, settings.into_problems()) {
        (Some(config), problems) if problems.is_empty() => Ok(config),
        (_, problems) => Err(Errors::new(problems)),
    }
}

/// What is written in `text` and in the environment.
fn settings(
    text: &str,
    file_name: &str,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Settings, Errors> {
    let mut settings = Settings::new(file_name);
    match tree::read(text) {
        Ok(root) => settings.read_file(root),
        Err(error) => {
            settings.syntax(error.line, &error.message);
            return Err(Errors::new(settings.into_problems()));
        }
    }
    settings.read_environment(env);
    Ok(settings)
}
