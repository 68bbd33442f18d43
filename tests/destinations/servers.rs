//! The `otlp` destination.

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::STANDARD_NO_PAD};
use gophership::{
    export::{
        Balance, Batch, Compression, Destination, DestinationConfig, DestinationKind, Destinations,
        HeaderSource, OtlpConfig, Outcome, Protocol, Retry,
    },
    otel::status::with_retry_delay,
};
use http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceResponse,
};
use prost::Message;

use crate::{
    batch, on_a_worker,
    server::{Certificates, PATIENCE, Script, Server, framed, status},
};

pub(crate) const ACCEPTED: Outcome = Outcome::Accepted {
    rejected_records: 0,
};

pub(crate) fn plaintext(port: u16) -> OtlpConfig {
    OtlpConfig {
        endpoints: vec![format!("http://127.0.0.1:{port}")],
        balance: Balance::Failover,
        resolve_every: PATIENCE,
        protocol: Protocol::Grpc,
        compression: Compression::None,
        timeout: PATIENCE,
        headers: Vec::new(),
        ca: None,
        identity: None,
        insecure: true,
        retry: Retry::default(),
        proxy: None,
    }
}

pub(crate) fn given(name: &str, value: &str) -> (String, HeaderSource) {
    (name.to_owned(), HeaderSource::Value(value.to_owned()))
}

pub(crate) fn tls(port: u16, certificates: &Certificates) -> OtlpConfig {
    OtlpConfig {
        endpoints: vec![format!("https://localhost:{port}")],
        ca: Some(certificates.ca.clone()),
        identity: Some(certificates.client.clone()),
        insecure: false,
        ..plaintext(port)
    }
}

pub(crate) fn configured(config: OtlpConfig) -> DestinationConfig {
    DestinationConfig {
        name: "main".to_owned(),
        kind: DestinationKind::Otlp(config),
    }
}

pub(crate) fn connect(config: OtlpConfig) -> Destination {
    Destinations::open(&[configured(config)])
        .unwrap()
        .connect()
        .remove(0)
}

pub(crate) fn ok() -> Script {
    Script::Message(Vec::new())
}

/// The reason of a retry.
pub(crate) fn retried(outcome: Outcome) -> (Option<Duration>, String) {
    match outcome {
        Outcome::Retry { after, reason } => (after, reason),
        other => panic!("{other:?}"),
    }
}

/// What the destination makes of an answer to a batch of 10 records.
async fn outcome_of(script: Script) -> Outcome {
    let server = Server::start(0, None, script);
    connect(plaintext(server.address.port()))
        .deliver(batch("a", 10))
        .await
}

#[test]
fn bytes_and_headers_arrive_as_given() {
    on_a_worker(async {
        let server = Server::start(0, None, ok());
        let destination = connect(OtlpConfig {
            headers: vec![given("authorization", "Bearer t"), given("x-scope", "a b")],
            ..plaintext(server.address.port())
        });
        assert_eq!(destination.name(), "main");
        // Not even valid protobuf: nothing is decoded on the way. And larger than any default limit.
        let bytes = vec![0xff; 20 << 20];
        let sent = Batch {
            bytes: bytes.clone().into(),
            records: 1,
        };
        assert_eq!(destination.deliver(sent).await, ACCEPTED);
        assert_eq!(destination.deliver(batch("b", 3)).await, ACCEPTED);
        let calls = server.calls();
        assert_eq!(
            calls[0].path,
            "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
        );
        assert_eq!(calls[0].scheme.as_deref(), Some("http"));
        assert!(calls[0].body == framed(&bytes), "the message differs");
        assert_eq!(calls[1].body, framed(&batch("b", 3).bytes));
        for (name, value) in [
            ("authorization", "Bearer t"),
            ("x-scope", "a b"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-timeout", "20000m"),
        ] {
            assert_eq!(calls[0].headers[name], value, "{name}");
        }
        assert!(
            calls[0].headers["user-agent"]
                .to_str()
                .unwrap()
                .starts_with("gophership/")
        );
    });
}

#[test]
fn delivers_over_mutual_tls() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(directory.path());
    on_a_worker(async {
        let server = Server::start(0, Some(certificates.server()), ok());
        let destination = connect(tls(server.address.port(), &certificates));
        assert_eq!(destination.deliver(batch("a", 3)).await, ACCEPTED);
        assert_eq!(server.calls()[0].body, framed(&batch("a", 3).bytes));
        assert_eq!(server.calls()[0].scheme.as_deref(), Some("https"));
    });
}

#[test]
fn a_server_by_an_unknown_authority_gets_nothing() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ours = Certificates::create(ours.path());
    let their_certificates = Certificates::create(theirs.path());
    on_a_worker(async {
        let server = Server::start(0, Some(their_certificates.server()), ok());
        let destination = connect(tls(server.address.port(), &ours));
        let (after, reason) = retried(destination.deliver(batch("a", 1)).await);
        assert_eq!(after, None);
        assert!(
            reason.contains("https://localhost:") && reason.contains("invalid peer certificate"),
            "{reason}"
        );
        assert!(server.calls().is_empty());
    });
}

#[test]
fn a_server_that_demands_a_certificate_gets_none() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(directory.path());
    on_a_worker(async {
        let server = Server::start(0, Some(certificates.server()), ok());
        let destination = connect(OtlpConfig {
            identity: None,
            ..tls(server.address.port(), &certificates)
        });
        let (_, reason) = retried(destination.deliver(batch("a", 1)).await);
        assert!(reason.contains("CertificateRequired"), "{reason}");
    });
}

#[test]
fn tls_1_2_is_not_spoken() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(directory.path());
    on_a_worker(async {
        let mut old = rustls::ServerConfig::builder_with_provider(
            rustls::crypto::aws_lc_rs::default_provider().into(),
        )
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(std::sync::Arc::clone(&certificates.server().cert_resolver));
        old.alpn_protocols = vec![b"h2".to_vec()];
        let server = Server::start(0, Some(old.into()), ok());
        let destination = connect(tls(server.address.port(), &certificates));
        let (_, reason) = retried(destination.deliver(batch("a", 1)).await);
        assert!(reason.contains("ProtocolVersion"), "{reason}");
    });
}

#[test]
fn what_the_batch_is_not_to_blame_for_is_retried_and_the_rest_rejected() {
    let names = [
        (1, "CANCELLED", true),
        (2, "UNKNOWN", false),
        (3, "INVALID_ARGUMENT", false),
        (4, "DEADLINE_EXCEEDED", true),
        (5, "NOT_FOUND", true),
        (6, "ALREADY_EXISTS", false),
        (7, "PERMISSION_DENIED", true),
        (8, "RESOURCE_EXHAUSTED", true),
        (9, "FAILED_PRECONDITION", false),
        (10, "ABORTED", true),
        (11, "OUT_OF_RANGE", true),
        (12, "UNIMPLEMENTED", true),
        (13, "INTERNAL", false),
        (14, "UNAVAILABLE", true),
        (15, "DATA_LOSS", true),
        (16, "UNAUTHENTICATED", true),
    ];
    on_a_worker(async {
        for (code, name, retryable) in names {
            for script in [Script::Trailers, Script::HeadersOnly] {
                let outcome = outcome_of(script(status(code, "it%20is so"))).await;
                let (retried, reason) = match outcome {
                    Outcome::Retry {
                        after: None,
                        reason,
                    } => (true, reason),
                    Outcome::Rejected { reason } => (false, reason),
                    other => panic!("{name}: {other:?}"),
                };
                assert_eq!(retried, retryable, "{name}");
                assert!(reason.ends_with(&format!(": {name}: it is so")), "{reason}");
            }
        }
    });
}

#[test]
fn a_message_that_is_too_large_is_rejected_under_whatever_code() {
    let too_large = "grpc:%20received%20message%20larger%20than%20max%20(5000000%20vs.%204194304)";
    on_a_worker(async {
        for code in [8, 11] {
            let outcome = outcome_of(Script::Trailers(status(code, too_large))).await;
            assert!(
                matches!(&outcome, Outcome::Rejected { reason } if reason.contains("larger than")),
                "{outcome:?}"
            );
        }
        // What a collector's memory limiter says.
        let full = "data%20refused%20due%20to%20high%20memory%20usage";
        let (after, _) = retried(outcome_of(Script::Trailers(status(8, full))).await);
        assert_eq!(after, None);
    });
}

#[test]
fn the_delay_the_server_asks_for_is_reported() {
    let delay = Duration::from_millis(2500);
    let with_details = |code, details: String| {
        let mut headers: HeaderMap = status(code, "busy");
        headers.insert("grpc-status-details-bin", details.parse().unwrap());
        Script::Trailers(headers)
    };
    on_a_worker(async {
        for code in [8, 14] {
            let details = with_retry_delay(code, "busy", delay);
            for encoded in [STANDARD.encode(&details), STANDARD_NO_PAD.encode(&details)] {
                let outcome = outcome_of(with_details(code, encoded)).await;
                assert_eq!(retried(outcome).0, Some(delay), "{code}");
            }
        }
        // Garbage is no delay, and no panic.
        let outcome = outcome_of(with_details(14, "!not base64!".into())).await;
        assert_eq!(retried(outcome).0, None);
    });
}

#[test]
fn partial_success_is_accepted_less_what_was_rejected() {
    let partial = |rejected_log_records| {
        let response = ExportLogsServiceResponse {
            partial_success: Some(ExportLogsPartialSuccess {
                rejected_log_records,
                error_message: "too old".into(),
            }),
        };
        Script::Message(response.encode_to_vec())
    };
    on_a_worker(async {
        for (says, rejected_records) in [(0, 0), (4, 4), (-1, 0), (1000, 10)] {
            assert_eq!(
                outcome_of(partial(says)).await,
                Outcome::Accepted { rejected_records },
                "{says}"
            );
        }
        // The status says it all, if the message can't be read.
        assert_eq!(outcome_of(Script::Message(vec![0xff; 3])).await, ACCEPTED);
        assert_eq!(
            outcome_of(Script::Message(vec![0xff; 1 << 20])).await,
            ACCEPTED
        );
        assert_eq!(outcome_of(Script::Trailers(status(0, ""))).await, ACCEPTED);
    });
}

#[test]
fn answers_that_are_not_grpc_are_read_by_their_http_status() {
    on_a_worker(async {
        let (after, reason) =
            retried(outcome_of(Script::Page(StatusCode::SERVICE_UNAVAILABLE)).await);
        assert_eq!(after, Some(Duration::from_secs(7)));
        assert!(reason.contains("HTTP 503"), "{reason}");
        let (_, reason) = retried(outcome_of(Script::Page(StatusCode::NOT_FOUND)).await);
        assert!(reason.contains("HTTP 404"), "{reason}");
        let refused = outcome_of(Script::Page(StatusCode::PAYLOAD_TOO_LARGE)).await;
        assert!(
            matches!(&refused, Outcome::Rejected { reason } if reason.contains("HTTP 413")),
            "{refused:?}"
        );
        let (_, reason) = retried(outcome_of(Script::Nothing).await);
        assert!(reason.contains("without a gRPC status"), "{reason}");
    });
}

#[test]
fn silence_is_a_retry_after_the_timeout() {
    on_a_worker(async {
        let server = Server::start(0, None, Script::Silence);
        let destination = connect(OtlpConfig {
            timeout: Duration::from_millis(200),
            ..plaintext(server.address.port())
        });
        let begun = Instant::now();
        let (_, reason) = retried(destination.deliver(batch("a", 1)).await);
        assert!(reason.ends_with("no answer within 200ms"), "{reason}");
        assert!((Duration::from_millis(200)..PATIENCE).contains(&begun.elapsed()));
    });
}

#[test]
fn a_server_that_comes_back_is_reached_again() {
    on_a_worker(async {
        let server = Server::start(0, None, ok());
        let port = server.address.port();
        let destination = connect(plaintext(port));
        assert_eq!(destination.deliver(batch("a", 1)).await, ACCEPTED);

        server.stop().await;
        let begun = Instant::now();
        loop {
            let (_, reason) = retried(destination.deliver(batch("b", 1)).await);
            // The first may still meet the connection as it breaks.
            if reason.contains("Connection refused") {
                assert!(
                    reason.contains(&format!("http://127.0.0.1:{port}: ")),
                    "{reason}"
                );
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{reason}");
        }

        let server = Server::start(port, None, ok());
        assert_eq!(destination.deliver(batch("c", 1)).await, ACCEPTED);
        assert_eq!(server.calls().len(), 1);
    });
}

#[test]
fn one_connection_carries_concurrent_deliveries() {
    on_a_worker(async {
        let server = Server::start(0, None, ok());
        let destination = connect(plaintext(server.address.port()));
        let mut deliveries = tokio::task::JoinSet::new();
        for number in 0..50 {
            let destination = destination.clone();
            deliveries
                .spawn(async move { destination.deliver(batch(&number.to_string(), 1)).await });
        }
        assert_eq!(deliveries.join_all().await, vec![ACCEPTED; 50]);
        let calls = server.calls();
        assert_eq!(calls.len(), 50);
        assert!(calls.iter().all(|call| call.peer == calls[0].peer));
    });
}

#[test]
fn wrong_configurations_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(directory.path());
    let refusal = |config| {
        Destinations::open(&[configured(config)])
            .unwrap_err()
            .to_string()
    };
    let good = || tls(4317, &certificates);
    let endpoint = |endpoint: &str| OtlpConfig {
        endpoints: vec![endpoint.to_owned()],
        ..good()
    };
    let header = |name: &str, value: &str| OtlpConfig {
        headers: vec![given(name, value)],
        ..good()
    };
    let missing = directory.path().join("missing.pem");
    let cases = [
        (
            endpoint("localhost:4317/v1 logs"),
            "`localhost:4317/v1 logs`: not a URL",
        ),
        (endpoint("grpc://localhost:4317"), "neither https nor http"),
        (endpoint("https://localhost:4317/v1/logs"), "has no path"),
        (
            endpoint("http://localhost:4317"),
            "plaintext needs tls.insecure: true",
        ),
        (
            header("grpc-timeout", "1S"),
            "`grpc-timeout`: set by gRPC itself",
        ),
        (header("two words", ""), "`two words`: not a header name"),
        (header("x-token", "a\nb"), "`x-token`: its value"),
        (
            OtlpConfig {
                ca: Some(missing.clone()),
                ..good()
            },
            "missing.pem: ",
        ),
        (
            OtlpConfig {
                ca: Some(certificates.client.1.clone()),
                ..good()
            },
            "client.key: ",
        ),
        (
            OtlpConfig {
                identity: Some((certificates.ca.clone(), certificates.client.1.clone())),
                ..good()
            },
            "TLS: ",
        ),
    ];
    for (config, expected) in cases {
        let refusal = refusal(config);
        assert!(
            refusal.starts_with("export destination `main`: ") && refusal.contains(expected),
            "{refusal}"
        );
    }
    let twice = Destinations::open(&[configured(good()), configured(good())]).unwrap_err();
    assert!(
        twice.to_string().contains("another one has this name"),
        "{twice}"
    );
}
