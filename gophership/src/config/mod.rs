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

use std::path::{Path, PathBuf};

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
    let (text, path, file) = read(path)?;
    let config = parse(&text, &path, env)?;
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
    let (text, path, _) = read(path)?;
    let (_, settings) = settled(&text, &path, env, Host::this())?;
    Ok(settings.effective())
}

/// Text, what problems call the file, and where it is, unless there is none.
fn read(path: Option<&Path>) -> Result<(String, String, Option<PathBuf>), Errors> {
    let (path, optional) = match path {
        Some(path) => (path, false),
        None => (Path::new(DEFAULT_PATH), true),
    };
    let (text, file) = match std::fs::read_to_string(path) {
        Ok(text) => (text, Some(path.to_owned())),
        Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => {
            (String::new(), None)
        }
        Err(error) => {
            return Err(Errors::new(vec![Problem {
                origin: Origin::File {
                    file: path.display().to_string(),
                    line: 1,
                },
                key: String::new(),
                value: None,
                kind: Kind::Unreadable(error.to_string()),
            }]));
        }
    };
    Ok((text, path.display().to_string(), file))
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
    settled(text, file_name, env, host).map(|(config, _)| config)
}

fn settled(
    text: &str,
    file_name: &str,
    env: impl Iterator<Item = (String, String)>,
    host: Host,
) -> Result<(crate::app::Config, Settings), Errors> {
    let mut settings = Settings::new(file_name);
    match tree::read(text) {
        Ok(root) => settings.read_file(root),
        Err(error) => {
            settings.syntax(error.line, &error.message);
            return Err(Errors::new(settings.into_problems()));
        }
    }
    settings.read_environment(env);
    let config = build::app(&mut settings, host);
    match config {
        Some(config) if settings.is_sound() => Ok((config, settings)),
        _ => Err(Errors::new(settings.into_problems())),
    }
}
