//! What is known of one key.

/// A check of a value as text; its error says what to do and never repeats the value, which may be a secret.
pub type Check = fn(&str) -> Result<(), String>;

/// One row of the table of keys: all that is known of a key, for parsing, checking and documentation alike.
#[derive(Debug)]
pub struct Key {
    /// The full name; a name that ends in `.*` stands for every key with that prefix.
    pub name: &'static str,
    /// What the value is read as.
    pub kind: Kind,
    /// What holds when the key is absent or empty.
    pub default: Default,
    /// A further check.
    pub check: Option<Check>,
    /// How much a user must care.
    pub importance: Importance,
    /// The heading it stands under.
    pub group: &'static str,
    /// Markdown, in full sentences.
    pub documentation: &'static str,
}

impl Key {
    /// A key with no default of its own, no further check and medium importance, to be refined by the methods below.
    pub const fn new(name: &'static str, kind: Kind, group: &'static str, documentation: &'static str) -> Self {
        Self { name, kind, default: Default::Absent, check: None, importance: Importance::Medium, group, documentation }
    }

    /// The value when the key is absent.
    pub const fn or(mut self, value: &'static str) -> Self {
        self.default = Default::Value(value);
        self
    }

    /// The value when the key is absent: that of another key and a suffix.
    pub const fn or_derived(mut self, key: &'static str, suffix: &'static str) -> Self {
        self.default = Default::Derived { key, suffix };
        self
    }

    /// The key must be given.
    pub const fn required(mut self) -> Self {
        self.default = Default::Required;
        self.importance = Importance::High;
        self
    }

    /// A further check.
    pub const fn check(mut self, check: Check) -> Self {
        self.check = Some(check);
        self
    }

    /// A key that every user looks at.
    pub const fn high(mut self) -> Self {
        self.importance = Importance::High;
        self
    }

    /// A key that few users need.
    pub const fn low(mut self) -> Self {
        self.importance = Importance::Low;
        self
    }

    /// The first sentence of the documentation, to stand inside another sentence.
    pub fn summary(&self) -> &'static str {
        self.documentation.split_once(". ").map_or(self.documentation, |(first, _)| first).trim_end_matches('.')
    }

    /// The prefix (with its dot) of a row that stands for a family of keys.
    pub fn prefix(&self) -> Option<&'static str> {
        self.name.strip_suffix('*')
    }
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    String,
    /// Texts separated by commas; spaces around them do not count.
    List,
    /// A whole number within bounds, both included.
    Int {
        /// The least value.
        min: i64,
        /// The greatest value.
        max: i64,
    },
    /// A whole number of milliseconds within bounds, both included.
    DurationMs {
        /// The least value.
        min: i64,
        /// The greatest value.
        max: i64,
    },
    /// `true` or `false`.
    Boolean,
    /// One of a few words.
    Enum(&'static [&'static str]),
    /// Text that is never shown.
    Password,
    /// A file or folder.
    Path,
}

impl Kind {
    /// The name Kafka Connect has for the type.
    pub fn connect_name(self) -> &'static str {
        match self {
            Self::String | Self::Enum(_) | Self::Path => "STRING",
            Self::List => "LIST",
            Self::Int { .. } => "INT",
            Self::DurationMs { .. } => "LONG",
            Self::Boolean => "BOOLEAN",
            Self::Password => "PASSWORD",
        }
    }
}

/// What holds when a key is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// Absence is an error.
    Required,
    /// Absence has a meaning of its own, which the documentation tells.
    Absent,
    /// This value.
    Value(&'static str),
    /// The value of another key, and a suffix.
    Derived {
        /// The other key.
        key: &'static str,
        /// What is put behind its value.
        suffix: &'static str,
    },
}

/// How much a user must care about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Importance {
    /// Look at it before the first start.
    High,
    /// Look at it before production.
    Medium,
    /// Leave it alone unless there is a reason.
    Low,
}

impl Importance {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
        }
    }
}

/// An enum whose names in configuration stand in one place: `NAMES` for the table, `from_name` for the typed struct.
macro_rules! choices {
    ($(#[$about:meta])* pub enum $enum:ident { $($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $enum { $($(#[$doc])* $variant),+ }

        impl $enum {
            /// The names in configuration.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The variant of a name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }

            /// The name in configuration.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}
pub(super) use choices;
