//! The files in `deploy/` are what the programs that read them take, and speak of metrics, settings and files that there are.

#[path = "common/harness.rs"]
mod harness;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use wecom_connector::metrics;
use yaml_rust2::{Yaml, YamlLoader};

#[test]
fn dashboards_and_alerts_name_metrics_that_exist() {
    let mut known = BTreeSet::new();
    for metric in metrics::definitions() {
        if metric.kind == "histogram" {
            known.extend(["_bucket", "_count", "_sum"].map(|suffix| format!("{}{suffix}", metric.name)));
        } else {
            known.insert(metric.name);
        }
    }
    let mut named = 0;
    for file in files(&deploy()) {
        let text = read(&file);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("wecom_connector_")) {
            assert!(known.contains(word), "{} names {word}, which is no metric", file.display());
            named += 1;
        }
    }
    assert!(named > 30, "only {named} metrics were found in deploy/");
}

/// Nothing is wrong with the properties but that the vendor's library, the keys and the token are not on this machine; and what
/// lets Prometheus in goes through the cluster in the clear.
#[test]
fn properties_are_valid() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifests = yaml(&deploy().join("kubernetes/connector.yaml"));
    for name in ["worker.properties", "connector.properties"] {
        let text = kind(&manifests, "ConfigMap")["data"][name].as_str().expect("a file in the config map");
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    // Where secrets are mounted.
    let secrets = folder.path().join("secrets");
    std::fs::create_dir(&secrets).expect("a folder");
    for name in ["wecom-secret", "storage-access-key-id", "storage-secret-access-key"] {
        std::fs::write(secrets.join(name), "secret\n").expect("a secret");
    }
    for place in [deploy(), deploy().join("compose"), folder.path().to_owned()] {
        let is_manifest = place == folder.path();
        let files = ["worker.properties", "connector.properties"].map(|name| {
            let text = read(&place.join(name));
            assert!(!text.contains("${env:WECOM_SECRET}"), "{name}: secrets are files");
            let mounts = ["/run/credentials/connector.service", "/run/secrets", "/secrets"];
            let text = mounts.iter().fold(text, |text, mount| {
                text.replace(&format!("${{dir:{mount}:"), &format!("${{dir:{}:", secrets.display()))
            });
            let file = secrets.join(name);
            std::fs::write(&file, text).expect("a file");
            file
        });
        let output = Command::new(env!("CARGO_BIN_EXE_wecom-connector"))
            .arg("validate")
            .args(files)
            .envs([("WECOM_CORP_ID", "ww1234567890abcdef"), ("S3_SECRET", "secret")])
            .output()
            .expect("the connector's binary");
        let report = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        let wrong: Vec<&str> =
            report.lines().filter(|line| line.starts_with("error") || line.starts_with("warning")).collect();
        let mut known = vec!["wecom.sdk.library", "wecom.private.keys.dir"];
        if is_manifest {
            known.extend(["rest.bearer.token.file", "listeners: is http://"]);
        }
        assert!(wrong.iter().all(|line| known.iter().any(|key| line.contains(key))), "{}:\n{report}", place.display());
        assert_eq!(wrong.len(), known.len(), "{}:\n{report}", place.display());

        // Kafka's own default deletes messages after seven days, and its own replicas can be one.
        for key in ["partitions", "replication.factor", "retention.ms"] {
            let line = format!("\ntopic.creation.default.{key}=");
            assert!(read(&place.join("connector.properties")).contains(&line), "{}: no {line}", place.display());
        }
        assert!(read(&place.join("worker.properties")).contains("\noffset.storage.replication.factor="));
    }
}

/// What is not to get into an image or a commit does not, and what the image is built of does.
#[test]
fn secrets_stay_out_of_image_and_repository() {
    let ignored = read(&harness::repository().join(".dockerignore"));
    let rules: Vec<&str> = ignored.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(rules[0], "*", "what is not named stays out");
    let copied = read(&deploy().join("Dockerfile"));
    let copied =
        copied.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    let copied: BTreeSet<String> = copied
        .flat_map(|line| line.rsplit_once(' ').expect("from and to").0.split(' '))
        .map(|name| format!("!{name}"))
        .collect();
    assert_eq!(rules[1..].iter().map(|&rule| rule.to_owned()).collect::<BTreeSet<_>>(), copied);
    assert!(read(&harness::repository().join(".gitignore")).lines().any(|line| line == "/secrets"));
}

/// Without an engine: what the image's first stage copies is all that Cargo wants to see.
#[test]
fn the_image_is_built_of_what_it_copies() {
    let text = read(&deploy().join("Dockerfile"));
    let (build, run) = text.split_once("\nFROM debian").expect("two stages");
    let folder = tempfile::tempdir().expect("a folder");
    for line in build.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let (from, to) = line.rsplit_once(' ').expect("from and to");
        assert!(to == from || to == "./", "COPY {line}: this test copies under the same names alone");
        let mut copy = Command::new("cp");
        copy.arg("-r").args(from.split(' ').map(|from| harness::repository().join(from))).arg(folder.path());
        assert!(copy.status().expect("cp").success(), "COPY {line}");
    }
    // The image's own command, up to where Cargo has taken manifests, targets and lock file, and finds nothing to build.
    let command = build.lines().find_map(|line| line.strip_prefix("RUN cargo ")).expect("RUN cargo");
    let output = Command::new(env!("CARGO"))
        .args(command.split(' '))
        .args(["--offline", "--bin", "nothing"])
        .current_dir(folder.path())
        .output()
        .expect("cargo");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("error: no bin target named `nothing`"), "{said}");
    // Cargo looks at targets alone: what sources include has to be there, too.
    for file in files(&folder.path().join("src")) {
        for included in read(&file).split("include_str!(\"").skip(1) {
            let path = file.parent().expect("a folder").join(included.split('"').next().expect("a path"));
            assert!(path.exists(), "{} includes {}, which is not copied", file.display(), path.display());
        }
    }

    let manifest: toml::Table = toml::from_str(&read(&harness::repository().join("Cargo.toml"))).expect("Cargo.toml");
    let rust = manifest["workspace"]["package"]["rust-version"].as_str().expect("a version");
    assert!(build.contains(&format!("FROM rust:{rust}-")), "not Rust {rust}, which Cargo.toml wants");
    assert!(
        build.contains("\nARG WECOM_CONNECTOR_COMMIT=unknown\nRUN cargo build"),
        "the build is not told the commit"
    );
    for words in ["HEALTHCHECK", "    CMD", "ENTRYPOINT", "CMD"].map(|start| format!("{start} [")) {
        if let Some(line) = run.lines().find(|line| line.starts_with(&words)) {
            let list = line.split_once(' ').expect("words").1.trim_start().trim_start_matches("CMD ");
            serde_json::from_str::<Vec<String>>(list).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let unit = read(&deploy().join("connector.service"));
    let lines = |start: &str| unit.lines().filter_map(|line| line.strip_prefix(start)).collect::<Vec<_>>();
    // RestartPreventExitStatus counts for the main process alone: what comes before it would be started again for ever.
    assert_eq!(lines("ExecStartPre="), [""; 0]);
    assert_eq!(lines("ExecStart=").len(), 1);
    assert_eq!(lines("RestartPreventExitStatus="), [not_to_be_started_again().join(" ")]);
    assert_eq!(lines("KillMode="), ["mixed"]);

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("connector.service");
    // systemd looks whether the program is there.
    std::fs::write(&file, unit.replace("/usr/local/bin/wecom-connector", env!("CARGO_BIN_EXE_wecom-connector")))
        .expect("unit");
    let Ok(output) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output() else {
        eprintln!("systemd-analyze is not on the path: systemd itself has not read the unit");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("connector.service"), "{said}");
}

/// The codes of which the README says that starting again does not help.
fn not_to_be_started_again() -> Vec<String> {
    let readme = read(&harness::repository().join("README.md"));
    let (_, table) = readme.split_once("### Exit codes").expect("the exit codes");
    let rows = table.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    rows.skip(1)
        .take_while(|cells| cells.len() > 1 || cells == &[""])
        .filter(|cells| cells.get(3).is_some_and(|again| again.starts_with("no")))
        .map(|cells| cells[1].to_owned())
        .collect()
}

#[test]
fn every_yaml_and_json_file_can_be_read() {
    let (mut yamls, mut jsons) = (0, 0);
    for file in files(&deploy()).into_iter().chain([compose_file()]) {
        match file.extension().and_then(OsStr::to_str) {
            Some("yml" | "yaml") => {
                assert!(!yaml(&file).is_empty(), "{} is empty", file.display());
                yamls += 1;
            }
            Some("json") => {
                serde_json::from_str::<Value>(&read(&file))
                    .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                jsons += 1;
            }
            _ => {}
        }
    }
    assert!(yamls >= 7 && jsons >= 1, "{yamls} YAML files, {jsons} JSON files");
}

#[test]
fn compose_names_files_volumes_and_services_that_exist() {
    let compose = &yaml(&compose_file())[0];
    let names = |node: &Yaml| -> BTreeSet<String> {
        node.as_hash().into_iter().flat_map(|map| map.keys()).map(|name| text(name).to_owned()).collect()
    };
    let (services, volumes) = (names(&compose["services"]), names(&compose["volumes"]));
    assert!(services.contains("connector") && services.contains("kafka"), "{services:?}");
    for (name, service) in compose["services"].as_hash().expect("services") {
        let name = text(name);
        assert!(service["image"].is_badvalue() != service["build"].is_badvalue(), "{name}: an image or a build");
        for volume in list(&service["volumes"]) {
            let from = text(volume).split(':').next().expect("a source");
            // What is secret is the user's, by the comment at the top.
            let known = match from.strip_prefix("./") {
                Some(path) => path.starts_with("secrets/") || harness::repository().join(path).exists(),
                None => volumes.contains(from),
            };
            assert!(known, "{name} mounts {from}, which there is not");
        }
        assert!(names(&service["depends_on"]).is_subset(&services), "{name} depends on a service that there is not");
    }
    // Who reads the connector's metrics finds it, and Grafana finds who reads them.
    let prometheus = &yaml(&deploy().join("prometheus/prometheus.yml"))[0];
    let target = text(&prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0]);
    let port = read(&deploy().join("compose/worker.properties"));
    let port = port.lines().find_map(|line| line.strip_prefix("listeners=http://:")).expect("a listener");
    assert_eq!(target, format!("connector:{port}"));
    let datasource = &yaml(&deploy().join("grafana/provisioning/datasources/prometheus.yml"))[0]["datasources"][0];
    assert_eq!(text(&datasource["url"]), "http://prometheus:9090");
    let dashboards = &yaml(&deploy().join("grafana/provisioning/dashboards/wecom-connector.yml"))[0]["providers"][0];
    let place = format!("./deploy/grafana/dashboards:{}:ro", text(&dashboards["options"]["path"]));
    assert!(list(&compose["services"]["grafana"]["volumes"]).iter().any(|volume| text(volume) == place), "{place}");
}

#[test]
fn the_manifests_fit_together() {
    let manifests = yaml(&deploy().join("kubernetes/connector.yaml"));
    for manifest in &manifests {
        for field in [&manifest["apiVersion"], &manifest["kind"], &manifest["metadata"]["name"]] {
            assert!(field.as_str().is_some_and(|field| !field.is_empty()), "{manifest:?}");
        }
    }
    let deployment = &kind(&manifests, "Deployment")["spec"];
    assert_eq!(deployment["replicas"].as_i64(), Some(1));
    assert_eq!(text(&deployment["strategy"]["type"]), "Recreate");
    let labels = &deployment["template"]["metadata"]["labels"];
    assert_eq!(&deployment["selector"]["matchLabels"], labels);
    assert_eq!(&kind(&manifests, "Service")["spec"]["selector"], labels);

    let pod = &deployment["template"]["spec"];
    let container = &pod["containers"][0];
    let volumes: BTreeSet<&str> = list(&pod["volumes"]).iter().map(|volume| text(&volume["name"])).collect();
    let mounts: BTreeSet<&str> = list(&container["volumeMounts"]).iter().map(|mount| text(&mount["name"])).collect();
    assert_eq!(volumes, mounts);
    let port = text(&container["ports"][0]["name"]);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        assert_eq!(text(&container[probe]["httpGet"]["port"]), port, "{probe}");
    }
    assert_eq!(text(&kind(&manifests, "Service")["spec"]["ports"][0]["targetPort"]), port);
    // Secrets are files, of folders that are mounted; nothing of them is in the environment.
    let data = &kind(&manifests, "ConfigMap")["data"];
    let properties = text(&data["connector.properties"]);
    assert!(!properties.contains("${env:") && container["env"].is_badvalue());
    let mounted: BTreeSet<&str> = list(&container["volumeMounts"]).iter().map(|it| text(&it["mountPath"])).collect();
    for folder in properties.split("${dir:").skip(1).map(|rest| rest.split(':').next().expect("a folder")) {
        assert!(mounted.contains(folder), "{folder} is mounted nowhere: {mounted:?}");
    }
    assert!(mounted.contains("/tmp"), "`verify` has no place for temporary files");
    // A changed configuration makes the pod anew.
    let both = ["worker.properties", "connector.properties"].map(|name| text(&data[name])).concat();
    let checksum =
        digest(&SHA256, both.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(text(&deployment["template"]["metadata"]["annotations"]["checksum/configuration"]), checksum);
    assert!(text(&container["image"]).contains("@sha256:"), "a tag can become another image");
    assert_eq!(pod["serviceAccountName"], kind(&manifests, "ServiceAccount")["metadata"]["name"]);
    let policy = &kind(&manifests, "NetworkPolicy")["spec"];
    assert_eq!(&policy["podSelector"]["matchLabels"], labels);
    assert_eq!(text(&policy["ingress"][0]["ports"][0]["port"]), port);
    let monitor = &yaml(&deploy().join("kubernetes/prometheus-operator/podmonitor.yaml"))[0];
    assert_eq!(text(&monitor["kind"]), "PodMonitor");
    assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(text(&monitor["spec"]["podMetricsEndpoints"][0]["port"]), port);
    let grace = pod["terminationGracePeriodSeconds"].as_i64().expect("a time");
    assert!(grace > 10, "below task.shutdown.graceful.timeout.ms");
}

/// Nobody runs as root, and nothing is written beside the volume: in the image, in Compose, in Kubernetes and under systemd.
#[test]
fn containers_and_unit_are_confined() {
    let image = read(&deploy().join("Dockerfile"));
    let (_, run) = image.rsplit_once("\nFROM ").expect("a last stage");
    assert!(run.lines().any(|line| line == "USER 10001:10001"), "{run}");

    let compose = &yaml(&compose_file())[0]["services"]["connector"];
    assert_eq!(compose["read_only"].as_bool(), Some(true));
    assert_eq!(list(&compose["cap_drop"]).iter().map(text).collect::<Vec<_>>(), ["ALL"]);
    assert_eq!(list(&compose["security_opt"]).iter().map(text).collect::<Vec<_>>(), ["no-new-privileges:true"]);
    assert!(list(&compose["volumes"]).iter().all(|volume| text(volume).ends_with(":ro")));
    assert!(list(&compose["tmpfs"]).iter().any(|place| text(place).starts_with("/tmp")), "`verify` has no place");
    assert!(compose["environment"]["WECOM_SECRET"].is_badvalue(), "secrets are files");
    assert!(list(&compose["ports"]).iter().all(|port| text(port).starts_with("127.0.0.1:")));

    let manifests = yaml(&deploy().join("kubernetes/connector.yaml"));
    let pod = &kind(&manifests, "Deployment")["spec"]["template"]["spec"];
    let (whole, own) = (&pod["securityContext"], &pod["containers"][0]["securityContext"]);
    assert_eq!((whole["runAsNonRoot"].as_bool(), whole["runAsUser"].as_i64()), (Some(true), Some(10_001)));
    assert_eq!(text(&whole["seccompProfile"]["type"]), "RuntimeDefault");
    assert_eq!(own["allowPrivilegeEscalation"].as_bool(), Some(false));
    assert_eq!(own["readOnlyRootFilesystem"].as_bool(), Some(true));
    assert_eq!(list(&own["capabilities"]["drop"]).iter().map(text).collect::<Vec<_>>(), ["ALL"]);
    assert_eq!(pod["automountServiceAccountToken"].as_bool(), Some(false));

    let unit = read(&deploy().join("connector.service"));
    for line in [
        "User=wecom-connector",
        "NoNewPrivileges=true",
        "ProtectSystem=strict",
        "ProtectProc=invisible",
        "CapabilityBoundingSet=",
        "MemoryMax=1G",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    // Each secret that the properties name is handed over.
    let properties = read(&deploy().join("connector.properties"));
    for name in properties.split("${dir:/run/credentials/connector.service:").skip(1) {
        let name = name.split('}').next().expect("a name");
        assert!(unit.contains(&format!("\nLoadCredential={name}:")), "{name}");
    }
    assert!(unit.contains("landlock_restrict_self"), "the SDK host cannot be shut in under this filter");
}

#[test]
fn rules_and_dashboards_are_what_prometheus_takes() {
    let promtool = |arguments: &[&OsStr]| {
        let output = Command::new(harness::promtool()).args(arguments).output().expect("promtool");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{arguments:?}:\n{said}");
    };
    let file = |name: &str| deploy().join("prometheus").join(name);
    promtool(&["check".as_ref(), "rules".as_ref(), "--lint-fatal".as_ref(), file("rules.yml").as_os_str()]);
    promtool(&["test".as_ref(), "rules".as_ref(), file("rules.test.yml").as_os_str()]);
    promtool(&["check".as_ref(), "config".as_ref(), file("prometheus.yml").as_os_str()]);
    let tried = read(&file("rules.test.yml"));
    let runbook = read(&harness::repository().join("docs/runbook.md"));
    for rule in list(&yaml(&file("rules.yml"))[0]["groups"][0]["rules"]) {
        let alert = text(&rule["alert"]);
        assert!(tried.contains(&format!("alertname: {alert}\n")), "{alert} is tried nowhere in rules.test.yml");
        let anchor = format!("docs/runbook.md#{}", alert.to_ascii_lowercase());
        assert_eq!(text(&rule["annotations"]["runbook_url"]), anchor);
        assert!(runbook.contains(&format!("\n## {alert}\n")), "the runbook says nothing of {alert}");
    }

    // A panel's expression is one of a rule, once Grafana's variables are put in.
    let mut rules = Vec::new();
    for dashboard in files(&deploy().join("grafana/dashboards")) {
        let dashboard: Value = serde_json::from_str(&read(&dashboard)).expect("JSON");
        for target in dashboard["panels"].as_array().expect("panels").iter().flat_map(|panel| {
            panel["targets"].as_array().unwrap_or_else(|| panic!("{} has no targets", panel["title"]))
        }) {
            let expression = target["expr"].as_str().expect("an expression");
            let expression = expression.replace("$__rate_interval", "5m").replace("$connector", ".*");
            assert!(!expression.contains('$'), "a variable that is not known here: {expression}");
            rules.push(json!({ "record": format!("panel:{}", rules.len()), "expr": expression }));
        }
    }
    assert!(rules.len() > 15, "only {} expressions were found", rules.len());
    let folder = tempfile::tempdir().expect("a folder");
    let panels = folder.path().join("panels.yml");
    let groups = json!({ "groups": [{ "name": "panels", "rules": rules }] });
    std::fs::write(&panels, groups.to_string()).expect("a file");
    promtool(&["check".as_ref(), "rules".as_ref(), panels.as_os_str()]);
}

fn deploy() -> PathBuf {
    harness::repository().join("deploy")
}

fn compose_file() -> PathBuf {
    harness::repository().join("docker-compose.yml")
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The documents of a YAML file.
fn yaml(file: &Path) -> Vec<Yaml> {
    YamlLoader::load_from_str(&read(file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn kind<'a>(manifests: &'a [Yaml], kind: &str) -> &'a Yaml {
    manifests.iter().find(|manifest| manifest["kind"].as_str() == Some(kind)).unwrap_or_else(|| panic!("no {kind}"))
}

fn text(node: &Yaml) -> &str {
    node.as_str().unwrap_or_else(|| panic!("{node:?} should be text"))
}

/// The items of a list; none where there is no list.
fn list(node: &Yaml) -> &[Yaml] {
    node.as_vec().map_or(&[], Vec::as_slice)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .flat_map(|entry| {
            let path = entry.expect("an entry").path();
            if path.is_dir() { files(&path) } else { vec![path] }
        })
        .collect()
}
