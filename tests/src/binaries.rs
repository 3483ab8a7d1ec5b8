//! The binaries under test, built once per run with the profile of the program that runs them: the tests, or `swarm`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Names a directory to take the binaries from instead of building them.
pub const BIN_DIR_VARIABLE: &str = "KMARKET_BIN_DIR";

/// Variables with these prefixes describe a package; cargo sets them for the programs it runs.
const PACKAGE_PREFIXES: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];
/// rustup's choice of a toolchain, which overrides every `rust-toolchain` file.
const TOOLCHAIN_VARIABLE: &str = "RUSTUP_TOOLCHAIN";

/// The path of `gateway` or `publisher`.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let given = || env::var_os(BIN_DIR_VARIABLE).map(PathBuf::from);
    let dir = DIR.get_or_init(|| given().map_or_else(build, Ok));
    let path = dir.as_ref().unwrap_or_else(|problem| panic!("{problem}")).join(name);
    assert!(path.is_file(), "{} does not exist", path.display());
    path
}

/// Builds both binaries into the target directory of this binary.
fn build() -> Result<PathBuf, String> {
    let this = env::current_exe().expect("a binary knows its path");
    let dir = profile_dir(&this).expect("target/PROFILE/swarm or target/PROFILE/deps/it-HASH").to_owned();
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => panic!("{} is not in target/PROFILE", this.display()),
    };
    let output = cargo(toolchain())
        .args(["build", "--quiet", "--package", "gateway", "--package", "publisher", "--bins"])
        .args(["--profile", profile, "--target-dir"])
        .arg(dir.parent().expect("target/PROFILE"))
        .output()
        .expect("cargo, which built this test, runs");
    if output.status.success() {
        Ok(dir)
    } else {
        Err(format!("the services do not build:\n{}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// The cargo that built this binary, in the workspace's root, with the toolchain that built this binary.
///
/// Cargo starts `rustc` in each dependency's own directory. Without the variable, rustup's `rustc` obeys a
/// `rust-toolchain` file there and looks for a toolchain that is not installed.
fn cargo(toolchain: Option<String>) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace"));
    if let Some(toolchain) = toolchain {
        cargo.env(TOOLCHAIN_VARIABLE, toolchain);
    }
    // They describe this package, not those to be built. `ring`, and all that uses it, would be recompiled whenever
    // they differ from the last build.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| PACKAGE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// rustup's name of the toolchain that built this binary; `None` without rustup.
fn toolchain() -> Option<String> {
    option_env!("RUSTUP_TOOLCHAIN").map(str::to_owned).or_else(|| env::var(TOOLCHAIN_VARIABLE).ok())
}

/// The `target/PROFILE` of a binary in it, or of a test in `deps`.
fn profile_dir(binary: &Path) -> Option<&Path> {
    let dir = binary.parent()?;
    if dir.ends_with("deps") { dir.parent() } else { Some(dir) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn tests_and_the_load_tool_find_the_profile_they_were_built_with() {
        for binary in ["/w/target/release/swarm", "/w/target/release/deps/it-0a1b"] {
            assert_eq!(profile_dir(Path::new(binary)), Some(Path::new("/w/target/release")));
        }
    }

    #[test]
    fn a_nested_cargo_runs_in_the_workspace_with_the_toolchain_that_built_this() {
        let cargo = cargo(Some("nightly".to_owned()));
        assert!(cargo.get_current_dir().unwrap().join("Cargo.lock").is_file());
        let variable =
            |name: &str| cargo.get_envs().find(|(found, _)| *found == name).map(|(_, value)| value);
        assert_eq!(variable("RUSTUP_TOOLCHAIN"), Some(Some(OsStr::new("nightly"))));
        assert!(env::var_os("CARGO_PKG_NAME").is_none() || variable("CARGO_PKG_NAME") == Some(None));
        if env!("CARGO").contains("/toolchains/") {
            assert!(toolchain().is_some(), "rustup chose {}", env!("CARGO"));
        }
    }
}
