//! The archive that the kernel unpacks into its first file system.
//!
//! "newc" format, `Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel: for
//! each entry a header of 110 ASCII characters, the name with a NUL, padding to 4 bytes, the
//! content, padding to 4 bytes; `TRAILER!!!` ends it.

use std::collections::BTreeSet;

const MAGIC: &str = "070701";
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive in the making.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    /// Directories that are in it.
    directories: BTreeSet<String>,
    /// Inode of the last entry.
    inode: u32,
}

impl Archive {
    /// Adds an executable file at an absolute path, with the directories it lies in.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.parents(path);
        self.entry(path, EXECUTABLE, (0, 0), content);
    }

    /// Adds a directory at an absolute path, with those it lies in.
    pub(super) fn directory(&mut self, path: &str) {
        self.parents(&format!("{path}/"));
    }

    /// Adds a character device at an absolute path, with the directories it lies in.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/').skip(1) {
            let directory = &path[..end];
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, DIRECTORY, (0, 0), &[]);
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let name = path.trim_start_matches('/');
        let length = u32::try_from(content.len()).expect("a file below 4 GiB");
        let name_length = u32::try_from(name.len() + 1).expect("a name below 4 GiB");
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // mtime
            length,
            0, // major of the device it lies on
            0, // minor
            device.0,
            device.1,
            name_length,
            0, // checksum, of another variant of the format
        ];
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and content of each entry, read by the format's own rules.
    fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], MAGIC.as_bytes(), "at {at}");
            let (mode, length, name_length) = (field(1), field(6) as usize, field(11) as usize);
            let name = &bytes[at + 110..at + 110 + name_length - 1];
            let content = (at + 110 + name_length).next_multiple_of(4);
            found.push((
                String::from_utf8(name.to_vec()).unwrap(),
                mode,
                bytes[content..content + length].to_vec(),
            ));
            at = (content + length).next_multiple_of(4);
        }
        found
    }

    #[test]
    fn files_come_after_their_directories_and_the_trailer_last() {
        let mut archive = Archive::default();
        archive.file("/init", b"first");
        archive.file("/lib/modules/a.ko", b"12345");
        archive.file("/lib/modules/b.ko", b"");
        archive.directory("/proc");
        archive.device("/dev/console", 5, 1);
        let entries = entries(&archive.finish());
        let names: Vec<&str> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(
            names,
            [
                "init",
                "lib",
                "lib/modules",
                "lib/modules/a.ko",
                "lib/modules/b.ko",
                "proc",
                "dev",
                "dev/console",
                "TRAILER!!!"
            ]
        );
        assert_eq!(
            (entries[0].1, entries[0].2.as_slice()),
            (EXECUTABLE, &b"first"[..])
        );
        assert_eq!(
            (entries[3].1, entries[3].2.as_slice()),
            (EXECUTABLE, &b"12345"[..])
        );
        assert_eq!(entries[5].1, DIRECTORY);
        assert_eq!(entries[7].1, CHARACTER_DEVICE);
    }

    #[test]
    fn a_devices_numbers_are_in_its_header() {
        let mut archive = Archive::default();
        archive.device("/null", 1, 3);
        let header = String::from_utf8(archive.finish()[..110].to_vec()).unwrap();
        assert_eq!(&header[6 + 9 * 8..6 + 11 * 8], "0000000100000003");
    }
}
