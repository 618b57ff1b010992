//! `peelfs serve`.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::log::Log;
use super::opening::{self, GRACE};
use super::{Failure, code, daemon};
use crate::registry;
use crate::serve::{Allowed, Options, serve};
use crate::tree::Settings;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Anybody on this machine may ask; for others, give an address to --listen and say with --allow-registry \
or --allow-any which registries they may have asked. Ends well by SIGTERM and SIGINT."
)]
pub(super) struct Arguments {
    /// Where to listen; port 0 takes a free one, which is told on standard output
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7335")]
    listen: SocketAddr,
    /// A name that this server is asked by, such as that of its machine or of a proxy before it; again for each. Without it
    /// there are its addresses and localhost, so that no web site can lead a browser here by a name of its own
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Serve images from this registry and no other than those so given
    #[arg(long, value_name = "HOST[:PORT]")]
    allow_registry: Vec<String>,
    /// Serve images from all registries, also to others than this machine
    #[arg(long, conflicts_with = "allow_registry")]
    allow_any: bool,
    /// Where others than this machine may ask: let registries be at private addresses too
    #[arg(long)]
    allow_private: bool,
    /// Serve oci: and docker-archive: images of this machine too; on loopback only
    #[arg(long)]
    allow_local: bool,
    /// The most questions worked on at a time; more are told to come again
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u16).range(1..))]
    max_carves: u16,
    /// The most images kept open; --memory is for all of them
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..))]
    max_images: u16,
    /// How long a client may be waited for: it is cut off when it takes less than 64 KiB in so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86400))]
    client_timeout: u64,
    #[command(flatten)]
    opening: opening::Arguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    arguments.check()?;
    daemon::set_allocator();
    let password = arguments.opening.access.password()?;
    match arguments.opening.quiet {
        true => Log::start_briefly(true),
        false => drop(Log::start(false)),
    }
    let options = arguments.options(arguments.opening.settings(password, None)?);
    let runtime = opening::runtime()?;
    let result = runtime.block_on(arguments.serve(options));
    runtime.shutdown_timeout(GRACE);
    result.map(|()| code::FOUND)
}

impl Arguments {
    fn check(&self) -> Result<(), Failure> {
        if self.opening.access.names_user() && self.allow_registry.len() != 1 {
            let reason = "whoever asks could send the password to a registry of his own: \
                say by one --allow-registry which it is for, or log in with docker login or podman login";
            return Err(Failure::Usage(reason.to_owned()));
        }
        if self.listen.ip().is_loopback() {
            return Ok(());
        }
        let listen = self.listen;
        if !self.allow_any && self.allow_registry.is_empty() {
            return Err(Failure::Usage(format!(
                "who reaches {listen} could have any registry asked: say which with --allow-registry, or --allow-any"
            )));
        }
        if self.allow_local {
            return Err(Failure::Usage(format!(
                "who reaches {listen} must not see images of this machine: leave out --allow-local, or listen on loopback"
            )));
        }
        if self.is_public_only() && registry::has_proxy() {
            let reason = "a proxy, as HTTPS_PROXY and its like name one, would go to private addresses for whoever asks: \
                unset them, or say that this may be with --allow-private";
            return Err(Failure::Usage(reason.to_owned()));
        }
        Ok(())
    }

    fn is_public_only(&self) -> bool {
        !self.listen.ip().is_loopback() && !self.allow_private
    }

    fn options(&self, mut settings: Settings) -> Options {
        settings.access.public_only = self.is_public_only();
        settings.access.no_logins = !self.listen.ip().is_loopback() && self.allow_any;
        Options {
            settings,
            hosts: self.host.clone(),
            allowed: match self.allow_registry.is_empty() {
                true => Allowed::Any,
                false => Allowed::Only(self.allow_registry.clone()),
            },
            local: self.allow_local,
            most_carves: self.max_carves.into(),
            most_images: self.max_images.into(),
            patience: Duration::from_secs(self.client_timeout),
        }
    }

    async fn serve(&self, options: Options) -> Result<(), Failure> {
        let failed = || Failure::io(format!("cannot listen on {}", self.listen));
        let end = ended().map_err(Failure::io("cannot listen to signals"))?;
        let listener = TcpListener::bind(self.listen).await.map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        daemon::say_serving(&format!("http://{address}/"));
        serve(listener, options, end).await.map_err(failed())
    }
}

/// Waits for a signal that ends the server; listened for from now on.
fn ended() -> std::io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
