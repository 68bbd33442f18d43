use super::*;

const GIB: u64 = 1 << 30;

struct Host(tempfile::TempDir);

impl Host {
    fn new(cgroup: &str, mountinfo: &str) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.file("proc/self/cgroup", cgroup);
        host.file("proc/self/mountinfo", mountinfo);
        host.file(
            "proc/meminfo",
            "MemTotal:       8388608 kB\nMemFree: 1 kB\nMemAvailable:   4194304 kB\n",
        );
        host
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn sources(&self) -> MemorySources {
        MemorySources::discover(self.0.path())
    }
}

#[test]
fn without_limits_the_host_counts() {
    let host = Host::new("0::/\n", "");
    assert_eq!(host.sources().available_permille(), Some(500));
}

#[test]
fn a_quarter_of_the_host_is_plenty() {
    let host = Host::new("0::/\n", "");
    assert!(host.sources().host_has_plenty());
    let meminfo = "MemTotal: 8388608 kB\nMemAvailable: 2000000 kB\n";
    host.file("proc/meminfo", meminfo);
    assert!(!host.sources().host_has_plenty());
}

#[test]
fn the_tightest_ancestor_counts_in_v2() {
    let host = Host::new(
        "0::/kube/pod/app\n",
        "31 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    );
    host.file("sys/fs/cgroup/kube/pod/app/memory.max", "max\n");
    host.file("sys/fs/cgroup/kube/pod/memory.max", &(GIB).to_string());
    host.file("sys/fs/cgroup/kube/pod/memory.current", &(GIB).to_string());
    let stat = format!("anon 1\ninactive_file {}\n", GIB / 5);
    host.file("sys/fs/cgroup/kube/pod/memory.stat", &stat);
    let sources = host.sources();
    assert_eq!(sources.available_permille(), Some(199));
    assert!(
        sources
            .levels
            .iter()
            .any(|level| level.limit() == Some(GIB))
    );
}

#[test]
fn v1_limits_count_and_unlimited_ones_do_not() {
    let host = Host::new(
        "4:cpu,memory:/docker/abc\n1:cpuset:/\n",
        "40 30 0:35 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
    );
    let base = "sys/fs/cgroup/memory";
    host.file(
        &format!("{base}/memory.limit_in_bytes"),
        "9223372036854771712\n",
    );
    host.file(&format!("{base}/memory.usage_in_bytes"), "1\n");
    let leaf = format!("{base}/docker/abc");
    host.file(
        &format!("{leaf}/memory.limit_in_bytes"),
        &(2 * GIB).to_string(),
    );
    host.file(
        &format!("{leaf}/memory.usage_in_bytes"),
        &(GIB / 2).to_string(),
    );
    assert_eq!(host.sources().available_permille(), Some(500));
    host.file(
        &format!("{leaf}/memory.usage_in_bytes"),
        &(2 * GIB).to_string(),
    );
    assert_eq!(host.sources().available_permille(), Some(0));
}

#[test]
fn a_container_s_mount_shows_only_its_subtree() {
    let line = "40 30 0:35 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
    assert_eq!(
        cgroup_mount(line, false, "/docker/abc"),
        Some(("/sys/fs/cgroup/memory", ""))
    );
    assert_eq!(
        cgroup_mount(line, false, "/docker/abc/inner"),
        Some(("/sys/fs/cgroup/memory", "/inner"))
    );
    assert_eq!(cgroup_mount(line, true, "/docker/abc"), None);
}

#[test]
fn this_machine_has_memory() {
    assert!(memory_limit_bytes() > 0);
    assert!(
        MemorySources::discover(Path::new("/"))
            .available_permille()
            .is_some()
    );
}
