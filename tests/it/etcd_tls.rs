//! etcd over TLS, with a certificate of everyone: three members of it, a controller and a client that go through the kill of one,
//! and what is said where a certificate is wrong.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tidegate::client::{Client, ClientParams, MemberState, PoolParams};
use tidegate::config::Config;
use tidegate::controller::Controller;
use tidegate::plan::Stamp;
use tidegate::provider::Dialect;
use tidegate::sim::{Etcd, EtcdServerTls, EtcdSetup};
use tidegate::store::{EtcdAccess, EtcdStore, EtcdTls, EtcdUser, Select, Source, Store, StoreError, Txn};
use tidegate::telemetry::Telemetry;

use super::by_hand::grantee;
use super::world::{eventually, tidegate};

/// An authority, a server's certificate and a client's, as files.
pub struct Papers {
    folder: tempfile::TempDir,
}

impl Papers {
    pub fn draw_up() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Whoever has the name of who signed it has signed itself, for OpenSSL.
        params.distinguished_name.push(DnType::CommonName, "authority");
        let authority = params.self_signed(&key).expect("signed");
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
        let issuer = Issuer::new(params, key);
        for (name, uses) in [
            ("server", vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]),
            ("client", vec![ExtendedKeyUsagePurpose::ClientAuth]),
        ] {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).expect("names");
            params.extended_key_usages = uses;
            params.distinguished_name.push(DnType::CommonName, name);
            let signed = params.signed_by(&key, &issuer).expect("signed");
            std::fs::write(folder.path().join(format!("{name}.pem")), signed.pem()).expect("written");
            std::fs::write(folder.path().join(format!("{name}-key.pem")), key.serialize_pem()).expect("written");
        }
        Self { folder }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn setup(&self) -> EtcdSetup {
        let [authorities, certificate, key] = ["ca.pem", "server.pem", "server-key.pem"].map(|name| self.file(name));
        EtcdSetup { tls: Some(EtcdServerTls { authorities, certificate, key }), ..EtcdSetup::default() }
    }

    fn tls(&self) -> EtcdTls {
        let identity = [self.file("client.pem"), self.file("client-key.pem")];
        EtcdTls::from_files(&self.file("ca.pem"), Some((&identity[0], &identity[1]))).expect("readable")
    }

    /// `[etcd]`'s files, as a configuration names them.
    fn keys(&self) -> String {
        let line = |key: &str, name: &str| format!("{key} = \"{}\"\n", self.file(name).display());
        [line("ca_file", "ca.pem"), line("cert_file", "client.pem"), line("key_file", "client-key.pem")].concat()
    }
}

async fn store(endpoints: &[String], tls: EtcdTls) -> EtcdStore {
    EtcdStore::connect_with(endpoints, EtcdAccess { user: None, tls: Some(tls) }).await.expect("endpoints")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_over_tls_lose_one_and_nobody_notices() {
    let papers = Papers::draw_up();
    let mut cluster = Etcd::start_cluster(3, &papers.setup()).await.expect("etcd starts");
    let endpoints: Vec<String> = cluster.iter().map(|etcd| etcd.endpoint().to_owned()).collect();
    assert!(endpoints.iter().all(|endpoint| endpoint.starts_with("https://")), "{endpoints:?}");
    let text = format!(
        "[controller]\nlisten = \"127.0.0.1:0\"\n[etcd]\nendpoints = {endpoints:?}\n{}[pools.pool]\ndialect = \"openai\"\n\
         capacity = {{ \"requests/minute\" = 600 }}\n[pools.pool.tenants.acme]\n",
        papers.keys()
    );
    let file = papers.file("t.toml");
    std::fs::write(&file, &text).expect("written");
    let config = Config::parse("t.toml", &text).expect("good");
    let shared = Arc::new(store(&endpoints, papers.tls()).await);
    let controller = Controller::start(config.controller, shared.clone(), Arc::new(Telemetry::new())).await;
    let controller = controller.expect("it starts");
    let params = ClientParams::new(vec![PoolParams::new("pool".parse().expect("valid"), Dialect::OpenAi)]);
    let own = Arc::new(store(&endpoints, papers.tls()).await);
    let client = Client::start(params, own, Arc::new(Telemetry::new())).await;
    let pool = client.pool("pool").expect("named");
    let heard = async |seen: Stamp| {
        eventually("the member hears a leader", async || {
            let tuning = pool.tuning();
            let granted = tuning.state == MemberState::Active && tuning.limits.contains_key(&grantee("acme"));
            (granted && tuning.stamp > seen).then_some(tuning.stamp)
        })
        .await
    };
    let seen = heard(Stamp::default()).await;

    // The one that both ask first.
    cluster[0].kill().expect("reaped");
    let later = Stamp { epoch: seen.epoch + 20, ..seen };
    heard(later).await;

    // An operator's command goes the same way.
    let status = tidegate(&["status", "--json", "--config"]).arg(&file).output().expect("it runs");
    assert!(status.status.success(), "{status:?}");
    let mut set = tidegate(&["override", "set", "pool", "acme", "--block", "--reason", "r", "--by", "mori"]);
    set.args(["--etcd", &endpoints[1]]);
    set.arg("--etcd-ca").arg(papers.file("ca.pem"));
    set.env("TIDEGATE_ETCD_CERT_FILE", papers.file("client.pem"));
    set.env("TIDEGATE_ETCD_KEY_FILE", papers.file("client-key.pem"));
    let set = set.output().expect("it runs");
    assert!(set.status.success(), "{set:?}");
    eventually("the override holds", async || pool.tuning().limits[&grantee("acme")].blocked.then_some(())).await;
    client.close().await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_certificate_is_said() {
    let papers = Papers::draw_up();
    let etcd = Etcd::start_as(&papers.setup()).await.expect("etcd starts");
    let endpoints = [etcd.endpoint().to_owned()];
    let asked = async |tls: EtcdTls| {
        let listed = store(&endpoints, tls).await.list(&[Select::Key("/a".into())]).await;
        listed.map(|_| ()).expect_err("refused").to_string()
    };
    // etcd is somebody else's.
    let others = Papers::draw_up();
    let said = asked(others.tls()).await;
    assert!(said.to_lowercase().contains("certificate"), "{said}");
    // We show nothing. TLS 1.3 says so after the handshake, where the connection is closed as well: either is told.
    let said = asked(EtcdTls::from_files(&papers.file("ca.pem"), None).expect("readable")).await;
    assert!(said.contains("unavailable") && said.contains(&endpoints[0]), "{said}");
    // All as it should be.
    store(&endpoints, papers.tls()).await.list(&[Select::Key("/a".into())]).await.expect("an answer");
}

#[tokio::test]
async fn an_endpoint_goes_with_its_files_or_not_at_all() {
    let papers = Papers::draw_up();
    let connect = async |endpoint: &str, tls: Option<EtcdTls>| {
        let access = EtcdAccess { user: None, tls };
        EtcdStore::connect_with(&[endpoint.to_owned()], access).await.expect_err("refused").to_string()
    };
    let said = connect("https://127.0.0.1:1", None).await;
    assert!(said.contains("the authority that signed"), "{said}");
    // Nothing goes in the clear where TLS was meant.
    let said = connect("http://127.0.0.1:1", Some(papers.tls())).await;
    assert!(said.contains("would go without TLS"), "{said}");
    for (file, words) in [("none.pem", "No such file"), ("t.toml", "begins as PEM")] {
        std::fs::write(papers.file("t.toml"), "[etcd]").expect("written");
        let error = EtcdTls::from_files(&papers.file(file), None).expect_err("refused");
        assert!(matches!(&error, StoreError::File { .. }) && error.to_string().contains(words), "{error}");
    }
}

const CAPACITY: &str = "capacity = { \"requests/minute\" = 60 }\n";

fn mistakes(etcd: &str) -> String {
    let text = format!("[etcd]\n{etcd}\n[pools.pool]\ndialect = \"openai\"\n{CAPACITY}");
    Config::parse("t.toml", &text).map(|_| ()).expect_err("refused").to_string()
}

#[test]
fn a_configuration_names_all_files_or_is_refused() {
    let https = "endpoints = [\"https://127.0.0.1:1\"]";
    assert!(mistakes(https).contains("https:// with a ca_file"), "{}", mistakes(https));
    let plain = "endpoints = [\"http://127.0.0.1:1\"]\nca_file = \"ca.pem\"";
    assert!(mistakes(plain).contains("http:// without"), "{}", mistakes(plain));
    let no_key = format!("{https}\nca_file = \"ca.pem\"\ncert_file = \"c.pem\"");
    assert!(mistakes(&no_key).contains("a key_file beside it"), "{}", mistakes(&no_key));
    let no_authority = format!("{https}\ncert_file = \"c.pem\"\nkey_file = \"k.pem\"");
    assert!(mistakes(&no_authority).contains("a ca_file beside it"), "{}", mistakes(&no_authority));
    let all = format!("[etcd]\n{https}\nca_file = \"ca.pem\"\ncert_file = \"c.pem\"\nkey_file = \"k.pem\"\n");
    let config =
        Config::parse("t.toml", &format!("{all}[pools.pool]\ndialect = \"openai\"\n{CAPACITY}")).expect("good");
    let tls = config.etcd.expect("a table").tls.expect("files");
    assert_eq!(tls.authorities, Path::new("ca.pem"));
    assert_eq!(tls.identity, Some(("c.pem".into(), "k.pem".into())));
}

/// A certificate names somebody too, of whom etcd may know nothing, or something else: it is the user that counts, and its password.
#[tokio::test(flavor = "multi_thread")]
async fn who_shows_a_certificate_and_names_a_user_is_that_user() {
    let papers = Papers::draw_up();
    let etcd = Etcd::start_as(&papers.setup()).await.expect("etcd starts");
    let access = |password: &str| EtcdAccess {
        user: Some(EtcdUser { name: "root".to_owned(), password: password.to_owned() }),
        tls: Some(papers.tls()),
    };
    let at = [etcd.endpoint().to_owned()];
    let before = EtcdStore::connect_with(&at, access("secret")).await.expect("an endpoint");
    before.commit(Txn::put("/a".to_owned(), Vec::new())).await.expect("nobody is asked for a name yet");
    for args in [&["user", "add", "root:secret"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]] {
        let output = etcd.etcdctl().expect("there").args(args).output().expect("it runs");
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
    let store = EtcdStore::connect_with(&at, access("secret")).await.expect("an endpoint");
    store.commit(Txn::put("/a".to_owned(), Vec::new())).await.expect("root may do all");
    let wrong = EtcdStore::connect_with(&at, access("wrong")).await.expect("an endpoint");
    let refused = wrong.commit(Txn::put("/a".to_owned(), Vec::new())).await.expect_err("a wrong password").to_string();
    assert!(refused.contains("password"), "{refused}");
}
