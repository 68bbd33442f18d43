//! Two hosts with a cable between them: network namespaces and a veth pair.
//!
//! Each namespace lives as long as a process that waits for its standard input to end. However the
//! test ends, that pipe closes, the process ends, and namespace and interfaces go with it.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, socket},
};
use serde_json::Value;

use super::common::{PATIENCE, eventually, process};

/// The server's end of the cable.
pub(crate) const SERVER_END: &str = "server0";
/// The client's end.
const CLIENT_END: &str = "client0";

/// Addresses of the server: where the client comes from depends on which it calls.
pub(crate) const PLAIN_V4: &str = "198.51.100.1";
pub(crate) const PLAIN_V6: &str = "2001:db8:1::1";
/// The client calls it from 192.0.2.65, which a test can allow.
pub(crate) const CALLED_BY_ALLOWED: &str = "198.51.100.65";
/// The client calls it from 192.0.2.129, which a test can deny.
pub(crate) const CALLED_BY_DENIED: &str = "198.51.100.129";
/// Not the server's until a test gives it to it.
pub(crate) const LATER: &str = "198.51.100.5";

/// One host.
#[derive(Debug)]
pub(crate) struct Host {
    holder: Child,
}

impl Host {
    fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare starts");
        let host = Self { holder };
        let ours = fs::read_link("/proc/self/ns/net").expect("our namespace");
        eventually("a new network namespace", PATIENCE, || {
            fs::read_link(host.namespace()).is_ok_and(|theirs| theirs != ours)
        });
        host.ip("link set lo up");
        host
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// Runs `job` on a thread inside. Sockets, threads and processes that it makes stay inside.
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.namespace()).expect("the namespace");
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter");
                job()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `ip`, which must succeed.
    #[track_caller]
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace()));
        command.arg("ip").args(arguments.split(' '));
        process::run(&mut command, PATIENCE).expect_success().stdout
    }

    /// The program on an interface: how it is attached (1: native, 2: generic) and its number.
    #[track_caller]
    pub(crate) fn program_on(&self, interface: &str) -> Option<(u64, u64)> {
        let text = self.ip(&format!("-j -d link show dev {interface}"));
        let links: Value = serde_json::from_str(&text).expect("ip writes JSON");
        let xdp = links.get(0)?.get("xdp")?;
        let program = xdp.pointer("/prog/id")?.as_u64()?;
        Some((xdp.get("mode")?.as_u64()?, program))
    }

    /// Connects from here; `None` if nothing answers for that long.
    pub(crate) fn connect(&self, to: &str, port: u16, within: Duration) -> Option<TcpStream> {
        let to = SocketAddr::new(to.parse::<IpAddr>().expect("an address"), port);
        self.run(move || match TcpStream::connect_timeout(&to, within) {
            Ok(stream) => Some(stream),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => None,
            Err(error) => panic!("connect to {to}: {error}"),
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// Puts frames on the client's end as they are: the kernel needn't know VLANs.
#[track_caller]
pub(crate) fn send(frames: &[Vec<u8>]) {
    let end = getifaddrs()
        .expect("the interfaces")
        .filter(|interface| interface.interface_name == CLIENT_END)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .expect("the client's end");
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("root may have a packet socket");
    bind(socket.as_raw_fd(), &end).expect("the socket binds");
    for frame in frames {
        let sent = nix::sys::socket::send(socket.as_raw_fd(), frame, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }
}

/// A server and a client.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) server: Host,
    pub(crate) client: Host,
}

impl Network {
    #[track_caller]
    pub(crate) fn new() -> Self {
        let (server, client) = (Host::new(), Host::new());
        server.ip(&format!(
            "link add {SERVER_END} type veth peer name {CLIENT_END} netns {}",
            client.holder.id()
        ));
        server.ip(&format!("link set {SERVER_END} up"));
        client.ip(&format!("link set {CLIENT_END} up"));
        for address in [PLAIN_V4, CALLED_BY_ALLOWED, CALLED_BY_DENIED] {
            server.ip(&format!("address add {address}/32 dev {SERVER_END}"));
        }
        server.ip(&format!("address add {PLAIN_V6}/64 dev {SERVER_END} nodad"));
        client.ip(&format!(
            "address add 2001:db8:1::2/64 dev {CLIENT_END} nodad"
        ));
        for (source, destinations) in [
            ("192.0.2.1", "198.51.100.0/26"),
            ("192.0.2.65", "198.51.100.64/26"),
            ("192.0.2.129", "198.51.100.128/26"),
        ] {
            client.ip(&format!("address add {source}/32 dev {CLIENT_END}"));
            client.ip(&format!(
                "route add {destinations} dev {CLIENT_END} src {source}"
            ));
        }
        server.ip(&format!("route add 192.0.2.0/24 dev {SERVER_END}"));
        Self { server, client }
    }
}
