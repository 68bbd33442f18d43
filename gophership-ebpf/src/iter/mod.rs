//! Iterators, read by user space on demand: the ingest sockets, and the processes at their other end.
//!
//! aya-ebpf has no macro for them: a section name, and a context of pointers that the verifier knows
//! by type (`struct bpf_iter__tcp`, `struct bpf_iter__task_file`).

mod task_file;
mod tcp;

use core::ffi::c_void;

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use gophership_common::{End, ListOffsets, OFFSET_ABSENT};

use crate::socket::{Socket, read};

/// `AF_INET` of `include/linux/socket.h`.
const AF_INET: u16 = 2;
/// `AF_INET6` of `include/linux/socket.h`.
const AF_INET6: u16 = 10;

/// Field offsets of the running kernel: the loader replaces what the compiler sees here.
#[unsafe(no_mangle)]
static LIST_OFFSETS: ListOffsets = ListOffsets::UNKNOWN;

/// One field of `LIST_OFFSETS`.
macro_rules! list_offset {
    ($field:ident) => {
        // SAFETY: a field of a static; volatile, so that its initial value isn't taken for granted.
        unsafe { (&raw const crate::iter::LIST_OFFSETS.$field).read_volatile() }
    };
}
use list_offset;

/// `struct bpf_iter_meta` of `include/linux/bpf.h`, as far as it is used.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// Writes one record; what doesn't fit the reader's buffer, the kernel offers again.
///
/// # Safety
/// `meta` is the context's own.
#[inline(always)]
unsafe fn emit<T>(meta: *const Meta, record: &T) {
    // SAFETY: says the caller; `record` is initialised to its last byte (its type has no padding).
    unsafe {
        bpf_seq_write(
            (*meta).seq,
            core::ptr::from_ref(record).cast::<c_void>(),
            size_of::<T>() as u32,
        );
    }
}

/// The local and the remote end of a TCP socket; `None` if it is of another family.
#[inline(always)]
fn ends(socket: Socket) -> Option<(End, End)> {
    let base = socket.address();
    let family = read::<u16>(base, list_offset!(family))?;
    let local_port = socket.local_port()?;
    let peer_port = u16::from_be(read(base, list_offset!(peer_port))?);
    let (local, peer) = match family {
        AF_INET => (
            mapped(read(base, list_offset!(local_ipv4))?),
            mapped(read(base, list_offset!(peer_ipv4))?),
        ),
        AF_INET6 if list_offset!(local_ipv6) != OFFSET_ABSENT => (
            read(base, list_offset!(local_ipv6))?,
            read(base, list_offset!(peer_ipv6))?,
        ),
        _ => return None,
    };
    Some((end(local, local_port), end(peer, peer_port)))
}

#[inline(always)]
fn end(address: [u8; 16], port: u16) -> End {
    End {
        address,
        port,
        padding: 0,
    }
}

/// `::ffff:a.b.c.d`.
#[inline(always)]
fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
