//! Secrets by reference: `${env:NAME}`, `${file:/path:key}`, `${dir:/path:file}`, as Kafka Connect's providers write them, and
//! `${exec:/path arguments}` where the worker allows it.

use std::path::Path;
use std::time::Duration;

use super::file::Map;
use super::{command, file};

/// The key of the worker that allows `${exec:…}`.
pub(super) const EXEC_KEY: &str = "config.providers.exec.enable";
/// How long a program may take.
const EXEC_TIMEOUT: Duration = Duration::from_secs(10);

/// What references may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Providers {
    /// Whether `${exec:…}` runs programs.
    pub exec: bool,
}

impl Providers {
    /// What the worker's file allows, whatever else is wrong with it.
    pub fn of_worker(path: &Path) -> Self {
        file::read(path).map(|(map, _)| Self::of(&map)).unwrap_or_default()
    }

    /// Only by its plain word: a reference could be what is to be allowed.
    pub(super) fn of(map: &Map) -> Self {
        Self { exec: map.get(EXEC_KEY).is_some_and(|value| value.trim().eq_ignore_ascii_case("true")) }
    }
}

/// A value whose references are resolved.
pub(super) struct Resolved {
    pub value: String,
    /// True when any part came through a reference: then the value is not to be shown, whatever its key.
    pub referenced: bool,
    /// What is odd about a reference, as a sentence each.
    pub warnings: Vec<String>,
}

/// What one reference stands for.
struct Found {
    value: String,
    warnings: Vec<String>,
}

impl From<String> for Found {
    fn from(value: String) -> Self {
        Self { value, warnings: Vec::new() }
    }
}

/// A file or a program's output ends in a line break more often than not; as in a shell, that is no part of the value.
fn without_last_line_break(text: String) -> Found {
    text.trim_end_matches(['\n', '\r']).to_owned().into()
}

/// Resolves all references in a value. What a reference yields is taken as it is, never resolved again. In a `secret`
/// value an unknown reference is not named: it may be a part of a password that has `${` in it.
///
/// # Errors
/// One sentence that names the reference and never what it stands for.
pub(super) fn resolve(text: &str, secret: bool, providers: Providers) -> Result<Resolved, String> {
    let mut value = String::new();
    let mut rest = text;
    let mut referenced = false;
    let mut warnings = Vec::new();
    while let Some(start) = rest.find("${") {
        value.push_str(&rest[..start]);
        let inner = &rest[start + 2..];
        let Some(end) = inner.find('}') else {
            return Err("has \"${\" without \"}\"; close it, or bring a literal \"${\" in by ${env:…}".to_owned());
        };
        let reference = &inner[..end];
        let provider = reference.split(':').next().unwrap_or_default();
        if !NAMES.contains(&provider) {
            let what = if secret { "a reference".to_owned() } else { format!("${{{reference}}}") };
            return Err(format!(
                "has {what} of no known provider; there are {}: for the variable NAME write ${{env:NAME}}; a literal \"${{\" must come \
                 through one of them",
                NAMES.join(", ")
            ));
        }
        // An argument of a program can be half a secret.
        let shown = reference.split_once(' ').map_or_else(|| reference.to_owned(), |(first, _)| format!("{first} …"));
        let shown = if provider == "exec" { &shown } else { reference };
        let found = lookup(reference, providers).map_err(|message| format!("${{{shown}}} {message}"))?;
        value.push_str(&found.value);
        warnings.extend(found.warnings.iter().map(|message| format!("comes by ${{{shown}}}, which {message}")));
        referenced = true;
        rest = &inner[end + 1..];
    }
    value.push_str(rest);
    Ok(Resolved { value, referenced, warnings })
}

const NAMES: [&str; 4] = ["env", "file", "dir", "exec"];

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads ${env:…}")]
fn lookup(reference: &str, providers: Providers) -> Result<Found, String> {
    let (provider, place) = reference.split_once(':').unwrap_or((reference, ""));
    match provider {
        "env" => match std::env::var(place) {
            Ok(value) => Ok(value.into()),
            Err(std::env::VarError::NotPresent) => Err("is not set; export the variable to this process".to_owned()),
            Err(std::env::VarError::NotUnicode(_)) => Err("is not UTF-8; set the variable to UTF-8 text".to_owned()),
        },
        "file" => {
            let (path, key) = place.rsplit_once(':').ok_or("is incomplete; write ${file:/path:key}")?;
            let (mut map, warnings) = file::properties(&file::read_text(Path::new(path))?).map_err(|_| {
                // The problems of that file are not repeated: they could quote it.
                "does not name a valid properties file; it needs lines of key=value, each key once".to_owned()
            })?;
            let value = map.remove(key);
            let value = value.ok_or("names a key that is not in the file; add it, or correct the key")?;
            let warnings = warnings.into_iter().filter(|it| it.key == key).map(|it| it.message).collect();
            Ok(Found { value, warnings })
        }
        "dir" => {
            let (path, name) = place.rsplit_once(':').ok_or("is incomplete; write ${dir:/path:file}")?;
            if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\']) {
                return Err("must name a file directly in the folder".to_owned());
            }
            file::read_text(&Path::new(path).join(name)).map(without_last_line_break)
        }
        "exec" if !providers.exec => {
            Err(format!("would run a program, which is off; set {EXEC_KEY}=true in the worker's file to allow it"))
        }
        "exec" => command::output(place, EXEC_TIMEOUT).map(without_last_line_break),
        _ => Err("is of no known provider".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("s.properties"), "wecom=Sesame\nnested=${env:PATH}\nslip=Open\\ \\sesame\n")
            .unwrap();
        std::fs::write(folder.path().join("twice"), "Hidden=1\nHidden=2\n").unwrap();
        std::fs::write(folder.path().join("token"), "Open\n").unwrap();
        // Cargo sets this one for every test.
        let version = env!("CARGO_PKG_VERSION");

        let allowed = Providers { exec: true };
        let good = [
            ("plain $5 {x}".to_owned(), "plain $5 {x}".to_owned()),
            (format!("${{file:{path}/s.properties:wecom}}"), "Sesame".to_owned()),
            (format!("${{dir:{path}:token}}"), "Open".to_owned()),
            (format!("u:${{dir:{path}:token}}:p"), "u:Open:p".to_owned()),
            (format!("${{file:{path}/s.properties:slip}}"), "Open sesame".to_owned()),
            (
                format!("a-${{env:CARGO_PKG_VERSION}}-${{file:{path}/s.properties:wecom}}-z"),
                format!("a-{version}-Sesame-z"),
            ),
            (format!("${{file:{path}/s.properties:nested}}"), "${env:PATH}".to_owned()),
            ("${exec:/bin/echo Sesame}".to_owned(), "Sesame".to_owned()),
        ];
        for (text, expected) in good {
            let resolved = resolve(&text, false, allowed).unwrap();
            assert_eq!(resolved.value, expected);
            assert_eq!(resolved.referenced, text.contains("${"));
            assert_eq!(resolved.warnings.len(), usize::from(text.contains(":slip}")), "{:?}", resolved.warnings);
            assert!(
                resolved.warnings.iter().all(|it| it.contains("loses a backslash of line 3") && !it.contains("Open"))
            );
        }

        let bad = [
            ("${env:WECOM_NO_SUCH_VARIABLE}".to_owned(), "is not set"),
            ("${env:}".to_owned(), "is not set"),
            ("${vault:a:b}".to_owned(), "there are env, file, dir, exec"),
            ("${topic}".to_owned(), "there are env, file, dir, exec: for the variable NAME write ${env:NAME}"),
            ("${env:PATH".to_owned(), "without \"}\""),
            ("${file:/etc/passwd}".to_owned(), "is incomplete"),
            (format!("${{file:{path}/none:k}}"), "no such file"),
            (format!("${{file:{path}/s.properties:other}}"), "not in the file"),
            (format!("${{file:{path}/twice:Hidden}}"), "valid properties file"),
            (format!("${{dir:{path}:../x}}"), "directly in the folder"),
            (format!("${{dir:{path}:none}}"), "no such file"),
            ("${exec:/bin/echo Sesame}".to_owned(), "set config.providers.exec.enable=true in the worker's file"),
        ];
        for (text, expected) in bad {
            let message = resolve(&text, false, Providers::default()).err().unwrap();
            assert!(message.contains(expected), "{text}: {message}");
            assert!(!message.contains("Sesame") && !message.contains("Hidden=") && !message.contains(version));
        }
        let failed = resolve("${exec:/bin/false Sesame}", true, allowed).err().unwrap();
        assert_eq!(failed, "${exec:/bin/false …} ended with exit status: 1; run it by hand, as this user, to see why");
        assert!(!resolve("pass${word:1}", true, allowed).err().unwrap().contains("word"));
    }
}
