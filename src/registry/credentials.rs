//! What `docker login` and `podman login` left behind: files, and programs that hold the secrets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use serde_json::{Map, Value};

/// How somebody proves who he is.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User and password.
    Password(String, String),
    /// An OAuth2 refresh token, which buys tokens at the realm.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credential::Password(..) => "Credential::Password(..)",
            Credential::IdentityToken(..) => "Credential::IdentityToken(..)",
        })
    }
}

/// The files in which credentials are looked for, first come first served. See containers-auth.json(5) and Docker's
/// `config.json`.
#[derive(Debug, Clone, Default)]
pub struct CredentialFiles {
    files: Vec<PathBuf>,
    given: Option<Credential>,
}

impl CredentialFiles {
    /// The files that the environment names: podman's (`REGISTRY_AUTH_FILE`, or `containers/auth.json` in the runtime
    /// and configuration directories), then Docker's (`DOCKER_CONFIG` or `~/.docker`).
    pub fn from_environment() -> CredentialFiles {
        let directory = |name: &str| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let home = directory("HOME");
        let mut files = Vec::new();
        if let Some(file) = directory("REGISTRY_AUTH_FILE") {
            files.push(file);
        } else {
            let config = directory("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
            for directory in [directory("XDG_RUNTIME_DIR"), config].into_iter().flatten() {
                files.push(directory.join("containers/auth.json"));
            }
        }
        if let Some(directory) = directory("DOCKER_CONFIG").or_else(|| Some(home?.join(".docker"))) {
            files.push(directory.join("config.json"));
        }
        CredentialFiles::new(files)
    }

    /// No files, but this credential for whatever it is asked for.
    pub fn given(credential: Credential) -> CredentialFiles {
        CredentialFiles {
            files: Vec::new(),
            given: Some(credential),
        }
    }

    /// Exactly these files, in this order.
    pub fn new(files: Vec<PathBuf>) -> CredentialFiles {
        CredentialFiles { files, given: None }
    }

    /// The credential for `repository` of `registry` (`docker.io` for Docker Hub), if there is one.
    ///
    /// A helper program may run for it, in a thread of its own that is left behind after `limit`: a helper that hangs
    /// must hang neither the mount nor the end of the process. A helper that fails is the same as no credential.
    pub async fn find(&self, registry: &str, repository: &str, limit: Duration) -> Option<Credential> {
        if let Some(given) = &self.given {
            return Some(given.clone());
        }
        let (files, registry, repository) = (self.files.clone(), registry.to_owned(), repository.to_owned());
        let (send, receive) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("credentials".to_owned()).spawn({
            let registry = registry.clone();
            move || {
                let found = files.iter().find_map(|file| find_in(file, &registry, &repository));
                let _ = send.send(found);
            }
        });
        if thread.is_err() {
            return None;
        }
        match tokio::time::timeout(limit, receive).await {
            Ok(found) => found.ok().flatten(),
            Err(_) => {
                tracing::warn!("the credential helper for {registry} did not answer in {limit:?}; going on without");
                None
            }
        }
    }
}

/// Per-registry helper, then what stands in the file itself (most specific key first), then the general helper: Docker's
/// order, and podman's keys.
fn find_in(file: &Path, registry: &str, repository: &str) -> Option<Credential> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!("cannot read credentials from {}: {error}", file.display());
            }
            return None;
        }
    };
    let Ok(Value::Object(config)) = serde_json::from_slice(&bytes) else {
        tracing::warn!(
            "{} is not a JSON object; no credentials are read from it",
            file.display()
        );
        return None;
    };
    let server = if registry == "docker.io" {
        "https://index.docker.io/v1/"
    } else {
        registry
    };

    for key in [server, registry] {
        if config
            .get("credHelpers")
            .is_some_and(|helpers| helpers.get(key).is_some())
        {
            return ask(&only(&config, "credHelpers"), key, file);
        }
    }
    let auths = only(&config, "auths");
    let full = format!("{registry}/{repository}");
    let keys = std::iter::successors(Some(full.as_str()), |key| Some(key.rsplit_once('/')?.0));
    if let Some(found) = keys.filter_map(|key| ask(&auths, key, file)).next() {
        return Some(found);
    }
    if config
        .get("credsStore")
        .and_then(Value::as_str)
        .is_some_and(|name| !name.is_empty())
    {
        return ask(&only(&config, "credsStore"), server, file);
    }
    None
}

fn only(config: &Map<String, Value>, key: &str) -> Value {
    let part = config.get(key).map(|value| (key.to_owned(), value.clone()));
    Value::Object(part.into_iter().collect())
}

fn ask(config: &Value, server: &str, file: &Path) -> Option<Credential> {
    match get_credential_from_reader(config.to_string().as_bytes(), server) {
        Ok(DockerCredential::UsernamePassword(user, password)) if user.is_empty() && password.is_empty() => None,
        Ok(DockerCredential::UsernamePassword(user, password)) => Some(Credential::Password(user, password)),
        Ok(DockerCredential::IdentityToken(token)) => Some(Credential::IdentityToken(token)),
        Err(CredentialRetrievalError::NoCredentialConfigured) => None,
        // What a helper printed may hold a secret: it is named, not quoted.
        Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
            tracing::debug!("{helper} has no credential for {server}");
            None
        }
        Err(error) => {
            tracing::warn!("no credential for {server} from {}: {error}", file.display());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn password(user: &str) -> Option<Credential> {
        Some(Credential::Password(user.to_owned(), "pw".to_owned()))
    }

    async fn find(config: &str, registry: &str, repository: &str) -> Option<Credential> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, config).unwrap();
        let missing = dir.path().join("missing.json");
        CredentialFiles::new(vec![missing, file])
            .find(registry, repository, LIMIT)
            .await
    }

    #[tokio::test]
    async fn the_most_specific_key_wins() {
        // "hub:pw", "own:pw", "deep:pw"
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "r.example": {"auth": "b3duOnB3"},
            "r.example/team": {"auth": "ZGVlcDpwdw=="},
            "id.example": {"identitytoken": "t"},
            "empty.example": {}
        }}"#;
        assert_eq!(find(config, "docker.io", "library/debian").await, password("hub"));
        assert_eq!(find(config, "r.example", "other/x").await, password("own"));
        assert_eq!(find(config, "r.example", "team/x").await, password("deep"));
        assert_eq!(find(config, "r.example", "teams").await, password("own"));
        assert_eq!(
            find(config, "id.example", "x").await,
            Some(Credential::IdentityToken("t".to_owned()))
        );
        assert_eq!(find(config, "empty.example", "x").await, None);
        assert_eq!(find(config, "example", "x").await, None);
    }

    #[tokio::test]
    async fn a_broken_file_or_helper_is_no_credential() {
        assert_eq!(find("{", "r.example", "x").await, None);
        assert_eq!(find("[]", "r.example", "x").await, None);
        let config = r#"{"credsStore": "there-is-no-such-helper"}"#;
        assert_eq!(find(config, "r.example", "x").await, None);
        let config = r#"{"auths": {"r.example": {"auth": "???"}}}"#;
        assert_eq!(find(config, "r.example", "x").await, None);
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", (password("u"), Credential::IdentityToken("pw".to_owned())));
        assert!(!shown.contains("pw"), "{shown}");
    }
}
