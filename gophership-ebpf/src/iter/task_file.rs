//! `iter/task_file`: the processes of this machine that are connected to an ingest port.
//!
//! User space matches them to the ingest sockets by both ends' addresses: after the privilege drop
//! it can't read other processes' descriptors in `/proc`.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::file,
    helpers::{bpf_get_current_task, generated::bpf_sock_from_file},
};
use gophership_common::{NAME_BYTES, Policy, ProcessRecord};

use super::{Meta, emit, ends, list_offset};
use crate::{
    maps,
    socket::{Socket, is_ingest, read},
};

/// Protocols of `include/uapi/linux/in.h`. A multipath connection has its first path's addresses.
const IPPROTO_TCP: u16 = 6;
const IPPROTO_MPTCP: u16 = 262;
/// `MAX_PID_NS_LEVEL` of `include/linux/pid_namespace.h`.
const PID_LEVEL_MAX: u32 = 32;
/// `struct upid` of `include/linux/pid.h`: the number, padding, a pointer.
const UPID_BYTES: u32 = 16;

/// `struct bpf_iter__task_file` of `kernel/bpf/task_iter.c`.
#[repr(C)]
struct Context {
    meta: *const Meta,
    /// Null at the end of the walk, and so is `file`.
    task: *const c_void,
    descriptor: u32,
    padding: u32,
    file: *mut file,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn list_processes(ctx: *const c_void) -> i32 {
    // SAFETY: the kernel's context for this section; the verifier checks each access.
    let (meta, task, file) = unsafe {
        let ctx = ctx.cast::<Context>();
        ((*ctx).meta, (*ctx).task, (*ctx).file)
    };
    if task.is_null() || file.is_null() {
        return 0;
    }
    // SAFETY: not null, and the context's own.
    let socket = unsafe { bpf_sock_from_file(file) };
    if socket.is_null() {
        return 0;
    }
    let Some(policy) = maps::policy_in_force() else {
        return 0;
    };
    if let Some(found) = record(task, socket.cast(), policy) {
        // SAFETY: the context's own.
        unsafe { emit(meta, &found) };
    }
    0
}

#[inline(always)]
fn record(task: *const c_void, socket: *const c_void, policy: &Policy) -> Option<ProcessRecord> {
    let sock = read::<u64>(socket, list_offset!(socket_sock))? as *const c_void;
    // The ports first: they rule out nearly everything.
    let (local, peer) = {
        let port = u16::from_be(read(sock, list_offset!(peer_port))?);
        if !is_ingest(port, policy) {
            return None;
        }
        let protocol = read::<u16>(sock, list_offset!(protocol))?;
        if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
            return None;
        }
        ends(Socket::at(sock))?
    };
    let leader = read::<u64>(task, list_offset!(group_leader))? as *const c_void;
    Some(ProcessRecord {
        local,
        peer,
        pid: pid(leader)?,
        netns_inum: Socket::at(sock).netns()?,
        name: read::<[u8; NAME_BYTES]>(leader, list_offset!(name))?,
    })
}

/// The process's number in the pid namespace of whoever reads.
#[inline(always)]
fn pid(task: *const c_void) -> Option<u32> {
    let thread_pid = list_offset!(thread_pid);
    // SAFETY: takes nothing, gives an address that is only read by helper.
    let reader = unsafe { bpf_get_current_task() } as *const c_void;
    let reader = read::<u64>(reader, thread_pid)? as *const c_void;
    let level = read::<u32>(reader, list_offset!(pid_level))?;
    let pid = read::<u64>(task, thread_pid)? as *const c_void;
    if level >= PID_LEVEL_MAX || level > read::<u32>(pid, list_offset!(pid_level))? {
        return None;
    }
    read(pid, list_offset!(pid_numbers) + level * UPID_BYTES)
}
