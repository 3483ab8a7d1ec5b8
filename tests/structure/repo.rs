//! The repository's files, and its workspace as Cargo describes it.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde_json::Value;

/// The text of each file by its path from the root of the repository.
pub type Sources = BTreeMap<String, String>;

/// A member of the workspace.
pub struct Package {
    pub name: String,
    /// Its library and its binaries.
    pub targets: Vec<Target>,
    /// The names of the packages it depends on, except those for its tests only.
    pub dependencies: Vec<String>,
}

/// A library or a binary.
pub struct Target {
    /// The name that other crates use a library by; `None` for a binary.
    pub library: Option<String>,
    /// Its first file.
    pub root: String,
}

/// Reads every file that Git tracks or would add. What is no text is read as empty.
pub fn sources() -> Sources {
    let listed = output("git", &["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let read = |name: &str| {
        Some((name.to_owned(), String::from_utf8(fs::read(root().join(name)).ok()?).unwrap_or_default()))
    };
    listed.split('\0').filter_map(read).collect()
}

/// Returns what follows the last dot of a path, if something is before it.
pub fn extension(path: &str) -> &str {
    path.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).map_or("", |(_, extension)| extension)
}

/// Returns the members of the workspace.
pub fn packages() -> Vec<Package> {
    let metadata = output(env!("CARGO"), &["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    list(&metadata["packages"]).iter().map(package).collect()
}

fn package(json: &Value) -> Package {
    let target = |target: &Value| {
        let is = |kind| list(&target["kind"]).iter().any(|has| has == kind);
        let library = is("lib").then(|| text(&target["name"]).replace('-', "_"));
        let path = text(&target["src_path"]);
        let path = Path::new(&path).strip_prefix(root()).expect("a path in the repository");
        (library.is_some() || is("bin")).then(|| Target { library, root: path.display().to_string() })
    };
    let dependencies = list(&json["dependencies"]).iter().filter(|dependency| dependency["kind"] != "dev");
    Package {
        name: text(&json["name"]),
        targets: list(&json["targets"]).iter().filter_map(target).collect(),
        dependencies: dependencies.map(|dependency| text(&dependency["name"])).collect(),
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn list(json: &Value) -> &[Value] {
    json.as_array().expect("a list")
}

fn text(json: &Value) -> String {
    json.as_str().expect("text").to_owned()
}
