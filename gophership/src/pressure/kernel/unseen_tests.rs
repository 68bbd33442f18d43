use std::{fs::File, io::Write as _, thread, time::Instant};

use gophership_common::PROGRAM_BLOCK_COMPLETE;

use super::{
    super::{Config, IngestScope, KernelMode, Levels, Pressure},
    *,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Measures the disk, and judges nothing by it.
fn config() -> Config {
    const OFF: Levels = Levels {
        yellow_permille: Levels::OFF,
        red_permille: Levels::OFF,
    };
    Config {
        kernel: KernelMode::Required,
        tick: Duration::from_millis(10),
        sample_every: 1024,
        hold: Duration::from_millis(200),
        receive_queue: OFF,
        receive_queue_for: Duration::from_millis(5),
        listen_backlog: OFF,
        memory_stall: OFF,
        memory_available: OFF,
        cpu_wait: OFF,
        disk_latency: None,
        ingress_horizon: None,
        budget: OFF,
        heartbeat_limit: Duration::from_secs(3600),
        xdp: XdpConfig::default(),
    }
}

fn signal(pressure: &Pressure, wanted: Signal) -> f64 {
    let snapshot = pressure.snapshot();
    let mut signals = snapshot.signals.iter();
    let reading = signals.find(|reading| reading.signal == wanted).unwrap();
    assert!(reading.available, "{}", wanted.as_str());
    reading.value
}

/// Does something until something holds.
#[track_caller]
fn until(what: &str, pressure: &Pressure, mut act: impl FnMut(), holds: impl Fn(f64, f64) -> bool) {
    let start = Instant::now();
    loop {
        act();
        let latency = signal(pressure, Signal::DiskLatency);
        let depth = signal(pressure, Signal::DiskDepth);
        if holds(latency, depth) {
            break;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "not {what}: {depth} requests, {latency} s"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn requests_whose_completions_go_unseen_are_over_all_the_same() {
    // Where the test's program lies: there is a disk below, which /tmp may lack.
    let program = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let scope = IngestScope {
        ports: vec![],
        h2_window_bytes: 0,
        vault_dir: Some(dir.path().to_owned()),
    };
    let mut pressure = match Pressure::start(&config(), &scope, 1) {
        Ok(pressure) => pressure,
        Err(error) => {
            let required = std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL");
            assert!(required.is_none_or(|value| value != "1"), "{error}");
            eprintln!("nothing tested: {error}");
            return;
        }
    };
    let mut file = File::create(dir.path().join("data")).unwrap();
    let mut write = || {
        file.write_all(&[1; 4096]).unwrap();
        file.sync_all().unwrap();
    };
    until("followed", &pressure, &mut write, |latency, _| {
        latency > 0.0
    });

    let ebpf = &mut pressure.kernel.as_mut().unwrap().ebpf;
    let complete = ebpf.program_mut(PROGRAM_BLOCK_COMPLETE).unwrap();
    <&mut BtfTracePoint>::try_from(complete)
        .unwrap()
        .unload()
        .unwrap();
    for _ in 0..64 {
        write();
    }
    // What others do on the disk comes and goes.
    until(
        "idle",
        &pressure,
        || {},
        |latency, depth| latency == 0.0 && depth == 0.0,
    );
}
