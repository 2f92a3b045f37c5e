//! Where media are stored, as options for OpenDAL.

use std::path::PathBuf;

use super::clients::Settings;
use super::key::choices;
use super::values::Values;

choices! {
    /// A kind of storage.
    pub enum StorageType {
        /// A local folder.
        Fs = "fs",
        /// Amazon S3 and all that speak it.
        S3 = "s3",
        /// Tencent Cloud COS.
        Cos = "cos",
        /// Aliyun OSS.
        Oss = "oss",
        /// Huawei Cloud OBS.
        Obs = "obs",
        /// Google Cloud Storage.
        Gcs = "gcs",
        /// Azure Blob Storage.
        Azblob = "azblob",
    }
}

choices! {
    /// Who may read the files of a local folder, beside their owner.
    pub enum FileMode {
        /// Nobody.
        Owner = "0600",
        /// The folder's group.
        Group = "0640",
        /// Everybody on the machine.
        All = "0644",
    }
}

impl FileMode {
    /// The mode of files.
    pub fn of_files(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o640,
            Self::All => 0o644,
        }
    }

    /// The mode of folders: who may read a file may look for it.
    pub fn of_folders(self) -> u32 {
        match self {
            Self::Owner => 0o700,
            Self::Group => 0o750,
            Self::All => 0o755,
        }
    }
}

choices! {
    /// The checksum that goes with what is written to S3.
    pub enum Checksum {
        /// In a header of each object and part, as Object Lock asks for.
        Crc32c = "crc32c",
        /// None.
        None = "none",
    }
}

/// Where media are stored.
#[derive(Debug, Clone)]
pub struct StorageConfig {
    /// The kind; its name is OpenDAL's scheme.
    pub kind: StorageType,
    /// First part of every object's key, without `/` at its ends; may be empty.
    pub prefix: String,
    /// OpenDAL's options for the kind. `Debug` shows their names only.
    pub options: Settings,
    /// Certificates in PEM that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Of files in a local folder.
    pub file_mode: FileMode,
}

impl Default for StorageConfig {
    fn default() -> Self {
        let (prefix, options) = (String::new(), Settings::default());
        Self { kind: StorageType::Fs, prefix, options, ca_file: None, file_mode: FileMode::Group }
    }
}

/// What one kind calls each of our keys; `None` where it has no such thing.
struct Names {
    path: Option<&'static str>,
    bucket: Option<&'static str>,
    endpoint: Option<&'static str>,
    region: Option<&'static str>,
    access_key_id: Option<&'static str>,
    secret_access_key: Option<&'static str>,
    endpoint_required: bool,
    /// False where this build has the kind left out.
    built: bool,
}

/// OpenDAL's option names (0.59).
fn names(kind: StorageType) -> Names {
    let bucket = Names {
        path: None,
        bucket: Some("bucket"),
        endpoint: Some("endpoint"),
        region: None,
        access_key_id: Some("access_key_id"),
        secret_access_key: Some("secret_access_key"),
        endpoint_required: true,
        built: true,
    };
    match kind {
        StorageType::Fs => Names {
            path: Some("root"),
            bucket: None,
            endpoint: None,
            access_key_id: None,
            secret_access_key: None,
            endpoint_required: false,
            ..bucket
        },
        StorageType::S3 => Names { region: Some("region"), endpoint_required: false, ..bucket },
        StorageType::Cos => Names { access_key_id: Some("secret_id"), secret_access_key: Some("secret_key"), ..bucket },
        StorageType::Oss => Names { secret_access_key: Some("access_key_secret"), ..bucket },
        StorageType::Obs => bucket,
        StorageType::Gcs => Names {
            access_key_id: None,
            secret_access_key: Some("credential"),
            endpoint_required: false,
            built: cfg!(feature = "gcs"),
            ..bucket
        },
        StorageType::Azblob => Names {
            bucket: Some("container"),
            access_key_id: Some("account_name"),
            secret_access_key: Some("account_key"),
            built: cfg!(feature = "azblob"),
            ..bucket
        },
    }
}

impl StorageConfig {
    /// Reads the storage keys; `None` when there is a problem, which `values` then has.
    pub(super) fn read(values: &mut Values) -> Option<Self> {
        let before = values.problems.len();
        let kind = StorageType::from_name(values.text("storage.type")?)?;
        let names = names(kind);
        let kind_name = kind.name();
        if !names.built {
            values
                .problem("storage.type", format!("this build has no {kind_name}; build with `--features {kind_name}`"));
        }
        let mut options = values.family("storage.option.");
        for (key, option) in [
            ("storage.path", names.path),
            ("storage.bucket", names.bucket),
            ("storage.endpoint", names.endpoint),
            ("storage.region", names.region),
            ("storage.access.key.id", names.access_key_id),
            ("storage.secret.access.key", names.secret_access_key),
        ] {
            let Some(value) = values.text(key).map(str::to_owned) else { continue };
            match option {
                None => values.problem(key, format!("has no use with storage.type={kind_name}; remove it")),
                Some(option) => {
                    if options.0.insert(option.to_owned(), value).is_some() {
                        values.problem(key, format!("is also given as storage.option.{option}; keep one of them"));
                    }
                }
            }
        }
        let given = |option: Option<&str>| option.is_none_or(|option| options.contains_key(option));
        let mut missing = Vec::new();
        if !given(names.bucket) {
            missing.push(("storage.bucket", format!("is required with storage.type={kind_name}; name the bucket")));
        }
        if names.endpoint_required && !given(names.endpoint) {
            missing.push(("storage.endpoint", format!("is required with storage.type={kind_name}, as https://host")));
        }
        if names.region.is_some() && !given(names.region) && !given(names.endpoint) {
            missing.push((
                "storage.region",
                "is required where storage.endpoint is absent; name the bucket's region".to_owned(),
            ));
        }
        if names.access_key_id.is_some() && given(names.access_key_id) != given(names.secret_access_key) {
            let key = if given(names.access_key_id) { "storage.secret.access.key" } else { "storage.access.key.id" };
            missing.push((key, "is missing; give both halves of the access key, or none".to_owned()));
        }
        for (key, message) in missing {
            values.problem(key, message);
        }
        if let Some(path) = names.path {
            options.0.entry(path.to_owned()).or_insert_with(|| "wecom-media".to_owned());
        }
        if let Some(region) = names.region {
            options.0.entry(region.to_owned()).or_insert_with(|| "us-east-1".to_owned());
        }
        match values.text("storage.checksum").and_then(Checksum::from_name)? {
            checksum @ Checksum::Crc32c if kind == StorageType::S3 => {
                options.0.entry("checksum_algorithm".to_owned()).or_insert_with(|| checksum.name().to_owned());
            }
            Checksum::Crc32c | Checksum::None => {}
        }
        let ca_file = values.text("storage.ca.file").map(PathBuf::from);
        if kind == StorageType::Fs && ca_file.is_some() {
            values.problem("storage.ca.file", "has no use with storage.type=fs; remove it");
        }
        let file_mode = values.text("storage.file.mode").and_then(FileMode::from_name)?;
        let prefix = values.text("storage.prefix").unwrap_or_default().to_owned();
        (values.problems.len() == before).then_some(Self { kind, prefix, options, ca_file, file_mode })
    }
}
