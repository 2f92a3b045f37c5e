//! Tokens for SASL/OAUTHBEARER, by the client credentials grant (RFC 6749, 4.4) of an OpenID provider. librdkafka's own way to them
//! needs libcurl, which is not built in; its names for the settings are kept.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rdkafka::client::OAuthToken;
use rdkafka_sys as ffi;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::client_error::ClientError;

const FAMILY: &str = "sasl.oauthbearer.";
const TIMEOUT: Duration = Duration::from_secs(5);
/// librdkafka asks again ten seconds after a failure; so many clients ask that the provider is spared.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// For a token that does not say until when it is valid.
const LIFETIME_DEFAULT_MS: i64 = 300_000;
/// An answer is a token and little more.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Where tokens come from. All clients of a connector share one, and its last token.
pub struct Tokens {
    end_point: String,
    client_id: String,
    client_secret: SecretString,
    scope: Option<String>,
    http: reqwest::Client,
    last: Mutex<Option<Last>>,
}

#[derive(Clone)]
enum Last {
    Token { value: SecretString, principal: String, expires_ms: i64, renew_from_ms: i64 },
    Failure { at: Instant, error: TokenError },
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token end point {end_point} cannot be reached: {reason}")]
    Unreachable { end_point: String, reason: String },
    #[error(
        "the token end point {end_point} refuses the client: {reason}; check sasl.oauthbearer.client.id, .client.secret, .scope and \
         .token.endpoint.url"
    )]
    Refused { end_point: String, reason: String },
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("end_point", &self.end_point).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    expires_in: Option<i64>,
    /// One of a list of words (RFC 6749, 5.2). Its description is kept out: it can echo the request.
    error: Option<String>,
}

/// What is read of a token that is a JWT.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<f64>,
}

impl Tokens {
    /// Those that the settings ask for; `None` where they ask for none.
    pub(super) fn of(settings: &BTreeMap<String, String>) -> Result<Option<Arc<Self>>, ClientError> {
        if settings.get("sasl.oauthbearer.method").is_none_or(|method| !method.eq_ignore_ascii_case("oidc")) {
            return Ok(None);
        }
        let refused = |reason: String| ClientError::Settings(reason);
        let mechanism = settings.get("sasl.mechanism").or_else(|| settings.get("sasl.mechanisms"));
        let has_sasl =
            settings.get("security.protocol").is_some_and(|name| name.to_ascii_lowercase().starts_with("sasl"));
        if mechanism.is_none_or(|name| name != "OAUTHBEARER") || !has_sasl {
            let needs = "sasl.oauthbearer.method=oidc needs sasl.mechanism=OAUTHBEARER and security.protocol=SASL_SSL";
            return Err(refused(needs.into()));
        }
        let needed = |key: &str| {
            let value = settings.get(&format!("{FAMILY}{key}"));
            value.cloned().ok_or_else(|| refused(format!("sasl.oauthbearer.method=oidc needs {FAMILY}{key}")))
        };
        let mut http = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
        if let Some(path) = settings.get("https.ca.location") {
            let failed = |reason: String| refused(format!("https.ca.location {path} cannot be used: {reason}"));
            let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.to_string()))?;
            http = http.tls_certs_only(roots);
        }
        let http = http.build().map_err(|error| refused(format!("no client for the token end point: {error}")))?;
        Ok(Some(Arc::new(Self {
            end_point: needed("token.endpoint.url")?,
            client_id: needed("client.id")?,
            client_secret: needed("client.secret")?.into(),
            scope: settings.get("sasl.oauthbearer.scope").cloned(),
            http,
            last: Mutex::new(None),
        })))
    }

    /// Whether this is for us, and not for librdkafka.
    pub(super) fn is_ours(key: &str) -> bool {
        key.starts_with(FAMILY) || key.starts_with("https.")
    }

    /// A token that is good for a while. Blocks for five seconds at the most.
    pub(super) fn token(&self) -> Result<OAuthToken, TokenError> {
        let now_ms = now_ms();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(Last::Token { value, principal, expires_ms, renew_from_ms }) if now_ms < *renew_from_ms => {
                return Ok(token(value, principal, *expires_ms));
            }
            Some(Last::Failure { at, error }) if at.elapsed() < FAILURE_PAUSE => return Err(error.clone()),
            _ => {}
        }
        match self.fetch() {
            Ok((value, principal, expires_ms)) => {
                // Before librdkafka asks for the next one, at four fifths of what is left.
                let renew_from_ms = now_ms + (expires_ms - now_ms) / 2;
                let given = token(&value, &principal, expires_ms);
                *last = Some(Last::Token { value, principal, expires_ms, renew_from_ms });
                Ok(given)
            }
            Err(error) => {
                *last = Some(Last::Failure { at: Instant::now(), error: error.clone() });
                Err(error)
            }
        }
    }

    /// Whether the last failure is one that waiting can help with.
    pub(super) fn failure_passes(&self) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(&*last, Some(Last::Failure { error: TokenError::Unreachable { .. }, .. }))
    }

    /// Gives a client its first token, where nobody serves its callbacks.
    pub(super) fn log_in(&self, client: *mut ffi::rd_kafka_t) -> Result<(), TokenError> {
        let refused = |reason: String| TokenError::Refused { end_point: self.end_point.clone(), reason };
        let OAuthToken { token, principal_name, lifetime_ms } = self.token()?;
        let texts = CString::new(token).and_then(|token| Ok((token, CString::new(principal_name)?)));
        let (token, principal) = texts.map_err(|_| refused("its token has a zero byte in it".into()))?;
        let mut words = [0_u8; 256];
        // SAFETY: the client is alive through the call, and so are the texts, which librdkafka copies. Its words fit the buffer.
        let code = unsafe {
            ffi::rd_kafka_oauthbearer_set_token(
                client,
                token.as_ptr(),
                lifetime_ms,
                principal.as_ptr(),
                ptr::null_mut(),
                0,
                words.as_mut_ptr().cast(),
                words.len(),
            )
        };
        if code == ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        Err(refused("librdkafka does not take its token".into()))
    }

    /// Token, principal, and when it expires in milliseconds since the epoch.
    fn fetch(&self) -> Result<(SecretString, String, i64), TokenError> {
        // On a thread of its own: librdkafka asks wherever it is polled, also within a runtime.
        thread::scope(|scope| {
            let fetch = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|error| self.unreachable(error.to_string()))?;
                runtime.block_on(self.request())
            };
            let fetching = thread::Builder::new().name("kafka token".into()).spawn_scoped(scope, fetch);
            let fetching = fetching.map_err(|error| self.unreachable(error.to_string()))?;
            fetching.join().unwrap_or_else(|_| Err(self.unreachable("the request was interrupted".into())))
        })
    }

    fn unreachable(&self, reason: String) -> TokenError {
        TokenError::Unreachable { end_point: self.end_point.clone(), reason }
    }

    async fn request(&self) -> Result<(SecretString, String, i64), TokenError> {
        let refused = |reason: String| TokenError::Refused { end_point: self.end_point.clone(), reason };
        let mut form = "grant_type=client_credentials".to_owned();
        if let Some(scope) = &self.scope {
            form += &format!("&scope={}", utf8_percent_encode(scope, NON_ALPHANUMERIC));
        }
        let credentials = format!("{}:{}", self.client_id, self.client_secret.expose_secret());
        let mut answer = self
            .http
            .post(&self.end_point)
            .header("authorization", format!("Basic {}", BASE64_STANDARD.encode(credentials)))
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json")
            .body(form)
            .send()
            .await
            .map_err(|error| self.unreachable(innermost(&error)))?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|error| self.unreachable(innermost(&error)))? {
            body.extend_from_slice(&part);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(refused("its answer is no token: it is too long".into()));
            }
        }
        if status.is_server_error() || status.as_u16() == 429 {
            return Err(self.unreachable(format!("it answers {status}")));
        }
        let parsed = serde_json::from_slice::<Answer>(&body);
        if !status.is_success() {
            let word = parsed.ok().and_then(|answer| answer.error).filter(|word| is_plain(word)).unwrap_or_default();
            return Err(refused(format!("it answers {status} {word}").trim_end().to_owned()));
        }
        let Ok(Answer { access_token: Some(value), expires_in, .. }) = parsed else {
            return Err(refused("its answer has no access_token".into()));
        };
        let claims = claims(&value);
        let expires_ms = match (claims.exp, expires_in) {
            (Some(seconds), _) => (seconds * 1000.0) as i64,
            (None, Some(seconds)) => now_ms().saturating_add(seconds.saturating_mul(1000)),
            (None, None) => now_ms() + LIFETIME_DEFAULT_MS,
        };
        if expires_ms <= now_ms() {
            return Err(refused("its token has expired; is this machine's clock right?".into()));
        }
        Ok((value.into(), claims.sub.unwrap_or_else(|| self.client_id.clone()), expires_ms))
    }
}

fn token(value: &SecretString, principal: &str, expires_ms: i64) -> OAuthToken {
    OAuthToken {
        token: value.expose_secret().to_owned(),
        principal_name: principal.to_owned(),
        lifetime_ms: expires_ms,
    }
}

/// Nothing of a token that is no JWT.
fn claims(token: &str) -> Claims {
    let payload = token.split('.').nth(1).and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok());
    payload.and_then(|payload| serde_json::from_slice(&payload).ok()).unwrap_or(Claims { sub: None, exp: None })
}

/// One of RFC 6749's words, such as `invalid_client`.
fn is_plain(word: &str) -> bool {
    word.len() <= 64 && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

/// The cause at the bottom says most.
fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
