//! Certificates for servers of the tests, made by openssl.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

/// An authority and a certificate of its making for `name`, in PEM.
#[derive(Debug)]
pub struct Certificates {
    /// The file with the authority's certificate.
    pub authority: PathBuf,
    /// The server's.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

impl Certificates {
    /// Makes them in `folder` for a name such as `IP:127.0.0.1`.
    pub fn make(folder: &Path, name: &str) -> Result<Self> {
        let authority = name.replace(':', "-");
        fs::create_dir_all(folder)?;
        let openssl = |arguments: &str| {
            let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            anyhow::Ok(())
        };
        fs::write(folder.join("names"), format!("subjectAltName={name}\n"))?;
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {key} -days 2 -subj /CN={authority} -keyout ca.key -out ca.pem"))?;
        openssl(&format!("req {key} -subj /CN=server -keyout server.key -out server.csr"))?;
        openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
        )?;
        Ok(Self {
            authority: folder.join("ca.pem"),
            certificate: fs::read(folder.join("server.pem"))?,
            key: fs::read(folder.join("server.key"))?,
        })
    }
}
