//! Field offsets of the running kernel, from `/sys/kernel/btf/vmlinux` through libbpf.
//!
//! Layout of `struct btf_type` and its members: `include/uapi/linux/btf.h`.

use std::{
    ffi::{CStr, CString},
    ptr::NonNull,
    slice,
};

use gophership_common::{OFFSET_ABSENT, Offsets};
use libbpf_sys::{btf_member, btf_type};

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

    fn structure(&self, name: &str) -> Option<&btf_type> {
        let name = CString::new(name).ok()?;
        // SAFETY: `self.0` is live, the name is null-terminated.
        let id = unsafe {
            libbpf_sys::btf__find_by_name_kind(
                self.0.as_ptr(),
                name.as_ptr(),
                libbpf_sys::BTF_KIND_STRUCT,
            )
        };
        self.by_id(u32::try_from(id).ok()?)
    }

    fn members<'a>(&self, composite: &'a btf_type) -> &'a [btf_member] {
        let count = (composite.info & 0xffff) as usize;
        // SAFETY: libbpf keeps the members of a struct or union right behind its `btf_type`, in
        // memory that lives as long as the type.
        unsafe {
            let first = std::ptr::from_ref(composite).add(1).cast::<btf_member>();
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
        let mut composite = self.structure(structure).ok_or_else(missing)?;
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

/// Looks up everything the kernel half reads.
///
/// # Errors
/// [`Error::Btf`] if the kernel has no BTF, [`Error::Field`] if a field isn't in it.
pub(super) fn offsets() -> Result<Offsets, Error> {
    let btf = Vmlinux::load()?;
    let control_block = btf.offset("sk_buff", "cb")?;
    Ok(Offsets {
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_agree_with_what_never_moved() {
        if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
            return;
        }
        let offsets = offsets().unwrap();
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
}
