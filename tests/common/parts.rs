//! Where the real parts lie.

use std::path::{Path, PathBuf};

/// Folder of the Kafka jars.
pub fn kafka_libs() -> PathBuf {
    part("KAFKA_LIBS", "kafka/libs")
}

/// The S3 server's program.
pub fn s3s_fs() -> PathBuf {
    part("S3S_FS", "s3s-fs/bin/s3s-fs")
}

/// Prometheus's checker of rules.
pub fn promtool() -> PathBuf {
    part("PROMTOOL", "promtool/promtool")
}

/// The vendor's own library.
pub fn vendor_library() -> PathBuf {
    part("WECOM_VENDOR_LIBRARY", "sdk/libWeWorkFinanceSdk_C.so")
}

/// The stand-in for the vendor's library, built by `cargo build --workspace` in the profile of this test.
pub fn simulator_library() -> PathBuf {
    beside_connector("libwecom_simulator.so")
}

/// The program that tells what is in a scenario.
pub fn simulator() -> PathBuf {
    beside_connector("wecom-simulator")
}

/// The connector's binary.
pub fn connector() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_wecom-connector"))
}

/// The repository's own files.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn part(variable: &str, place: &str) -> PathBuf {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => match std::env::var_os("REAL_PARTS_DIR") {
            Some(folder) => Path::new(&folder).join(place),
            None => repository().join(".cache/real-parts").join(place),
        },
    };
    assert!(path.exists(), "{} is missing: run tools/real-parts, or name it by {variable}", path.display());
    path
}

fn beside_connector(file: &str) -> PathBuf {
    let path = connector().with_file_name(file);
    assert!(path.exists(), "{} is missing: run cargo build --workspace in the tests' profile", path.display());
    path
}
