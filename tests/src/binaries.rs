//! The binaries under test, built once per run with the profile of what runs them: the tests, or `swarm`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Where to take the binaries from instead of building them.
pub const BIN_DIR_VARIABLE: &str = "KMARKET_BIN_DIR";

/// How the variables begin in which cargo describes a package to what it runs.
const OF_THIS_PACKAGE: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];

/// The path of `gateway` or `publisher`.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let given = || env::var_os(BIN_DIR_VARIABLE).map(PathBuf::from);
    let dir = DIR.get_or_init(|| given().map_or_else(build, Ok));
    let path = dir.as_ref().unwrap_or_else(|problem| panic!("{problem}")).join(name);
    assert!(path.is_file(), "{} is not there", path.display());
    path
}

/// Builds both binaries into the target directory that this binary lies in.
fn build() -> Result<PathBuf, String> {
    let this = env::current_exe().expect("a binary knows its path");
    let dir = profile_dir(&this).expect("target/PROFILE/swarm or target/PROFILE/deps/it-HASH").to_owned();
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => panic!("{} does not lie in target/PROFILE", this.display()),
    };
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
    let mut cargo = Command::new(env!("CARGO"));
    // What the cargo that runs this says of the package is not true of those to be built, and ring is compiled anew, with
    // all that uses it, whenever it differs from what the last cargo said.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| OF_THIS_PACKAGE.iter().any(|prefix| name.starts_with(prefix))) {
            cargo.env_remove(name);
        }
    }
    let output = cargo
        .args([
            "build",
            "--quiet",
            "--package",
            "gateway",
            "--package",
            "publisher",
            "--bins",
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(dir.parent().expect("target/PROFILE"))
        .current_dir(manifest)
        .output()
        .expect("cargo, which built this test, runs");
    if output.status.success() {
        Ok(dir)
    } else {
        Err(format!("the services do not build:\n{}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// `target/PROFILE` of a binary, which is there itself or, when it is a test, in `deps`.
fn profile_dir(binary: &Path) -> Option<&Path> {
    let dir = binary.parent()?;
    if dir.ends_with("deps") { dir.parent() } else { Some(dir) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_the_load_tool_find_the_profile_they_were_built_with() {
        for binary in ["/w/target/release/swarm", "/w/target/release/deps/it-0a1b"] {
            assert_eq!(profile_dir(Path::new(binary)), Some(Path::new("/w/target/release")));
        }
    }
}
