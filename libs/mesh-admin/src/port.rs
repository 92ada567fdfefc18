//! A port that stays ours while no server listens on it.

use std::{io, net::SocketAddr};

use procfs::{
    net::{TcpNetEntry, TcpState},
    process::{FDTarget, Process},
};
use tokio::net::TcpSocket;

/// An address that is bound but not listened on. The system gives its port to nobody who asks for a free one, and to no
/// outgoing connection; a server that is configured to listen there still can, as both allow the address to be reused.
#[derive(Debug)]
pub(crate) struct KeptPort {
    address: SocketAddr,
    _socket: TcpSocket,
}

impl KeptPort {
    /// Keeps an address; port 0 takes a free one. Fails with `AddrInUse` while somebody listens there.
    pub(crate) fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { address: socket.local_addr()?, _socket: socket })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Can somebody begin to listen on this address now?
pub(crate) fn is_free(address: SocketAddr) -> bool {
    !matches!(std::net::TcpListener::bind(address), Err(error) if error.kind() == io::ErrorKind::AddrInUse)
}

/// Who listens on this address, for people: "`name` (process 42)". `None` if that is not visible to this user.
pub(crate) fn listener(address: SocketAddr) -> Option<String> {
    let entries = if address.is_ipv4() { procfs::net::tcp() } else { procfs::net::tcp6() }.ok()?;
    let takes = |entry: &TcpNetEntry| {
        let local = entry.local_address;
        entry.state == TcpState::Listen
            && local.port() == address.port()
            && (local.ip() == address.ip() || local.ip().is_unspecified())
    };
    let inode = entries.into_iter().find(takes)?.inode;
    let owns = |process: &Process| {
        let mut files = process.fd().into_iter().flatten().flatten();
        files.any(|file| matches!(file.target, FDTarget::Socket(found) if found == inode))
    };
    let process = procfs::process::all_processes().ok()?.flatten().find(owns)?;
    let name = process.stat().ok()?.comm;
    Some(format!("`{name}` (process {})", process.pid))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_kept_port_can_be_listened_on_and_stays_kept_afterwards() {
        let kept = KeptPort::new("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(kept.address().port() > 0 && is_free(kept.address()));
        // As a server does that is started, killed and started again.
        for _ in 0..2 {
            let server = TcpListener::bind(kept.address()).unwrap();
            assert!(!is_free(kept.address()));
            let client = TcpStream::connect(kept.address()).unwrap();
            drop((server.accept().unwrap(), client, server));
        }
        // Nobody who takes what is free is given it.
        for _ in 0..100 {
            let other = TcpListener::bind("127.0.0.1:0").unwrap();
            assert_ne!(other.local_addr().unwrap(), kept.address());
        }
    }

    #[test]
    fn whoever_listens_on_a_port_is_named() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let named = listener(address).unwrap();
        assert!(named.ends_with(&format!("(process {})", std::process::id())), "{named}");
        assert_eq!(KeptPort::new(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(server);
        assert_eq!(listener(address), None);
    }
}
