//! How fast a full archive drains into a stock broker, against what RSA alone allows on the same cores in the same run.
//!
//! `tools/bench` runs it. The machine's own speed cancels out in the ratio; the rest is noise of the moment.

#[path = "../tests/common/harness.rs"]
mod harness;

use std::time::{Duration, Instant};

use aws_lc_rs::rsa::{Pkcs1PublicEncryptingKey, PublicEncryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rayon::prelude::*;
use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs8::EncodePublicKey as _;

use harness::{Corp, Kafka, WorkerFiles, wait_for};
use wecom_connector::archive::keyring::KeyRing;

const MESSAGES: u64 = 40_000;
/// Start of the clock: past the start of hosts, clients and topics.
const WARM: u64 = 2_000;
const RSA_TIME: Duration = Duration::from_secs(4);

fn main() {
    let corp = Corp::new(&format!("messages = {MESSAGES}\ncalls_per_minute = 0\nmix = {{ text = 1 }}"), "");
    let before = rsa_per_second(&corp);
    let kafka = Kafka::start();
    let files = corp.connect(WorkerFiles::new(&kafka), "bench", &[("media.enable", "false")]);
    let mut worker = files.start();

    let committed =
        |worker: &harness::Worker| worker.metric("wecom_connector_last_committed_seq", &[]).unwrap_or_default() as u64;
    let (start, first) = wait_for("the first pages", harness::PATIENCE, || {
        let seq = committed(&worker);
        (seq >= WARM).then(|| (Instant::now(), seq))
    });
    let end = wait_for("the last page", harness::PATIENCE, || (committed(&worker) >= MESSAGES).then(Instant::now));
    let drain = (MESSAGES - first) as f64 / (end - start).as_secs_f64();
    let metric = |name: &str| worker.metric(&format!("wecom_connector_{name}"), &[]).unwrap_or(f64::NAN);
    let commits = metric("commit_seconds_count");
    let commit_mean_ms = metric("commit_seconds_sum") / commits * 1000.0;
    let page_ms =
        |stage: &str| metric(&format!("{stage}_seconds_sum")) / metric(&format!("{stage}_seconds_count")) * 1000.0;
    let (pull_ms, unwrap_ms, decrypt_ms) = (page_ms("pull"), page_ms("unwrap"), page_ms("decrypt"));
    let hosts = worker.sdk_hosts();
    let memory = [peak_mib(worker.process().id()), hosts.first().map_or(f64::NAN, |host| peak_mib(*host))];
    worker.terminate();
    let after = rsa_per_second(&corp);
    let rsa = (before + after) / 2.0;

    println!(
        "messages drained                {MESSAGES} (text, {} cores, Kafka beside)",
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    println!("RSA alone, all cores            {rsa:.0}/s (before {before:.0}, after {after:.0})");
    println!("drain                           {drain:.0}/s");
    println!("drain / RSA alone               {:.2}", drain / rsa);
    println!("transactions                    {commits:.0}, mean commit {commit_mean_ms:.1} ms");
    println!("a page: pull, unwrap, decrypt   {pull_ms:.1}, {unwrap_ms:.1}, {decrypt_ms:.1} ms (mean)");
    println!("peak memory: worker, SDK host   {:.0}, {:.0} MiB", memory[0], memory[1]);
}

/// Unwraps as the worker does, and nothing else.
fn rsa_per_second(corp: &Corp) -> f64 {
    let pem = std::fs::read_to_string(corp.keys().join("1.pem")).expect("the key of version 1");
    let public = rsa::PrivateKey::from_pkcs1_pem(&pem).expect("a key in PKCS#1").to_public_key();
    let public = public.to_public_key_der().expect("a public key");
    let public = PublicEncryptingKey::from_der(public.as_bytes()).expect("a public key");
    let public = Pkcs1PublicEncryptingKey::new(public).expect("a public key");
    let ring = KeyRing::load(&[(1, corp.keys().join("1.pem"))], None).expect("a key ring");
    let sealed: Vec<String> = (0..64u8)
        .map(|n| {
            let mut sealed = vec![0; public.ciphertext_size()];
            STANDARD.encode(public.encrypt(&[n; 32], &mut sealed).expect("a sealed key"))
        })
        .collect();
    let start = Instant::now();
    let mut unwrapped = 0;
    while start.elapsed() < RSA_TIME {
        sealed.par_iter().for_each(|sealed| assert_eq!(ring.unwrap(1, sealed).expect("unwraps").len(), 32));
        unwrapped += sealed.len();
    }
    unwrapped as f64 / start.elapsed().as_secs_f64()
}

/// The most memory that a process has had resident, in MiB.
fn peak_mib(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()).map_or(f64::NAN, |kb| kb / 1024.0)
}
