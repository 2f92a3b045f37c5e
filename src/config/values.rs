//! From a map of strings to checked values, by the table of keys.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;

use super::clients::{Settings, looks_secret};
use super::file::Map;
use super::key::{Default, Key, Kind};
use super::problem::{ConfigErrors, Problem, Warning};
use super::purpose::Purpose;
use super::reference::{self, Providers};
use super::text;

/// The checked values of one configuration, with all problems found so far.
pub(super) struct Values {
    keys: &'static [Key],
    /// Resolved text by key, given or by default; absent where absent or wrong.
    texts: BTreeMap<String, Text>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<Warning>,
}

struct Text {
    value: String,
    /// How it may be shown in an error.
    shown: Option<String>,
}

impl Values {
    /// Resolves and checks every value of `map` that is needed. Unknown keys become warnings; `elsewhere` says what to
    /// tell of those that Kafka Connect knows and this program has no use for.
    pub fn read(
        keys: &'static [Key],
        map: &Map,
        providers: Providers,
        purpose: Purpose,
        elsewhere: fn(&str) -> Option<&'static str>,
    ) -> Self {
        let mut values = Self { keys, texts: BTreeMap::new(), problems: Vec::new(), warnings: Vec::new() };
        let mut wrong = Vec::new();
        for (name, written) in map {
            let Some(key) = find(keys, name) else {
                let message = elsewhere(name).map(str::to_owned).unwrap_or_else(|| unknown(keys, name));
                values.warnings.push(Warning { key: name.clone(), message });
                continue;
            };
            if !purpose.needs(name) {
                continue;
            }
            let secret = key.kind == Kind::Password || looks_secret(name);
            let resolved = match reference::resolve(written, secret, providers) {
                Ok(resolved) => resolved,
                Err(message) => {
                    values.problems.push(Problem::hidden(name, message));
                    wrong.push(name.as_str());
                    continue;
                }
            };
            // As Kafka's own configuration does: blanks around a value do not count, an empty one is an absent one.
            let value = resolved.value.trim();
            // An address may have a password in it: `socks5://user:password@host`.
            let shown = (!(secret || value.contains("://") && value.contains('@')))
                .then(|| if resolved.referenced { written } else { value }.to_owned());
            if value.is_empty() && key.prefix().is_none() {
                continue;
            }
            values.warn(name, resolved.warnings);
            if let Err(message) = check(key, name, value, secret) {
                values.problems.push(Problem { key: Some(name.clone()), value: shown, message });
                wrong.push(name.as_str());
                continue;
            }
            if secret && let Some(slip) = text::slip(value) {
                values.warn(name, vec![format!("{slip}, unless it is meant so")]);
            }
            values.texts.insert(name.clone(), Text { value: value.to_owned(), shown });
        }
        values.fill_defaults(map, &wrong, purpose);
        values
    }

    fn warn(&mut self, name: &str, messages: Vec<String>) {
        self.warnings.extend(messages.into_iter().map(|message| Warning { key: name.to_owned(), message }));
    }

    fn fill_defaults(&mut self, map: &Map, wrong: &[&str], purpose: Purpose) {
        for key in self.keys.iter().filter(|key| key.prefix().is_none()) {
            if self.texts.contains_key(key.name) || wrong.contains(&key.name) {
                continue;
            }
            let default = match key.default {
                // `listeners=` is a wish, not an absence.
                Default::Value(_) if key.name == "listeners" && map.contains_key(key.name) => None,
                Default::Value(value) => Some(value.to_owned()),
                Default::Derived { key: other, suffix } => self.text(other).map(|value| format!("{value}{suffix}")),
                Default::Absent => None,
                Default::Required if !purpose.needs(key.name) => None,
                Default::Required => {
                    self.problems.push(Problem::hidden(key.name, format!("is required; {}", key.summary())));
                    None
                }
            };
            if let Some(value) = default {
                self.texts.insert(key.name.to_owned(), Text { shown: Some(value.clone()), value });
            }
        }
    }

    /// Adds a problem of a key, with its value if that may be shown.
    pub fn problem(&mut self, name: &str, message: impl Into<String>) {
        let value = self.texts.get(name).and_then(|text| text.shown.clone());
        self.problems.push(Problem { key: Some(name.to_owned()), value, message: message.into() });
    }

    /// The text of a key that is right or has a default.
    pub fn text(&self, name: &str) -> Option<&str> {
        debug_assert!(find(self.keys, name).is_some(), "{name} is not in the table of keys");
        self.texts.get(name).map(|text| text.value.as_str())
    }

    /// The number of an `Int` or `DurationMs` key.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.text(name).and_then(|text| text.parse().ok())
    }

    /// The items of a list, empty when absent.
    pub fn list(&self, name: &str) -> Vec<&str> {
        self.text(name).map(items).unwrap_or_default()
    }

    /// The keys of a family (`prefix.*`), without the prefix.
    pub fn family(&self, prefix: &str) -> Settings {
        self.texts
            .iter()
            .filter_map(|(name, text)| Some((name.strip_prefix(prefix)?.to_owned(), text.value.clone())))
            .collect()
    }

    /// Every given key that belongs to a family, whole name and value.
    pub fn family_texts(&self) -> Vec<(String, String)> {
        let in_family = |name: &str| !self.keys.iter().any(|key| key.name == name);
        self.texts
            .iter()
            .filter(|(name, _)| in_family(name))
            .map(|(name, text)| (name.clone(), text.value.clone()))
            .collect()
    }

    /// What is wrong, and the warnings: an unknown key is often the cause of a missing one.
    pub fn into_errors(self) -> ConfigErrors {
        ConfigErrors { warnings: self.warnings, ..ConfigErrors::new(self.problems) }
    }

    /// Hands the values to `build` if there is no problem.
    pub fn finish<T>(self, build: impl FnOnce(&Checked) -> T) -> Result<(T, Vec<Warning>), ConfigErrors> {
        if !self.problems.is_empty() {
            return Err(self.into_errors());
        }
        let built = build(&Checked(&self));
        Ok((built, self.warnings))
    }
}

/// Values without a problem: what is required or has a default is there, and is what the table says.
///
/// The methods panic when the table has no such key, or no default for it: a fault of this program, never of a file.
pub(super) struct Checked<'a>(&'a Values);

impl Checked<'_> {
    pub fn string(&self, name: &str) -> String {
        self.present(name).to_owned()
    }

    pub fn int<T: TryFrom<i64>>(&self, name: &str) -> T {
        let number = self.0.int(name).and_then(|number| T::try_from(number).ok());
        number.unwrap_or_else(|| unreachable!("the table bounds {name}"))
    }

    pub fn boolean(&self, name: &str) -> bool {
        self.present(name).eq_ignore_ascii_case("true")
    }

    pub fn choice<T>(&self, name: &str, from_name: fn(&str) -> Option<T>) -> T {
        from_name(self.present(name)).unwrap_or_else(|| unreachable!("the table lists the names of {name}"))
    }

    /// Empty where the purpose does not need it.
    pub fn secret(&self, name: &str) -> SecretString {
        self.0.text(name).unwrap_or_default().into()
    }

    /// Every value, as it may be shown.
    pub fn effective(&self) -> Effective {
        Effective(self.0.texts.iter().map(|(name, text)| (name.clone(), text.shown.clone())).collect())
    }

    pub fn optional(&self, name: &str) -> Option<&str> {
        self.0.text(name)
    }

    pub fn optional_path(&self, name: &str) -> Option<PathBuf> {
        self.0.text(name).map(PathBuf::from)
    }

    fn present(&self, name: &str) -> &str {
        self.0.text(name).unwrap_or_else(|| unreachable!("{name} is required or has a default"))
    }
}

/// A configuration as it counts, given or by default, each value as it may be shown: never a secret, and the reference
/// itself where it came by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective(Vec<(String, Option<String>)>);

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, shown)) in self.0.iter().enumerate() {
            let separator = if index > 0 { " " } else { "" };
            match shown {
                Some(shown) => write!(f, "{separator}{name}={shown:?}")?,
                None => write!(f, "{separator}{name}=[hidden]")?,
            }
        }
        Ok(())
    }
}

/// The items of a list as written.
pub(super) fn items(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

/// The row of a key: its own, or that of its family.
fn find(keys: &'static [Key], name: &str) -> Option<&'static Key> {
    keys.iter().find(|key| key.name == name).or_else(|| {
        keys.iter().find(|key| key.prefix().is_some_and(|prefix| name.len() > prefix.len() && name.starts_with(prefix)))
    })
}

fn check(key: &Key, name: &str, value: &str, secret: bool) -> Result<(), String> {
    text::check_visible(value, name.ends_with(".pem"))?;
    let slip = if key.kind == Kind::Path { text::slip_of_path(value) } else { None };
    if let Some(slip) = slip.or_else(|| text::slip(value)).filter(|_| !secret) {
        return Err(slip);
    }
    match key.kind {
        Kind::Int { min, max } => check_number(value, min, max, "a whole number")?,
        Kind::DurationMs { min, max } => check_number(value, min, max, "a whole number of milliseconds")?,
        Kind::Boolean if !value.eq_ignore_ascii_case("true") && !value.eq_ignore_ascii_case("false") => {
            return Err("must be true or false".to_owned());
        }
        Kind::Enum(names) if !names.contains(&value) => {
            return Err(format!("must be one of {}", names.join(", ")));
        }
        Kind::String | Kind::List | Kind::Boolean | Kind::Enum(_) | Kind::Password | Kind::Path => {}
    }
    key.check.map_or(Ok(()), |check| check(value))
}

fn check_number(value: &str, min: i64, max: i64, what: &str) -> Result<(), String> {
    match value.parse::<i64>() {
        Ok(number) if (min..=max).contains(&number) => Ok(()),
        _ => Err(format!("must be {what} from {min} to {max}")),
    }
}

/// What to say of a key nobody knows.
fn unknown(keys: &[Key], name: &str) -> String {
    // The distance costs the product of both lengths.
    let comparable = keys.iter().filter(|_| name.len() <= 200);
    let nearest = comparable
        .map(|key| key.name)
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, known)| *distance <= known.len().max(name.len()) / 4 + 1)
        .min();
    match nearest {
        Some((_, known)) => format!("is not known and is ignored; did you mean {known}?"),
        None => "is not known and is ignored; remove it, or see `wecom-connector config` for the known keys".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_told_its_nearest() {
        let rows = [
            ("poll.intervall.ms", Some("poll.interval.ms")),
            ("wecom.corpid", Some("wecom.corp.id")),
            ("wecom.secert", Some("wecom.secret")),
            ("task.max", Some("tasks.max")),
            ("colour", None),
        ];
        for (name, expected) in rows {
            let message = unknown(super::super::keys::CONNECTOR, name);
            match expected {
                Some(known) => assert!(message.ends_with(&format!("did you mean {known}?")), "{message}"),
                None => assert!(!message.contains("did you mean"), "{message}"),
            }
        }
    }
}
