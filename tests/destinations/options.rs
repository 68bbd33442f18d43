//! What both protocols of the `otlp` destination share: compression, headers from elsewhere, proxies.

use std::{env, fs, io::Read, net::Ipv4Addr};

use gophership::export::{Compression, Destinations, HeaderSource, OtlpConfig, Protocol};
use http::StatusCode;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{
    batch, on_a_worker,
    server::{Certificates, Script, Server},
    servers::{ACCEPTED, configured, connect, ok, plaintext, retried, tls},
};

const PROTOCOLS: [(Protocol, &str); 2] = [
    (Protocol::Grpc, "grpc-encoding"),
    (Protocol::Http, "content-encoding"),
];

fn accepts(protocol: Protocol) -> Script {
    match protocol {
        Protocol::Grpc => ok(),
        Protocol::Http => Script::Protobuf(StatusCode::OK, Vec::new()),
    }
}

#[test]
fn what_shrinks_is_compressed_and_says_so() {
    on_a_worker(async {
        for (protocol, header) in PROTOCOLS {
            for (compression, name) in [(Compression::Gzip, "gzip"), (Compression::Zstd, "zstd")] {
                let server = Server::start(0, None, accepts(protocol));
                let destination = connect(OtlpConfig {
                    protocol,
                    compression,
                    ..plaintext(server.address.port())
                });
                assert!(destination.compresses());
                let large = batch("a", 20_000);
                assert_eq!(destination.deliver(large.clone()).await, ACCEPTED);
                // Too small to shrink.
                let small = batch("b", 0);
                assert_eq!(destination.deliver(small.clone()).await, ACCEPTED);
                let calls = server.calls();
                assert_eq!(calls[0].headers[header], name);
                assert!(calls[0].body.len() < large.bytes.len() / 4);
                let (prefix, message) = match protocol {
                    Protocol::Grpc => calls[0].body.split_at(5),
                    Protocol::Http => calls[0].body.split_at(0),
                };
                assert!(prefix.is_empty() || prefix[0] == 1);
                let mut whole = Vec::new();
                match compression {
                    Compression::Zstd => zstd::stream::copy_decode(message, &mut whole).unwrap(),
                    _ => drop(flate2::read::GzDecoder::new(message).read_to_end(&mut whole)),
                }
                assert!(whole == large.bytes, "the message differs");
                assert!(!calls[1].headers.contains_key(header));
                assert!(calls[1].body.ends_with(&small.bytes));
            }
        }
    });
}

#[test]
fn a_header_can_come_from_a_file_or_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    fs::write(&path, "Bearer of a file\n").unwrap();
    // Every process has it.
    let variable = "PATH";
    on_a_worker(async {
        for (protocol, _) in PROTOCOLS {
            let server = Server::start(0, None, accepts(protocol));
            let destination = connect(OtlpConfig {
                protocol,
                headers: vec![
                    ("authorization".into(), HeaderSource::File(path.clone())),
                    ("x-name".into(), HeaderSource::Variable(variable.into())),
                ],
                ..plaintext(server.address.port())
            });
            assert_eq!(destination.deliver(batch("a", 1)).await, ACCEPTED);
            let call = server.calls().pop().unwrap();
            assert_eq!(call.headers["authorization"], "Bearer of a file");
            assert_eq!(call.headers["x-name"], env::var(variable).unwrap());
        }
    });
}

#[test]
fn a_header_whose_value_is_missing_is_refused_and_none_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let refusal = |source| {
        let config = OtlpConfig {
            headers: vec![("authorization".into(), source)],
            ..plaintext(4317)
        };
        Destinations::open(&[configured(config)])
            .unwrap_err()
            .to_string()
    };
    let missing = refusal(HeaderSource::Variable("GOPHERSHIP_NO_SUCH".into()));
    assert!(
        missing.contains("`main`") && missing.contains("the variable GOPHERSHIP_NO_SUCH"),
        "{missing}"
    );
    let path = directory.path().join("token");
    let missing = refusal(HeaderSource::File(path.clone()));
    assert!(missing.contains("token: No such file"), "{missing}");
    fs::write(&path, "two\nlines").unwrap();
    let wrong = refusal(HeaderSource::File(path.clone()));
    assert!(
        wrong.contains("a header can't hold") && !wrong.contains("two"),
        "{wrong}"
    );
    fs::write(&path, "x".repeat(17 << 10)).unwrap();
    let large = refusal(HeaderSource::File(path));
    assert!(large.contains("larger than 16 KiB"), "{large}");

    let secret = HeaderSource::Value("Bearer secret".to_owned());
    let config = OtlpConfig {
        headers: vec![("authorization".into(), secret)],
        proxy: Some("http://me:secret@127.0.0.1:3128".to_owned()),
        ..plaintext(4317)
    };
    let opened = Destinations::open(&[configured(config.clone())]).unwrap();
    let shown = format!("{config:?} {opened:?}");
    assert!(!shown.contains("secret"), "{shown}");
}

/// An HTTP CONNECT proxy that answers with `status` and tells of each request's head.
async fn proxy(status: &'static str) -> (u16, mpsc::UnboundedReceiver<Vec<String>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, heads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let mut client = BufReader::new(client);
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                client.read_line(&mut line).await.unwrap();
                match line.trim_end() {
                    "" => break,
                    line => head.push(line.to_owned()),
                }
            }
            let target = head[0].split(' ').nth(1).unwrap().to_owned();
            sender.send(head).unwrap();
            let answer = format!("HTTP/1.1 {status}\r\n\r\n");
            client.write_all(answer.as_bytes()).await.unwrap();
            if status.starts_with("200") {
                let mut server = TcpStream::connect(target).await.unwrap();
                tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
            }
        }
    });
    (port, heads)
}

#[test]
fn a_proxy_is_asked_for_a_tunnel_and_sees_nothing_of_what_goes_through() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(directory.path());
    on_a_worker(async {
        for (protocol, _) in PROTOCOLS {
            let tls_config = certificates.server();
            let server = Server::start(0, Some(tls_config), accepts(protocol));
            let port = server.address.port();
            let (proxy_port, mut heads) = proxy("200 OK").await;
            let destination = connect(OtlpConfig {
                protocol,
                proxy: Some(format!("http://me:p%40ss@127.0.0.1:{proxy_port}")),
                ..tls(port, &certificates)
            });
            assert_eq!(destination.deliver(batch("a", 1)).await, ACCEPTED);
            assert_eq!(server.calls().len(), 1);
            let head = heads.recv().await.unwrap();
            assert_eq!(head[0], format!("CONNECT localhost:{port} HTTP/1.1"));
            // me:p@ss
            let authorization = "proxy-authorization: basic bwu6cebzcw==";
            assert!(
                head.iter().any(|line| line.to_lowercase() == authorization),
                "{head:?}"
            );
        }
    });
}

#[test]
fn a_proxy_that_refuses_is_a_retry_that_names_it_without_its_password() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(directory.path());
    on_a_worker(async {
        let (proxy_port, _heads) = proxy("407 Proxy Authentication Required").await;
        let destination = connect(OtlpConfig {
            proxy: Some(format!("http://me:secret@127.0.0.1:{proxy_port}")),
            ..tls(4317, &certificates)
        });
        let (_, reason) = retried(destination.deliver(batch("a", 1)).await);
        assert!(
            reason.contains(&format!("proxy http://127.0.0.1:{proxy_port}/: "))
                && !reason.contains("secret"),
            "{reason}"
        );
    });
}
