//! `linux`: layer-2 segments between network namespaces of this machine, over netlink.
//!
//! ```text
//! endpoint ns        node ns                         node ns        endpoint ns
//!   s… ─── veth ─── h… ─ bridge b… ─ x… ══ VXLAN ══ x… ─ bridge b… ─ h… ─── veth ─── s…
//!                               under0 ─── underlay ns: bridge ─── under0
//! ```
//!
//! Nodes are namespaces too; they reach each other through a bridge in a namespace of its own, as machines do through a
//! switch. Interfaces are named after the intent and the segment, so that the same call finds what it made before. A
//! segment counts as made only when datagrams went over it and came back.

#![expect(clippy::disallowed_methods, reason = "the netlink connection is driven by a task; traffic is waited for")]

use std::{
    fs::{self, File},
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use mesh_proto::derived_id;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, LinkVxlan};

use super::{Adaptor, Call, Error};
use crate::domain::intents::Segment;

/// UDP port of VXLAN (RFC 7348).
const VXLAN_PORT: u16 = 4789;
/// Bytes that VXLAN takes from a frame of 1500.
const MTU: u32 = 1450;
/// Namespace of the switch between nodes.
const UNDERLAY: &str = "continuum-underlay";
/// How long traffic may take to flow once everything is up: ARP, and the first learned addresses.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(5);
const TRY_LIMIT: Duration = Duration::from_millis(100);

/// Makes and removes segments.
#[derive(Clone, Debug)]
pub struct Linux {
    namespaces: Arc<Namespaces>,
}

/// Named network namespaces, as files.
#[derive(Debug)]
struct Namespaces {
    folder: PathBuf,
    /// Files here mark those that this program made; only those are ever removed.
    marks: PathBuf,
    /// One at a time makes and removes namespaces.
    lock: Mutex<()>,
}

/// An error of the operating system: may this process not do it?
trait Denied: std::fmt::Display {
    fn denied(&self) -> bool;
}

impl Denied for std::io::Error {
    fn denied(&self) -> bool {
        self.kind() == std::io::ErrorKind::PermissionDenied
    }
}

impl Denied for nix::Error {
    fn denied(&self) -> bool {
        matches!(self, Self::EPERM | Self::EACCES)
    }
}

impl Denied for rtnetlink::Error {
    fn denied(&self) -> bool {
        matches!(self, Self::NetlinkError(message) if message.to_io().denied())
    }
}

fn step<E: Denied>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    let what = what.into();
    move |error| {
        let text = format!("{what}: {error}");
        if error.denied() { Error::Forbidden(text) } else { Error::Refused(text) }
    }
}

/// Runs work on a thread of its own that has joined a network namespace; nothing else of this process moves.
fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let entered = || {
        let file = File::open(namespace).map_err(step(format!("open namespace {}", namespace.display())))?;
        setns(&file, CloneFlags::CLONE_NEWNET).map_err(step(format!("enter namespace {}", namespace.display())))?;
        work()
    };
    on_thread(entered)
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(step("start a thread"))?;
        thread.join().unwrap_or_else(|_| Err(Error::Refused("the thread in the namespace ended".into())))
    })
}

/// Netlink of the namespace that this thread is in.
fn netlink<T, F: Future<Output = Result<T, rtnetlink::Error>>>(
    what: &str,
    work: impl FnOnce(Handle) -> F,
) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(step("start a runtime"))?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(step("open netlink"))?;
        let connection = tokio::spawn(connection);
        let done = work(handle).await;
        connection.abort();
        done.map_err(step(what.to_owned()))
    })
}

async fn index(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    let link = found.try_next().await?;
    Ok(link.map_or(0, |link| link.header.index))
}

/// Removes links by name, those that are there.
async fn remove(handle: &Handle, names: &[&str]) -> Result<(), rtnetlink::Error> {
    for name in names {
        // Asking for a name that is not there is an error of its own, and no news.
        if let Ok(index @ 1..) = index(handle, name).await {
            match handle.link().del(index).execute().await {
                // The kernel, which takes apart a namespace later, took the link away in between.
                Err(rtnetlink::Error::NetlinkError(error))
                    if error.to_io().raw_os_error() == Some(nix::errno::Errno::ENODEV as i32) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Eight digits that a name in this mesh gives.
fn short(parts: &[&str]) -> String {
    derived_id(parts)[..8].to_owned()
}

/// A node's port at the switch.
fn port(node: &str) -> String {
    format!("n{}", short(&["port", node]))
}

/// A node's address below VXLAN: 22 bits of its name within 100.64.0.0/10, so that nobody has to hand them out. Two nodes
/// of a machine that meet there make segments without traffic, which is told.
fn underlay_address(node: &str) -> Ipv4Addr {
    let bits = u32::from_str_radix(&short(&["node", node]), 16).unwrap_or(1) & 0x003f_fffe;
    Ipv4Addr::from_bits(0x6440_0000 | bits.max(2))
}

impl Namespaces {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn mark(&self, name: &str) -> PathBuf {
        self.marks.join(name)
    }

    /// Makes a namespace unless it is there; says whether it was made.
    fn ensure(&self, name: &str) -> Result<bool, Error> {
        let path = self.path(name);
        if path.exists() {
            return Ok(false);
        }
        for folder in [&self.folder, &self.marks] {
            fs::create_dir_all(folder).map_err(step(format!("make {}", folder.display())))?;
        }
        File::create_new(&path).map_err(step(format!("make {}", path.display())))?;
        let made = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(step("make a network namespace"))?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(step("name a network namespace"))?;
            netlink("bring the loopback up", |handle| async move {
                handle.link().set(LinkUnspec::new_with_name("lo").up().build()).execute().await
            })
        });
        match made.and_then(|()| File::create(self.mark(name)).map_err(step("mark a namespace"))) {
            Ok(_) => Ok(true),
            Err(error) => {
                let _was_perhaps_never_mounted = umount2(&path, MntFlags::MNT_DETACH);
                let _already_failed = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// Removes a namespace that was made here and holds nothing but this many links; says whether it did.
    fn release(&self, name: &str, but: usize) -> Result<bool, Error> {
        if !self.mark(name).exists() || !self.path(name).exists() {
            return Ok(false);
        }
        let others = inside(&self.path(name), || {
            netlink("list links", |handle| async move {
                let links: Vec<_> = handle.link().get().execute().try_collect().await?;
                Ok(links.len())
            })
        })?;
        if others > but {
            return Ok(false);
        }
        umount2(&self.path(name), MntFlags::MNT_DETACH).map_err(step(format!("release namespace {name}")))?;
        for path in [self.path(name), self.mark(name)] {
            fs::remove_file(&path).map_err(step(format!("remove {}", path.display())))?;
        }
        Ok(true)
    }

    /// Removes what nothing uses any more: endpoints but for their loopback, nodes but for their way to the switch, and the
    /// switch without nodes.
    fn clean(&self, segment: &Segment) -> Result<(), Error> {
        for endpoint in &segment.endpoints {
            self.release(endpoint, 1)?;
        }
        for node in &segment.nodes {
            if self.release(node, 2)? && self.path(UNDERLAY).exists() {
                // The kernel takes a namespace apart later; the port is gone now.
                let port = port(node);
                inside(&self.path(UNDERLAY), || {
                    netlink("take a node from the switch", |handle| async move { remove(&handle, &[&port]).await })
                })?;
            }
        }
        self.release(UNDERLAY, 2).map(|_| ())
    }

    /// A node's namespace, joined to the switch.
    fn ensure_node(&self, node: &str) -> Result<(), Error> {
        if self.ensure(UNDERLAY)? {
            inside(&self.path(UNDERLAY), || {
                netlink("make the switch", |handle| async move {
                    handle.link().add(LinkBridge::new("switch").up().build()).execute().await
                })
            })?;
        }
        if !self.ensure(node)? {
            return Ok(());
        }
        let port = port(node);
        let file = File::open(self.path(node)).map_err(step("open namespace"))?;
        let fd = file.as_raw_fd();
        inside(&self.path(UNDERLAY), || {
            netlink("join a node to the switch", |handle| async move {
                let switch = index(&handle, "switch").await?;
                remove(&handle, &[&port]).await?;
                handle.link().add(LinkVeth::new(&port, "under0").build()).execute().await?;
                let peer = index(&handle, "under0").await?;
                handle.link().set(LinkUnspec::new_with_index(peer).setns_by_fd(fd).build()).execute().await?;
                let own = index(&handle, &port).await?;
                handle.link().set(LinkUnspec::new_with_index(own).controller(switch).up().build()).execute().await
            })
        })?;
        let address = underlay_address(node);
        inside(&self.path(node), || {
            netlink("address a node", |handle| async move {
                let under = index(&handle, "under0").await?;
                handle.address().add(under, IpAddr::V4(address), 10).execute().await?;
                handle.link().set(LinkUnspec::new_with_index(under).up().build()).execute().await
            })
        })
    }
}

/// Names of a segment's interfaces.
struct Names {
    bridge: String,
    vxlan: String,
    host: String,
    endpoint: String,
}

impl Names {
    fn new(id: &str, segment: &Segment) -> Self {
        let own = short(&["segment", id, &segment.name]);
        Self {
            bridge: format!("b{own}"),
            vxlan: format!("x{own}"),
            host: format!("h{own}"),
            endpoint: format!("s{own}"),
        }
    }
}

impl Linux {
    /// With namespaces named in this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let folder: PathBuf = folder.into();
        let mut marks = folder.clone().into_os_string();
        marks.push("-continuum");
        Self { namespaces: Arc::new(Namespaces { folder, marks: marks.into(), lock: Mutex::new(()) }) }
    }

    /// Makes a segment; the time that a datagram took over it and back.
    ///
    /// # Errors
    /// If a step fails; what was made of it is removed again.
    pub fn create(&self, id: &str, segment: &Segment) -> Result<Duration, Error> {
        match self.make(id, segment) {
            Ok(took) => Ok(took),
            Err(error) => {
                if let Err(left) = self.delete(id, segment) {
                    tracing::warn!(network = id, error = %left, "not all of a failed segment was removed");
                }
                Err(error)
            }
        }
    }

    fn make(&self, id: &str, segment: &Segment) -> Result<Duration, Error> {
        let names = Names::new(id, segment);
        let spaces = &self.namespaces;
        {
            let _one = spaces.lock.lock().unwrap_or_else(PoisonError::into_inner);
            segment.nodes.iter().try_for_each(|node| spaces.ensure_node(node))?;
            segment.endpoints.iter().try_for_each(|endpoint| spaces.ensure(endpoint).map(|_| ()))?;
        }
        for end in 0..2 {
            self.make_end(&names, segment, end)?;
        }
        self.traffic(segment)
    }

    fn make_end(&self, names: &Names, segment: &Segment, end: usize) -> Result<(), Error> {
        let spaces = &self.namespaces;
        let (node, far) = (&segment.nodes[end], &segment.nodes[1 - end]);
        let endpoint = spaces.path(&segment.endpoints[end]);
        let file = File::open(&endpoint).map_err(step("open endpoint namespace"))?;
        let fd = file.as_raw_fd();
        let (local, remote, vni) = (underlay_address(node), underlay_address(far), segment.vni);
        inside(&spaces.path(node), || {
            netlink("make a segment's end", |handle| async move {
                let links = handle.link();
                // What an earlier call of the same intent left half done.
                remove(&handle, &[&names.host, &names.vxlan, &names.bridge]).await?;
                links.add(LinkBridge::new(&names.bridge).up().build()).execute().await?;
                let bridge = index(&handle, &names.bridge).await?;
                let vxlan = LinkVxlan::new(&names.vxlan, vni).local(local).remote(remote).port(VXLAN_PORT);
                links.add(vxlan.controller(bridge).mtu(MTU).up().build()).execute().await?;
                links.add(LinkVeth::new(&names.host, &names.endpoint).build()).execute().await?;
                let peer = index(&handle, &names.endpoint).await?;
                links.set(LinkUnspec::new_with_index(peer).mtu(MTU).setns_by_fd(fd).build()).execute().await?;
                let host = index(&handle, &names.host).await?;
                links.set(LinkUnspec::new_with_index(host).controller(bridge).up().build()).execute().await
            })
        })?;
        let Some((address, length)) = segment.address(end) else {
            return Err(Error::Invalid("the segment's addresses cannot be read".into()));
        };
        inside(&endpoint, || {
            netlink("address an endpoint", |handle| async move {
                let own = index(&handle, &names.endpoint).await?;
                handle.address().add(own, IpAddr::V4(address), length).execute().await?;
                handle.link().set(LinkUnspec::new_with_index(own).up().build()).execute().await
            })
        })
    }

    /// Sends datagrams from the first endpoint to the second and back, until one has come back.
    ///
    /// # Errors
    /// If none has within the limit.
    pub fn traffic(&self, segment: &Segment) -> Result<Duration, Error> {
        let (Some((from, _)), Some((to, _))) = (segment.address(0), segment.address(1)) else {
            return Err(Error::Invalid("the segment's addresses cannot be read".into()));
        };
        let bind = |end: usize, address: Ipv4Addr| {
            inside(&self.namespaces.path(&segment.endpoints[end]), || {
                let socket = UdpSocket::bind((address, 0)).map_err(step("bind in an endpoint"))?;
                socket.set_read_timeout(Some(TRY_LIMIT)).map_err(step("bind in an endpoint"))?;
                Ok(socket)
            })
        };
        // A socket stays in the namespace in which it was made.
        let (near, far) = (bind(0, from)?, bind(1, to)?);
        let target = far.local_addr().map_err(step("bind in an endpoint"))?;
        let deadline = Instant::now() + TRAFFIC_LIMIT;
        let mut number = 0u64;
        let mut last = String::from("nothing came");
        while Instant::now() < deadline {
            number += 1;
            match there_and_back(&near, &far, target, number) {
                Ok(took) => return Ok(took),
                Err(error) => last = error.to_string(),
            }
        }
        Err(Error::Refused(format!("no traffic from {from} to {to} within {} s: {last}", TRAFFIC_LIMIT.as_secs())))
    }

    /// Removes a segment, and the namespaces made for it that nothing else uses. What is not there is no error.
    ///
    /// # Errors
    /// If something that is there cannot be removed.
    pub fn delete(&self, id: &str, segment: &Segment) -> Result<(), Error> {
        let names = Names::new(id, segment);
        let spaces = &self.namespaces;
        for node in &segment.nodes {
            if spaces.path(node).exists() {
                inside(&spaces.path(node), || {
                    netlink("remove a segment's end", |handle| {
                        let names = &names;
                        async move { remove(&handle, &[&names.host, &names.vxlan, &names.bridge]).await }
                    })
                })?;
            }
        }
        let _one = spaces.lock.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.clean(segment)
    }
}

fn there_and_back(near: &UdpSocket, far: &UdpSocket, target: SocketAddr, number: u64) -> io::Result<Duration> {
    let mut buffer = [0; 8];
    let begun = Instant::now();
    near.send_to(&number.to_be_bytes(), target)?;
    loop {
        let (length, back) = far.recv_from(&mut buffer)?;
        if length == 8 && u64::from_be_bytes(buffer) == number {
            far.send_to(&buffer, back)?;
            break;
        }
    }
    loop {
        if near.recv(&mut buffer)? == 8 && u64::from_be_bytes(buffer) == number {
            return Ok(begun.elapsed());
        }
    }
}

#[tonic::async_trait]
impl Adaptor for Linux {
    fn name(&self) -> &'static str {
        "linux"
    }

    async fn call(&self, call: &Call<'_>) -> Result<String, Error> {
        let segment: Segment = serde_json::from_value(call.body.clone())
            .map_err(|error| Error::Invalid(format!("the call describes no segment: {error}")))?;
        let (own, id, create) = (self.clone(), call.id.to_owned(), call.operation == "create segment");
        let work = move || match create {
            true => own
                .create(&id, &segment)
                .map(|took| format!("carries traffic: there and back in {:.3} ms", took.as_secs_f64() * 1e3)),
            false => own.delete(&id, &segment).map(|()| "removed".to_owned()),
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Error::Refused("the work was stopped".into())))
    }
}
