//! What is wrong with a configuration, said so that it can be put right.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, or `None` where the file as a whole is at fault.
    pub key: Option<String>,
    /// The value as it may be shown: never a secret, and the reference itself where the value came by one.
    pub value: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Problem {
    /// A problem of the file as a whole.
    pub fn of_file(message: impl Into<String>) -> Self {
        Self { key: None, value: None, message: message.into() }
    }

    /// A problem of a key whose value is not to be shown, or has none.
    pub fn hidden(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: Some(key.into()), value: None, message: message.into() }
    }

    /// A problem of a key, with its value.
    pub fn shown(key: impl Into<String>, value: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: Some(key.into()), value: Some(value.into()), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = &self.message;
        match (&self.key, &self.value) {
            (Some(key), Some(value)) => write_line(f, format_args!("{key} = {value:?}: {message}")),
            (Some(key), None) => write_line(f, format_args!("{key}: {message}")),
            (None, _) => write_line(f, format_args!("{message}")),
        }
    }
}

/// A key is the file's to choose, and so is a reference in a message: neither may end the line, reach a terminal as an
/// escape, or have in it what a reader does not see.
fn write_line(f: &mut fmt::Formatter<'_>, line: fmt::Arguments<'_>) -> fmt::Result {
    use fmt::Write;
    line.to_string().chars().try_for_each(|c| {
        if super::text::is_invisible(c) { write!(f, "{}", c.escape_unicode()) } else { f.write_char(c) }
    })
}

/// All that is wrong with one configuration; displayed one problem or warning a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file, where there is one.
    pub file: Option<PathBuf>,
    /// At least one.
    pub problems: Vec<Problem>,
    /// What is odd besides; displayed too, for an unknown key is often the cause of a missing one.
    pub warnings: Vec<Warning>,
}

impl ConfigErrors {
    /// Problems that belong to no file (yet).
    pub fn new(problems: Vec<Problem>) -> Self {
        Self { file: None, problems, warnings: Vec::new() }
    }

    pub(super) fn of_file(file: &Path, problems: Vec<Problem>) -> Self {
        Self::new(problems).in_file(file)
    }

    pub(super) fn in_file(self, file: &Path) -> Self {
        Self { file: Some(file.to_owned()), ..self }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problems = self.problems.iter().map(|it| it as &dyn fmt::Display);
        let warnings = self.warnings.iter().map(|it| it as &dyn fmt::Display);
        for (index, line) in problems.chain(warnings).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if let Some(file) = &self.file {
                write!(f, "{}: ", file.display())?;
            }
            write!(f, "{line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Something that is probably not meant, but does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The key it is about.
    pub key: String,
    /// What is odd, and what to do.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_line(f, format_args!("{}: {}", self.key, self.message))
    }
}
