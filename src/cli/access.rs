//! The options that say how a registry is reached, and as whom.
//!
//! A password is never an argument, which everybody on the machine can read; it comes from standard input or from the
//! environment. A command that starts a daemon reads it once and hands it on through a pipe.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use crate::image::Access;
use crate::registry::credentials::Credential;

/// The longest password that is read.
const MAX_PASSWORD: u64 = 64 << 10;

/// Where a password may stand.
const PASSWORD: &str = "PEELFS_PASSWORD";

#[derive(Debug, clap::Args)]
#[group(id = "access")]
pub(super) struct Arguments {
    /// Who asks the registry, instead of who docker login or podman login say; the password comes from --password-stdin or
    /// $PEELFS_PASSWORD
    #[arg(long, value_name = "USER", env = "PEELFS_USERNAME")]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Where directories with a hosts.toml for each registry are (mirrors, certificates, as containerd has them) [default:
    /// /etc/containerd/certs.d, /etc/docker/certs.d]
    #[arg(long, value_name = "DIR")]
    hosts_dir: Vec<PathBuf>,
    /// A file with certificates of authorities, in PEM, to be trusted besides those of the system
    #[arg(long, value_name = "FILE")]
    tls_ca: Vec<PathBuf>,
    /// Let a registry on the public network send us to private addresses
    #[arg(long)]
    allow_private_redirects: bool,
    /// For how many seconds a tag is taken to be what it was, without asking the registry again
    #[arg(long, value_name = "SECONDS", default_value = "0")]
    tag_ttl: u64,
}

impl Arguments {
    /// Whether a user was named, whose password any registry gets that is asked.
    pub(super) fn names_user(&self) -> bool {
        self.username.is_some()
    }

    /// The password from standard input, if it is to be read there, without the newline that ends it.
    pub(super) fn password(&self) -> Result<Option<String>, Failure> {
        if !self.password_stdin {
            return Ok(None);
        }
        let mut password = String::new();
        let read = std::io::stdin().take(MAX_PASSWORD).read_to_string(&mut password);
        read.map_err(Failure::io("cannot read the password from standard input"))?;
        let end = password.trim_end_matches(['\r', '\n']).len();
        password.truncate(end);
        if password.is_empty() {
            return Err(Failure::Usage("there is no password on standard input".to_owned()));
        }
        Ok(Some(password))
    }

    /// What they say; `password` is what was read from standard input.
    pub(super) fn access(&self, password: Option<String>) -> Result<Access, Failure> {
        let password = password.or_else(|| std::env::var(PASSWORD).ok().filter(|text| !text.is_empty()));
        let credential = match (&self.username, password) {
            (Some(user), Some(password)) => Some(Credential::Password(user.clone(), password)),
            (None, _) => None,
            (Some(user), None) => {
                return Err(Failure::Usage(format!(
                    "there is no password for {user}: give it with --password-stdin or in {PASSWORD}"
                )));
            }
        };
        let absolute = |paths: &[PathBuf]| -> Result<Vec<PathBuf>, Failure> {
            let paths = paths.iter().map(std::path::absolute).collect::<Result<_, _>>();
            paths.map_err(Failure::io("cannot tell where a file is"))
        };
        Ok(Access {
            credential,
            hosts_dirs: absolute(&self.hosts_dir)?,
            tls_ca: absolute(&self.tls_ca)?,
            allow_private: self.allow_private_redirects,
            public_only: false,
            no_logins: false,
            tag_ttl: Duration::from_secs(self.tag_ttl),
        })
    }
}
