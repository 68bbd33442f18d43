//! Field offsets of the running kernel, from `/sys/kernel/btf/vmlinux` through libbpf.
//!
//! Layout of `struct btf_type` and its members: `include/uapi/linux/btf.h`.

use std::{
    ffi::{CStr, CString},
    ptr::{self, NonNull},
    slice,
};

use gophership_common::{ListOffsets, OFFSET_ABSENT, Offsets, Signal};
use libbpf_sys::{btf_enum, btf_member, btf_param, btf_type};

use super::Error;

/// The kernel's own type information.
struct Vmlinux(NonNull<libbpf_sys::btf>);

impl Drop for Vmlinux {
    fn drop(&mut self) {
        // SAFETY: loaded by `load`, freed once.
        unsafe { libbpf_sys::btf__free(self.0.as_ptr()) };
    }
}

impl Vmlinux {
    fn load() -> Result<Self, Error> {
        // SAFETY: silences libbpf's own messages on stderr; no preconditions.
        unsafe { libbpf_sys::libbpf_set_print(None) };
        // SAFETY: no preconditions; returns null and sets errno on failure.
        let btf = unsafe { libbpf_sys::btf__load_vmlinux_btf() };
        NonNull::new(btf)
            .map(Self)
            .ok_or_else(|| Error::Btf(load_error(std::io::Error::last_os_error())))
    }

    fn by_id(&self, id: u32) -> Option<&btf_type> {
        // SAFETY: `self.0` is live; the type, if any, lives as long as it does.
        unsafe { libbpf_sys::btf__type_by_id(self.0.as_ptr(), id).as_ref() }
    }

    fn name(&self, offset: u32) -> &[u8] {
        // SAFETY: `self.0` is live; the string is its own and null-terminated.
        unsafe {
            let name = libbpf_sys::btf__name_by_offset(self.0.as_ptr(), offset);
            if name.is_null() {
                return b"";
            }
            CStr::from_ptr(name).to_bytes()
        }
    }

    fn named(&self, name: &str, kind: u32) -> Option<&btf_type> {
        let name = CString::new(name).ok()?;
        // SAFETY: `self.0` is live, the name is null-terminated.
        let id =
            unsafe { libbpf_sys::btf__find_by_name_kind(self.0.as_ptr(), name.as_ptr(), kind) };
        self.by_id(u32::try_from(id).ok()?)
    }

    /// Offset of the memory controller's state in `struct css_set`.
    fn memory_css(&self) -> Result<u32, Error> {
        const POINTER_BYTES: u32 = 8;
        let (structure, path) = ("cgroup_subsys_id", "memory_cgrp_id");
        let subsystems = self.offset("css_set", "subsys")?;
        let index = self.enumerator(structure, path);
        let index = index.ok_or(Error::Field { structure, path })?;
        Ok(subsystems + index * POINTER_BYTES)
    }

    /// The value of a small enumerator.
    fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        let found = self.named(enumeration, libbpf_sys::BTF_KIND_ENUM)?;
        let count = (found.info & 0xffff) as usize;
        // SAFETY: libbpf keeps the enumerators right behind their `btf_type`, in memory that lives
        // as long as the type.
        let enumerators = unsafe {
            let first = ptr::from_ref(found).add(1).cast::<btf_enum>();
            slice::from_raw_parts(first, count)
        };
        let found = enumerators
            .iter()
            .find(|enumerator| self.name(enumerator.name_off) == name.as_bytes())?;
        u32::try_from(found.val).ok()
    }

    /// Whether a tracepoint's first argument (behind the context) is a pointer.
    fn takes_pointer(&self, typedef: &str) -> bool {
        // The typedef is of a pointer to a function's prototype.
        let target = |found: &btf_type| {
            // SAFETY: typedefs and pointers use the `type` arm of the union.
            self.by_id(unsafe { found.__bindgen_anon_1.type_ })
        };
        let prototype = self
            .named(typedef, libbpf_sys::BTF_KIND_TYPEDEF)
            .and_then(target)
            .and_then(target)
            .filter(|found| kind(found) == libbpf_sys::BTF_KIND_FUNC_PROTO);
        let Some(prototype) = prototype.filter(|found| found.info & 0xffff >= 2) else {
            return false;
        };
        // SAFETY: libbpf keeps the parameters of a prototype right behind its `btf_type`; there are
        // at least two.
        let argument = unsafe {
            let first = ptr::from_ref(prototype).add(1).cast::<btf_param>();
            (*first.add(1)).type_
        };
        self.by_id(argument)
            .is_some_and(|found| kind(found) == libbpf_sys::BTF_KIND_PTR)
    }

    fn members<'a>(&self, composite: &'a btf_type) -> &'a [btf_member] {
        let count = (composite.info & 0xffff) as usize;
        // SAFETY: libbpf keeps the members of a struct or union right behind its `btf_type`, in
        // memory that lives as long as the type.
        unsafe {
            let first = ptr::from_ref(composite).add(1).cast::<btf_member>();
            slice::from_raw_parts(first, count)
        }
    }

    /// Strips typedefs and qualifiers; the struct or union behind, if it is one.
    fn composite(&self, mut id: u32) -> Option<&btf_type> {
        // A chain of qualifiers is short; the bound keeps broken BTF from looping.
        for _ in 0..16 {
            let found = self.by_id(id)?;
            match kind(found) {
                libbpf_sys::BTF_KIND_STRUCT | libbpf_sys::BTF_KIND_UNION => return Some(found),
                libbpf_sys::BTF_KIND_TYPEDEF
                | libbpf_sys::BTF_KIND_CONST
                | libbpf_sys::BTF_KIND_VOLATILE => {
                    // SAFETY: these kinds use the `type` arm of the union.
                    id = unsafe { found.__bindgen_anon_1.type_ };
                }
                _ => return None,
            }
        }
        None
    }

    /// Byte offset of a field, looking through anonymous members, and its type's id.
    fn field(&self, composite: &btf_type, name: &str) -> Option<(u32, u32)> {
        let packs_bitfields = composite.info >> 31 == 1;
        for member in self.members(composite) {
            let bits = if packs_bitfields {
                member.offset & 0x00ff_ffff
            } else {
                member.offset
            };
            let found = self.name(member.name_off);
            if found == name.as_bytes() {
                return Some((bits / 8, member.type_));
            }
            if found.is_empty()
                && let Some(inner) = self.composite(member.type_)
                && let Some((offset, id)) = self.field(inner, name)
            {
                return Some((bits / 8 + offset, id));
            }
        }
        None
    }

    /// Byte offset of `path` (fields separated by dots) in a struct.
    fn offset(&self, structure: &'static str, path: &'static str) -> Result<u32, Error> {
        let missing = || Error::Field { structure, path };
        let mut composite = self
            .named(structure, libbpf_sys::BTF_KIND_STRUCT)
            .ok_or_else(missing)?;
        let mut offset = 0;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let (inner, id) = self.field(composite, part).ok_or_else(missing)?;
            offset += inner;
            if parts.peek().is_some() {
                composite = self.composite(id).ok_or_else(missing)?;
            }
        }
        Ok(offset)
    }
}

/// libbpf looks in several places, and when it found none says "no such process".
fn load_error(error: std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(libc::ESRCH) => std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "not there: this kernel doesn't describe its types (CONFIG_DEBUG_INFO_BTF)",
        ),
        _ => error,
    }
}

fn kind(found: &btf_type) -> u32 {
    (found.info >> 24) & 0x1f
}

/// What the kernel half reads, as far as the running kernel has it.
pub(super) struct Known {
    /// Where the fields are.
    pub(super) offsets: Offsets,
    /// What can't be measured for want of a field.
    pub(super) lacking: Vec<(&'static [Signal], Error)>,
}

/// Looks up everything the kernel half reads.
///
/// # Errors
/// [`Error::Btf`] if the kernel has no BTF, [`Error::Field`] if a field isn't in it that receive
/// queues need.
pub(super) fn offsets() -> Result<Known, Error> {
    known(&Vmlinux::load()?)
}

fn known(btf: &Vmlinux) -> Result<Known, Error> {
    const BACKLOG: &[Signal] = &[Signal::ListenBacklog];
    const WAITS: &[Signal] = &[Signal::CpuWait];
    const DISKS: &[Signal] = &[Signal::DiskLatency, Signal::DiskDepth];
    const CGROUP: &[Signal] = &[Signal::MemoryStallCgroup];
    const VICTIMS: &[Signal] = &[Signal::CpuWait, Signal::OomKills];
    let mut lacking = Vec::new();
    let mut or_lacking = |signals, found: Result<u32, Error>| {
        found.unwrap_or_else(|error| {
            lacking.push((signals, error));
            OFFSET_ABSENT
        })
    };
    let control_block = btf.offset("sk_buff", "cb")?;
    let request_disk = btf.offset("request", "rq_disk");
    let queue_disk = match (btf.offset("request_queue", "disk"), &request_disk) {
        (Err(_), Ok(_)) => OFFSET_ABSENT,
        (found, _) => or_lacking(DISKS, found),
    };
    let offsets = Offsets {
        local_port: btf.offset("sock", "__sk_common.skc_num")?,
        net: btf.offset("sock", "__sk_common.skc_net.net")?,
        net_inum: btf.offset("net", "ns.inum")?,
        receive_buffer: btf.offset("sock", "sk_rcvbuf")?,
        rcv_nxt: btf.offset("tcp_sock", "rcv_nxt")?,
        copied_seq: btf.offset("tcp_sock", "copied_seq")?,
        scaling_ratio: btf
            .offset("tcp_sock", "scaling_ratio")
            .unwrap_or(OFFSET_ABSENT),
        segment_seq: control_block + btf.offset("tcp_skb_cb", "seq")?,
        segment_end_seq: control_block + btf.offset("tcp_skb_cb", "end_seq")?,
        receive_window: btf.offset("tcp_sock", "rcv_wnd")?,
        accept_queue: or_lacking(BACKLOG, btf.offset("sock", "sk_ack_backlog")),
        accept_queue_max: or_lacking(BACKLOG, btf.offset("sock", "sk_max_ack_backlog")),
        task_tgid: or_lacking(VICTIMS, btf.offset("task_struct", "tgid")),
        task_pid: or_lacking(WAITS, btf.offset("task_struct", "pid")),
        task_state: or_lacking(
            WAITS,
            btf.offset("task_struct", "__state")
                .or_else(|_| btf.offset("task_struct", "state")),
        ),
        request_queue: or_lacking(DISKS, btf.offset("request", "q")),
        request_state: or_lacking(DISKS, btf.offset("request", "state")),
        queue_disk,
        request_disk: request_disk.unwrap_or(OFFSET_ABSENT),
        disk_major: or_lacking(DISKS, btf.offset("gendisk", "major")),
        disk_minor: or_lacking(DISKS, btf.offset("gendisk", "first_minor")),
        task_cgroups: or_lacking(CGROUP, btf.offset("task_struct", "cgroups")),
        memory_css: or_lacking(CGROUP, btf.memory_css()),
        victim_is_task: u32::from(btf.takes_pointer("btf_trace_mark_victim")),
    };
    Ok(Known { offsets, lacking })
}

/// Looks up what only the iterators read.
///
/// # Errors
/// As [`offsets`].
pub(super) fn list_offsets() -> Result<ListOffsets, Error> {
    let btf = Vmlinux::load()?;
    Ok(ListOffsets {
        family: btf.offset("sock", "__sk_common.skc_family")?,
        state: btf.offset("sock", "__sk_common.skc_state")?,
        peer_port: btf.offset("sock", "__sk_common.skc_dport")?,
        local_ipv4: btf.offset("sock", "__sk_common.skc_rcv_saddr")?,
        peer_ipv4: btf.offset("sock", "__sk_common.skc_daddr")?,
        local_ipv6: btf
            .offset("sock", "__sk_common.skc_v6_rcv_saddr")
            .unwrap_or(OFFSET_ABSENT),
        peer_ipv6: btf
            .offset("sock", "__sk_common.skc_v6_daddr")
            .unwrap_or(OFFSET_ABSENT),
        protocol: btf.offset("sock", "sk_protocol")?,
        backlog: btf.offset("sock", "sk_ack_backlog")?,
        backlog_max: btf.offset("sock", "sk_max_ack_backlog")?,
        socket_sock: btf.offset("socket", "sk")?,
        group_leader: btf.offset("task_struct", "group_leader")?,
        name: btf.offset("task_struct", "comm")?,
        thread_pid: btf.offset("task_struct", "thread_pid")?,
        pid_level: btf.offset("pid", "level")?,
        pid_numbers: btf.offset("pid", "numbers")?,
    })
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
