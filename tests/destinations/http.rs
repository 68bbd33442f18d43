//! The `otlp` destination by HTTP.

use std::time::Duration;

use gophership::{
    export::{Batch, OtlpConfig, Outcome, Protocol},
    otel::status::plain,
};
use http::{StatusCode, Version};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceResponse,
};
use prost::Message;

use crate::{
    batch, on_a_worker,
    server::{Certificates, PATIENCE, Script, Server},
    servers::{ACCEPTED, connect, given, plaintext, retried, tls},
};

fn http(config: OtlpConfig) -> OtlpConfig {
    OtlpConfig {
        protocol: Protocol::Http,
        ..config
    }
}

fn ok() -> Script {
    Script::Protobuf(StatusCode::OK, Vec::new())
}

/// What the destination makes of an answer to a batch of 10 records.
async fn outcome_of(script: Script) -> Outcome {
    let server = Server::start(0, None, script);
    connect(http(plaintext(server.address.port())))
        .deliver(batch("a", 10))
        .await
}

#[test]
fn a_batch_is_posted_below_the_base_endpoint() {
    on_a_worker(async {
        let server = Server::start(0, None, ok());
        let port = server.address.port();
        for (base, path) in [
            ("", "/v1/logs"),
            ("/", "/v1/logs"),
            ("/a/b", "/a/b/v1/logs"),
            ("/a/", "/a/v1/logs"),
        ] {
            let destination = connect(OtlpConfig {
                endpoints: vec![format!("http://127.0.0.1:{port}{base}")],
                headers: vec![given("authorization", "Bearer t")],
                ..http(plaintext(port))
            });
            assert_eq!(destination.deliver(batch("a", 3)).await, ACCEPTED);
            let call = server.calls().pop().unwrap();
            assert_eq!((&*call.path, call.version), (path, Version::HTTP_11));
            assert_eq!(call.body, batch("a", 3).bytes);
            for (name, value) in [
                ("authorization", "Bearer t"),
                ("content-type", "application/x-protobuf"),
                ("content-length", &call.body.len().to_string()),
                ("host", &format!("127.0.0.1:{port}")),
            ] {
                assert_eq!(call.headers[name], value, "{name}");
            }
        }
    });
}

#[test]
fn one_connection_carries_one_large_batch_after_the_other() {
    on_a_worker(async {
        let server = Server::start(0, None, ok());
        let destination = connect(http(plaintext(server.address.port())));
        let bytes = vec![0xff; 20 << 20];
        for _ in 0..2 {
            let sent = Batch {
                bytes: bytes.clone().into(),
                records: 1,
            };
            assert_eq!(destination.deliver(sent).await, ACCEPTED);
        }
        let calls = server.calls();
        assert!(calls[0].body == bytes, "the message differs");
        assert_eq!(calls[0].peer, calls[1].peer);
    });
}

#[test]
fn over_tls_the_server_chooses_the_version_of_http() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(directory.path());
    on_a_worker(async {
        let offers: [(&[&str], Version); 3] = [
            (&["h2", "http/1.1"], Version::HTTP_2),
            (&["http/1.1"], Version::HTTP_11),
            (&[], Version::HTTP_11),
        ];
        for (offered, version) in offers {
            let tls_config = certificates.server_that_offers(offered);
            let server = Server::start(0, Some(tls_config), ok());
            let destination = connect(http(tls(server.address.port(), &certificates)));
            assert_eq!(destination.deliver(batch("a", 3)).await, ACCEPTED);
            let call = server.calls().pop().unwrap();
            assert_eq!((call.version, &*call.path), (version, "/v1/logs"));
            assert_eq!(call.body, batch("a", 3).bytes);
        }
    });
}

#[test]
fn what_the_batch_is_not_to_blame_for_is_retried_and_the_rest_rejected() {
    on_a_worker(async {
        for (code, retryable) in [
            (400, false),
            (401, true),
            (403, true),
            (404, true),
            (405, false),
            (408, true),
            (413, false),
            (429, true),
            (500, false),
            (501, false),
            (502, true),
            (503, true),
            (504, true),
            (505, false),
            (307, true),
        ] {
            let code = StatusCode::from_u16(code).unwrap();
            let outcome = outcome_of(Script::Protobuf(code, plain(13, "it is so"))).await;
            let (is_retried, reason) = match outcome {
                Outcome::Retry { after, reason } => {
                    assert_eq!(after, Some(Duration::from_secs(7)), "{code}");
                    (true, reason)
                }
                Outcome::Rejected { reason } => (false, reason),
                other => panic!("{code}: {other:?}"),
            };
            assert_eq!(is_retried, retryable, "{code}");
            let said = format!("HTTP {code}: it is so");
            assert!(reason.contains(&said), "{reason}");
            // What a proxy has to say isn't repeated, and changes nothing.
            let page = outcome_of(Script::Page(code)).await;
            assert_eq!(matches!(page, Outcome::Retry { .. }), retryable, "{code}");
        }
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
        Script::Protobuf(StatusCode::OK, response.encode_to_vec())
    };
    on_a_worker(async {
        for (says, rejected_records) in [(0, 0), (4, 4), (-1, 0), (1000, 10)] {
            assert_eq!(
                outcome_of(partial(says)).await,
                Outcome::Accepted { rejected_records },
                "{says}"
            );
        }
        // The status says it all, if the message can't be read, however long it is.
        for garbage in [vec![0xff; 3], vec![0xff; 8 << 20]] {
            let script = Script::Protobuf(StatusCode::OK, garbage);
            assert_eq!(outcome_of(script).await, ACCEPTED);
        }
        assert_eq!(outcome_of(Script::Endless).await, ACCEPTED);
    });
}

#[test]
fn a_page_is_no_receiver_and_what_answers_in_json_or_without_a_word_is() {
    on_a_worker(async {
        let page = || b"<html>login</html>".to_vec();
        for script in [
            Script::Typed("text/html; charset=utf-8", page()),
            Script::Typed("text/plain", page()),
            Script::Page(StatusCode::OK),
            Script::Page(StatusCode::ACCEPTED),
        ] {
            let (_, reason) = retried(outcome_of(script).await);
            assert!(reason.contains("with a page"), "{reason}");
        }
        for (kind, body) in [
            ("text/html", ""),
            ("application/json", "{}"),
            ("application/json", "{\"partialSuccess\":{}}"),
            ("application/json", "["),
            ("Application/X-Protobuf; v=1", ""),
        ] {
            let script = Script::Typed(kind, body.into());
            assert_eq!(outcome_of(script).await, ACCEPTED, "{kind}: {body}");
        }
        for rejected in ["4", "\"4\""] {
            let body = format!("{{\"partialSuccess\":{{\"rejectedLogRecords\":{rejected}}}}}");
            assert_eq!(
                outcome_of(Script::Typed("application/json", body.into())).await,
                Outcome::Accepted {
                    rejected_records: 4
                }
            );
        }
    });
}

#[test]
fn silence_is_a_retry_after_the_timeout_and_a_server_that_comes_back_is_reached_again() {
    on_a_worker(async {
        let server = Server::start(0, None, Script::Silence);
        let port = server.address.port();
        let destination = connect(OtlpConfig {
            timeout: Duration::from_millis(200),
            ..http(plaintext(port))
        });
        let (_, reason) = retried(destination.deliver(batch("a", 1)).await);
        assert!(reason.ends_with("no answer within 200ms"), "{reason}");
        server.stop().await;
        let (_, reason) = retried(destination.deliver(batch("a", 1)).await);
        assert!(reason.contains("Connection refused"), "{reason}");
        let _server = Server::start(port, None, ok());
        let patient = connect(OtlpConfig {
            timeout: PATIENCE,
            ..http(plaintext(port))
        });
        assert_eq!(patient.deliver(batch("a", 1)).await, ACCEPTED);
        assert_eq!(destination.deliver(batch("a", 1)).await, ACCEPTED);
    });
}
