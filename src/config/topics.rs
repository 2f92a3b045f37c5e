//! Topics that are made when missing: names, and Connect's `topic.creation.…` groups.

use std::collections::BTreeMap;

use regex::Regex;

use super::values::{Values, items};

/// How missing topics are made.
#[derive(Debug, Clone)]
pub struct TopicCreation {
    default: TopicSettings,
    groups: Vec<TopicGroup>,
}

/// The settings of a topic that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSettings {
    /// `-1` is the broker's default.
    pub replication_factor: i32,
    /// `-1` is the broker's default.
    pub partitions: i32,
    /// Topic settings of Kafka, such as `compression.type`.
    pub configs: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct TopicGroup {
    include: Regex,
    exclude: Option<Regex>,
    settings: TopicSettings,
}

impl TopicCreation {
    /// The settings for a topic: those of the first group that matches its whole name, else the default ones.
    pub fn settings_for(&self, topic: &str) -> &TopicSettings {
        self.groups
            .iter()
            .find(|group| group.include.is_match(topic) && !group.exclude.as_ref().is_some_and(|it| it.is_match(topic)))
            .map_or(&self.default, |group| &group.settings)
    }

    /// Whether a group other than the default one is for the topic.
    pub fn has_group_for(&self, topic: &str) -> bool {
        !std::ptr::eq(self.settings_for(topic), &self.default)
    }

    /// Reads the groups; `None` when there is a problem, which `values` then has.
    pub(super) fn read(values: &mut Values) -> Option<Self> {
        const PREFIX: &str = "topic.creation.";
        let before = values.problems.len();
        let names: Vec<String> = values.list("topic.creation.groups").into_iter().map(str::to_owned).collect();
        // Connect's own two keys of the default group have rows of their own in the table.
        let mut rest = values.family(PREFIX).0;
        rest.remove("groups");
        let mut default = take_group(values, &mut rest, "default", None);
        for key in ["include", "exclude"] {
            if default.configs.remove(key).is_some() {
                values.problem(
                    &format!("{PREFIX}default.{key}"),
                    "the default group takes what no other group takes; remove it",
                );
            }
        }
        let mut groups = Vec::new();
        for (index, name) in names.iter().enumerate() {
            if name == "default" || names[..index].contains(name) {
                values.problem(
                    "topic.creation.groups",
                    "must name each group once, and not \"default\", which is always there",
                );
                continue;
            }
            let mut settings = take_group(values, &mut rest, name, Some(&default));
            let include = pattern(values, &format!("{PREFIX}{name}.include"), settings.configs.remove("include"));
            let exclude = pattern(values, &format!("{PREFIX}{name}.exclude"), settings.configs.remove("exclude"));
            match include {
                Some(include) => groups.push(TopicGroup { include, exclude, settings }),
                None => values.problem(
                    &format!("{PREFIX}{name}.include"),
                    format!("must say with a regular expression which topics group {name} is for"),
                ),
            }
        }
        for name in rest.keys() {
            values.problem(
                &format!("{PREFIX}{name}"),
                "belongs to no group; add its group to topic.creation.groups, or remove it",
            );
        }
        (values.problems.len() == before).then_some(Self { default, groups })
    }
}

/// Takes the settings of a group out of `rest`; what it does not give comes from `fallback`.
fn take_group(
    values: &mut Values,
    rest: &mut BTreeMap<String, String>,
    group: &str,
    fallback: Option<&TopicSettings>,
) -> TopicSettings {
    let prefix = format!("{group}.");
    let mut configs: BTreeMap<_, _> = rest
        .extract_if(.., |name, _| name.starts_with(&prefix))
        .map(|(name, value)| (name[prefix.len()..].to_owned(), value))
        .collect();
    let mut number = |name: &str, fallback: Option<i32>| {
        let number = match configs.remove(name) {
            None => fallback,
            Some(text) => text.parse().ok().filter(|&number: &i32| number == -1 || number >= 1),
        };
        number.unwrap_or_else(|| {
            let message = "must be a whole number from 1, or -1 for the broker's default";
            values.problem(&format!("topic.creation.{prefix}{name}"), message);
            -1
        })
    };
    TopicSettings {
        replication_factor: number("replication.factor", Some(fallback.map_or(-1, |it| it.replication_factor))),
        partitions: number("partitions", Some(fallback.map_or(-1, |it| it.partitions))),
        configs,
    }
}

/// Patterns separated by commas as one that matches a whole name, as Connect reads them.
fn pattern(values: &mut Values, key: &str, text: Option<String>) -> Option<Regex> {
    let text = text?;
    let regex = Regex::new(&format!("^(?:{})$", items(&text).join("|")));
    if regex.is_err() {
        values.problem(key, "is no valid regular expression; see the syntax of Rust's regex crate");
    }
    regex.ok()
}

/// Kafka's own rule for topic names.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let legal = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if legal && name.len() <= 249 && name != "." && name != ".." {
        Ok(())
    } else {
        Err("is no legal topic name: letters, digits, '.', '_' and '-' only, at most 249, and not \".\" or \"..\""
            .to_owned())
    }
}

pub(super) fn check_not_zero(text: &str) -> Result<(), String> {
    if text.trim_start_matches(['-', '+']).trim_start_matches('0').is_empty() {
        Err("must be at least 1, or -1 for the broker's default".to_owned())
    } else {
        Ok(())
    }
}
