//! Who may read what the worker shows: clients with the token, or with user and password.

use std::fmt;
use std::path::PathBuf;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use secrecy::{ExposeSecret, SecretString};

use crate::config::Listener;

/// Fewer characters can be guessed.
const TOKEN_LENGTH_MIN: usize = 16;
const TOKEN_BYTES_MAX: u64 = 4096;

/// What lets a client in. Where there is neither, everybody is.
pub struct Access {
    /// Read again at each request, so that a new token needs no restart.
    token_file: Option<PathBuf>,
    /// What `Authorization: Basic` has to say.
    basic: Option<SecretString>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("token_file", &self.token_file).finish_non_exhaustive()
    }
}

impl Access {
    /// # Errors
    /// When the token cannot be read now: a sentence that says what to change.
    pub async fn new(listener: &Listener) -> Result<Self, String> {
        let basic = listener.basic_credentials.as_ref();
        let basic = basic.map(|credentials| BASE64_STANDARD.encode(credentials.expose_secret()).into());
        let access = Self { token_file: listener.bearer_token_file.clone(), basic };
        access.token().await?;
        Ok(access)
    }

    /// Whether everybody is let in.
    pub fn is_open(&self) -> bool {
        self.token_file.is_none() && self.basic.is_none()
    }

    /// What a client that is not let in can come with.
    pub fn challenge(&self) -> HeaderValue {
        HeaderValue::from_static(match (&self.token_file, &self.basic) {
            (Some(_), Some(_)) => "Bearer realm=\"wecom-connector\", Basic realm=\"wecom-connector\"",
            (None, Some(_)) => "Basic realm=\"wecom-connector\"",
            _ => "Bearer realm=\"wecom-connector\"",
        })
    }

    /// Whether the request may be answered. A token that cannot be read lets nobody in.
    pub async fn allows(&self, headers: &HeaderMap) -> bool {
        if self.is_open() {
            return true;
        }
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, given)) = given.and_then(|given| given.split_once(' ')) else { return false };
        let given = given.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return match self.token().await {
                Ok(Some(token)) => is_same(token.expose_secret(), given),
                Ok(None) => false,
                Err(error) => {
                    tracing::warn!(kind = "token", "nobody with a token is let in: {error}");
                    false
                }
            };
        }
        scheme.eq_ignore_ascii_case("basic")
            && self.basic.as_ref().is_some_and(|basic| is_same(basic.expose_secret(), given))
    }

    async fn token(&self) -> Result<Option<SecretString>, String> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let failed = |reason: String| format!("rest.bearer.token.file {} {reason}", path.display());
        let read = async {
            let length = tokio::fs::metadata(path).await?.len();
            if length > TOKEN_BYTES_MAX {
                return Ok(None);
            }
            tokio::fs::read_to_string(path).await.map(Some)
        };
        let text = match read.await {
            Ok(Some(text)) => text,
            Ok(None) => {
                return Err(failed(format!("is larger than {TOKEN_BYTES_MAX} bytes; it has to hold one token alone")));
            }
            Err(error) => return Err(failed(format!("cannot be read: {error}"))),
        };
        let token = text.trim();
        if token.starts_with(['"', '\'']) {
            return Err(failed("has quotes around the token, and they count as a part of it; remove them".into()));
        }
        if token.len() < TOKEN_LENGTH_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(failed(format!(
                "has to hold one token of at least {TOKEN_LENGTH_MIN} visible ASCII characters, such as `openssl rand -hex 32` writes"
            )));
        }
        Ok(Some(token.into()))
    }
}

/// In a time that tells nothing of where they differ, nor of lengths.
fn is_same(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(|text| digest(&SHA256, text.as_bytes()));
    verify_slices_are_equal(one.as_ref(), other.as_ref()).is_ok()
}
