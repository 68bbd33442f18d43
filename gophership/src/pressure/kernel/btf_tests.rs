use libbpf_sys::{btf__add_field, btf__add_int, btf__add_struct, btf__new_empty};

use super::*;

/// A kernel with these structures of plain fields, each four bytes.
fn kernel(structures: &[(&str, &[&str])]) -> Vmlinux {
    // SAFETY: no preconditions.
    let btf = Vmlinux(NonNull::new(unsafe { btf__new_empty() }).unwrap());
    let raw = btf.0.as_ptr();
    let text = |name: &str| CString::new(name).unwrap();
    // SAFETY: `raw` is live, and the names end in a null.
    let number = unsafe { btf__add_int(raw, text("u32").as_ptr(), 4, 0) };
    assert!(number > 0);
    for (name, fields) in structures {
        let bytes = u32::try_from(fields.len() * 4).unwrap();
        // SAFETY: as above.
        let id = unsafe { btf__add_struct(raw, text(name).as_ptr(), bytes) };
        assert!(id > 0, "{name}");
        for (index, field) in (0_u32..).zip(*fields) {
            // A field may be one of the structures before.
            let kind = libbpf_sys::BTF_KIND_STRUCT;
            let (field, of) = field.split_once(':').unwrap_or((field, ""));
            let of = text(of);
            // SAFETY: as above.
            let added = unsafe {
                let of = libbpf_sys::btf__find_by_name_kind(raw, of.as_ptr(), kind);
                let of = if of > 0 { of } else { number };
                btf__add_field(raw, text(field).as_ptr(), of, index * 32, 0)
            };
            assert_eq!(added, 0, "{field}");
        }
    }
    btf
}

/// What receive queues need, and nothing else.
const QUEUES: [(&str, &[&str]); 8] = [
    ("ns_common", &["ops", "inum"]),
    ("net", &["passive", "ns:ns_common"]),
    ("possible_net_t", &["net"]),
    (
        "sock_common",
        &["skc_daddr", "skc_num", "skc_net:possible_net_t"],
    ),
    ("sock", &["__sk_common:sock_common", "sk_rcvbuf"]),
    ("tcp_sock", &["rcv_nxt", "copied_seq", "rcv_wnd"]),
    ("tcp_skb_cb", &["seq", "end_seq"]),
    ("sk_buff", &["len", "cb"]),
];

#[test]
fn a_missing_field_costs_only_the_signals_that_need_it() {
    let known = known(&kernel(&QUEUES)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(known.offsets.local_port, 4);
    assert_eq!(known.offsets.net_inum, 8);
    assert_eq!(known.offsets.disk_minor, OFFSET_ABSENT);
    for (signal, field) in [
        (Signal::ListenBacklog, "sock.sk_ack_backlog"),
        (Signal::CpuWait, "task_struct.state"),
        (Signal::OomKills, "task_struct.tgid"),
        (Signal::DiskLatency, "gendisk.first_minor"),
        (Signal::DiskDepth, "request_queue.disk"),
        (Signal::MemoryStallCgroup, "css_set.subsys"),
    ] {
        let named = known.lacking.iter().any(|(signals, error)| {
            signals.contains(&signal) && error.to_string().ends_with(field)
        });
        assert!(named, "{signal:?} {field}: {:?}", known.lacking);
    }
    let queues = |(signals, _): &(&[Signal], Error)| signals.contains(&Signal::ReceiveQueue);
    assert!(!known.lacking.iter().any(queues), "{:?}", known.lacking);
}

#[test]
fn nothing_runs_without_what_receive_queues_need() {
    for missing in 0..QUEUES.len() {
        let mut rest = QUEUES.to_vec();
        let (structure, _) = rest.remove(missing);
        let found = known(&kernel(&rest));
        assert!(matches!(found, Err(Error::Field { .. })), "{structure}");
    }
}

#[test]
fn where_requests_name_their_disk_their_queues_need_not() {
    let disks: [(&str, &[&str]); 2] = [
        ("request", &["q", "rq_disk", "state"]),
        ("gendisk", &["major", "first_minor"]),
    ];
    let known = known(&kernel(&[&QUEUES[..], &disks].concat())).unwrap();
    assert_eq!(known.offsets.queue_disk, OFFSET_ABSENT);
    assert_eq!(known.offsets.request_disk, 4);
    let disks = |(signals, _): &(&[Signal], Error)| signals.contains(&Signal::DiskLatency);
    assert!(!known.lacking.iter().any(disks), "{:?}", known.lacking);
}

#[test]
fn offsets_agree_with_what_never_moved() {
    if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        return;
    }
    let Known { offsets, lacking } = offsets().unwrap();
    assert!(lacking.is_empty(), "{lacking:?}");
    // `skc_num` follows two addresses, the hash and the remote port in every kernel with BTF.
    assert_eq!(offsets.local_port, 14);
    assert_eq!(offsets.segment_end_seq, offsets.segment_seq + 4);
    assert!(
        offsets.rcv_nxt > offsets.receive_buffer,
        "tcp_sock extends sock"
    );
}

#[test]
fn a_missing_field_is_named() {
    if let Ok(btf) = Vmlinux::load() {
        let error = btf.offset("sock", "no_such_field").unwrap_err();
        assert!(error.to_string().contains("no_such_field"), "{error}");
    }
}
