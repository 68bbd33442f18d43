//! How the text of a key becomes a value, one type a format.

use std::{
    collections::HashSet,
    marker::PhantomData,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64},
    path::PathBuf,
    time::Duration,
};

use super::units;
use crate::{export::HeaderSource, pipeline::enrich::Detector, pressure::SYN_PER_SECOND_MAX};

/// The shape a key has in YAML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One text.
    Scalar,
    /// A sequence of texts.
    List,
    /// A sequence of texts, or its only one.
    OneOrList,
    /// A mapping of free names to texts, or to where they are; they may be secrets and are never printed.
    Map,
}

/// A key's text as found in the file, the environment or the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raw {
    /// Of a scalar.
    Text(String),
    /// Of a list.
    List(Vec<String>),
    /// Of a map.
    Map(Vec<(String, Given)>),
}

/// What a map has for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// A text.
    Text(String),
    /// A mapping of one name to one text: where the text is.
    From(String, String),
}

impl Raw {
    /// The value written as one text: a list is separated by commas, a map is `name=value` pairs
    /// separated by commas. None if a pair has no `=`.
    pub fn from_text(shape: Shape, text: &str) -> Option<Self> {
        let parts = || text.split(',').map(str::trim).filter(|p| !p.is_empty());
        Some(match shape {
            Shape::Scalar => Self::Text(text.to_owned()),
            Shape::List | Shape::OneOrList => Self::List(parts().map(str::to_owned).collect()),
            Shape::Map => Self::Map(
                parts()
                    .map(|pair| {
                        let (name, value) = pair.split_once('=')?;
                        Some((name.to_owned(), Given::Text(value.to_owned())))
                    })
                    .collect::<Option<_>>()?,
            ),
        })
    }

    /// For people: without what could be a secret, but with its name.
    pub fn redacted(&self) -> String {
        const HIDDEN: &str = "(hidden)";
        match self {
            Self::Map(pairs) => {
                let pairs = pairs.iter().map(|(name, given)| match given {
                    Given::Text(_) => format!("{name}: {HIDDEN}"),
                    Given::From(kind, place) => format!("{name}: {{ {kind}: {place} }}"),
                });
                format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
            }
            Self::Text(_) | Self::List(_) => self.shown().unwrap_or_else(|| HIDDEN.to_owned()),
        }
    }

    /// For messages; None where it could hold secrets.
    pub fn shown(&self) -> Option<String> {
        match self {
            // A URL with credentials.
            Self::Text(text) if text.contains("://") && text.contains('@') => None,
            Self::Text(text) => Some(text.clone()),
            Self::List(items) if items.iter().any(|item| item.contains('@')) => None,
            Self::List(items) => Some(format!("[{}]", items.join(", "))),
            Self::Map(_) => None,
        }
    }
}

/// A way to write values.
pub trait Format {
    /// What is read.
    type Value;
    /// The shape in YAML.
    const SHAPE: Shape = Shape::Scalar;
    /// What may be written, to complete "expected …".
    const EXPECTS: &'static str;
    /// Reads the text; None if it isn't what is expected.
    fn read(raw: &Raw) -> Option<Self::Value>;
}

/// A format of single texts.
pub trait TextFormat {
    /// What is read.
    type Value;
    /// What may be written, to complete "expected …".
    const EXPECTS: &'static str;
    /// Reads the text; None if it isn't what is expected.
    fn parse(text: &str) -> Option<Self::Value>;
}

impl<T: TextFormat> Format for T {
    type Value = T::Value;
    const EXPECTS: &'static str = T::EXPECTS;
    fn read(raw: &Raw) -> Option<T::Value> {
        match raw {
            Raw::Text(text) => T::parse(text),
            Raw::List(_) | Raw::Map(_) => None,
        }
    }
}

macro_rules! text_formats {
    ($($(#[doc = $doc:literal])* $name:ident: $value:ty, $expects:literal, $parse:expr;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl TextFormat for $name {
            type Value = $value;
            const EXPECTS: &'static str = $expects;
            fn parse(text: &str) -> Option<$value> {
                let parse: fn(&str) -> Option<$value> = $parse;
                parse(text)
            }
        }
    )*};
}

text_formats! {
    /// The only format of files.
    FileFormat: (), "otlp_json", |text| (text == "otlp_json").then_some(());
    /// An IP address and a port.
    Address: SocketAddr, "an IP address and a port, such as 127.0.0.1:4317 or [::1]:4317",
        |text| text.parse().ok();
    /// A file or directory.
    Path: PathBuf, "a path",
        |text| (!text.is_empty()).then(|| PathBuf::from(text));
    /// Text that isn't empty.
    Text: String, "text",
        |text| (!text.is_empty()).then(|| text.to_owned());
    /// New connections in a second.
    SynRate: NonZeroU32, "a whole number from 1 to 1000000",
        |text| text.parse().ok().filter(|rate: &NonZeroU32| rate.get() <= SYN_PER_SECOND_MAX);
    /// Bytes, more than none.
    Size: u64, "a size such as 16MiB, 1GiB or plain bytes",
        |text| units::parse_bytes(text).filter(|bytes| *bytes > 0);
    /// Bytes, more than none, or no bound.
    SizeLimit: Option<u64>, "a size such as 16MiB, 1GiB or plain bytes, or off",
        |text| match text {
            "off" => Some(None),
            size => units::parse_bytes(size).filter(|bytes| *bytes > 0).map(Some),
        };
    /// Rotated files: some, and not more than are renamed in an instant.
    Keep: u32, "a whole number from 1 to 1000",
        |text| text.parse().ok().filter(|keep| (1..=1000).contains(keep));
    /// Time, none included.
    Span: Duration, "a duration such as 500us, 20ms, 5s, 10m or 1h",
        units::parse_duration;
    /// Time, more than none.
    Period: Duration, "a duration longer than 0, such as 500us, 20ms, 5s, 10m or 1h",
        |text| units::parse_duration(text).filter(|d| !d.is_zero());
    /// A share in permille.
    Share: u32, "a share such as 50%, at most 100%",
        units::parse_permille;
    /// A share in permille that may never be reached.
    Level: u32, "a share such as 50%, at most 100%, or off",
        |text| match text {
            "off" => Some(crate::pressure::Levels::OFF),
            share => units::parse_permille(share),
        };
    /// A time that may never be reached.
    Limit: Option<Duration>, "a duration longer than 0, such as 50ms or 1s, or off",
        |text| match text {
            "off" => Some(None),
            time => units::parse_duration(time).filter(|d| !d.is_zero()).map(Some),
        };
    /// A whole number, more than none.
    Count: NonZeroU64, "a whole number, at least 1",
        |text| text.parse().ok();
    /// Yes or no.
    Bool: bool, "true or false",
        |text| text.parse().ok();
    /// Permissions of a file.
    Mode: u32, "an octal file mode such as \"0600\", without execute or special bits",
        |text| u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o666 == 0);
    /// A filter of the daemon's own log.
    LogLevel: String, "off, error, warn, info, debug or trace, or target=level pairs after it, separated by commas",
        |text| log_level(text).then(|| text.to_owned());
    /// The service user.
    ServiceUser: crate::privileges::User, "auto, the name of a user, a numeric uid, or uid:gid",
        user;
    /// Name of a destination: it becomes a metric label and a file name.
    Name: String, "1 to 64 of a-z, 0-9, _ and -",
        |text| name(text).then(|| text.to_owned());
    /// Factor from one wait to the next, in thousandths.
    Multiplier: u32, "a number from 1 to 10, with at most three decimals",
        multiplier;
    /// An HTTP CONNECT proxy; it may have a password in it, which nothing prints.
    ProxyUrl: String, "http://host:port, with user:password@ before the host if it wants them",
        |text| proxy(text).then(|| text.to_owned());
    /// Where an OTLP server listens.
    Endpoint: String, "https://host:port (or http:// with tls.insecure: true), without query or credentials",
        |text| endpoint(text).then(|| text.to_owned());
}

/// `auto`, or what `F` reads.
#[derive(Debug)]
pub struct Auto<F>(PhantomData<F>);

/// Completes "auto or …" at compile time.
pub trait AutoExpects {
    /// What may be written.
    const EXPECTS: &'static str;
}

impl AutoExpects for Size {
    const EXPECTS: &'static str = "auto, or a size such as 16MiB, 1GiB or plain bytes";
}

impl AutoExpects for Count {
    const EXPECTS: &'static str = "auto, or a whole number, at least 1";
}

impl<F: TextFormat + AutoExpects> TextFormat for Auto<F> {
    type Value = Option<F::Value>;
    const EXPECTS: &'static str = <F as AutoExpects>::EXPECTS;
    fn parse(text: &str) -> Option<Self::Value> {
        if text == "auto" {
            return Some(None);
        }
        F::parse(text).map(Some)
    }
}

macro_rules! choices {
    ($($(#[doc = $doc:literal])* $name:ident: $value:ty, $expects:literal, { $($text:literal => $variant:expr),* };)*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl TextFormat for $name {
            type Value = $value;
            const EXPECTS: &'static str = $expects;
            fn parse(text: &str) -> Option<$value> {
                match text {
                    $($text => Some($variant),)*
                    _ => None,
                }
            }
        }
    )*};
}

choices! {
    /// Whether producers need certificates.
    ClientAuth: crate::ingest::ClientAuth, "required or none",
        { "required" => crate::ingest::ClientAuth::Required, "none" => crate::ingest::ClientAuth::None };
    /// Whether the kernel half must judge.
    KernelMode: crate::pressure::KernelMode, "auto, required or off", {
        "auto" => crate::pressure::KernelMode::Auto,
        "required" => crate::pressure::KernelMode::Required,
        "off" => crate::pressure::KernelMode::Off
    };
    /// Whether Landlock must confine the daemon.
    LandlockMode: crate::privileges::LandlockMode, "auto, required or off", {
        "auto" => crate::privileges::LandlockMode::Auto,
        "required" => crate::privileges::LandlockMode::Required,
        "off" => crate::privileges::LandlockMode::Off
    };
    /// How an XDP program is attached.
    XdpMode: crate::pressure::XdpMode, "auto, native or generic", {
        "auto" => crate::pressure::XdpMode::Auto,
        "native" => crate::pressure::XdpMode::Native,
        "generic" => crate::pressure::XdpMode::Generic
    };
    /// Codec of the vault.
    Compression: crate::vault::Compression, "auto, lz4 or none",
        { "auto" => crate::vault::Compression::Auto, "lz4" => crate::vault::Compression::Lz4, "none" => crate::vault::Compression::None };
    /// How OTLP is spoken.
    Protocol: crate::export::Protocol, "grpc or http",
        { "grpc" => crate::export::Protocol::Grpc, "http" => crate::export::Protocol::Http };
    /// Which of several servers is asked first.
    Balance: crate::export::Balance, "failover or round_robin",
        { "failover" => crate::export::Balance::Failover, "round_robin" => crate::export::Balance::RoundRobin };
    /// How messages to servers are compressed.
    ExportCompression: crate::export::Compression, "none, gzip or zstd", {
        "none" => crate::export::Compression::None,
        "gzip" => crate::export::Compression::Gzip,
        "zstd" => crate::export::Compression::Zstd
    };
    /// What a full vault does.
    OnFull: crate::vault::OnFull, "refuse or drop_oldest",
        { "refuse" => crate::vault::OnFull::Refuse, "drop_oldest" => crate::vault::OnFull::DropOldest };
    /// How blocks get to the disk.
    Rung: Option<crate::vault::platform::Rung>, "auto, io_uring, pwrite or buffered", {
        "auto" => None,
        "io_uring" => Some(crate::vault::platform::Rung::IoUring),
        "pwrite" => Some(crate::vault::platform::Rung::Pwrite),
        "buffered" => Some(crate::vault::platform::Rung::Buffered)
    };
    /// When an append counts.
    Sync: crate::vault::Sync, "always or never",
        { "always" => crate::vault::Sync::Always, "never" => crate::vault::Sync::Never };
    /// Format of the daemon's own log.
    LogFormat: crate::telemetry::LogFormat, "json or pretty",
        { "json" => crate::telemetry::LogFormat::Json, "pretty" => crate::telemetry::LogFormat::Pretty };
}

/// Numeric user or group ids.
#[derive(Debug)]
pub enum Ids {}

impl Format for Ids {
    type Value = Vec<u32>;
    const SHAPE: Shape = Shape::List;
    const EXPECTS: &'static str = "a list of numeric ids, such as [0, 1000]";
    fn read(raw: &Raw) -> Option<Vec<u32>> {
        let Raw::List(items) = raw else { return None };
        items.iter().map(|item| item.parse().ok()).collect()
    }
}

/// Texts of which each is checked by itself.
#[derive(Debug)]
pub enum Texts {}

impl Format for Texts {
    type Value = Vec<String>;
    const SHAPE: Shape = Shape::List;
    const EXPECTS: &'static str = "a list of texts";
    fn read(raw: &Raw) -> Option<Vec<String>> {
        let Raw::List(items) = raw else { return None };
        Some(items.clone())
    }
}

/// Attributes, of which each is checked by itself.
#[derive(Debug)]
pub enum Attributes {}

impl Format for Attributes {
    type Value = Vec<(String, String)>;
    const SHAPE: Shape = Shape::Map;
    const EXPECTS: &'static str = "a map of attributes' keys to texts";
    fn read(raw: &Raw) -> Option<Self::Value> {
        let Raw::Map(pairs) = raw else { return None };
        let attribute = |(key, given): &(String, Given)| match given {
            Given::Text(text) => Some((key.clone(), text.clone())),
            Given::From(..) => None,
        };
        pairs.iter().map(attribute).collect()
    }
}

/// What finds out about the host.
#[derive(Debug)]
pub enum Detectors {}

impl Format for Detectors {
    type Value = Vec<Detector>;
    const SHAPE: Shape = Shape::List;
    const EXPECTS: &'static str = "a list of host, os, process, container and k8s, each at most once (process adds nothing: it \
                                   could only describe GopherShip, and producers name their processes themselves)";
    fn read(raw: &Raw) -> Option<Self::Value> {
        let Raw::List(items) = raw else { return None };
        let mut detectors = Vec::new();
        for item in items {
            let detector = match item.as_str() {
                "host" => Detector::Host,
                "os" => Detector::Os,
                "process" => Detector::Process,
                "container" => Detector::Container,
                "k8s" => Detector::K8s,
                _ => return None,
            };
            if detectors.contains(&detector) {
                return None;
            }
            detectors.push(detector);
        }
        Some(detectors)
    }
}

/// Where OTLP servers listen.
#[derive(Debug)]
pub enum Endpoints {}

impl Format for Endpoints {
    type Value = Vec<String>;
    const SHAPE: Shape = Shape::List;
    const EXPECTS: &'static str = "a list of 1 to 16 different https://host:port (or http:// with tls.insecure: true), without query or credentials";
    fn read(raw: &Raw) -> Option<Vec<String>> {
        let Raw::List(items) = raw else { return None };
        let different = items.iter().collect::<HashSet<_>>().len() == items.len();
        let valid = (1..=16).contains(&items.len()) && items.iter().all(|item| endpoint(item));
        (different && valid).then(|| items.clone())
    }
}

/// Names of network interfaces.
#[derive(Debug)]
pub enum Interfaces {}

impl Format for Interfaces {
    type Value = Vec<String>;
    const SHAPE: Shape = Shape::OneOrList;
    const EXPECTS: &'static str = "the name of a network interface, or a list of them";
    fn read(raw: &Raw) -> Option<Vec<String>> {
        let Raw::List(items) = raw else { return None };
        items
            .iter()
            .all(|item| interface(item))
            .then(|| items.clone())
    }
}

/// Headers: lower-case names, visible ASCII values.
#[derive(Debug)]
pub enum Headers {}

impl Format for Headers {
    type Value = Vec<(String, HeaderSource)>;
    const SHAPE: Shape = Shape::Map;
    const EXPECTS: &'static str = "a map of lower-case header names (not grpc-…, not …-bin) to ASCII values, { env: NAME } or { file: PATH }";
    fn read(raw: &Raw) -> Option<Self::Value> {
        let Raw::Map(pairs) = raw else { return None };
        let header = |(name, given): &(String, Given)| {
            let lower = !name.bytes().any(|b| b.is_ascii_uppercase());
            let valid = lower
                && http::HeaderName::try_from(name.as_str()).is_ok()
                && !name.starts_with("grpc-")
                && !name.ends_with("-bin");
            valid.then_some(())?;
            Some((name.clone(), header_source(given)?))
        };
        pairs.iter().map(header).collect()
    }
}

fn header_source(given: &Given) -> Option<HeaderSource> {
    match given {
        Given::Text(value) => {
            let visible = value.bytes().all(|b| (0x20..0x7f).contains(&b));
            visible.then(|| HeaderSource::Value(value.clone()))
        }
        Given::From(from, place) if place.is_empty() || from.is_empty() => None,
        Given::From(from, place) => match from.as_str() {
            "env" => Some(HeaderSource::Variable(place.clone())),
            "file" => Some(HeaderSource::File(place.into())),
            _ => None,
        },
    }
}

fn user(text: &str) -> Option<crate::privileges::User> {
    use crate::privileges::User;
    if text == "auto" {
        return Some(User::Auto);
    }
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    // The largest number means "leave it as it is" to the system calls.
    let id = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX);
    if user.starts_with(|c: char| c.is_ascii_digit()) {
        let gid = group.map(|group| id(group).ok_or(()));
        return Some(User::Numeric {
            uid: id(user)?,
            gid: gid.transpose().ok()?,
        });
    }
    let known = |c: char| !c.is_whitespace() && !c.is_control();
    (group.is_none() && !user.is_empty() && user.chars().all(known))
        .then(|| User::Named(user.to_owned()))
}

/// The kernel's own rule (`dev_valid_name`).
fn interface(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text
            .bytes()
            .any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0)
}

fn name(text: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(known)
}

fn multiplier(text: &str) -> Option<u32> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 3 {
        return None;
    }
    let whole: u32 = whole.parse().ok().filter(|whole| *whole <= 10)?;
    let thousandths: u32 = format!("{decimals:0<3}").parse().ok()?;
    Some(whole * 1000 + thousandths).filter(|permille| (1000..=10_000).contains(permille))
}

fn proxy(text: &str) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else {
        return false;
    };
    let has_port = uri
        .authority()
        .is_some_and(|authority| authority.port_u16().is_some_and(|port| port > 0));
    uri.scheme_str() == Some("http") && has_port && uri.path() == "/" && uri.query().is_none()
}

fn log_level(text: &str) -> bool {
    let level = |text: &str| matches!(text, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let mut parts = text.split(',').map(str::trim);
    parts.next().is_some_and(level)
        && parts.all(|part| {
            part.split_once('=')
                .is_some_and(|(target, to)| !target.is_empty() && level(to))
        })
}

fn endpoint(text: &str) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else {
        return false;
    };
    let Some(authority) = uri.authority() else {
        return false;
    };
    matches!(uri.scheme_str(), Some("http" | "https"))
        && !authority.as_str().contains('@')
        && authority.port_u16().is_some_and(|port| port > 0)
        && uri.query().is_none()
}
