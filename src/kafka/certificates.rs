//! The files of TLS that librdkafka's settings name, and what to say when a broker's certificate is not trusted.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::client_error::ClientError;

const FILES: [&str; 5] =
    ["ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.keystore.location", "ssl.crl.location"];

/// librdkafka looks for the system's roots in the places that distributions have for them.
const PROBE: &str = "probe";

/// The `ssl.ca.location` of a client for which the user has set none: the system's roots. The OpenSSL that is built in has no
/// place of its own for them. `SSL_CERT_FILE` and `SSL_CERT_DIR` count as they do for OpenSSL.
pub(super) fn system_roots(settings: &BTreeMap<String, String>) -> Option<String> {
    let has_tls = settings.get("security.protocol").is_some_and(|name| name.to_ascii_lowercase().ends_with("ssl"));
    let is_set = ["ssl.ca.location", "ssl.ca.pem"].iter().any(|key| settings.contains_key(*key));
    let of_environment = || {
        let variables = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter();
        variables.filter_map(std::env::var_os).filter_map(|path| path.into_string().ok()).find(|path| !path.is_empty())
    };
    (has_tls && !is_set).then(|| of_environment().unwrap_or_else(|| PROBE.to_owned()))
}

/// Whether the files that the settings name can be read. librdkafka's own words for one that is missing do not name it.
pub(super) fn check_files(settings: &BTreeMap<String, String>) -> Result<(), ClientError> {
    for key in FILES {
        let Some(path) = settings.get(key).filter(|path| *path != PROBE) else { continue };
        File::open(path).map_err(|error| ClientError::Settings(format!("{key} {path} cannot be read: {error}")))?;
    }
    Ok(())
}

/// What to change when the broker's certificate was not trusted.
pub(super) fn distrust(settings: &BTreeMap<String, String>) -> String {
    let names =
        "Is the CA right, look at the certificate's dates, and whether it is for the host name of bootstrap.servers";
    let Some(path) = settings.get("ssl.ca.location").filter(|path| *path != PROBE) else {
        return format!(
            "its certificate is of no CA that this system knows; set ssl.ca.location to the certificate of the CA (PEM). {names}"
        );
    };
    match roots(Path::new(path)) {
        Some((0, others)) if others > 0 => format!(
            "ssl.ca.location {path} has no root: its {others} certificates are issued by others; add the root's certificate to the \
             file"
        ),
        _ => format!(
            "its certificate is of no CA in ssl.ca.location {path}; give the certificate of the broker's CA. {names}"
        ),
    }
}

/// How many certificates of a file were issued by their own subjects, and how many by others.
fn roots(path: &Path) -> Option<(usize, usize)> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path).ok()?.collect::<Result<_, _>>().ok()?;
    let is_root = |der: &&CertificateDer<'_>| {
        X509Certificate::from_der(der).is_ok_and(|(_, it)| it.subject().as_raw() == it.issuer().as_raw())
    };
    let roots = certificates.iter().filter(is_root).count();
    Some((roots, certificates.len() - roots))
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    fn settings(rows: &[(&str, &str)]) -> BTreeMap<String, String> {
        rows.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn an_issuing_ca_alone_is_told_from_another_ca() {
        let authority = |name: &str| {
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            (params, KeyPair::generate().unwrap())
        };
        let (root, root_key) = authority("root");
        let (issuing, issuing_key) = authority("issuing");
        let root_certificate = root.self_signed(&root_key).unwrap();
        let issuing = issuing.signed_by(&issuing_key, &Issuer::new(root, root_key)).unwrap();
        let pem = |der: &[u8]| {
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64_STANDARD.encode(der))
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let said = |contents: &str| {
            std::fs::write(&path, contents).unwrap();
            distrust(&settings(&[("ssl.ca.location", path.to_str().unwrap())]))
        };
        let (root, issuing) = (pem(root_certificate.der()), pem(issuing.der()));
        assert!(said(&issuing).contains("has no root: its 1 certificates are issued by others"), "{}", said(&issuing));
        for contents in [root.clone(), root + &issuing, String::new()] {
            assert!(said(&contents).contains("is of no CA in ssl.ca.location"), "{}", said(&contents));
        }
        assert!(distrust(&settings(&[])).contains("set ssl.ca.location"));
    }

    #[test]
    fn the_systems_roots_are_the_default() {
        let rows: &[(&[(&str, &str)], bool)] = &[
            (&[("security.protocol", "SASL_SSL")], true),
            (&[("security.protocol", "ssl")], true),
            (&[("security.protocol", "ssl"), ("ssl.ca.location", "/ca.pem")], false),
            (&[("security.protocol", "ssl"), ("ssl.ca.pem", "…")], false),
            (&[("security.protocol", "sasl_plaintext")], false),
            (&[], false),
        ];
        for (rows, is_set) in rows {
            assert_eq!(system_roots(&settings(rows)).is_some(), *is_set, "{rows:?}");
        }
    }
}
