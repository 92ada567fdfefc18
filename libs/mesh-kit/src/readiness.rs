//! `--health`: is the process that has this configuration ready? For containers, which have no program but the service.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use crate::config::{ServeTls, Settings};

/// Longest wait for the connection and for each part of the answer.
const LIMIT: Duration = Duration::from_secs(3);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// Why a process is not known to be ready.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unready {
    /// It is not ready, in its own words; or it does not answer.
    Not(String),
    /// It cannot be asked with this configuration.
    Unasked(String),
}

/// Asks `/readyz?verbose` of this configuration's address, and returns what a process that is ready answers.
pub(crate) fn ask(name: &str, settings: &Settings) -> Result<String, Unready> {
    if settings.serve_tls != ServeTls::Off {
        return Err(Unready::Unasked(format!("{name}: --health asks over plain HTTP, and serve_tls is on")));
    }
    let Some(address) = settings.listen.parse().ok().and_then(reachable) else {
        let why = format!("{name}: --health needs a fixed port in listen, not {}", settings.listen);
        return Err(Unready::Unasked(why));
    };
    match answer(address) {
        Ok((200, body)) => Ok(body),
        Ok((_, body)) => Err(Unready::Not(body)),
        Err(error) => Err(Unready::Not(format!("{name} does not answer on {address}: {error}"))),
    }
}

/// Where a process that listens on this address is reached from its own machine; `None` if it chose its port itself.
fn reachable(listen: SocketAddr) -> Option<SocketAddr> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    (listen.port() != 0).then(|| SocketAddr::new(ip, listen.port()))
}

/// The status and the body.
fn answer(address: SocketAddr) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(stream, "GET /readyz?verbose HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "not an answer of HTTP/1.1");
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(strange)?;
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).ok_or_else(strange)?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn asked(answer: &'static str) -> Result<String, Unready> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = format!("0.0.0.0:{}", listener.local_addr().unwrap().port());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // All of it: a connection that is closed with something unread is reset.
            let mut request = vec![];
            while !request.ends_with(b"\r\n\r\n") {
                let mut part = [0; 512];
                let read = stream.read(&mut part).unwrap();
                assert!(read > 0, "the request ends early");
                request.extend_from_slice(&part[..read]);
            }
            assert!(request.starts_with(b"GET /readyz"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let answer = ask("service", &Settings { listen, ..Settings::default() });
        server.join().unwrap();
        answer
    }

    #[test]
    fn ready_and_not_ready_and_strange_answers_differ() {
        assert_eq!(asked("HTTP/1.1 200 OK\r\n\r\nready\n"), Ok("ready\n".to_owned()));
        assert_eq!(asked("HTTP/1.1 503 Service Unavailable\r\n\r\nbus\n"), Err(Unready::Not("bus\n".to_owned())));
        assert!(matches!(asked("SSH-2.0\r\n"), Err(Unready::Not(_))));
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert!(matches!(ask("service", &Settings { listen: closed, ..Settings::default() }), Err(Unready::Not(_))));
        let chosen = Settings { listen: "127.0.0.1:0".into(), ..Settings::default() };
        assert!(matches!(ask("service", &chosen), Err(Unready::Unasked(_))));
        let over_tls = Settings { serve_tls: ServeTls::On, ..Settings::default() };
        assert!(matches!(ask("service", &over_tls), Err(Unready::Unasked(_))));
    }
}
