use gophership_common::{
    OFFSET_ABSENT, Offsets, PROGRAM_CGROUP_RECLAIM_BEGIN, PROGRAM_CGROUP_RECLAIM_END,
    PROGRAM_RECLAIM_BEGIN, PROGRAM_RECLAIM_END,
};

use super::*;

#[test]
fn a_kernel_without_the_optional_fields_measures_queues() {
    let Ok(object) = object() else {
        eprintln!("nothing tested: {}", Error::NotBuiltIn);
        return;
    };
    let Ok(Known { offsets, .. }) = btf::offsets() else {
        return;
    };
    let offsets = Offsets {
        accept_queue: OFFSET_ABSENT,
        accept_queue_max: OFFSET_ABSENT,
        task_tgid: OFFSET_ABSENT,
        task_pid: OFFSET_ABSENT,
        task_state: OFFSET_ABSENT,
        request_queue: OFFSET_ABSENT,
        request_state: OFFSET_ABSENT,
        queue_disk: OFFSET_ABSENT,
        request_disk: OFFSET_ABSENT,
        disk_major: OFFSET_ABSENT,
        disk_minor: OFFSET_ABSENT,
        task_cgroups: OFFSET_ABSENT,
        memory_css: OFFSET_ABSENT,
        ..offsets
    };
    let known = Known {
        offsets,
        lacking: Vec::new(),
    };
    let loaded = Kernel::load_where(known, object, &XdpConfig::default());
    let attached = loaded.and_then(|(mut kernel, _pages, _events)| {
        kernel.attach(Duration::from_millis(10), &Unavailable::default())
    });
    match attached {
        Ok(measured) => {
            assert_ne!(measured & Signal::ReceiveQueue.bit(), 0, "{measured:b}");
            assert_ne!(measured & Signal::MemoryStall.bit(), 0, "{measured:b}");
            assert_eq!(measured & Signal::CpuWait.bit(), 0, "{measured:b}");
        }
        Err(error) => {
            let required = std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL");
            assert!(required.is_none_or(|value| value != "1"), "{error}");
            eprintln!("nothing tested: {error}");
        }
    }
}

#[test]
fn half_a_pair_does_not_stay_attached() {
    let load = || -> Result<_, Error> {
        let (mut kernel, pages, events) = Kernel::load(&XdpConfig::default())?;
        let btf = Btf::from_sys_fs().unwrap();
        // What is loaded already is refused.
        for name in [PROGRAM_RECLAIM_BEGIN, PROGRAM_CGROUP_RECLAIM_END] {
            let program: &mut BtfTracePoint =
                kernel.ebpf.program_mut(name).unwrap().try_into().unwrap();
            program
                .load(name, &btf)
                .map_err(|source| Error::Program { name, source })?;
        }
        let unavailable = Unavailable::default();
        let measured = kernel.attach(Duration::from_millis(10), &unavailable)?;
        Ok((kernel, pages, events, unavailable, measured))
    };
    let (kernel, _pages, _events, unavailable, measured) = match load() {
        Ok(loaded) => loaded,
        Err(error) => {
            let required = std::env::var_os("GOPHERSHIP_REQUIRE_KERNEL");
            assert!(required.is_none_or(|value| value != "1"), "{error}");
            eprintln!("nothing tested: {error}");
            return;
        }
    };
    for signal in [Signal::MemoryStall, Signal::MemoryStallCgroup] {
        assert_eq!(measured & signal.bit(), 0, "{signal:?}");
        assert!(unavailable.known(signal).is_some(), "{signal:?}");
    }
    assert_ne!(measured & Signal::ReceiveQueue.bit(), 0);
    // One was attached before the other was refused, one would have been after.
    for name in [PROGRAM_RECLAIM_END, PROGRAM_CGROUP_RECLAIM_BEGIN] {
        let program: &BtfTracePoint = kernel.ebpf.program(name).unwrap().try_into().unwrap();
        assert!(program.fd().is_err(), "{name} stays");
    }
}
