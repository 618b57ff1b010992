//! What the OpenAPI document says of the server is so.

use super::Scene;
use crate::support::*;

/// Where scripts/test installs it.
fn schemathesis() -> String {
    std::env::var("PEELFS_SCHEMATHESIS").unwrap_or_else(|_| "schemathesis".to_owned())
}

#[test]
fn schemathesis_finds_nothing() {
    let scene = Scene::history();
    let dir = tempfile::tempdir().unwrap();
    let document = scene.serve.get("/openapi.json").ok();
    // Any image that it makes up would be asked of a real registry; so it is told of the one that there is.
    let mut document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let known = serde_json::json!([scene.asked.served.reference()]);
    document["components"]["parameters"]["image"]["schema"]["enum"] = known.clone();
    let diff = document["paths"]["/diff"]["get"]["parameters"].as_array_mut().unwrap();
    let other = diff.iter_mut().find(|parameter| parameter["name"] == "other").unwrap();
    other["schema"]["enum"] = known;
    let path = dir.path().join("openapi.json");
    std::fs::write(&path, document.to_string()).unwrap();
    let url = scene.serve.url();
    let arguments = [
        "run",
        path.to_str().unwrap(),
        "--url",
        &url,
        "--max-examples",
        "20",
        "--phases",
        "examples,coverage,fuzzing",
        "--seed",
        "1",
        "--no-color",
    ];
    run(&schemathesis(), &arguments);
}
