//! What to do about each error of the vendor's: the design's table *Errors, by class*.
//!
//! Sources: return codes doc 91552; errcodes doc 90313; measured behaviour of the library where they are silent. What the library
//! calls 10001 is what the egress guard saw, where there is a guard.

use std::net::IpAddr;
use std::time::Duration;

use crate::egress::Failure;
use crate::sdk::{SdkError, code};

/// The vendor counts calls a minute.
pub const RATE_PAUSE: Duration = Duration::from_secs(60);

/// What a failed call asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// The same call again, after a pause that grows.
    Retry(String),
    /// The same call again after a minute: the vendor counts calls.
    Wait(String),
    /// A smaller page.
    ShrinkPage,
    /// A new sdk object, then the same call: the token is dead.
    Renew(String),
    /// The task has failed: a sentence that says what to change. It is tried again after a long pause.
    Reconfigure(String),
}

/// The disposition of a call of the library that failed, for this corp.
pub fn of_sdk_error(error: &SdkError, corp_id: &str) -> Disposition {
    match error {
        SdkError::Configuration(reason) => Disposition::Reconfigure(reason.clone()),
        SdkError::Crash { .. } | SdkError::Unavailable(_) => Disposition::Retry(error.to_string()),
        SdkError::Code { cause: Some(failure), function, code } => of_failure(failure, function, *code, corp_id),
        SdkError::Code { cause: None, function, code } => of_return_code(function, *code),
    }
}

/// Of a call that the guard saw fail.
fn of_failure(failure: &Failure, function: &str, code: i32, corp_id: &str) -> Disposition {
    match failure {
        Failure::Refused { errcode, address, .. } => of_errcode(*errcode, corp_id, *address),
        Failure::Untrusted(_) | Failure::ProxyPassword { .. } | Failure::Forbidden(_) => {
            Disposition::Reconfigure(failure.to_string())
        }
        Failure::Tls { .. }
        | Failure::Name { .. }
        | Failure::Connect { .. }
        | Failure::Proxy { .. }
        | Failure::Status(_)
        | Failure::Timeout(_)
        | Failure::Cut(_)
        | Failure::Answer(_) => Disposition::Retry(format!("{function} answered {code}: {failure}")),
    }
}

/// Whether WeCom said that the token is dead: an sdk object keeps it for ever (measured).
pub fn is_dead_token(error: &SdkError) -> bool {
    matches!(error, SdkError::Code { cause: Some(Failure::Refused { errcode: 40014 | 42001, .. }), .. })
}

fn of_return_code(function: &str, code: i32) -> Disposition {
    match code {
        code::NETWORK => Disposition::Retry(format!(
            "{function} answered 10001: the vendor cannot be reached (network, proxy), or it refuses the token: a wrong wecom.secret \
             or an egress address that is not on the archive's trusted list look the same"
        )),
        code::BAD_ARGUMENT => Disposition::Reconfigure(format!(
            "{function} answered 10000 (bad argument): check wecom.corp.id, wecom.secret and wecom.page.limit"
        )),
        code::ADDRESS_NOT_ALLOWED => Disposition::Reconfigure(format!(
            "{function} answered 10009: this machine's egress address is not allowed; add it to the trusted addresses of the \
             chat archive in the admin console"
        )),
        code::CERTIFICATE => Disposition::Reconfigure(format!(
            "{function} answered 10011 (certificate error): check the vendor's library and the certificates of this machine"
        )),
        code => Disposition::Retry(format!("{function} answered {code}")),
    }
}

/// The disposition of an answer whose `errcode` is not 0, to a request for a token or to a call with a return code of 0.
///
/// `address` is where WeCom saw the call come from. The rest of `errmsg` is the vendor's text and is kept out: it can echo the
/// request.
pub fn of_errcode(errcode: i64, corp_id: &str, address: Option<IpAddr>) -> Disposition {
    let configuration = |advice: &str| Disposition::Reconfigure(format!("WeCom answered errcode {errcode}: {advice}"));
    match errcode {
        -1 => Disposition::Retry("WeCom answered errcode -1: busy".into()),
        40014 | 42001 => {
            Disposition::Renew(format!("WeCom answered errcode {errcode}: the access token is no longer valid"))
        }
        45009 => Disposition::Wait(
            "WeCom answered errcode 45009: too many calls; is another program pulling this archive?".into(),
        ),
        45033 => Disposition::Wait(
            "WeCom answered errcode 45033: too many concurrent calls; is another program pulling this archive?".into(),
        ),
        301058 => Disposition::ShrinkPage,
        40001 => Disposition::Reconfigure(format!(
            "the secret of corp {corp_id} is refused (40001): is wecom.secret the secret of the chat archive?"
        )),
        40013 => Disposition::Reconfigure(format!("the corp id {corp_id} is refused (40013): check wecom.corp.id")),
        41001 | 41004 => configuration("the secret or the token is missing; check wecom.secret"),
        48002 => configuration(
            "the secret may not read the archive; wecom.secret must be the secret of the chat archive, not of an app",
        ),
        60011 => configuration("no privilege; check the archive's scope and whose secret wecom.secret is"),
        60020 | 301042 => {
            let address = address.map(|address| format!(" {address}")).unwrap_or_default();
            Disposition::Reconfigure(format!(
                "this machine's address{address} is not on the archive's allow list ({errcode}): add it to the trusted addresses of the \
                 chat archive in the admin console"
            ))
        }
        301052 => configuration("the chat archive has expired; renew its licence. Records are kept for five days only"),
        301053 => configuration("the chat archive is not opened for this corp"),
        errcode => Disposition::Retry(format!("WeCom answered errcode {errcode}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::Endpoint::{Files, Token};

    fn class(disposition: &Disposition) -> &'static str {
        match disposition {
            Disposition::Retry(_) => "retry",
            Disposition::Wait(_) => "wait",
            Disposition::ShrinkPage => "shrink",
            Disposition::Renew(_) => "renew",
            Disposition::Reconfigure(_) => "reconfigure",
        }
    }

    #[test]
    fn every_code_of_the_table_has_its_class() {
        for (code, expected) in [
            (10000, "reconfigure"),
            (10001, "retry"),
            (10002, "retry"),
            (10003, "retry"),
            (10009, "reconfigure"),
            (10011, "reconfigure"),
            (19999, "retry"),
        ] {
            let error = SdkError::Code { function: "GetChatData", code, cause: None };
            assert_eq!(class(&of_sdk_error(&error, "ww1")), expected, "{code}");
        }
        for (errcode, expected) in [
            (-1, "retry"),
            (40014, "renew"),
            (42001, "renew"),
            (45009, "wait"),
            (45033, "wait"),
            (301058, "shrink"),
            (40001, "reconfigure"),
            (40013, "reconfigure"),
            (41001, "reconfigure"),
            (48002, "reconfigure"),
            (60011, "reconfigure"),
            (60020, "reconfigure"),
            (301042, "reconfigure"),
            (301052, "reconfigure"),
            (301053, "reconfigure"),
            (99999, "retry"),
        ] {
            assert_eq!(class(&of_errcode(errcode, "ww1", None)), expected, "{errcode}");
            // Whoever refuses a token or a file says the same.
            for (endpoint, function, code) in [(Token, "GetChatData", 10001), (Files, "GetMediaData", 10002)] {
                let cause = Some(Failure::Refused { endpoint, errcode, address: None });
                let error = SdkError::Code { function, code, cause };
                assert_eq!(class(&of_sdk_error(&error, "ww1")), expected, "{errcode}");
            }
        }
    }

    #[test]
    fn what_the_guard_saw_is_said() {
        let untrusted = |host: &str| {
            Failure::Untrusted(crate::egress::Untrusted {
                host: host.into(),
                reason: "its issuer is unknown".into(),
                subject: "CN=proxy".into(),
                issuer: "CN=Company CA".into(),
            })
        };
        let peer = || "127.0.0.1:1".to_owned();
        let rows = [
            (
                Failure::Refused { endpoint: Token, errcode: 40001, address: None },
                "reconfigure",
                "the secret of corp ww1 is refused (40001)",
            ),
            (
                Failure::Refused { endpoint: Files, errcode: 60020, address: Some([203, 0, 113, 7].into()) },
                "reconfigure",
                "this machine's address 203.0.113.7 is not on the archive's allow list (60020)",
            ),
            (untrusted("qyapi.weixin.qq.com"), "reconfigure", "it is of CN=proxy, issued by CN=Company CA"),
            (
                Failure::ProxyPassword { proxy: peer(), is_given: false, place: "wecom.proxy.password" },
                "reconfigure",
                "wecom.proxy.password",
            ),
            (
                Failure::Connect { peer: peer(), reason: "refused".into() },
                "retry",
                "10001: 127.0.0.1:1 cannot be reached",
            ),
            (Failure::Status(502), "retry", "HTTP status 502"),
            (Failure::Timeout(30_000), "retry", "within 30000 ms"),
        ];
        for (failure, expected, words) in rows {
            let error = SdkError::Code { function: "GetChatData", code: 10001, cause: Some(failure) };
            let disposition = of_sdk_error(&error, "ww1");
            assert_eq!(class(&disposition), expected, "{error}");
            let (Disposition::Retry(said) | Disposition::Reconfigure(said)) = disposition else { panic!("{error}") };
            assert!(said.contains(words), "{said}");
        }
    }
}
