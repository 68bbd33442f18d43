//! The detectors: attributes by OpenTelemetry's names for resources,
//! <https://opentelemetry.io/docs/specs/semconv/resource/>.
//!
//! What can't be found out is left out.

use std::{fs, path::PathBuf};

use super::{Detector, VALUE_BYTES_MAX};

/// Most bytes read of a file: these are small ones.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What there is to look at.
pub(super) struct Machine {
    root: PathBuf,
    arch: &'static str,
    variable: fn(&str) -> Option<String>,
}

impl Machine {
    /// The one we run on.
    pub(super) fn this() -> Self {
        Self {
            root: "/".into(),
            arch: std::env::consts::ARCH,
            variable: |name| std::env::var(name).ok(),
        }
    }

    fn file(&self, path: &str) -> Option<String> {
        use std::io::Read as _;
        let mut text = String::new();
        let file = fs::File::open(self.root.join(path)).ok()?;
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn variable(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }
}

/// What the detectors find.
pub(super) fn all(detectors: &[Detector], machine: &Machine) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for detector in detectors {
        let attributes = match detector {
            Detector::Host => host(machine),
            Detector::Os => os(machine),
            Detector::Container => vec![("container.id", container(machine))],
            Detector::Process => Vec::new(),
            Detector::K8s => k8s(machine),
        };
        let attributes = attributes.into_iter();
        found.extend(attributes.filter_map(|(key, value)| Some((key, value?))));
    }
    found.retain(|(_, value)| value.len() <= VALUE_BYTES_MAX);
    found
}

type Attributes = Vec<(&'static str, Option<String>)>;

fn host(machine: &Machine) -> Attributes {
    let name = machine
        .file("proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty() && name != "(none)");
    let id = ["etc/machine-id", "var/lib/dbus/machine-id"]
        .iter()
        .filter_map(|path| machine.file(path))
        .map(|id| id.trim().to_owned())
        .find(|id| is_hex(id, 32));
    let arch = match machine.arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "arm" => "arm32",
        "powerpc" => "ppc32",
        "powerpc64" => "ppc64",
        other => other,
    };
    vec![
        ("host.name", name),
        ("host.id", id),
        ("host.arch", Some(arch.to_owned())),
    ]
}

fn os(machine: &Machine) -> Attributes {
    let release = ["etc/os-release", "usr/lib/os-release"]
        .iter()
        .find_map(|path| machine.file(path));
    let description = release.as_deref().and_then(pretty_name);
    vec![
        ("os.type", Some("linux".to_owned())),
        ("os.description", description),
    ]
}

/// Of `os-release`: shell assignments, with or without quotes.
fn pretty_name(release: &str) -> Option<String> {
    let mut lines = release.lines();
    let value = lines.find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let value = value.trim();
    let value = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(value);
    (!value.is_empty()).then(|| value.replace("\\\"", "\"").replace("\\$", "$"))
}

/// The container this process is in: the last part of its cgroup's path or, where a cgroup namespace hides that, the
/// directory that the runtime mounts files such as `/etc/hostname` from.
fn container(machine: &Machine) -> Option<String> {
    let id = |name: &str| {
        // `docker-ID.scope`, `cri-containerd-ID.scope`, `libpod-ID.scope`, `ID`.
        let name = name.strip_suffix(".scope").unwrap_or(name);
        let id = name.rsplit(['-', ':']).next()?;
        is_hex(id, 64).then(|| id.to_owned())
    };
    let cgroup = machine.file("proc/self/cgroup").unwrap_or_default();
    let mut paths = cgroup.lines().filter_map(|line| line.rsplit('/').next());
    if let Some(id) = paths.find_map(id) {
        return Some(id);
    }
    let mounts = machine.file("proc/self/mountinfo")?;
    mounts.lines().find_map(|line| {
        let source = line.split(' ').nth(3)?;
        let mut parts = source.split('/');
        parts.find(|part| matches!(*part, "containers" | "overlay-containers"))?;
        parts
            .next()
            .filter(|part| is_hex(part, 64))
            .map(str::to_owned)
    })
}

fn k8s(machine: &Machine) -> Attributes {
    // Names such as NODE_NAME are others' too, outside of a cluster.
    let is_pod = machine.variable("KUBERNETES_SERVICE_HOST").is_some();
    let named = |long: &str, short: &str| {
        machine
            .variable(long)
            .or_else(|| machine.variable(short).filter(|_| is_pod))
    };
    vec![
        ("k8s.node.name", named("K8S_NODE_NAME", "NODE_NAME")),
        ("k8s.pod.name", named("K8S_POD_NAME", "POD_NAME")),
        (
            "k8s.pod.uid",
            named("K8S_POD_UID", "POD_UID").or_else(|| pod_uid(machine)),
        ),
        (
            "k8s.namespace.name",
            named("K8S_NAMESPACE_NAME", "POD_NAMESPACE"),
        ),
    ]
}

/// `/kubepods/burstable/podUID/…` and `/kubepods-burstable-podUID_WITH_UNDERSCORES.slice/…` in the cgroup's path;
/// `/var/lib/kubelet/pods/UID/…` in mounts.
fn pod_uid(machine: &Machine) -> Option<String> {
    let cgroup = machine.file("proc/self/cgroup").unwrap_or_default();
    let mut parts = cgroup
        .lines()
        .filter(|line| line.contains("kubepods"))
        .flat_map(|line| line.split('/'));
    let in_cgroup = parts.find_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let uid = part[part.rfind("pod")? + 3..].replace('_', "-");
        is_uid(&uid).then_some(uid)
    });
    in_cgroup.or_else(|| {
        let mounts = machine.file("proc/self/mountinfo")?;
        mounts.lines().find_map(|line| {
            let (_, after) = line.split_once("/kubelet/pods/")?;
            let uid = after.split('/').next()?;
            is_uid(uid).then(|| uid.to_owned())
        })
    })
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A UUID; or the hash that the kubelet gives to static pods.
fn is_uid(text: &str) -> bool {
    let is_uuid = text.len() == 36 && text.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    is_hex(&text.replace('-', ""), 32) && (is_uuid || !text.contains('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "3b0f4a5e-8d1c-4d5a-9c56-0a1b2c3d4e5f";

    fn found(
        detector: Detector,
        files: &[(&str, &str)],
        variable: fn(&str) -> Option<String>,
    ) -> Vec<(&'static str, String)> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let machine = Machine {
            root: dir.path().to_owned(),
            arch: "x86_64",
            variable,
        };
        all(&[detector], &machine)
    }

    fn no_variable(_: &str) -> Option<String> {
        None
    }

    fn told(found: &[(&'static str, String)]) -> String {
        let pairs: Vec<_> = found
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        pairs.join(" ")
    }

    #[test]
    fn the_host_is_what_its_files_say() {
        let files = [
            ("proc/sys/kernel/hostname", "web-1\n"),
            ("etc/machine-id", "fdbf79e8af94cb7f9e8df36789187052\n"),
        ];
        let host = found(Detector::Host, &files, no_variable);
        assert_eq!(
            told(&host),
            "host.name=web-1 host.id=fdbf79e8af94cb7f9e8df36789187052 host.arch=amd64"
        );
        // An image that was never started, and nothing at all.
        let files = [("etc/machine-id", "uninitialized\n")];
        assert_eq!(
            told(&found(Detector::Host, &files, no_variable)),
            "host.arch=amd64"
        );
    }

    #[test]
    fn the_system_is_described_with_or_without_quotes() {
        for (line, description) in [
            (
                "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"",
                "Debian GNU/Linux 12 (bookworm)",
            ),
            ("PRETTY_NAME='Fedora 40'", "Fedora 40"),
            ("PRETTY_NAME=Alpine", "Alpine"),
        ] {
            let text = format!("NAME=\"x\"\n{line}\nID=x\n");
            let os = found(Detector::Os, &[("usr/lib/os-release", &text)], no_variable);
            assert_eq!(
                told(&os),
                format!("os.type=linux os.description={description}")
            );
        }
        assert_eq!(
            told(&found(Detector::Os, &[], no_variable)),
            "os.type=linux"
        );
    }

    #[test]
    fn containers_are_known_by_their_cgroup_or_their_mounts() {
        let cgroups = [
            format!("1:cpu:/docker/{ID}\n"),
            format!("0::/system.slice/docker-{ID}.scope\n"),
            format!("0::/kubepods.slice/kubepods-pod{UID}.slice/cri-containerd-{ID}.scope\n"),
            format!("0::/machine.slice/libpod-{ID}.scope\n"),
            format!(
                "3:memory:/x\n0::/system.slice/containerd.service/kubepods-pod{UID}.slice:cri-containerd:{ID}\n"
            ),
        ];
        for cgroup in &cgroups {
            let files = [("proc/self/cgroup", cgroup.as_str())];
            let id = found(Detector::Container, &files, no_variable);
            assert_eq!(told(&id), format!("container.id={ID}"), "{cgroup}");
        }
        let mounts = [
            format!(
                "1 2 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/a rw"
            ),
            format!(
                "1 2 8:1 /c/overlay-containers/{ID}/userdata/hostname /etc/hostname rw - x y rw"
            ),
        ];
        for mount in &mounts {
            let files = [
                ("proc/self/cgroup", "0::/\n"),
                ("proc/self/mountinfo", mount),
            ];
            let id = found(Detector::Container, &files, no_variable);
            assert_eq!(told(&id), format!("container.id={ID}"), "{mount}");
        }
        // The sandbox of a pod is no container, and neither is a user's session.
        let sandbox = format!("1 2 8:1 /cri/sandboxes/{ID}/hostname /etc/hostname rw - x y rw");
        let files = [
            ("proc/self/cgroup", "0::/user.slice/session-2.scope\n"),
            ("proc/self/mountinfo", &sandbox),
        ];
        assert_eq!(told(&found(Detector::Container, &files, no_variable)), "");
    }

    #[test]
    fn pods_are_known_by_the_downward_api_and_their_cgroup() {
        let long = |name: &str| match name {
            "K8S_NODE_NAME" => Some("node-1".to_owned()),
            "K8S_POD_NAME" => Some("pod-1".to_owned()),
            "K8S_NAMESPACE_NAME" => Some("default".to_owned()),
            _ => None,
        };
        let short = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("10.0.0.1".to_owned()),
            "NODE_NAME" => Some("node-1".to_owned()),
            "POD_NAME" => Some("pod-1".to_owned()),
            "POD_NAMESPACE" => Some("default".to_owned()),
            _ => None,
        };
        let underscores = UID.replace('-', "_");
        for cgroup in [
            format!("0::/kubepods/burstable/pod{UID}/{ID}\n"),
            format!(
                "0::/kubepods.slice/kubepods-burstable-pod{underscores}.slice/cri-containerd-{ID}.scope\n"
            ),
        ] {
            for variable in [long, short] {
                let pod = found(Detector::K8s, &[("proc/self/cgroup", &cgroup)], variable);
                assert_eq!(
                    told(&pod),
                    format!(
                        "k8s.node.name=node-1 k8s.pod.name=pod-1 k8s.pod.uid={UID} k8s.namespace.name=default"
                    )
                );
            }
        }
        let mount = format!("1 2 8:1 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts rw - x y rw");
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", &mount),
        ];
        assert_eq!(
            told(&found(Detector::K8s, &files, no_variable)),
            format!("k8s.pod.uid={UID}")
        );
    }

    #[test]
    fn the_short_names_mean_something_else_outside_of_a_cluster() {
        let elsewhere = |name: &str| (name == "NODE_NAME").then(|| "built-in".to_owned());
        assert_eq!(told(&found(Detector::K8s, &[], elsewhere)), "");
    }
}
