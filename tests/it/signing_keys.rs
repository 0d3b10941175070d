//! Access tokens signed with a private key: what they look like, which keys are published, and how one key takes over
//! from another.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::forge::{base64url, parts, seal_by};
use crate::key_files::{PrivateKey, write};
use crate::support::{Answer, SECRET, TestApp, claims, config, pair};

const JWKS: &str = "/auth/.well-known/jwks.json";

fn header(token: &str) -> Value {
    json!(jsonwebtoken::decode_header(token).unwrap())
}

async fn accepts(app: &TestApp, access: &str) -> bool {
    match app.get_as("/users/me", access).await {
        answer if answer.status == 200 => true,
        answer => {
            answer.assert_detail(401, "Invalid access token");
            false
        }
    }
}

async fn jwks_if(app: &TestApp, method: Method, tags: &[&str]) -> Answer {
    let mut request = Request::builder().method(method).uri(JWKS);
    for tag in tags {
        request = request.header("if-none-match", *tag);
    }
    app.send(request.body(Body::empty()).unwrap()).await
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_access_token_names_its_key_and_a_refresh_token_is_as_before(pool: PgPool) {
    for (key, email) in [(PrivateKey::ed25519(), "ed@example.com"), (PrivateKey::es256(), "es@example.com")] {
        let app = TestApp::with(pool.clone(), &[&key.signs()]);
        let login = app.customer(email).await;
        let refreshed = pair(&app.refresh(&login.refresh).await);
        for tokens in [login, refreshed] {
            let algorithm = format!("{:?}", key.algorithm);
            assert_eq!(header(&tokens.access), json!({"typ": "JWT", "alg": algorithm, "kid": key.kid}));
            assert_eq!(header(&tokens.refresh), json!({"typ": "JWT", "alg": "HS256"}));
            let names: Vec<_> = claims(&tokens.access).as_object().unwrap().keys().cloned().collect();
            assert_eq!(names, ["sub", "role", "exp", "type", "sid"]);
            assert!(accepts(&app, &tokens.access).await);
        }
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_public_halves_are_published_and_nothing_else(pool: PgPool) {
    let (signing, other) = (PrivateKey::ed25519(), PrivateKey::es256());
    let app = TestApp::with(pool, &[&signing.signs(), &other.verifies()]);
    let answer = app.get(JWKS).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("application/jwk-set+json")));
    assert_eq!(answer.header("cache-control"), Some("public, max-age=300"));
    let set = answer.json();
    let (x, point) = (&signing.public().1, &other.public().1);
    assert_eq!(
        set,
        json!({"keys": [
            {"use": "sig", "alg": "EdDSA", "kid": signing.kid, "kty": "OKP", "crv": "Ed25519", "x": base64url(x)},
            {"use": "sig", "alg": "ES256", "kid": other.kid, "kty": "EC", "crv": "P-256",
             "x": base64url(&point[1..33]), "y": base64url(&point[33..])},
        ]})
    );
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_copy_of_the_keys_is_asked_for_by_its_tag(pool: PgPool) {
    let (key, next) = (PrivateKey::ed25519(), PrivateKey::ed25519());
    let app = TestApp::with(pool.clone(), &[&key.signs()]);
    let tag = app.get(JWKS).await.header("etag").unwrap().to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 20, "{tag}");
    let weak = format!("W/{tag}");
    let list = format!("\"other\", {tag}");
    for tags in [&[tag.as_str()][..], &[&weak], &[&list], &["*"], &["\"other\"", &tag]] {
        for method in [Method::GET, Method::HEAD] {
            let answer = jwks_if(&app, method, tags).await;
            assert_eq!((answer.status.as_u16(), answer.body.as_str()), (304, ""), "{tags:?}");
            assert_eq!(answer.header("etag"), Some(tag.as_str()));
            assert_eq!(answer.header("cache-control"), Some("public, max-age=300"));
        }
    }
    for tags in [&["\"other\""][..], &[tag.trim_matches('"')], &[""], &[]] {
        assert_eq!(jwks_if(&app, Method::GET, tags).await.status, 200, "{tags:?}");
    }
    let rotated = TestApp::with(pool, &[&key.signs(), &next.verifies()]);
    assert_eq!(jwks_if(&rotated, Method::GET, &[&tag]).await.status, 200);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_keys_the_set_is_empty(pool: PgPool) {
    let answer = TestApp::new(pool).get(JWKS).await;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({"keys": []})));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn tokens_of_the_secret_are_accepted_on_the_way_there_and_back(pool: PgPool) {
    let key = PrivateKey::ed25519();
    let secret = TestApp::new(pool.clone());
    let moving = TestApp::with(pool.clone(), &[&key.signs()]);
    let moved = TestApp::with(pool.clone(), &[&key.signs(), "--jwt-secret-access=refuse"]);
    let back = TestApp::with(pool, &[&key.verifies()]);
    let by_secret = secret.customer("cust@example.com").await;
    let by_key = pair(&moving.refresh(&by_secret.refresh).await);
    assert_eq!(header(&back.login("cust@example.com").await.access)["alg"], "HS256");
    for (app, of_secret, of_key) in
        [(&secret, true, false), (&moving, true, true), (&moved, false, true), (&back, true, true)]
    {
        assert_eq!((accepts(app, &by_secret.access).await, accepts(app, &by_key.access).await), (of_secret, of_key));
    }
    // Refresh tokens stay with the secret, so nobody is signed out.
    let next = pair(&moved.refresh(&by_key.refresh).await);
    pair(&secret.refresh(&next.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_key_that_is_published_first_takes_over_without_a_refusal(pool: PgPool) {
    let (old, new) = (PrivateKey::ed25519(), PrivateKey::es256());
    let public = write(&old.public_pem());
    let first = TestApp::with(pool.clone(), &[&old.signs(), &new.verifies()]);
    let then = TestApp::with(pool.clone(), &[&new.signs(), &format!("--jwt-verify-key-files={public}")]);
    let last = TestApp::with(pool, &[&new.signs()]);
    let by_old = first.customer("cust@example.com").await;
    let by_new = then.login("cust@example.com").await;
    for (app, takes_old) in [(&first, true), (&then, true), (&last, false)] {
        assert_eq!(accepts(app, &by_old.access).await, takes_old);
        assert!(accepts(app, &by_new.access).await);
    }
    std::fs::remove_file(public).unwrap();
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn every_token_is_counted_by_its_key_and_a_stranger_makes_no_label(pool: PgPool) {
    let key = PrivateKey::ed25519();
    let former = TestApp::with(pool.clone(), &["--jwt-secret=the former secret of the tests is long enough"]);
    let app =
        TestApp::with(pool, &[&key.signs(), "--jwt-secret-previous=the former secret of the tests is long enough"]);
    let old = former.customer("cust@example.com").await;
    let new = pair(&app.refresh(&old.refresh).await);
    accepts(&app, &old.access).await;
    accepts(&app, &new.access).await;
    accepts(&app, &new.refresh).await;
    for kid in ["stranger", "secret", "k".repeat(1_000).as_str()] {
        let header = key.header().replace(&key.kid, kid);
        accepts(&app, &seal_by(&header, "{}", key.algorithm, &key.encoding())).await;
    }
    let [head, claims, _] = parts(&new.access);
    accepts(&app, &format!("{head}.{claims}.AAAA")).await;
    app.advance(901);
    accepts(&app, &new.access).await;
    pair(&app.refresh(&new.refresh).await);
    let text = app.get("/auth/metrics").await.body;
    let mut found: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("auth_tokens_verified_total")).collect();
    found.sort_unstable();
    let kid = &key.kid;
    let mut expected = [
        format!(r#"{{kid="{kid}",outcome="expired",type="access"}} 1"#),
        format!(r#"{{kid="{kid}",outcome="invalid",type="access"}} 1"#),
        format!(r#"{{kid="{kid}",outcome="valid",type="access"}} 1"#),
        r#"{kid="previous",outcome="valid",type="access"} 1"#.to_owned(),
        r#"{kid="previous",outcome="valid",type="refresh"} 1"#.to_owned(),
        r#"{kid="secret",outcome="valid",type="refresh"} 1"#.to_owned(),
        r#"{kid="secret",outcome="wrong_type",type="access"} 1"#.to_owned(),
        r#"{kid="unknown",outcome="invalid",type="access"} 3"#.to_owned(),
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn a_private_key_that_everybody_may_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let key = PrivateKey::ed25519();
    let flags = [format!("--jwt-secret={SECRET}"), key.signs(), key.verifies()];
    let warnings = || config(&flags.each_ref().map(String::as_str)).warnings();
    for (mode, warned) in [(0o600, 0), (0o440, 0), (0o644, 2), (0o602, 2)] {
        std::fs::set_permissions(&key.path, std::fs::Permissions::from_mode(mode)).unwrap();
        let warnings = warnings();
        assert_eq!(
            warnings.iter().filter(|it| it.contains("private key") && it.contains("chmod")).count(),
            warned,
            "{mode:o}"
        );
    }
    let public = write(&key.public_pem());
    std::fs::set_permissions(&public, std::fs::Permissions::from_mode(0o644)).unwrap();
    let flag = format!("--jwt-verify-key-files={public}");
    assert!(!config(&[&flag]).warnings().iter().any(|it| it.contains("chmod")));
    std::fs::remove_file(public).unwrap();
}
