//! Every sslmode against servers with and without TLS, and with the right and the wrong certificate.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

/// An authority with a certificate of its own for each file named.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn ca(&self) -> String {
        self.dir.path().join("ca.pem").display().to_string()
    }

    /// Certificate and key, PEM.
    fn issue(&self, names: &[&str], common_name: Option<&str>) -> (String, String) {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        if let Some(name) = common_name {
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// Writes a file that the server may read and nobody else.
fn put(cluster: &Cluster, name: &str, text: &str) {
    let path = cluster.data().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let owner = std::fs::metadata(cluster.data()).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

fn turn_tls_on(cluster: &Cluster, authority: &Authority, names: &[&str]) {
    let (cert, key) = authority.issue(names, None);
    put(cluster, "server.crt", &cert);
    put(cluster, "server.key", &key);
    put(cluster, "ca.crt", &std::fs::read_to_string(authority.ca()).unwrap());
    let conf = std::fs::read_to_string(cluster.data().join("walhook.conf")).unwrap();
    put(cluster, "walhook.conf", &format!("{conf}ssl = on\nssl_ca_file = 'ca.crt'\n"));
    cluster.stop("fast").unwrap();
    cluster.resume().unwrap();
}

fn url(cluster: &Cluster, who: &str, settings: &str) -> String {
    format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user={who} {settings}", cluster.port())
}

/// Whether the session is encrypted, as the server sees it.
async fn is_encrypted(url: &str) -> bool {
    let row =
        client(url).await.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap();
    let mut session = replication(url).await.unwrap();
    let rows = session.session.query("SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.unwrap();
    let encrypted: bool = row.get(0);
    assert_eq!(rows, [[Some(encrypted.to_string())]]);
    assert_eq!(session.session.socket.is_encrypted(), encrypted);
    encrypted
}

const HBA: &str = "hostssl all only_tls all trust\nhost all only_tls all reject\nhostnossl all only_plain all trust\n\
                   host all only_plain all reject\nhostssl all by_cert all cert\nhostssl all scram all scram-sha-256";
const ROLES: &str = "CREATE ROLE only_tls LOGIN REPLICATION; CREATE ROLE only_plain LOGIN REPLICATION;
    CREATE ROLE by_cert LOGIN REPLICATION; CREATE ROLE scram LOGIN REPLICATION PASSWORD 'word'";

#[tokio::test]
async fn every_sslmode_means_what_libpq_says() {
    let (cluster, authority, stranger) = (cluster(HBA, &[]), Authority::new(), Authority::new());
    let (plain, ca) = (|settings: &str| url(&cluster, "walhook", settings), authority.ca());
    admin(&cluster).await.batch_execute(ROLES).await.unwrap();

    for mode in ["disable", "allow", "prefer"] {
        assert!(!is_encrypted(&plain(&format!("sslmode={mode}"))).await, "{mode}");
    }
    for mode in [
        "sslmode=require".into(),
        format!("sslmode=verify-ca sslrootcert={ca}"),
        format!("sslmode=verify-full sslrootcert={ca}"),
    ] {
        let error = enter(&plain(&mode)).await.unwrap_err();
        assert!(matches!(error, ConnectError::TlsRefused { .. }) && error.needs_a_person(), "{mode}: {error:?}");
    }

    turn_tls_on(&cluster, &authority, &["localhost"]);
    for (mode, encrypted) in [("disable", false), ("allow", false), ("prefer", true), ("require", true)] {
        assert_eq!(is_encrypted(&plain(&format!("sslmode={mode}"))).await, encrypted, "{mode}");
    }
    assert!(is_encrypted(&url(&cluster, "only_tls", "sslmode=allow")).await);
    assert!(!is_encrypted(&url(&cluster, "only_plain", "sslmode=prefer")).await);
    let error = enter(&url(&cluster, "only_tls", "sslmode=disable")).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("28000"), "{error:?}");
    for mode in ["require", "verify-ca", "verify-full"] {
        assert!(is_encrypted(&plain(&format!("sslmode={mode} sslrootcert={ca}"))).await, "{mode}");
        let error = enter(&plain(&format!("sslmode={mode} sslrootcert={}", stranger.ca()))).await.unwrap_err();
        assert!(matches!(error, ConnectError::TlsIssuer { .. }) && error.needs_a_person(), "{mode}: {error:?}");
    }
    let error = enter(&plain("sslmode=verify-ca sslrootcert=/nowhere.pem")).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere.pem"), "{error:?}");
    // The machine's authorities do not know ours.
    enter(&plain("sslrootcert=system")).await.unwrap_err();
}

/// The server's certificate is made anew as `params` has it.
fn reissue(cluster: &Cluster, authority: &Authority, change: impl FnOnce(&mut CertificateParams)) {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    put(cluster, "server.crt", &params.signed_by(&key, &authority.issuer).unwrap().pem());
    put(cluster, "server.key", &key.serialize_pem());
    cluster.stop("fast").unwrap();
    cluster.resume().unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_with_what_to_reissue() {
    let (cluster, authority) = (cluster(HBA, &[]), Authority::new());
    admin(&cluster).await.batch_execute(ROLES).await.unwrap();
    turn_tls_on(&cluster, &authority, &["localhost"]);
    let full = url(&cluster, "walhook", &format!("sslmode=verify-full sslrootcert={}", authority.ca()));
    enter(&full).await.unwrap();
    let error = enter(&url(&cluster, "by_cert", "sslmode=require")).await.unwrap_err();
    assert!(error.needs_a_person() && error.advice().contains("sslcert"), "{error:?}");
    type Change = fn(&mut CertificateParams);
    let cases: [(Change, &str, &str); 4] = [
        (|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1), "has expired", "renew"),
        (|params| params.not_before = rcgen::date_time_ymd(4000, 1, 1), "not valid yet", "clock"),
        (|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "authority's own", "CA:FALSE"),
        (
            |params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth],
            "not one for servers",
            "serverAuth",
        ),
    ];
    for (change, what, advice) in cases {
        reissue(&cluster, &authority, change);
        let error = enter(&full).await.unwrap_err();
        assert!(error.to_string().contains(what) && error.advice().contains(advice), "{error:?}: {}", error.advice());
        assert!(error.needs_a_person() && !error.advice().contains("password"), "{error:?}");
    }
}

#[tokio::test]
async fn only_verify_full_minds_the_name() {
    let (cluster, authority) = (cluster("", &[]), Authority::new());
    turn_tls_on(&cluster, &authority, &["db.example"]);
    let ca = authority.ca();
    let with = |mode: &str| url(&cluster, "walhook", &format!("sslmode={mode} sslrootcert={ca}"));
    enter(&with("verify-ca")).await.unwrap();
    let error = enter(&with("verify-full")).await.unwrap_err();
    assert!(matches!(error, ConnectError::TlsName { .. }) && error.advice().contains("hostaddr"), "{error:?}");
    enter(&with("verify-full").replace("host=localhost", "host=db.example")).await.unwrap();
    // A server's own certificate in the file is trusted without an authority.
    let own = cluster.data().join("server.crt").display().to_string();
    enter(&with("verify-full").replace("host=localhost", "host=db.example").replace(&ca, &own)).await.unwrap();
}

#[tokio::test]
async fn client_certificates_and_channel_binding_open_the_door() {
    let (cluster, authority) = (cluster(HBA, &[]), Authority::new());
    admin(&cluster).await.batch_execute(ROLES).await.unwrap();
    turn_tls_on(&cluster, &authority, &["localhost"]);
    let (cert, key) = authority.issue(&[], Some("by_cert"));
    let path = |name: &str| authority.dir.path().join(name).display().to_string();
    std::fs::write(path("client.crt"), cert).unwrap();
    std::fs::write(path("client.key"), key).unwrap();
    let files = format!("sslmode=require sslcert={} sslkey={}", path("client.crt"), path("client.key"));
    enter(&url(&cluster, "by_cert", &files)).await.unwrap();
    enter(&url(&cluster, "by_cert", "sslmode=require")).await.unwrap_err();
    for binding in ["disable", "prefer", "require"] {
        let settings = format!("password=word sslmode=require channel_binding={binding}");
        enter(&url(&cluster, "scram", &settings)).await.unwrap_or_else(|error| panic!("{binding}: {error:?}"));
    }
    let error = enter(&url(&cluster, "walhook", "sslmode=require channel_binding=require")).await;
    assert!(error.is_err(), "trust is no channel binding");
}

/// A role that pg_hba.conf does not know, and one that only a line for replication names: TLS is no way out of that.
#[tokio::test]
async fn a_role_without_an_entry_is_told_of_the_entry_and_not_of_a_mode_that_does_not_help() {
    let hba = "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost replication only_replication 127.0.0.1/32 trust\n\
               hostssl all only_tls all trust";
    let options = ClusterOptions { hba: Some(hba.to_owned()), ..ClusterOptions::default() };
    let (cluster, authority) = (Cluster::start(&options).unwrap(), Authority::new());
    let roles = "CREATE ROLE unlisted LOGIN REPLICATION; CREATE ROLE only_replication LOGIN REPLICATION; CREATE ROLE only_tls LOGIN REPLICATION";
    admin(&cluster).await.batch_execute(roles).await.unwrap();
    for who in ["unlisted", "only_replication", "only_tls"] {
        for mode in ["", "sslmode=prefer", "sslmode=allow"] {
            let error = enter(&url(&cluster, who, mode)).await.unwrap_err();
            let told = error.advice();
            assert!(
                matches!(error, ConnectError::NoEntry { has_tls: false, .. }) && error.needs_a_person(),
                "{who} {mode}: {error:?}"
            );
            assert!(
                error.to_string().contains("pg_hba.conf") && told.contains(" host DATABASE ROLE"),
                "{who} {mode}: {told}"
            );
            assert!(!told.contains("write sslmode"), "{who} {mode}: {told}");
        }
    }
    turn_tls_on(&cluster, &authority, &["localhost"]);
    for who in ["unlisted", "only_replication"] {
        for mode in ["", "sslmode=prefer", "sslmode=allow", "sslmode=require"] {
            let error = enter(&url(&cluster, who, mode)).await.unwrap_err();
            let told = error.advice();
            assert!(
                told.contains("hostssl DATABASE ROLE") && !told.contains("write sslmode"),
                "{who} {mode}: {told} ({error:?})"
            );
        }
    }
    // Where TLS was not tried, it is what to try.
    let error = enter(&url(&cluster, "only_tls", "sslmode=disable")).await.unwrap_err();
    assert!(error.advice().contains("sslmode=require"), "{error:?}");
    enter(&url(&cluster, "only_tls", "")).await.unwrap();
    // With an authority that is named and nothing else said, a stranger's certificate is refused, and so is no TLS at all.
    let stranger = Authority::new();
    let error = enter(&url(&cluster, "only_tls", &format!("sslrootcert={}", stranger.ca()))).await.unwrap_err();
    assert!(matches!(error, ConnectError::TlsIssuer { .. }), "{error:?}");
    enter(&url(&cluster, "only_tls", &format!("sslrootcert={}", authority.ca()))).await.unwrap();
}
