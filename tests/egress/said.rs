//! What goes wrong on the way, or is answered in place of what was asked for: what is said of it, and what it calls
//! for.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wecom_connector::task::disposition::{self, Disposition};

use super::answers::{PAGE, page};
use super::fake::{After, Fake, Flaw, Script};
use super::{CORP, GOOD_TOKEN, client_of, harness, proxy, server, settings};

/// What is on the way.
enum Way {
    /// A proxy of this address.
    Proxy(String),
    /// Another place than WeCom.
    Upstream(String),
    /// This token endpoint.
    Token(&'static str),
    /// This answer to a pull.
    Pull(Script),
    /// This answer to a request for a file.
    File(&'static str),
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said_and_calls_for_what_it_must() {
    use Way::{File, Proxy, Pull, Token, Upstream};
    let closed = SocketAddr::from(([127, 0, 0, 1], harness::free_port()));
    let garbage = server(|stream| drop(stream.write_all(b"SSH-2.0-something\r\n\r\n")));
    let forbids = server(|stream| drop(stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")));
    let breaks = server(|stream| drop(stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>")));
    let leads_away = server(|stream| drop(stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n")));
    let hangs_up = server(|_| {});
    let silent = silent();
    let (socks, _) = proxy::start(proxy::Kind::Socks, closed).await;
    let (http, _) = proxy::start(proxy::Kind::Http, closed).await;
    let rows: Vec<(&str, Way, &str, &[&str])> = vec![
        (
            "proxy down",
            Proxy(format!("http://{closed}")),
            "retry",
            &["(of wecom.proxy)", "cannot be reached: the connection is refused"],
        ),
        (
            "proxy of no such name",
            Proxy("http://nowhere.invalid:3128".into()),
            "retry",
            &["proxy nowhere.invalid:3128", "its name cannot be resolved"],
        ),
        ("socks proxy down", Proxy(format!("socks5://{closed}")), "retry", &["the connection is refused"]),
        (
            "proxy is ssh",
            Proxy(format!("http://{garbage}")),
            "retry",
            &["speaks no HTTP", "taken for http://", "is it https:// or socks5://?"],
        ),
        (
            "proxy hangs up",
            Proxy(format!("http://{hangs_up}")),
            "retry",
            &["hung up without an answer", "is it https:// or socks5://?"],
        ),
        (
            "proxy says nothing",
            Proxy(format!("http://{silent}")),
            "retry",
            &["says nothing for 10000 ms", "(of wecom.proxy)"],
        ),
        (
            "proxy forbids",
            Proxy(format!("http://{forbids}")),
            "retry",
            &["HTTP status 403 to CONNECT", "(of wecom.proxy)"],
        ),
        ("proxy breaks", Proxy(format!("http://{breaks}")), "retry", &["HTTP status 502 to CONNECT"]),
        ("proxy leads away", Proxy(format!("http://{leads_away}")), "retry", &["HTTP status 302 to CONNECT"]),
        (
            "https for http",
            Proxy(format!("https://{forbids}")),
            "retry",
            &["TLS with it failed", "is it http:// or socks5://?"],
        ),
        (
            "socks for http",
            Proxy(format!("socks5://{forbids}")),
            "retry",
            &["speaks no SOCKS5", "is it http:// or https://?"],
        ),
        ("http for socks", Proxy(format!("http://{socks}")), "retry", &["is it https:// or socks5://?"]),
        (
            "socks wants a password",
            Proxy(format!("socks5://{socks}")),
            "reconfigure",
            &["wants a name and password", "wecom.proxy.password"],
        ),
        (
            "http wants a password",
            Proxy(format!("http://{http}")),
            "reconfigure",
            &["wants a name and password", "wecom.proxy.password"],
        ),
        ("down", Upstream(closed.to_string()), "retry", &["cannot be reached: the connection is refused"]),
        (
            "no such name",
            Upstream("nowhere.invalid:443".into()),
            "retry",
            &["the name nowhere.invalid cannot be resolved"],
        ),
        ("nothing comes", Upstream(silent.to_string()), "retry", &["TLS handshake", "says nothing"]),
        ("an empty token answer", Token(""), "retry", &["the token endpoint gave nothing"]),
        ("an object without a token", Token("{}"), "retry", &["no errcode and no access_token"]),
        ("success without a token", Token(r#"{"errcode":0}"#), "retry", &["errcode 0 and no access_token"]),
        ("an array", Token("[]"), "retry", &["an array in place of an object"]),
        ("a code as text", Token(r#"{"errcode":"40001"}"#), "reconfigure", &["the secret of corp", "(40001)"]),
        ("busy", Token(r#"{"errcode":-1}"#), "retry", &["errcode -1"]),
        ("too many calls for tokens", Token(r#"{"errcode":45009}"#), "wait", &["errcode 45009"]),
        (
            "status 503",
            Pull(|to| write!(to, "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").map(|()| After::Keep)),
            "retry",
            &["HTTP status 503"],
        ),
        ("too many calls", File(r#"{"errcode":45009,"errmsg":"x"}"#), "wait", &["errcode 45009"]),
        ("busy with files", File(r#"{"errcode":-1,"errmsg":"x"}"#), "retry", &["errcode -1"]),
        (
            "address of files",
            File(r#"{"errcode":60020,"errmsg":"from ip: ::ffff:203.0.113.7, more"}"#),
            "reconfigure",
            &["address 203.0.113.7 is not"],
        ),
        (
            "address of files, the older code",
            File(r#"{"errcode":301042,"errmsg":"x"}"#),
            "reconfigure",
            &["(301042)", "trusted addresses"],
        ),
        ("licence of files", File(r#"{"errcode":301052,"errmsg":"x"}"#), "reconfigure", &["renew its licence"]),
        ("secret of files", File(r#"{"errcode":48002,"errmsg":"x"}"#), "reconfigure", &["secret of the chat archive"]),
        ("token of files", File(r#"{"errcode":40014,"errmsg":"x"}"#), "renew", &["access token"]),
        ("an unknown code of files", File(r#"{"errcode":99999,"errmsg":"x"}"#), "retry", &["errcode 99999"]),
    ];
    let rows = rows.into_iter().map(|(name, way, class, words)| async move {
        let told = told(way).await;
        let is_right = words.iter().all(|word| told.1.contains(word)) && told.0 == class;
        (!is_right).then(|| format!("{name}: {} {:?} and not {class} {words:?}", told.0, told.1))
    });
    let wrong: Vec<_> = futures::future::join_all(rows).await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn told(way: Way) -> (&'static str, String) {
    let (token, script): (_, Script) = match &way {
        Way::Token(token) => (*token, page),
        Way::Pull(script) => (GOOD_TOKEN, *script),
        _ => (GOOD_TOKEN, page),
    };
    let (fake, is_file) = match way {
        Way::File(answer) => {
            let service = Arc::new(move |_: &_, to: &mut dyn Write| {
                write!(to, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()).map(|()| After::Keep)
            });
            (Fake::serve(Flaw::None, token, service), true)
        }
        _ => (Fake::start(Flaw::None, token, script), false),
    };
    let mut settings = settings(&fake);
    match way {
        Way::Proxy(address) => settings.proxy = Some(address),
        Way::Upstream(address) => settings.upstream = Some(address),
        _ => {}
    }
    let (client, _metrics) = client_of(&settings);
    let error = if is_file {
        client.get_media_data(&harness::file_id("f"), b"").await.map(drop)
    } else {
        client.get_chat_data(0, 10).await.map(drop)
    };
    match disposition::of_sdk_error(&error.expect_err("it goes wrong"), CORP) {
        Disposition::Retry(reason) => ("retry", reason),
        Disposition::Wait(reason) => ("wait", reason),
        Disposition::Renew(reason) => ("renew", reason),
        Disposition::Reconfigure(reason) => ("reconfigure", reason),
        Disposition::ShrinkPage => ("shrink", String::new()),
    }
}

/// Takes connections, and says nothing.
fn silent() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut taken = Vec::new();
        for stream in listener.incoming().map_while(Result::ok) {
            taken.push(stream);
        }
    });
    address
}

/// A kept connection may break at the moment it is used again: nobody but the guard has to know of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_breaks_is_made_anew() {
    let ends: [fn(&mut dyn Write) -> io::Result<After>; 4] = [
        |_| Ok(After::Close),
        |_| Ok(After::Cut),
        |_| Ok(After::Reset),
        |to| to.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").map(|()| After::Cut),
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let pulls = AtomicUsize::new(0);
        let service = Arc::new(move |_: &_, to: &mut dyn Write| match pulls.fetch_add(1, Ordering::Relaxed) {
            1 => end(to),
            _ => page(to),
        });
        let fake = Fake::serve(Flaw::None, GOOD_TOKEN, service);
        let (client, metrics) = client_of(&settings(&fake));
        for _ in 0..3 {
            let came = client.get_chat_data(0, 10).await;
            assert_eq!(came.as_deref(), Ok(PAGE.as_bytes()), "end {number}");
        }
        assert_eq!(fake.seen.requests.load(Ordering::Relaxed), 5, "end {number}");
        assert!(metrics.egress.connections.get() >= 2, "end {number}");
    }
}
