//! What the OpenAPI document says of the server is so.

use super::Scene;
use crate::support::attempt;
use crate::support::cli::{Asked, history};

/// Where scripts/test installs it.
fn schemathesis() -> String {
    std::env::var("PEELFS_SCHEMATHESIS").unwrap_or_else(|_| "schemathesis".to_owned())
}

#[test]
fn schemathesis_finds_nothing() {
    // Names of images that it makes up are not to be asked of other registries.
    let asked = Asked::of(history());
    let registry = asked.served.registry.address().to_string();
    let scene = Scene::with(asked, &["--allow-registry", &registry]);
    let dir = tempfile::tempdir().unwrap();
    let document = scene.serve.get("/openapi.json").ok();
    // Most of what it asks shall be about something that is there.
    let mut document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let known = serde_json::json!([scene.asked.served.reference()]);
    document["components"]["parameters"]["image"]["schema"]["enum"] = known.clone();
    let diff = document["paths"]["/diff"]["get"]["parameters"].as_array_mut().unwrap();
    let other = diff.iter_mut().find(|parameter| parameter["name"] == "other").unwrap();
    other["schema"]["enum"] = known;
    let path = dir.path().join("openapi.json");
    std::fs::write(&path, document.to_string()).unwrap();
    let url = scene.serve.url();
    // It leaves files where it runs.
    let arguments = [
        "--chdir",
        dir.path().to_str().unwrap(),
        &schemathesis(),
        "run",
        path.to_str().unwrap(),
        "--url",
        &url,
        "--max-examples",
        "20",
        "--phases",
        "examples,coverage,fuzzing",
        // Which layers there are, and what cannot be asked together, a schema cannot say.
        "--exclude-checks",
        "positive_data_acceptance",
        "--seed",
        "1",
        "--no-color",
    ];
    let output = attempt("env", &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
