//! What the SDK host gives up, so that a library which answers from outside have taken over gets little by it.
//!
//! First, before the library is loaded: what the host inherits. Then, when it is loaded and before it is called for the first
//! time: files, addresses, and signals to others, by Landlock, where the kernel has it. What cannot be had is no reason not to
//! run: it is said.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, NetPort, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::ffi;

/// The newest that this was tried with. What a kernel has not of it is left out.
const LANDLOCK: ABI = ABI::V7;

/// Descriptors of the library: some four for each call under way, and there is a call for each file of a media task.
const DESCRIPTORS_MAX: u64 = 4096;

/// What a library that talks to the guard alone may still open: the system's random bytes and its time zone.
const READABLE: [&str; 4] = ["/dev/urandom", "/dev/random", "/etc/localtime", "/usr/share/zoneinfo"];

/// Gives up what this process has from its parent beside standard input and output, core files, and new privileges.
///
/// # Errors
/// When the system refuses; none of it needs a privilege.
pub fn give_up_inheritance() -> io::Result<()> {
    ffi::close_inherited()?;
    ffi::outlive_file_size_limit();
    // A crash of the library must not leave messages in a core file, and no other process is to read its memory.
    limit(Resource::Core, 0)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_no_new_privs(true)?;
    let descriptors = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    limit(Resource::Nofile, descriptors.min(DESCRIPTORS_MAX))
    // No limit on memory: threads and OpenSSL take address space that they never use, and a page may be large.
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    Ok(rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Shuts the loaded library in, with this thread and all that it makes. With a guard it opens no file but a few of the system's
/// and reaches no TCP port but `guard_port`; without one it needs names, certificates and any address, so that reading and
/// connecting stay. Gives what could not be had, a sentence each.
pub fn shut_in(guard_port: Option<u16>, is_simulator: bool) -> Vec<String> {
    let folders = if is_simulator { simulator_folders() } else { Vec::new() };
    let mut missing = Vec::new();
    // The simulator keeps its state in files.
    if folders.is_empty()
        && let Err(error) = limit(Resource::Fsize, 0)
    {
        missing.push(format!("The SDK host may write files: {error}."));
    }
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    match landlock(guard_port, &folders) {
        Ok(status) => missing.extend(what_is_missing(status.landlock, guard_port)),
        Err(error) => missing.push(format!("{NO_LANDLOCK} The kernel says: {error}.")),
    }
    if threads != 1 {
        missing.push(format!(
            "The vendor's library has started threads while it was loaded; Landlock does not hold for these {}.",
            threads.saturating_sub(1)
        ));
    }
    missing
}

const NO_LANDLOCK: &str = "This kernel has no Landlock (Linux 5.13 and later, with \"landlock\" in its lsm= list), or a filter of system calls forbids it: the vendor's library \
                           can open what this user can open, and reach any address.";

fn what_is_missing(status: LandlockStatus, guard_port: Option<u16>) -> Option<String> {
    let LandlockStatus::Available { effective_abi: abi, .. } = status else { return Some(NO_LANDLOCK.to_owned()) };
    if abi < ABI::V4 && guard_port.is_some() {
        return Some(
            "Landlock of this kernel knows no TCP (Linux 6.7 and later): the vendor's library is not held to the egress guard."
                .to_owned(),
        );
    }
    (abi < ABI::V6).then(|| {
        "Landlock of this kernel knows no signals (Linux 6.12 and later): the vendor's library can signal this user's processes."
            .to_owned()
    })
}

fn landlock(guard_port: Option<u16>, folders: &[PathBuf]) -> Result<RestrictionStatus, RulesetError> {
    let (all, reading) = (AccessFs::from_all(LANDLOCK), AccessFs::from_read(LANDLOCK) & !AccessFs::Execute);
    let files = if guard_port.is_some() { all } else { all & !reading };
    let network = AccessNet::BindTcp | AccessNet::ConnectTcp;
    let network = if guard_port.is_some() { network } else { AccessNet::BindTcp.into() };
    let mut rules = Ruleset::default()
        .handle_access(files)?
        .handle_access(network)?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rules(path_beneath_rules(["/dev/null"], files & (AccessFs::ReadFile | AccessFs::WriteFile)))?
        .add_rules(path_beneath_rules(folders, files & !AccessFs::Execute))?;
    if let Some(port) = guard_port {
        rules = rules
            .add_rules(path_beneath_rules(READABLE, reading))?
            .add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    rules.restrict_self()
}

/// Where the simulator reads and writes, by the variables that it goes by itself.
fn simulator_folders() -> Vec<PathBuf> {
    let scenario = std::env::var_os("WECOM_SIMULATOR_SCENARIO").map(PathBuf::from);
    // By default its state is beside the scenario.
    let beside = scenario.and_then(|path| path.parent().map(Path::to_owned));
    let beside = beside.map(|folder| if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder });
    let state = std::env::var_os("WECOM_SIMULATOR_STATE_DIR").map(PathBuf::from);
    beside.into_iter().chain(state).collect()
}
