//! A system that has no more threads for a program. The limit itself does not bind root; a library that is loaded
//! before all others answers as the system does.

use std::path::{Path, PathBuf};
use std::process::Command;

/// EAGAIN: the limit of threads is reached. EPERM: a filter of system calls forbids them.
pub const EAGAIN: i32 = 11;
pub const EPERM: i32 = 1;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

static int asked_for;

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    if (__atomic_add_fetch(&asked_for, 1, __ATOMIC_RELAXED) > atoi(getenv("THREADS_MAX"))) return atoi(getenv("THREADS_ERROR"));
    return create(thread, attributes, run, argument);
}
"#;

/// The variables that let a program start so many threads, and answer this error after that. `folder` is where the
/// library is made.
pub fn thread_limit(folder: &Path, most: usize, error: i32) -> [(&'static str, String); 3] {
    let library: PathBuf = folder.join("thread_limit.so");
    let source = library.with_extension("c");
    std::fs::write(&source, SOURCE).expect("a file");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl")
        .status()
        .expect("cc");
    assert!(compiled.success());
    let library = library.to_str().expect("a path in UTF-8").to_owned();
    [("LD_PRELOAD", library), ("THREADS_MAX", most.to_string()), ("THREADS_ERROR", error.to_string())]
}
