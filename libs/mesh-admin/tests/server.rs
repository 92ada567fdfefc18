//! A nats-server of one's own: its port over restarts, and what happens when another program takes it.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(clippy::print_stderr, missing_docs)]

use std::{net::TcpListener, path::Path, time::Duration};

use mesh_admin::{Server, ServerError, ServerOptions, find_server};

/// The options of a server that stores nothing; `None`, with a line that names the suite, if there is no server.
async fn options(folder: &Path, listen: Option<&str>) -> Option<ServerOptions> {
    let found = match find_server().await {
        Ok(found) => found,
        Err(error) => {
            eprintln!("SKIPPED: mesh-admin server: {error}");
            return None;
        }
    };
    let conf = folder.join("nats.conf");
    let host = mesh_test::loopback();
    std::fs::write(&conf, format!("listen: \"{host}:-1\"\nports_file_dir: {folder:?}\n")).unwrap();
    let options = ServerOptions::new(found.path, conf, folder);
    Some(ServerOptions { listen: listen.map(|port| format!("{host}:{port}")), ..options })
}

fn address(server: &Server) -> String {
    server.url().trim_start_matches("nats://").to_owned()
}

#[tokio::test]
async fn a_server_keeps_its_port_while_it_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let Some(options) = options(folder.path(), Some("0")).await else { return };
    let mut server = Server::start(options).await.unwrap();
    let url = server.url();
    assert!(!url.ends_with(":0"));
    for _ in 0..2 {
        server.kill().await.unwrap();
        // A program that asks for a free port of this address is given any other.
        let host = address(&server).rsplit_once(':').unwrap().0.to_owned();
        let others: Vec<TcpListener> = (0..200).map(|_| TcpListener::bind(format!("{host}:0")).unwrap()).collect();
        assert!(others.iter().all(|other| !url.ends_with(&format!(":{}", other.local_addr().unwrap().port()))));
        server.restart().await.unwrap();
        assert_eq!(server.url(), url);
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_restart_names_the_program_that_took_the_port() {
    for listen in [None, Some("0")] {
        let folder = tempfile::tempdir().unwrap();
        let Some(options) = options(folder.path(), listen).await else { return };
        let mut server = Server::start(options).await.unwrap();
        let (url, address) = (server.url(), address(&server));
        server.kill().await.unwrap();
        // It asks for this very port, so nothing keeps it off.
        let thief = TcpListener::bind(&address).unwrap();
        let error = server.restart().await.unwrap_err();
        let ServerError::PortTaken { address: taken, holder } = &error else { panic!("{error}") };
        assert_eq!(*taken, address);
        assert!(holder.as_ref().unwrap().ends_with(&format!("(process {})", std::process::id())), "{error}");
        assert!(error.to_string().starts_with(&format!("nats-server cannot listen on {address}: `")), "{error}");
        // Once it is gone, the server comes back where its clients look for it.
        drop(thief);
        let restarted = async {
            // A child that another test starts holds a copy of the thief's socket until its program begins.
            while let Err(error) = server.restart().await {
                assert!(matches!(error, ServerError::PortTaken { holder: None, .. }), "{error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), restarted).await.unwrap();
        assert_eq!(server.url(), url);
    }
}

#[tokio::test]
async fn another_server_on_the_port_is_not_taken_for_ones_own() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(options_) = options(folder.path(), None).await else { return };
    let mut server = Server::start(options_).await.unwrap();
    let address = address(&server);
    server.kill().await.unwrap();
    let Some(options) = options(other.path(), None).await else { return };
    let _thief = Server::start(ServerOptions { listen: Some(address), ..options }).await.unwrap();
    let error = server.restart().await.unwrap_err();
    assert!(matches!(error, ServerError::PortTaken { .. }), "{error}");
}
