//! The configuration: defaults, problems, environment, checks between keys.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use gophership::{
    app::Config,
    config::{self, Errors, Host, Kind, Origin, schema},
    export::{
        Balance, Compression as ExportCompression, DestinationKind, FileConfig, HeaderSource,
        OtlpConfig, Protocol, Retry, Rotation,
    },
    ingest::{ClientAuth, budget_bytes_min, window::Windows},
    pipeline::enrich::Detector,
    pressure::{KernelMode, Levels, Prefix, XdpConfig, XdpMode},
    privileges::{LandlockMode, User},
    telemetry::LogFormat,
    vault::{Compression, OnFull, Sync, Vault, platform::Rung},
};

/// What can't have a default.
const REQUIRED: &str = "\
ingest:
  tls: { cert: server.pem, key: server.key, client_ca: ca.pem }
export:
  destinations: [{ name: main, file: { path: out.jsonl } }]
";

const HOST: Host = Host {
    cores: 2,
    memory_limit_bytes: 8 << 30,
};

fn parse_with(text: &str, env: &[(&str, &str)]) -> Result<Config, Errors> {
    let env = env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    config::parse_for(text, "test.yaml", env, HOST)
}

/// `REQUIRED` and more.
fn parse_more(more: &str) -> Result<Config, Errors> {
    parse_with(&format!("{REQUIRED}{more}"), &[])
}

fn problems(result: Result<Config, Errors>) -> Vec<String> {
    match result {
        Ok(_) => Vec::new(),
        Err(errors) => errors.problems().iter().map(ToString::to_string).collect(),
    }
}

/// The only problem there is.
fn problem(result: Result<Config, Errors>) -> String {
    let problems = problems(result);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.into_iter().next().unwrap_or_default()
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = parse_more("").unwrap();
    assert_eq!(config.ingest.grpc_listen, "0.0.0.0:4317".parse().unwrap());
    assert_eq!(config.ingest.tls.unwrap().client_auth, ClientAuth::Required);
    assert_eq!(config.ingest.max_request_bytes, 16 << 20);
    assert_eq!(config.ingest.workers, 2);
    assert!(!config.ingest.pin_workers);
    assert_eq!(config.memory_total_bytes, 1 << 30);
    assert_eq!(config.ingest.budget_bytes, (1 << 30) / 2);
    assert_eq!(config.pipeline.budget_bytes, (1 << 30) * 3 / 10);
    assert_eq!(config.vault.budget_bytes, (1 << 30) / 5);
    let pressure = &config.pressure;
    assert_eq!(pressure.kernel, KernelMode::Auto);
    assert_eq!(pressure.tick, Duration::from_millis(10));
    assert_eq!(pressure.sample_every, 1024);
    assert_eq!(pressure.hold, Duration::from_secs(2));
    assert_eq!(pressure.receive_queue, levels(500, 800));
    assert_eq!(pressure.receive_queue_for, Duration::from_millis(5));
    assert_eq!(pressure.listen_backlog, levels(500, 900));
    assert_eq!(pressure.memory_stall, levels(50, 200));
    assert_eq!(pressure.memory_available, levels(150, 70));
    assert_eq!(pressure.cpu_wait, levels(300, 700));
    assert_eq!(pressure.disk_latency, Some(Duration::from_millis(50)));
    assert_eq!(pressure.ingress_horizon, Some(Duration::from_secs(1)));
    assert_eq!(pressure.budget, levels(800, 950));
    assert_eq!(pressure.heartbeat_limit, Duration::from_secs(1));
    assert_eq!(config.replay.after, Duration::from_secs(10));
    assert_eq!(config.replay.max_bytes_per_second, 64 << 20);
    assert_eq!(config.replay.dead_letters_max_bytes, 256 << 20);
    assert!(config.replay.auto && !config.replay.identity);
    assert_eq!(config.pipeline.ack_within, Duration::from_millis(20));
    assert_eq!(config.pipeline.batch_max_bytes, 4 << 20);
    assert_eq!(config.pipeline.batch_linger, Duration::from_millis(20));
}

#[test]
fn defaults_of_vault_control_and_telemetry_are_those_of_the_contract() {
    let config = parse_more("").unwrap();
    let vault = &config.vault;
    assert_eq!(vault.dir, PathBuf::from("/var/lib/gophership/vault"));
    assert_eq!(vault.max_bytes, 10 << 30);
    assert_eq!(vault.segment_bytes, 64 << 20);
    assert_eq!(vault.linger, Duration::from_micros(500));
    assert_eq!(vault.segment_max_age, Duration::from_secs(600));
    assert_eq!(
        (vault.on_full, vault.retain),
        (OnFull::Refuse, Duration::ZERO)
    );
    assert_eq!(vault.compression, Compression::Auto);
    assert_eq!(vault.sync, Sync::Always);
    assert_eq!(vault.cursor_interval, Duration::from_secs(1));
    assert_eq!((vault.lanes, vault.max_entry_bytes), (2, 16 << 20));
    let control = &config.control;
    assert_eq!(control.path, PathBuf::from("/run/gophership/control.sock"));
    assert_eq!(control.mode, 0o600);
    assert_eq!(control.allow_uids, [0]);
    assert!(control.allow_gids.is_empty());
    assert_eq!(
        control.audit_log,
        PathBuf::from("/var/log/gophership/audit.jsonl")
    );
    let telemetry = &config.telemetry;
    assert_eq!(telemetry.listen, "127.0.0.1:9091".parse().unwrap());
    assert_eq!(telemetry.log_level, "info");
    assert_eq!(telemetry.log_format, LogFormat::Json);
    let timeline = &telemetry.timeline;
    let path = PathBuf::from("/var/log/gophership/events.jsonl");
    assert_eq!((&timeline.path, timeline.bytes_max), (&path, 8 << 20));
}

fn levels(yellow_permille: u32, red_permille: u32) -> Levels {
    Levels {
        yellow_permille,
        red_permille,
    }
}

#[test]
fn every_key_can_be_written_and_takes_effect() {
    let config = parse_with(EVERYTHING, &[]).unwrap();
    assert_eq!(config.ingest.workers, 3);
    assert!(config.ingest.pin_workers);
    let tls = config.ingest.tls.unwrap();
    assert_eq!((tls.client_auth, tls.client_ca), (ClientAuth::None, None));
    assert_eq!(config.memory_total_bytes, 64 << 20);
    assert_eq!(config.pressure.kernel, KernelMode::Off);
    assert_eq!(config.pressure.listen_backlog, levels(100, 200));
    assert_eq!(config.pressure.memory_stall, levels(10, Levels::OFF));
    assert_eq!(config.pressure.memory_available, levels(200, 105));
    assert_eq!(config.pressure.cpu_wait, levels(Levels::OFF, Levels::OFF));
    let twenty = Duration::from_millis(20);
    assert_eq!(config.pressure.disk_latency, Some(twenty));
    assert_eq!(config.pressure.ingress_horizon, None);
    assert_eq!(config.vault.segment_bytes, 8 << 20);
    assert_eq!(config.vault.sync, Sync::Never);
    assert_eq!(config.vault.rung, Some(Rung::Pwrite));
    assert_eq!(config.vault.compression, Compression::None);
    assert_eq!(config.vault.segment_max_age, Duration::from_secs(3600));
    assert_eq!(config.vault.on_full, OnFull::DropOldest);
    assert_eq!(config.vault.retain, Duration::from_secs(60));
    assert_eq!(config.replay.dead_letters_max_bytes, 1 << 20);
    let own = [("service.name", "shop"), ("a", "1")];
    assert_eq!(config.enrich.resource, own.map(pair));
    assert_eq!(config.enrich.detect, [Detector::K8s, Detector::Host]);
    assert!(config.enrich.mark_replayed);
    assert_eq!(config.control.mode, 0o660);
    assert_eq!(config.control.allow_uids, [0, 1000]);
    assert_eq!(config.control.allow_gids, [27]);
    assert_eq!(config.telemetry.log_level, "debug,h2=warn");
    assert_eq!(config.telemetry.timeline.path, PathBuf::from("/tmp/e"));
    assert_eq!(config.telemetry.timeline.bytes_max, 1 << 20);
    assert_eq!(config.service.landlock, LandlockMode::Required);
}

#[test]
fn every_key_of_a_destination_can_be_written_and_takes_effect() {
    let config = parse_with(EVERYTHING, &[]).unwrap();
    assert_eq!(config.destinations[0].name, "main");
    let otlp = DestinationKind::Otlp(OtlpConfig {
        endpoints: vec![
            "https://collector:4317/base".to_owned(),
            "https://other:4317".to_owned(),
        ],
        balance: Balance::RoundRobin,
        resolve_every: Duration::from_secs(300),
        protocol: Protocol::Http,
        compression: ExportCompression::Zstd,
        timeout: Duration::from_secs(3),
        headers: vec![
            (
                "authorization".to_owned(),
                HeaderSource::Value("Bearer x".to_owned()),
            ),
            (
                "x-scope".to_owned(),
                HeaderSource::Variable("SCOPE".to_owned()),
            ),
            (
                "x-token".to_owned(),
                HeaderSource::File("/run/secrets/token".into()),
            ),
        ],
        ca: Some("ca.pem".into()),
        identity: Some(("c.pem".into(), "c.key".into())),
        insecure: false,
        retry: Retry {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(60),
            multiplier_permille: 1500,
            jitter_permille: 0,
        },
        proxy: Some("http://me:secret@proxy:3128".to_owned()),
    });
    let shown = format!("{otlp:?}");
    assert!(
        !shown.contains("Bearer") && !shown.contains("secret@"),
        "{shown}"
    );
    assert_eq!(config.destinations[0].kind, otlp);
    let file = DestinationKind::File(FileConfig {
        path: "/tmp/x".into(),
        rotation: Some(Rotation {
            bytes: 1 << 20,
            keep: 2,
        }),
    });
    assert_eq!(config.destinations[1].kind, file);
}

fn pair((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

/// A destination's file, that of a later one, and what is wrong with the later one.
const CLASHES: &[(&str, &str, &str)] = &[
    (
        "logs.jsonl",
        "logs.jsonl.1",
        "is a name that rotation gives",
    ),
    (
        "logs.jsonl",
        "logs.jsonl.999",
        "is a name that rotation gives",
    ),
    (
        "logs.jsonl",
        "logs.jsonl.new",
        "is a name that rotation gives",
    ),
    (
        "logs.jsonl.1",
        "logs.jsonl",
        "would be rotated to the name of",
    ),
    ("missing", "missing.2", "is a name that rotation gives"),
    (
        "no/directory",
        "no/./directory.2",
        "is a name that rotation gives",
    ),
    (
        "logs.jsonl",
        "link/logs.jsonl.1",
        "is a name that rotation gives",
    ),
    (
        "other",
        "sub/../logs.jsonl.1",
        "is a name that rotation gives",
    ),
    ("logs.jsonl", "logs.jsonl", "is also the file of"),
    ("logs.jsonl", "other", "is also the file of"),
    ("missing", "link/missing", "is also the file of"),
];

#[test]
fn files_that_would_be_renamed_over_each_other_are_refused() {
    let home = tempfile::tempdir().expect("a directory");
    let at = |name: &str| home.path().join(name).display().to_string();
    std::fs::write(at("logs.jsonl"), "").expect("a file");
    std::fs::create_dir(at("sub")).expect("a directory");
    std::os::unix::fs::symlink(home.path(), at("link")).expect("a link");
    std::os::unix::fs::symlink(at("logs.jsonl"), at("other")).expect("a link");
    let two = |first: &str, second: &str, more: &str| {
        let destinations = format!(
            "export: {{ destinations: [{{ name: a, file: {{ path: {}{more} }} }}, {{ name: b, file: {{ path: {}{more} }} }}] }}",
            at(first),
            at(second)
        );
        let text =
            format!("ingest: {{ tls: {{ cert: c, key: k, client_ca: ca }} }}\n{destinations}\n");
        problems(parse_with(&text, &[]))
    };
    for (first, second, fault) in CLASHES {
        let found = two(first, second, "");
        assert_eq!(found.len(), 1, "{first} {second}: {found:?}");
        let told = format!("export.destinations[1].file.path = {} {fault} ", at(second));
        assert!(found[0].contains(&told), "{found:?}");
        assert!(found[0].ends_with("export.destinations[0]"), "{found:?}");
    }
    for (first, second) in [
        ("logs.jsonl", "logs.jsonl.old"),
        ("logs.jsonl", "logs.jsonl.1.jsonl"),
        ("logs.jsonl", "logs.jsonl1"),
        ("logs.jsonl", "logs.jsonl."),
        ("logs.jsonl", "sub/logs.jsonl.1"),
    ] {
        assert_eq!(two(first, second, ""), [""; 0], "{first} {second}");
    }
    let unrotated = two("logs.jsonl", "logs.jsonl.1", ", rotate_bytes: off");
    assert_eq!(unrotated, [""; 0], "neither is renamed");
}

#[test]
fn requests_are_enriched_as_the_section_says() {
    use Detector::{Container, Host, K8s, Os, Process};
    let enrich = parse_more("").unwrap().enrich;
    assert_eq!(enrich.detect, [Host, Os, Container, K8s]);
    assert!(enrich.resource.is_empty() && !enrich.mark_replayed);
    // The list of the contract.
    let all = parse_more("enrich: { detect: [host, os, process, container, k8s] }");
    assert_eq!(
        all.unwrap().enrich.detect,
        [Host, Os, Process, Container, K8s]
    );
    let env = [("GOPHERSHIP_ENRICH__RESOURCE", "a=1,b=x=y")];
    let enrich = parse_with(REQUIRED, &env).unwrap().enrich;
    assert_eq!(enrich.resource, [("a", "1"), ("b", "x=y")].map(pair));

    let (key, value) = ("k".repeat(256), "v".repeat(4097));
    let many: Vec<_> = (0..49).map(|number| format!("k{number}: v")).collect();
    for (section, reason) in [
        (
            "detect: [hots]",
            "enrich.detect: \"[hots]\": expected a list of host, os, process, container",
        ),
        ("detect: [os, os]", "each at most once"),
        (
            "detect: [process, process]",
            "could only describe GopherShip",
        ),
        ("resource: { \"\": x }", "an empty key: \"\" = \"x\""),
        (
            "resource: { a b: x }",
            "white space in the key: \"a b\" = \"x\"",
        ),
        (
            "resource: { a: [x] }",
            "enrich.resource: expected a map of attributes",
        ),
        (
            "resource: { a: { env: X } }",
            "enrich.resource: expected a map of attributes",
        ),
        (
            &format!("resource: {{ {key}: x }}"),
            "a key of more than 255 bytes",
        ),
        (
            &format!("resource: {{ a: {value} }}"),
            "a value of more than 4096 bytes",
        ),
        (
            &format!("resource: {{ {} }}", many.join(", ")),
            "49 attributes, but at most 48",
        ),
        (
            "resource: { a: x, a: y }",
            "a key that is there twice: \"a\" = \"y\"",
        ),
    ] {
        let message = problem(parse_more(&format!("enrich: {{ {section} }}\n")));
        assert!(message.contains(reason), "{section}: {message}");
    }
}

const EVERYTHING: &str = r#"
ingest:
  grpc: { listen: "127.0.0.1:0" }
  http: { listen: "127.0.0.1:0" }
  unix: { path: null, mode: "0660" }
  plaintext: false
  tls: { cert: a, key: b, client_ca: null, client_auth: none }
  max_request_bytes: 1MiB
  max_connections: 100
  workers: 3
  pin_workers: true
memory: { total: 64MiB, ingest: 40%, export: 40%, vault: 20% }
pressure:
  kernel: off
  tick: 5ms
  sample_every: 100
  hold: 1s
  receive_queue: { yellow: 40%, red: 70%, for: 1ms }
  listen_backlog: { yellow: 10%, red: 20% }
  memory_stall: { yellow: 1%, red: off }
  memory_available: { yellow: 20%, red: 10.5% }
  cpu_wait: { yellow: off, red: off }
  disk_latency: { yellow: 20ms }
  ingress: { horizon: off }
  budget: { yellow: 70%, red: 90% }
vault:
  dir: /srv/vault
  max_bytes: 48MiB
  segment_bytes: 8MiB
  segment_max_age: 1h
  on_full: drop_oldest
  retain: 1m
  dead_letters_max_bytes: 1MiB
  linger: 0
  compression: none
  sync: never
  rung: pwrite
replay: { auto: false, after: 1m, max_bytes_per_second: 1MiB, identity: true }
enrich: { resource: { service.name: shop, a: "1" }, detect: [k8s, host], mark_replayed: true }
export:
  ack_within: 5ms
  batch: { max_bytes: 1MiB, linger: 1ms }
  destinations:
    - name: main
      otlp:
        endpoints: ["https://collector:4317/base", "https://other:4317"]
        balance: round_robin
        resolve_every: 5m
        protocol: http
        compression: zstd
        timeout: 3s
        headers: { authorization: "Bearer x", x-scope: { env: SCOPE }, x-token: { file: /run/secrets/token } }
        retry: { initial: 1s, max: 1m, multiplier: 1.5, jitter: 0% }
        proxy: "http://me:secret@proxy:3128"
        tls: { ca: ca.pem, cert: c.pem, key: c.key, insecure: false }
    - name: local
      file: { path: /tmp/x, rotate_bytes: 1MiB, keep: 2 }
    - { name: other, otlp: { endpoint: "https://h:1" } }
xdp:
  interface: [eth0, eth1]
  mode: generic
  guard: { allow: [10.0.0.0/8], deny: [192.0.2.0/24], syn_per_second: 20 }
control:
  unix: { path: /tmp/c.sock, mode: "0660", allow_uids: [0, 1000], allow_gids: [27] }
telemetry: { listen: "[::1]:0", log: { level: "debug,h2=warn", format: pretty }, audit_log: /tmp/a, events: /tmp/e, events_max_bytes: 1MiB }
service: { user: "990:70", landlock: required }
"#;

#[test]
fn the_service_user_is_a_name_or_numbers() {
    let parsed = |text: &str| parse_more(&format!("service: {{ user: \"{text}\" }}\n"));
    let user = |text: &str| parsed(text).unwrap().service.user;
    let numeric = |uid, gid| User::Numeric { uid, gid };
    assert_eq!(user("auto"), User::Auto);
    assert_eq!(user("www-data"), User::Named("www-data".to_owned()));
    assert_eq!(user("0"), numeric(0, None));
    assert_eq!(user("990:70"), numeric(990, Some(70)));
    for wrong in ["", "990:", "990:web", "web:70", "4294967295", "1 2", "12x"] {
        let message = problem(parsed(wrong));
        let expected = "expected auto, the name of a user";
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn everything_above_names_every_key_there_is() {
    for entry in schema::KEYS {
        let leaf = entry.path.rsplit('.').next().unwrap_or_default();
        assert!(EVERYTHING.contains(&format!("{leaf}:")), "{}", entry.path);
        assert!(!entry.doc.trim().is_empty() && !entry.expects.is_empty());
    }
}

#[test]
fn all_problems_are_listed_at_once_with_line_key_and_value() {
    let text = "\
ingest:
  tls: { cert: server.pem, key: server.key, client_ca: ca.pem }
vault:
  max_byte: 1GiB
  linger: 5
  sync: sometimes
pressure:
  budget: { yellow: 120% }
vautl: {}
export:
  destinations:
    - name: Main
      file: { pth: x }
";
    assert_eq!(
        problems(parse_with(text, &[])),
        [
            "test.yaml:4: vault.max_byte: \"1GiB\": unknown key; did you mean vault.max_bytes?",
            "test.yaml:5: vault.linger: \"5\": expected a duration such as 500us, 20ms, 5s, 10m or 1h",
            "test.yaml:6: vault.sync: \"sometimes\": expected always or never",
            "test.yaml:8: pressure.budget.yellow: \"120%\": expected a share such as 50%, at most 100%",
            "test.yaml:9: vautl: unknown key; did you mean vault?",
            "test.yaml:12: export.destinations[0].name: \"Main\": expected 1 to 64 of a-z, 0-9, _ and -",
            "test.yaml:13: export.destinations[0].file.pth: \"x\": unknown key; did you mean export.destinations[].file.path?",
            "test.yaml:13: export.destinations[0].file.path: must be set: File that OTLP JSON lines are appended to.",
        ]
    );
}

#[test]
fn a_key_in_the_wrong_section_is_found_where_it_belongs() {
    let message = problem(parse_more("segment_bytes: 1MiB\n"));
    assert!(
        message.ends_with("did you mean vault.segment_bytes?"),
        "{message}"
    );
}

#[test]
fn what_is_in_the_contract_but_not_built_is_unknown() {
    let errors = parse_with("archive: { url: null }", &[]).unwrap_err();
    let unknown = |p: &config::Problem| matches!(p.kind, Kind::UnknownKey { .. });
    assert!(errors.problems().iter().any(unknown), "{errors}");
    let message = problem(parse_more("vault: { compression: zstd }\n"));
    assert!(
        message.ends_with("\"zstd\": expected auto, lz4 or none"),
        "{message}"
    );
}

#[test]
fn plaintext_needs_no_certificates_and_is_for_loopback_addresses_only() {
    let destinations = "export: { destinations: [{ name: a, file: { path: /a } }] }\n";
    let parse = |ingest: &str| parse_with(&format!("ingest: {{ {ingest} }}\n{destinations}"), &[]);
    let config = parse(
        "plaintext: true, grpc: { listen: \"127.0.0.1:4317\" }, http: { listen: \"[::1]:4318\" }, unix: { path: /s }",
    )
    .unwrap();
    assert_eq!(config.ingest.tls, None);
    let unix = config.ingest.unix.unwrap();
    assert_eq!((unix.path.to_str(), unix.mode), (Some("/s"), 0o666));
    assert_eq!(
        problems(parse(
            "plaintext: true, grpc: { listen: \"127.0.0.1:4317\" }"
        )),
        [
            "test.yaml:1: ingest.http.listen = 0.0.0.0:4318 is no loopback address, and \
             ingest.plaintext = true serves only those"
        ]
    );
}

#[test]
fn nothing_at_all_says_what_is_needed() {
    let lines = problems(parse_with("", &[]));
    let keys = [
        "ingest.tls.cert",
        "ingest.tls.key",
        "ingest.tls.client_ca",
        "export.destinations",
    ];
    assert_eq!(lines.len(), keys.len(), "{lines:#?}");
    for (line, key) in lines.iter().zip(keys) {
        assert!(
            line.starts_with(&format!("default: {key}: must be set: ")),
            "{line}"
        );
        assert!(!line.contains("  "), "{line}");
    }
}

#[test]
fn the_address_of_the_health_page_is_found_without_all_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("gophership.yaml");
    let listen = |text: &str, env: &[(&str, &str)]| {
        std::fs::write(&path, text).expect("a file");
        let env = env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        config::load_telemetry_listen(Some(&path), env).map(|address| address.to_string())
    };
    let variable = "GOPHERSHIP_TELEMETRY__LISTEN";
    // No certificates, no destinations, and a key that isn't one.
    let text = "vautl: 1\ntelemetry: { listen: \"127.0.0.1:1\" }\n";
    assert_eq!(listen("", &[]).unwrap(), "127.0.0.1:9091");
    assert_eq!(listen(text, &[]).unwrap(), "127.0.0.1:1");
    let overridden = listen(text, &[(variable, "[::1]:2")]);
    assert_eq!(overridden.unwrap(), "[::1]:2");
    let wrong = listen(text, &[(variable, "nowhere")]).unwrap_err();
    assert_eq!(wrong.problems().len(), 1, "{wrong}");
    assert!(wrong.to_string().contains(variable), "{wrong}");
    std::fs::remove_file(&path).expect("the file");
    let gone = config::load_telemetry_listen(Some(&path), std::iter::empty()).unwrap_err();
    assert!(matches!(gone.problems()[0].kind, Kind::Unreadable(_)));
}

#[test]
fn what_is_not_a_configuration_is_a_syntax_error_with_its_line() {
    for (text, line) in [
        ("vault:\n  dir: [unclosed\n", 3),
        ("a: &x 1\n", 1),
        ("vault: {}\n---\nvault: {}\n", 3),
        ("- a\n- b\n", 1),
    ] {
        let errors = parse_with(text, &[]).unwrap_err();
        let first = &errors.problems()[0];
        assert!(matches!(first.kind, Kind::Syntax(_)), "{text}: {errors}");
        let origin = Origin::File {
            file: "test.yaml".to_owned(),
            line,
        };
        assert_eq!(first.origin, origin, "{text}: {errors}");
    }
}

#[test]
fn a_key_written_twice_is_refused() {
    let message = problem(parse_more("vault:\n  sync: always\n  sync: never\n"));
    assert_eq!(
        message,
        "test.yaml:7: vault.sync: written twice, first on line 6"
    );
}

#[test]
fn a_value_of_the_wrong_shape_is_refused() {
    let message = problem(parse_more("vault: 5\n"));
    assert_eq!(message, "test.yaml:5: vault: expected a mapping of keys");
    let message = problem(parse_more("vault: { dir: }\n"));
    assert_eq!(message, "test.yaml:5: vault.dir: expected a path");
    let message = problem(parse_more("control: { unix: { allow_uids: 0 } }\n"));
    assert!(
        message.contains("allow_uids: expected a list of numeric ids"),
        "{message}"
    );
    assert_eq!(
        problems(parse_more("vault:\n")),
        [""; 0],
        "an empty section is fine"
    );
}

#[test]
fn the_environment_overrides_single_keys() {
    let text = format!("{REQUIRED}vault: {{ dir: /from/file, linger: nonsense }}\n");
    let env = [
        ("GOPHERSHIP_VAULT__DIR", "/from/env"),
        ("GOPHERSHIP_VAULT__LINGER", "1ms"),
        ("GOPHERSHIP_CONTROL__UNIX__ALLOW_UIDS", "0, 1000"),
        ("GOPHERSHIP_EBPF_OBJ", "anything"),
        ("GOPHERSHIP_REQUIRE_KERNEL", "1"),
        ("PATH", "/bin"),
        // What Kubernetes sets where a Service is called gophership.
        ("GOPHERSHIP_SERVICE_HOST", "10.0.0.1"),
        ("GOPHERSHIP_SERVICE_PORT_OTLP", "4317"),
        ("GOPHERSHIP_PORT", "tcp://10.0.0.1:4317"),
        ("GOPHERSHIP_PORT_4317_TCP_ADDR", "10.0.0.1"),
    ];
    let config = parse_with(&text, &env).unwrap();
    assert_eq!(config.vault.dir, PathBuf::from("/from/env"));
    assert_eq!(config.vault.linger, Duration::from_millis(1));
    assert_eq!(config.control.allow_uids, [0, 1000]);
}

#[test]
fn problems_of_the_environment_name_the_variable() {
    let env = [
        ("GOPHERSHIP_VAULT__MAX_BYTES", "much"),
        ("GOPHERSHIP_VAULT__DRI", "x"),
    ];
    assert_eq!(
        problems(parse_with(REQUIRED, &env)),
        [
            "environment variable GOPHERSHIP_VAULT__DRI: vault.dri: unknown variable; did you mean GOPHERSHIP_VAULT__DIR?",
            "environment variable GOPHERSHIP_VAULT__MAX_BYTES: vault.max_bytes: \"much\": expected a size such as 16MiB, 1GiB or plain bytes",
        ]
    );
}

#[test]
fn a_missing_file_is_an_error_if_it_was_named() {
    let path = PathBuf::from("/nonexistent/gophership.yaml");
    let errors = config::load(Some(&path), std::iter::empty()).unwrap_err();
    assert!(
        errors
            .to_string()
            .starts_with("/nonexistent/gophership.yaml:1: can't be read: ")
    );
}

#[test]
fn automatic_sizes_follow_the_machine() {
    let small = Host {
        cores: 1,
        memory_limit_bytes: 512 << 20,
    };
    let config = config::parse_for(REQUIRED, "t", std::iter::empty(), small);
    assert_eq!(config.unwrap().memory_total_bytes, 128 << 20);
    let more = "vault: { max_bytes: 256MiB }\n";
    let many = Host {
        cores: 8,
        memory_limit_bytes: 64 << 30,
    };
    let text = format!("{REQUIRED}{more}");
    let errors = config::parse_for(&text, "t", std::iter::empty(), many).unwrap_err();
    let message = errors.to_string();
    assert!(
        message.contains(
            "vault.max_bytes = 256MiB is less than 2 segments for each worker (ingest.workers = 8, \
             vault.segment_bytes = 32MiB, as ingest.max_request_bytes = 16MiB needs): at least 512MiB"
        ),
        "{message}"
    );
    let small_requests = [("GOPHERSHIP_INGEST__MAX_REQUEST_BYTES", "15MiB")];
    let text = format!("{REQUIRED}vault: {{ max_bytes: 255MiB }}\n");
    let config = parse_with(&text, &small_requests).unwrap();
    assert_eq!(config.vault.segment_bytes, 32 << 20);
    // Two of the largest request must fit one.
    let text = REQUIRED.replacen("ingest:\n", "ingest:\n  max_request_bytes: 40MiB\n", 1);
    let config = config::parse_for(&text, "t", std::iter::empty(), many).unwrap();
    assert_eq!(config.vault.segment_bytes, 128 << 20);
}

#[test]
fn the_largest_request_is_the_one_that_the_vault_takes() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{REQUIRED}vault: {{ segment_bytes: 32MiB }}\n");
    let parsed = |bytes: u64| {
        let bytes = bytes.to_string();
        parse_with(&text, &[("GOPHERSHIP_INGEST__MAX_REQUEST_BYTES", &bytes)])
    };
    let (mut passes, mut fails) = (1 << 20, 24 << 20);
    while fails - passes > 1 {
        let middle = u64::midpoint(passes, fails);
        match parsed(middle) {
            Ok(_) => passes = middle,
            Err(_) => fails = middle,
        }
    }
    let mut vault = parsed(passes).unwrap().vault;
    vault.dir = dir.path().join("vault");
    Vault::open(&vault, &[]).unwrap().close().unwrap();
    vault.max_entry_bytes += 1;
    assert!(
        Vault::open(&vault, &[]).is_err(),
        "{passes} isn't the largest"
    );
    let message = problem(parsed(fails));
    assert!(message.ends_with(&format!("at most {passes}")), "{message}");
}

/// Each: what is added to `REQUIRED`, and what the only problem must name.
const CONFLICTS: &[(&str, &[&str])] = &[
    (
        "memory: { total: 40MiB }",
        &[
            "ingest.max_request_bytes = 16MiB",
            "three quarters",
            "memory.ingest",
        ],
    ),
    // Three quarters of the budget, but not of what the buffers leave of it.
    (
        "memory: { total: 43800KiB }",
        &[
            "ingest.max_request_bytes = 16MiB",
            "ingest.workers = 2",
            "memory.ingest of memory.total = 21900KiB",
        ],
    ),
    (
        "memory: { total: 20MiB, export: 40%, vault: 10% }",
        &[
            "ingest.max_request_bytes = 16MiB",
            "memory.ingest",
            "memory.total",
        ],
    ),
    (
        "vault: { segment_bytes: 16MiB }",
        &[
            "ingest.max_request_bytes = 16MiB",
            "vault.segment_bytes = 16MiB",
        ],
    ),
    (
        "vault: { segment_bytes: 31MiB }",
        &[
            "ingest.max_request_bytes = 16MiB",
            "vault.segment_bytes = 31MiB",
        ],
    ),
    (
        "memory: { total: 64MiB, vault: 0.1% }",
        &[
            "memory.vault",
            "memory.total",
            "ingest.workers = 2",
            "128KiB",
        ],
    ),
    (
        "vault: { segment_bytes: 64MiB, max_bytes: 255MiB }",
        &[
            "vault.max_bytes = 255MiB",
            "ingest.workers = 2",
            "vault.segment_bytes = 64MiB",
            "256MiB",
        ],
    ),
    (
        "vault: { segment_bytes: 67108865 }",
        &["vault.segment_bytes", "multiple of 4KiB"],
    ),
    (
        "memory: { ingest: 60% }",
        &[
            "memory.ingest = 60%",
            "memory.export = 30%",
            "memory.vault = 20%",
            "100%",
        ],
    ),
    ("memory: { total: 9GiB }", &["memory.total = 9GiB", "8GiB"]),
    (
        "pressure: { budget: { yellow: 95% } }",
        &[
            "pressure.budget.yellow = 95%",
            "pressure.budget.red = 95%",
            "less than",
        ],
    ),
    (
        "pressure: { receive_queue: { yellow: 90% } }",
        &[
            "pressure.receive_queue.yellow = 90%",
            "pressure.receive_queue.red = 80%",
        ],
    ),
    (
        "pressure: { memory_available: { red: 20% } }",
        &[
            "memory_available.yellow = 15%",
            "memory_available.red = 20%",
            "more than",
        ],
    ),
    (
        "pressure: { cpu_wait: { yellow: off } }",
        &["cpu_wait.yellow = off", "cpu_wait.red = 70%", "less than"],
    ),
    ("pressure: { tick: 2s }", &["pressure.tick", "1ms to 1s"]),
    (
        "memory: { total: 1GiB, export: 0% }",
        &["export.batch.max_bytes = 4MiB", "memory.export"],
    ),
    (
        "xdp: { interface: eth0, guard: { allow: [10.0.0.0/8, 10.0.0.0/33] } }",
        &["xdp.guard.allow: \"10.0.0.0/33\": the length must be"],
    ),
    (
        "xdp: { interface: eth0, guard: { deny: [producers] } }",
        &["xdp.guard.deny: \"producers\": not an IP address"],
    ),
    (
        "xdp: { interface: eth0, guard: { deny: [\"2001:db8::1/32\"] } }",
        &[
            "xdp.guard.deny: \"2001:db8::1/32\"",
            "2001:db8::/32 is meant",
        ],
    ),
    (
        "xdp: { interface: eth0, guard: { allow: [10.0.0.0/8], deny: [192.0.2.1, 10.0.0.0/8] } }",
        &["10.0.0.0/8 is both in xdp.guard.allow and in xdp.guard.deny"],
    ),
    (
        "xdp: { guard: { deny: [192.0.2.1], syn_per_second: 20 } }",
        &["xdp.guard.deny, xdp.guard.syn_per_second without xdp.interface"],
    ),
    (
        "xdp: { interface: null, guard: { allow: [10.0.0.0/8] } }",
        &["xdp.guard.allow without xdp.interface"],
    ),
    (
        "xdp: { interface: [eth0, eth1, eth0] }",
        &["xdp.interface names an interface twice"],
    ),
    (
        "xdp: { interface: [a, b, c, d, e, f, g, h, i] }",
        &["xdp.interface has more than 8 interfaces"],
    ),
];

#[test]
fn the_smallest_ingest_budget_has_room_for_the_buffers_of_every_worker() {
    for workers in [1, 2, 16] {
        let least = budget_bytes_min(workers) / 1024;
        let workers = workers.to_string();
        let parsed = |kib: u64| {
            let total = format!("{}KiB", kib * 2);
            let env = [
                ("GOPHERSHIP_INGEST__WORKERS", workers.as_str()),
                ("GOPHERSHIP_INGEST__MAX_REQUEST_BYTES", "64KiB"),
                ("GOPHERSHIP_EXPORT__BATCH__MAX_BYTES", "64KiB"),
                ("GOPHERSHIP_MEMORY__TOTAL", total.as_str()),
            ];
            parse_with(REQUIRED, &env)
        };
        let config = parsed(least).map_err(|errors| errors.to_string());
        let ingest = config.unwrap().ingest;
        assert!(ingest.connections_bytes() >= Windows::SMALLEST.charge());
        let refused = problem(parsed(least - 1));
        let named = format!("ingest.workers = {workers} need ");
        assert!(refused.contains(&named), "{refused}");
    }
}

#[test]
fn keys_that_contradict_each_other_are_named_with_their_values() {
    for (more, needles) in CONFLICTS {
        let message = problem(parse_more(&format!("{more}\n")));
        for needle in *needles {
            assert!(message.contains(needle), "{more}: {message}");
        }
        assert!(message.starts_with("test.yaml:5: "), "{more}: {message}");
    }
}

#[test]
fn xdp_is_off_unless_an_interface_is_named() {
    assert_eq!(parse_more("").unwrap().pressure.xdp, XdpConfig::default());
    for off in ["null", "[]"] {
        let config = parse_more(&format!("xdp: {{ interface: {off} }}\n")).unwrap();
        assert_eq!(config.pressure.xdp, XdpConfig::default(), "{off}");
    }
    for (written, expected) in [("eth0", vec!["eth0"]), ("[eth0, lo]", vec!["eth0", "lo"])] {
        let config = parse_more(&format!("xdp: {{ interface: {written} }}\n")).unwrap();
        assert_eq!(config.pressure.xdp.interfaces, expected);
        assert_eq!(config.pressure.xdp.mode, XdpMode::Auto);
    }
}

#[test]
fn the_guards_lists_and_limit_are_read() {
    let guard = "allow: [10.0.0.0/8, \"2001:db8::/32\"], deny: [192.0.2.7], syn_per_second: 50";
    let more = format!("xdp: {{ interface: eth0, mode: native, guard: {{ {guard} }} }}\n");
    let xdp = parse_more(&more).unwrap().pressure.xdp;
    assert_eq!(xdp.mode, XdpMode::Native);
    let shown = |prefixes: &[Prefix]| prefixes.iter().map(Prefix::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&xdp.guard.allow), ["10.0.0.0/8", "2001:db8::/32"]);
    assert_eq!(shown(&xdp.guard.deny), ["192.0.2.7/32"]);
    assert_eq!(xdp.guard.syn_per_second.map(NonZeroU32::get), Some(50));
    for bad in ["0", "1000001", "-1", "many"] {
        let more = format!("xdp: {{ guard: {{ syn_per_second: {bad} }} }}\n");
        let message = problem(parse_more(&more));
        assert!(message.contains("from 1 to 1000000"), "{message}");
    }
    for bad in ["a/b", "sixteen-letters0", "\"a b\"", "[..]"] {
        let message = problem(parse_more(&format!("xdp: {{ interface: {bad} }}\n")));
        assert!(
            message.contains("the name of a network interface"),
            "{message}"
        );
    }
}

/// Each: the list of destinations, and what the only problem must name.
const DESTINATION_CONFLICTS: &[(&str, &[&str])] = &[
    ("[]", &["export.destinations", "must be set"]),
    (
        "[{ name: a, file: { path: x } }, { name: a, file: { path: y } }]",
        &["export.destinations[1].name = a", "export.destinations[0]"],
    ),
    (
        "[{ name: a, file: { path: x } }, { name: b, file: { path: x } }]",
        &[
            "export.destinations[1].file.path = x",
            "export.destinations[0]",
        ],
    ),
    ("[{ name: a }]", &["export.destinations[0]", "otlp", "file"]),
    (
        "[{ file: { path: x } }]",
        &["export.destinations[0].name", "must be set"],
    ),
    (
        "[{ name: \"\", file: { path: x } }]",
        &["export.destinations[0].name", "expected 1 to 64"],
    ),
    (
        "[{ name: a, file: { path: x }, otlp: { endpoint: \"https://h:1\" } }]",
        &[
            "export.destinations[0].otlp",
            "export.destinations[0].file",
            "exclude",
        ],
    ),
    (
        "[{ name: a, otlp: { timeout: 1s } }]",
        &["otlp.endpoint", "must be set"],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"http://h:1\" } }]",
        &["otlp.endpoint = http://h:1", "otlp.tls.insecure = false"],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"https://h:1\", tls: { insecure: true } } }]",
        &["otlp.tls.insecure = true", "otlp.endpoint = https://h:1"],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"https://h:1\", tls: { cert: c } } }]",
        &[
            "otlp.tls.cert = c",
            "needs export.destinations[0].otlp.tls.key",
        ],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"https://h:1\", tls: { key: k } } }]",
        &[
            "otlp.tls.key = k",
            "needs export.destinations[0].otlp.tls.cert",
        ],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"https://h:1\", endpoints: [\"https://h:1\"] } }]",
        &["otlp.endpoint and", "otlp.endpoints exclude each other"],
    ),
    (
        "[{ name: a, otlp: { endpoints: [] } }]",
        &["otlp.endpoints", "expected a list of 1 to 16"],
    ),
    (
        "[{ name: a, otlp: { endpoints: [\"https://h:1\", \"https://h:1\"] } }]",
        &["otlp.endpoints", "different"],
    ),
    (
        "[{ name: a, otlp: { endpoints: [\"https://h:1\", \"http://h:1\"] } }]",
        &["otlp.endpoints = http://h:1 is plaintext"],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"https://h:1/x\" } }]",
        &[
            "otlp.endpoint = https://h:1/x has a path",
            "otlp.protocol = grpc",
        ],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"https://h:1\", retry: { initial: 1m } } }]",
        &[
            "otlp.retry.initial = 60s is more than",
            "otlp.retry.max = 10s",
        ],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"https://h:1\", retry: { multiplier: 0.5 } } }]",
        &["otlp.retry.multiplier", "0.5", "a number from 1 to 10"],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"https://h:1\", headers: { a: { env: X, file: Y } } } }]",
        &["otlp.headers", "{ env: NAME } or { file: PATH }"],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"https://h:1\", headers: { a: { vault: X } } } }]",
        &["otlp.headers", "{ env: NAME } or { file: PATH }"],
    ),
    (
        "[{ name: a, file: { path: x, rotate_bytes: 0 } }]",
        &["file.rotate_bytes", "expected a size", "or off"],
    ),
    (
        "[{ name: a, file: { path: x, keep: 0 } }]",
        &["file.keep", "from 1 to 1000"],
    ),
    (
        "[{ name: a, otlp: { endpoint: \"h:1\" } }]",
        &["otlp.endpoint", "expected https://host:port"],
    ),
];

#[test]
fn destinations_that_contradict_each_other_are_named_with_their_values() {
    for (list, needles) in DESTINATION_CONFLICTS {
        let text = format!(
            "ingest:\n  tls: {{ cert: c, key: k, client_ca: ca }}\nexport: {{ destinations: {list} }}\n"
        );
        let message = problem(parse_with(&text, &[]));
        for needle in *needles {
            assert!(message.contains(needle), "{list}: {message}");
        }
        assert!(message.starts_with("test.yaml:3: "), "{list}: {message}");
    }
}

#[test]
fn more_than_32_destinations_are_refused() {
    let item = |i| format!("{{ name: d{i}, file: {{ path: f{i} }} }}");
    let list = |n| (0..n).map(item).collect::<Vec<_>>().join(", ");
    let text = |n| {
        format!(
            "ingest:\n  tls: {{ cert: c, key: k, client_ca: ca }}\nexport:\n  destinations: [{}]\n",
            list(n)
        )
    };
    assert!(parse_with(&text(32), &[]).is_ok());
    assert!(problem(parse_with(&text(33), &[])).contains("33 destinations, but at most 32"));
}

#[test]
fn header_values_and_passwords_are_never_shown() {
    let otlp =
        |more: &str| format!("[{{ name: a, otlp: {{ endpoint: \"https://h:1\", {more} }} }}]");
    let endpoint = "\"https://me:hunter2@h:1\"";
    let cases = [
        (
            otlp("headers: { Authorization: hunter2 }"),
            "otlp.headers: expected a map",
        ),
        (
            otlp("proxy: \"https://me:hunter2@p:1\""),
            "otlp.proxy: expected http://host:port",
        ),
        (
            format!("[{{ name: a, otlp: {{ endpoint: {endpoint} }} }}]"),
            "otlp.endpoint: expected https://host:port",
        ),
        (
            format!("[{{ name: a, otlp: {{ endpoints: [{endpoint}] }} }}]"),
            "otlp.endpoints: expected a list",
        ),
    ];
    for (list, expected) in cases {
        let text = format!(
            "ingest:\n  tls: {{ cert: c, key: k, client_ca: ca }}\nexport: {{ destinations: {list} }}\n"
        );
        let message = problem(parse_with(&text, &[]));
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

/// What is wrong with a file, as keys.
fn problems_of(text: &str) -> Vec<(String, Kind)> {
    let errors =
        config::parse(text, "test.yaml", std::iter::empty()).expect_err("nothing goes anywhere");
    let problems = errors.problems().iter();
    problems
        .map(|problem| (problem.key.clone(), problem.kind.clone()))
        .collect()
}

#[test]
fn the_printed_default_means_what_an_empty_file_means() {
    let printed = config::describe::default_yaml();
    assert_eq!(problems_of(&printed), problems_of(""));
    // And so does each key that is worth something.
    let set = printed
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let keys = schema::KEYS.iter().filter(|entry| {
        matches!(entry.fallback, schema::Fallback::Default(_)) && !entry.path.contains("[]")
    });
    assert_eq!(set.filter(|line| line.contains(": ")).count(), keys.count());
}

#[test]
fn what_the_printed_default_has_in_comments_is_known() {
    let printed = config::describe::default_yaml();
    let mut destinations = false;
    let uncommented = printed.lines().map(|line| {
        let (indent, text) = line.split_at(line.len() - line.trim_start().len());
        destinations |= text == "# destinations:";
        destinations &= !text.is_empty();
        let text = match destinations {
            true => text.strip_prefix("# ").unwrap_or(text),
            false => text,
        };
        format!("{indent}{text}\n")
    });
    let problems = problems_of(&uncommented.collect::<String>());
    for (key, kind) in &problems {
        assert!(
            !matches!(kind, Kind::UnknownKey { .. } | Kind::Syntax(_)),
            "{key}: {kind}"
        );
    }
    // It was read: it is a server and a file at once.
    assert!(
        problems
            .iter()
            .any(|(key, _)| key.starts_with("export.destinations[0]"))
    );
}

#[test]
fn the_reference_in_docs_is_that_of_the_keys() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let reference = config::describe::reference();
    if std::env::var_os("GOPHERSHIP_BLESS").is_some() {
        std::fs::write(&path, &reference).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == reference,
        "docs/configuration.md is not up to date: it says how to make it anew"
    );
}

#[test]
fn the_schema_has_every_key_in_its_place_and_takes_no_other() {
    let schema = config::describe::json_schema();
    for entry in schema::KEYS {
        let mut at = &schema;
        for name in entry.path.split('.') {
            assert_eq!(at["additionalProperties"], false, "{}", entry.path);
            let (name, is_list) = match name.strip_suffix("[]") {
                Some(name) => (name, true),
                None => (name, false),
            };
            at = &at["properties"][name];
            if is_list {
                assert_eq!(at["type"], "array");
                at = &at["items"];
            }
        }
        let description = at["description"].as_str().expect(entry.path);
        assert!(description.contains(entry.expects), "{}", entry.path);
    }
}

#[test]
fn what_holds_is_shown_with_where_it_was_written_and_without_secrets() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "\
ingest: { plaintext: true, grpc: { listen: \"127.0.0.1:0\" }, http: { listen: \"127.0.0.1:0\" } }
export:
  destinations:
    - name: a
      otlp:
        endpoint: \"https://a:4317\"
        proxy: \"http://user:hidden-password@proxy:3128\"
        headers: { authorization: hidden-token, x-team: { env: TEAM } }
    - name: b
      file: { path: /tmp/b }
",
    )
    .unwrap();
    let env = [
        ("GOPHERSHIP_VAULT__DIR".to_owned(), "/v".to_owned()),
        ("TEAM".to_owned(), "t".to_owned()),
    ];
    let keys = config::effective(Some(file.path()), env.into_iter()).unwrap();
    let of = |path: &str| keys.iter().find(|key| key.path == path);
    let value = |path: &str| of(path).and_then(|key| key.value.clone());
    let listen = of("ingest.grpc.listen").unwrap();
    assert!(listen.origin.to_string().ends_with(":1"), "{listen:?}");
    assert_eq!(value("vault.dir").as_deref(), Some("/v"));
    assert_eq!(
        of("vault.dir").unwrap().origin.to_string(),
        "environment variable GOPHERSHIP_VAULT__DIR"
    );
    assert_eq!(value("vault.linger").as_deref(), Some("500us"));
    assert_eq!(
        value("export.destinations[1].file.path").as_deref(),
        Some("/tmp/b")
    );
    assert!(of("export.destinations[1].otlp.timeout").is_none());
    let headers = value("export.destinations[0].otlp.headers").unwrap();
    assert!(headers.contains("authorization: (hidden)") && headers.contains("env: TEAM"));
    let all = format!("{keys:?}");
    assert!(!all.contains("hidden-"), "{all}");
}
