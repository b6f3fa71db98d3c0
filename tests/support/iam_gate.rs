//! What RDS puts before a database for whom it proves with IAM: it asks for a token as for a password, and lets in whoever has one.
//!
//! Behind it is a Postgres that trusts whoever comes from loopback. (<https://www.postgresql.org/docs/15/protocol-message-formats.html>)

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const SSL_REQUEST: u32 = 80_877_103;

/// `AuthenticationCleartextPassword`, which RDS asks for within TLS.
const ASK_FOR_PASSWORD: &[u8] = b"R\0\0\0\x08\0\0\0\x03";

/// The gate; it closes when it is dropped.
#[derive(Debug)]
pub struct IamGate {
    address: SocketAddr,
    tokens: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl IamGate {
    /// A gate before the Postgres at this address, on a loopback address. It refuses the first token.
    pub async fn start(target: &str, loopback: impl Into<IpAddr>) -> Result<Self> {
        let listener = TcpListener::bind((loopback.into(), 0)).await?;
        let (address, tokens) = (listener.local_addr()?, Arc::default());
        Ok(Self { address, server: tokio::spawn(serve(listener, target.to_owned(), Arc::clone(&tokens))), tokens })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What it was shown so far.
    pub fn tokens(&self) -> Vec<String> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for IamGate {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, target: String, tokens: Arc<Mutex<Vec<String>>>) {
    while let Ok((client, _)) = listener.accept().await {
        let (target, tokens) = (target.clone(), tokens.clone());
        // It ends with its connection.
        tokio::spawn(async move { admit(client, &target, &tokens).await });
    }
}

async fn admit(mut client: TcpStream, target: &str, tokens: &Mutex<Vec<String>>) -> Result<()> {
    let mut startup = read_rest(&mut client).await?;
    if startup.starts_with(&SSL_REQUEST.to_be_bytes()) {
        client.write_all(b"N").await?;
        startup = read_rest(&mut client).await?;
    }
    client.write_all(ASK_FOR_PASSWORD).await?;
    ensure!(client.read_u8().await? == b'p', "it answers with a password");
    let password = read_rest(&mut client).await?;
    let is_first = {
        let mut tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.push(String::from_utf8_lossy(&password).trim_end_matches('\0').to_owned());
        tokens.len() == 1
    };
    if is_first {
        let fields = b"SFATAL\0VFATAL\0C28P01\0MPAM authentication failed\0\0";
        client.write_u8(b'E').await?;
        return Ok(write_rest(&mut client, fields).await?);
    }
    let mut server = TcpStream::connect(target).await?;
    write_rest(&mut server, &startup).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// A message behind its type: the length, which counts itself, and that many bytes.
async fn read_rest(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let bytes = stream.read_u32().await?;
    let mut rest = vec![0; usize::try_from(bytes)?.saturating_sub(4)];
    stream.read_exact(&mut rest).await?;
    Ok(rest)
}

async fn write_rest(stream: &mut TcpStream, rest: &[u8]) -> std::io::Result<()> {
    stream.write_u32(u32::try_from(rest.len() + 4).expect("a short message")).await?;
    stream.write_all(rest).await
}
