//! The table of keys as a reference page, and in the shapes of Kafka Connect's REST API.

use std::fmt::Write;

use serde_json::{Value, json};

use super::connector::ConnectorConfig;
use super::file::Map;
use super::key::{Default, Importance, Key, Kind};
use super::keys::{CONNECTOR, WORKER};

/// The reference of all keys, as Markdown.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Configuration reference\n\n\
         Made by `wecom-connector config` from the table the program itself reads by. Files are Java properties in UTF-8; a \
         connector may also be JSON, flat or as `{\"name\": …, \"config\": {…}}`. Any value may hold references, which are \
         resolved at the start and never shown: `${env:NAME}`, `${file:/path.properties:key}`, `${dir:/path:file}`, and `${exec:/path/of/program arguments}` where the worker allows it.\n",
    );
    for (title, keys) in [("Worker", WORKER), ("Connector", CONNECTOR)] {
        let _ = write!(page, "\n## {title} file\n");
        for group in groups(keys) {
            let _ = write!(
                page,
                "\n### {group}\n\n| Key | Type | Default | Importance | Meaning |\n| --- | --- | --- | --- | --- |\n"
            );
            for key in keys.iter().filter(|key| key.group == group) {
                let _ = writeln!(
                    page,
                    "| `{}` | {} | {} | {} | {} |",
                    key.name,
                    kind(key.kind),
                    default(key.default),
                    key.importance.name(),
                    key.documentation.replace('|', "\\|")
                );
            }
        }
    }
    page
}

/// The keys in the shape of Connect's `GET /connector-plugins/{plugin}/config`, of a connector or of a worker.
pub fn definitions(worker: bool) -> Value {
    let keys = if worker { WORKER } else { CONNECTOR };
    Value::Array(keys.iter().filter(|key| key.prefix().is_none()).map(|key| definition(keys, key)).collect())
}

/// The answer of Connect's `PUT /connector-plugins/{plugin}/config/validate` for a connector. Passwords are not in it.
pub fn validation(map: &Map) -> Value {
    let problems = ConnectorConfig::from_map(map, super::Providers::default())
        .err()
        .map(|errors| errors.problems)
        .unwrap_or_default();
    let of = |name: &str| -> Vec<&str> {
        problems.iter().filter(|it| it.key.as_deref() == Some(name)).map(|it| it.message.as_str()).collect()
    };
    let mut configs: Vec<Value> = CONNECTOR
        .iter()
        .filter(|key| key.prefix().is_none())
        .map(|key| {
            let value = map.get(key.name).map(String::as_str).or(match key.default {
                Default::Value(value) => Some(value),
                _ => None,
            });
            let value = value.filter(|_| key.kind != Kind::Password);
            json!({ "definition": definition(CONNECTOR, key), "value": {
                "name": key.name, "value": value, "recommended_values": recommended(key), "errors": of(key.name), "visible": true,
            }})
        })
        .collect();
    // Problems of keys that only a family's row stands for: Connect answers such a key without a definition of its own.
    let mut others: Vec<_> = problems.iter().filter_map(|it| it.key.as_deref()).collect();
    others.retain(|name| !CONNECTOR.iter().any(|key| key.name == *name));
    others.dedup();
    configs.extend(others.iter().map(|name| {
        json!({ "definition": null, "value": {
            "name": name, "value": null, "recommended_values": [], "errors": of(name), "visible": true,
        }})
    }));
    json!({
        "name": "WeComArchiveSource",
        "error_count": problems.len(),
        "groups": groups(CONNECTOR),
        "configs": configs,
    })
}

fn definition(keys: &[Key], key: &Key) -> Value {
    let order = keys.iter().filter(|other| other.group == key.group).position(|other| other.name == key.name);
    json!({
        "name": key.name,
        "type": key.kind.connect_name(),
        "required": key.default == Default::Required,
        "default_value": match key.default { Default::Value(value) => Some(value), _ => None },
        "importance": key.importance.name().to_ascii_uppercase(),
        "documentation": key.documentation,
        "group": key.group,
        "order_in_group": order.map_or(-1, |order| order as i64 + 1),
        "width": if key.importance == Importance::High { "LONG" } else { "MEDIUM" },
        "display_name": key.name,
        "dependents": [],
    })
}

fn recommended(key: &Key) -> &'static [&'static str] {
    match key.kind {
        Kind::Enum(names) => names,
        Kind::Boolean => &["true", "false"],
        _ => &[],
    }
}

fn groups(keys: &[Key]) -> Vec<&'static str> {
    let mut groups = Vec::new();
    for key in keys {
        if !groups.contains(&key.group) {
            groups.push(key.group);
        }
    }
    groups
}

fn kind(kind: Kind) -> String {
    match kind {
        Kind::String => "string".to_owned(),
        Kind::List => "list".to_owned(),
        Kind::Int { min, max } => format!("int, {min} to {max}"),
        Kind::DurationMs { min, max } => format!("ms, {min} to {max}"),
        Kind::Boolean => "boolean".to_owned(),
        Kind::Enum(names) => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        Kind::Password => "password".to_owned(),
        Kind::Path => "path".to_owned(),
    }
}

fn default(default: Default) -> String {
    match default {
        Default::Required => "**required**".to_owned(),
        Default::Absent => "–".to_owned(),
        Default::Value(value) => format!("`{value}`"),
        Default::Derived { key, suffix } => format!("value of `{key}` and `{suffix}`"),
    }
}
