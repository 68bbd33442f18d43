use gophership_common::{OFFSET_ABSENT, Offsets};

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
