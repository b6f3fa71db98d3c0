//! A host of its own for a daemon: a network namespace, joined to ours by one wire that can be cut.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// It goes, with its wire, when it is dropped.
#[derive(Debug)]
pub struct Host {
    /// Of the namespace; our end of the wire is called so too.
    name: String,
    address: Ipv4Addr,
}

impl Host {
    /// A host with its wire. It needs the rights to make network namespaces, and `ip`.
    pub fn start() -> Result<Self> {
        // From 10.201.0.0/16, a network of four addresses a host; names of interfaces have at most 15 letters.
        let number = fastrand::u16(..) & !3;
        let [high, low] = number.to_be_bytes();
        let (ours, theirs) = (Ipv4Addr::new(10, 201, high, low + 1), Ipv4Addr::new(10, 201, high, low + 2));
        ip(&format!("netns add pp-{number}"))?;
        let host = Self { name: format!("pp-{number}"), address: ours };
        let name = &host.name;
        ip(&format!("link add {name} type veth peer name eth0 netns {name}"))?;
        ip(&format!("addr add {ours}/30 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        ip(&format!("-n {name} addr add {theirs}/30 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        Ok(host)
    }

    /// Where we are, seen from there.
    pub fn our_address(&self) -> IpAddr {
        self.address.into()
    }

    /// A program that runs `program` there, written into `folder`.
    pub fn program(&self, program: &Path, folder: &Path) -> Result<PathBuf> {
        let there = folder.join(&self.name);
        fs::write(&there, format!("#!/bin/sh\nexec ip netns exec {} {} \"$@\"\n", self.name, program.display()))?;
        fs::set_permissions(&there, fs::Permissions::from_mode(0o755))?;
        Ok(there)
    }

    /// Nothing comes through any more, in either direction, and nobody is told.
    pub fn cut_off(&self) -> Result<()> {
        ip(&format!("link set {} down", self.name))
    }

    /// The wire is whole again.
    pub fn join(&self) -> Result<()> {
        ip(&format!("link set {} up", self.name))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().context("there is no `ip` (package iproute2)")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
