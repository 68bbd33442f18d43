//! The daemon's command line.

use std::{
    io::{IsTerminal, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use gophership::{
    app, config,
    doctor::{self, Verdict},
    render::yaml,
    telemetry,
};

/// A log-ingestion appliance: an acknowledgement means delivered or durable.
#[derive(Parser)]
#[command(name = "gophership", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground.
    Run(ConfigFile),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Try what the daemon needs of this machine, and say what to do about what is missing; exit code
    /// 1 if something failed. Run it as the daemon is started.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor {
        /// How the result is written.
        #[arg(long, default_value = "table")]
        output: Output,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Ask a running daemon how it is; exit code 0 healthy, 1 not. For container probes.
    ///
    /// Of the configuration it needs telemetry.listen alone, which it finds as the daemon does: in the file, in
    /// GOPHERSHIP_TELEMETRY__LISTEN, or else by default.
    Health {
        #[command(flatten)]
        config: ConfigFile,
        /// Ask whether it is ready for requests, not only alive.
        #[arg(long)]
        ready: bool,
    },
    /// Print the version.
    Version,
}

const DOCTOR_EXAMPLES: &str = "\
Examples:
  sudo gophership doctor
  gophership doctor --config /etc/gophership/gophership.yaml
  gophership doctor --output json | jq '.checks[] | select(.verdict == \"failed\")'";

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a file: every problem is listed, with its line; exit code 2 if there is one.
    Check {
        /// The file; the default is /etc/gophership/gophership.yaml, else built-in defaults.
        file: Option<PathBuf>,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Print every key at its default, with what it means.
    Default,
    /// Print what every key is worth, and where that was written; secrets are hidden.
    Show {
        /// The file; the default is /etc/gophership/gophership.yaml, else built-in defaults.
        file: Option<PathBuf>,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Print the JSON schema of configuration files, for editors.
    Schema,
}

#[derive(Args)]
struct ConfigFile {
    /// YAML file; the default is /etc/gophership/gophership.yaml, else built-in defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How results are written.
#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One document.
    Json,
    /// One document.
    Yaml,
}

#[derive(Clone, Copy)]
enum Exit {
    Failure = 1,
    Usage = 2,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(file) => run(&file),
        Command::Config(ConfigCommand::Check { file, config }) => {
            check(file.or(config.config).as_deref())
        }
        Command::Config(ConfigCommand::Show { file, config }) => {
            show(file.or(config.config).as_deref())
        }
        Command::Config(ConfigCommand::Default) => {
            say(config::describe::default_yaml().trim_end());
            ExitCode::SUCCESS
        }
        Command::Config(ConfigCommand::Schema) => {
            say(&format!("{:#}", config::describe::json_schema()));
            ExitCode::SUCCESS
        }
        Command::Doctor { output, config } => examine(output, &config),
        Command::Health { config, ready } => health(&config, ready),
        Command::Version => {
            say(&format!("gophership {}", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
    }
}

fn run(file: &ConfigFile) -> ExitCode {
    let config = match load(file.config.as_deref()) {
        Ok(config) => config,
        Err(exit) => return exit.into(),
    };
    if let Err(error) = telemetry::log::install(&config.telemetry) {
        complain(&error.to_string());
        return Exit::Usage.into();
    }
    match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, app::Error::Undone(_)) {
                tracing::error!(%error, "can't run");
            }
            complain(&error.to_string());
            let exit = if error.is_configuration() {
                Exit::Usage
            } else {
                Exit::Failure
            };
            exit.into()
        }
    }
}

fn check(file: Option<&Path>) -> ExitCode {
    match load(file) {
        Ok(_) => {
            say("the configuration is valid");
            ExitCode::SUCCESS
        }
        Err(exit) => exit.into(),
    }
}

fn show(file: Option<&Path>) -> ExitCode {
    let keys = match config::effective(file, variables()) {
        Ok(keys) => keys,
        Err(errors) => {
            complain(&errors.to_string());
            return Exit::Usage.into();
        }
    };
    let unset = |value: Option<String>| value.unwrap_or_else(|| "(unset)".to_owned());
    let rows: Vec<_> = keys
        .into_iter()
        .map(|key| (key.path, unset(key.value), key.origin.to_string()))
        .collect();
    let path_width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0);
    for (path, value, origin) in rows {
        say(&format!("{path:path_width$}  {value:32}  {origin}"));
    }
    ExitCode::SUCCESS
}

fn examine(output: Output, file: &ConfigFile) -> ExitCode {
    let report = doctor::examine(&config::load(file.config.as_deref(), variables()));
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let text = match output {
        Output::Table => report.table(std::io::stdout().is_terminal() && !refused),
        Output::Json => format!("{:#}", report.value()),
        Output::Yaml => yaml::emit(&report.value()),
    };
    say(text.trim_end());
    match report.count(Verdict::Failed) {
        0 => ExitCode::SUCCESS,
        _ => Exit::Failure.into(),
    }
}

/// Asks `/healthz` or `/readyz` of the daemon that the configuration describes.
fn health(file: &ConfigFile, ready: bool) -> ExitCode {
    let address = match config::load_telemetry_listen(file.config.as_deref(), variables()) {
        Ok(address) => address,
        Err(errors) => {
            complain(&errors.to_string());
            return Exit::Usage.into();
        }
    };
    let page = if ready { "/readyz" } else { "/healthz" };
    match ask(address, page) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => {
            say(answer.lines().last().unwrap_or_default());
            ExitCode::SUCCESS
        }
        Ok(answer) => {
            complain(answer.lines().last().unwrap_or_default());
            Exit::Failure.into()
        }
        Err(error) => {
            complain(&format!("{page} at {address} (telemetry.listen): {error}"));
            Exit::Failure.into()
        }
    }
}

fn ask(mut address: SocketAddr, page: &str) -> std::io::Result<String> {
    const TIMEOUT: Duration = Duration::from_secs(3);
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET {page} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    Ok(answer)
}

fn load(file: Option<&Path>) -> Result<app::Config, Exit> {
    config::load(file, variables()).map_err(|errors| {
        complain(&errors.to_string());
        Exit::Usage
    })
}

/// `env::vars` would panic on a variable of somebody else that isn't UTF-8.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        let text = |part: std::ffi::OsString| part.to_string_lossy().into_owned();
        (text(name), text(value))
    })
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "gophership: {text}");
}
