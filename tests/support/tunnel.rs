//! A proxy that carries TLS, as networks with one way out have it: it takes `CONNECT`, and behind it a server with a certificate speaks for
//! a plain one.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Certificates;

/// The proxy; it ends when it is dropped.
#[derive(Debug)]
pub struct Tunnel {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Tunnel {
    /// A proxy behind which every host has this certificate, and is the server at `target`, a URL.
    pub async fn start(target: &str, Certificates { certificate, key, .. }: &Certificates) -> Result<Self> {
        let target = *url::Url::parse(target)?.socket_addrs(|| None)?.first().context("an address")?;
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, asked) = (listener.local_addr()?, Arc::default());
        let server = serve(listener, target, TlsAcceptor::from(Arc::new(config)), Arc::clone(&asked));
        Ok(Self { address, asked, server: tokio::spawn(server) })
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The hosts that it was asked for so far, each with its port.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, tls: TlsAcceptor, asked: Arc<Mutex<Vec<String>>>) {
    while let Ok((client, _)) = listener.accept().await {
        let (tls, asked) = (tls.clone(), asked.clone());
        // It ends with its connection.
        tokio::spawn(async move { carry(client, target, &tls, &asked).await });
    }
}

async fn carry(client: TcpStream, target: SocketAddr, tls: &TlsAcceptor, asked: &Mutex<Vec<String>>) -> Result<()> {
    let mut client = BufReader::new(client);
    let (mut line, mut host) = (String::new(), None);
    while client.read_line(&mut line).await? > 2 {
        host = host.or_else(|| line.strip_prefix("CONNECT ")?.split(' ').next().map(str::to_owned));
        line.clear();
    }
    let host = host.context("a request without CONNECT")?;
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(host);
    client.write_all(b"HTTP/1.1 200 so\r\n\r\n").await?;
    let mut client = tls.accept(client).await?;
    let mut server = TcpStream::connect(target).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
