//! A scraper: HTTP by hand, and the Prometheus text format.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Status code and body of a GET.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let limit = Duration::from_secs(10);
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        // HTTP/1.0 is answered without chunks, up to the end of the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response)?;
        Ok(response)
    };
    let response = exchange().map_err(|e| format!("GET {path} from {address}: {e}"))?;
    let response = String::from_utf8_lossy(&response);
    let (head, body) = response
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("GET {path}: not HTTP: {response}"))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.ok_or_else(|| format!("GET {path}: no status code: {head}"))?;
    Ok((code, body.to_owned()))
}

/// Sum of the samples of `name` that have all of `labels`; 0 without one, as Prometheus has it.
pub(crate) fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| series.split('{').next() == Some(name))
        .filter(|(series, _)| wanted.iter().all(|label| series.contains(label.as_str())))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

/// Whether the exposition declares `name`.
pub(crate) fn declares(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        line.strip_prefix("# TYPE ")
            .and_then(|rest| rest.split(' ').next())
            == Some(name)
    })
}
