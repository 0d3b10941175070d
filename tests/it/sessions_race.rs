//! What ends a session against what keeps it alive, in every order in which the two can meet.

use std::pin::Pin;

use auth::domain::ids::UserId;
use auth::domain::mail::Locale;
use auth::domain::password::PasswordHash;
use auth::service::audit::Actor;
use auth::service::password::set_password;
use axum::http::{Method, Request};
use serde_json::json;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgPool, Postgres};
use uuid::Uuid;

use crate::support::{Answer, PASSWORD, Pair, TestApp, pair};

const REFUSED: &str = "Refresh token not valid";

/// Holds up what a trigger is made for, in the middle of its statement, until it is let go.
struct Hold(PoolConnection<Postgres>);

impl Hold {
    /// `event` is as in `INSERT ON sessions`, `condition` one on NEW and OLD.
    async fn on(app: &TestApp, event: &str, condition: &str) -> Self {
        app.execute("DROP FUNCTION IF EXISTS hold CASCADE").await;
        app.execute(
            "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END'",
        )
        .await;
        let trigger =
            format!("CREATE TRIGGER hold BEFORE {event} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION hold()");
        sqlx::query(AssertSqlSafe(trigger)).execute(&app.db).await.unwrap();
        let mut connection = app.db.acquire().await.unwrap();
        sqlx::query("SELECT pg_advisory_lock(4711)").execute(&mut *connection).await.unwrap();
        Self(connection)
    }

    async fn let_go(mut self) {
        sqlx::query("SELECT pg_advisory_unlock(4711)").execute(&mut *self.0).await.unwrap();
    }
}

/// The ways to end a customer's session.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    OwnLogout,
    FromAnotherSession,
    LogoutOthers,
    PasswordChange,
    ByAdmin,
    UserDeletion,
}

const WAYS: [Way; 6] =
    [Way::OwnLogout, Way::FromAnotherSession, Way::LogoutOthers, Way::PasswordChange, Way::ByAdmin, Way::UserDeletion];

/// A customer with two sessions, and an administrator.
struct Scene {
    app: TestApp,
    session: Pair,
    other: Pair,
    admin: Pair,
    user: i64,
    email: String,
}

impl Scene {
    async fn new(app: &TestApp, name: impl std::fmt::Debug) -> Self {
        let email = format!("{}@example.com", format!("{name:?}").to_lowercase().replace(['"', ' '], ""));
        app.register(&format!("admin-{email}"), "admin").await;
        Self {
            app: app.clone(),
            session: app.customer(&email).await,
            other: app.login(&email).await,
            admin: app.login(&format!("admin-{email}")).await,
            user: app.user_id(&email).await,
            email,
        }
    }

    /// Ends the session, and says which reason it is to have.
    fn end(&self, way: Way) -> (Pin<Box<dyn Future<Output = Answer> + Send>>, &'static str) {
        let (app, session, other, admin) =
            (self.app.clone(), self.session.clone(), self.other.access.clone(), self.admin.access.clone());
        let (user, refresh) = (self.user, self.other.refresh.clone());
        match way {
            Way::OwnLogout => (Box::pin(async move { app.logout(&session.refresh).await }), "logout"),
            Way::FromAnotherSession => {
                let path = format!("/auth/sessions/{}", session.session());
                let ending = async move { app.request_as(Method::DELETE, &path, &other, None).await };
                (Box::pin(ending), "logged_out_elsewhere")
            }
            Way::LogoutOthers => {
                let body = json!({"refresh_token": refresh, "scope": "others"});
                (Box::pin(async move { app.post("/auth/logout", body).await }), "logged_out_elsewhere")
            }
            Way::PasswordChange => {
                let body = json!({"current_password": PASSWORD, "new_password": "another password"});
                let ending = async move { app.request_as(Method::POST, "/auth/password", &other, Some(body)).await };
                (Box::pin(ending), "password_changed")
            }
            Way::ByAdmin => {
                let path = format!("/users/{user}/sessions");
                let ending = async move { app.request_as(Method::DELETE, &path, &admin, None).await };
                (Box::pin(ending), "by_admin")
            }
            Way::UserDeletion => {
                let path = format!("/users/{user}");
                let ending = async move { app.request_as(Method::DELETE, &path, &admin, None).await };
                (Box::pin(ending), "user_deleted")
            }
        }
    }

    fn refresh(&self) -> tokio::task::JoinHandle<Answer> {
        let (app, token) = (self.app.clone(), self.session.refresh.clone());
        tokio::spawn(async move { app.refresh(&token).await })
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_session_that_ends_while_its_refresh_is_uncommitted_leaves_no_live_token(pool: PgPool) {
    let app = TestApp::new(pool);
    for way in WAYS {
        let scene = Scene::new(&app, way).await;
        let session = scene.session.session();
        // The token is marked as used, the successor not inserted yet.
        let hold = Hold::on(&app, "INSERT ON refresh_tokens", &format!("NEW.session_id = '{session}'")).await;
        let refreshing = scene.refresh();
        app.until_blocked(1).await;
        let (ending, reason) = scene.end(way);
        let ending = tokio::spawn(ending);
        app.until_blocked(2).await;
        hold.let_go().await;
        let successor = pair(&refreshing.await.unwrap());
        assert!(ending.await.unwrap().status.is_success(), "{way:?}");
        assert_eq!(app.end_reason(session).await.as_deref(), Some(reason), "{way:?}");
        for token in [&successor.refresh, &scene.session.refresh] {
            app.refresh(token).await.assert_refused(REFUSED, Some(reason));
        }
        app.get_as("/users/me", &successor.access).await.assert_detail(401, "Invalid access token");
        assert_eq!(app.unrevoked(session).await, 0, "{way:?}");
    }
}

/// Ends everything of the customer, in all the ways in which that can happen; the other session asks for it.
fn end_everything(scene: &Scene, way: &'static str) -> tokio::task::JoinHandle<()> {
    let (app, other, admin, user) = (scene.app.clone(), scene.other.clone(), scene.admin.access.clone(), scene.user);
    let passwords = json!({"current_password": PASSWORD, "new_password": "another password"});
    tokio::spawn(async move {
        let answer = match way {
            "password" => app.request_as(Method::POST, "/auth/password", &other.access, Some(passwords)).await,
            "log-out of others" | "log-out of all" => {
                let scope = way.rsplit(' ').next();
                app.post("/auth/logout", json!({"refresh_token": other.refresh, "scope": scope})).await
            }
            "end by admin" => app.request_as(Method::DELETE, &format!("/users/{user}/sessions"), &admin, None).await,
            "deletion" => app.request_as(Method::DELETE, &format!("/users/{user}"), &admin, None).await,
            _ => {
                let hash = PasswordHash::from_stored("x".to_owned());
                let (user, now) = (UserId(user), app.clock.now());
                let mail = &app.app.config.mail;
                let set = set_password(&app.db, Actor::CommandLine, user, &hash, mail, Locale::En, now).await;
                return set.map(|_| ()).unwrap();
            }
        };
        assert!(answer.status.is_success(), "{way}: {}", answer.body);
    })
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_python_token_whose_first_refresh_is_in_flight_does_not_outlive_the_end_of_everything(pool: PgPool) {
    let app = TestApp::new(pool);
    for way in ["password", "log-out of others", "log-out of all", "end by admin", "deletion", "set-password"] {
        let scene = Scene::new(&app, way).await;
        let token = app.python_token(&scene.email, &format!("jti-{}", scene.user)).await;
        let hold = Hold::on(&app, "INSERT ON sessions", "NEW.user_agent = 'in flight'").await;
        let refreshing = {
            let (app, body) = (app.clone(), json!({"refresh_token": token}).to_string());
            let request = Request::post("/auth/refresh").header("user-agent", "in flight");
            tokio::spawn(async move { app.send(request.body(body.into()).unwrap()).await })
        };
        app.until_blocked(1).await;
        let ending = end_everything(&scene, way);
        app.until_blocked(2).await;
        hold.let_go().await;
        let successor = pair(&refreshing.await.unwrap());
        ending.await.unwrap();
        let answer = app.refresh(&successor.refresh).await;
        assert_eq!(answer.status, 401, "{way}");
        app.get_as("/users/me", &successor.access).await.assert_detail(401, "Invalid access token");
        assert_eq!(app.refresh(&token).await.status, 401, "{way}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refresh_that_comes_while_its_session_is_being_ended_is_refused_with_the_reason(pool: PgPool) {
    let app = TestApp::new(pool);
    for way in WAYS {
        let scene = Scene::new(&app, way).await;
        let session = scene.session.session();
        let condition = format!("NEW.revoked AND NEW.used_at IS NULL AND NEW.session_id = '{session}'");
        let hold = Hold::on(&app, "UPDATE ON refresh_tokens", &condition).await;
        let (ending, reason) = scene.end(way);
        let ending = tokio::spawn(ending);
        app.until_blocked(1).await;
        let refreshing = scene.refresh();
        app.until_blocked(2).await;
        hold.let_go().await;
        refreshing.await.unwrap().assert_refused(REFUSED, Some(reason));
        assert!(ending.await.unwrap().status.is_success(), "{way:?}");
        assert_eq!(app.unrevoked(session).await, 0, "{way:?}");
        let successors: i64 = sqlx::query_scalar("SELECT count(*) FROM refresh_tokens WHERE session_id = $1")
            .bind(session)
            .fetch_one(&app.db)
            .await
            .unwrap();
        assert_eq!(successors, i64::from(way != Way::UserDeletion), "{way:?}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refresh_that_still_saw_the_session_alive_hands_out_nothing_of_use(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let mut transaction = app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM refresh_tokens FOR UPDATE").execute(&mut *transaction).await.unwrap();
    let refreshing = {
        let (app, token) = (app.clone(), tokens.refresh.clone());
        tokio::spawn(async move { app.refresh(&token).await })
    };
    app.until_blocked(1).await;
    // Only the row of the session; its tokens are as they were.
    app.execute("UPDATE sessions SET ended_at = created_at, end_reason = 'by_admin'").await;
    transaction.commit().await.unwrap();
    let answer = refreshing.await.unwrap();
    if answer.status == 200 {
        let successor = pair(&answer);
        app.refresh(&successor.refresh).await.assert_refused(REFUSED, Some("by_admin"));
        app.get_as("/users/me", &successor.access).await.assert_detail(401, "Invalid access token");
    } else {
        answer.assert_refused(REFUSED, Some("by_admin"));
    }
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, Some("by_admin"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_log_out_with_a_python_token_ends_the_session_that_its_refresh_is_just_opening(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let token = app.python_token("cust@example.com", "4b1c").await;
    let hold = Hold::on(&app, "INSERT ON sessions", "true").await;
    let (refreshing, token_too) = (app.clone(), token.clone());
    let refreshing = tokio::spawn(async move { refreshing.refresh(&token_too).await });
    app.until_blocked(1).await;
    let (leaving, token_too) = (app.clone(), token.clone());
    let leaving = tokio::spawn(async move { leaving.logout(&token_too).await });
    app.until_blocked(2).await;
    hold.let_go().await;
    let successor = pair(&refreshing.await.unwrap());
    assert_eq!(leaving.await.unwrap().status, 200);
    app.refresh(&successor.refresh).await.assert_refused(REFUSED, Some("logout"));
    assert_eq!(app.unrevoked(successor.session()).await, 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_rotation_by_the_python_service_that_is_in_flight_wins_without_alarm(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let mut python = app.db.begin().await.unwrap();
    sqlx::query("UPDATE refresh_tokens SET revoked = true").execute(&mut *python).await.unwrap();
    let refreshing = {
        let (app, token) = (app.clone(), tokens.refresh.clone());
        tokio::spawn(async move { app.refresh(&token).await })
    };
    app.until_blocked(1).await;
    python.commit().await.unwrap();
    refreshing.await.unwrap().assert_refused(REFUSED, None);
    assert_eq!(app.end_reason(tokens.session()).await, None);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens").await, 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_login_with_the_old_password_does_not_outlive_the_change_of_it(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let known: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM sessions").fetch_all(&app.db).await.unwrap();
    assert_eq!(known, [tokens.session()]);
    let login = |password: &'static str| {
        let app = app.clone();
        tokio::spawn(async move { app.try_login("cust@example.com", password).await })
    };
    let change = |access: &str, old: &str, new: &str| {
        let (app, access) = (app.clone(), access.to_owned());
        let body = json!({"current_password": old, "new_password": new});
        tokio::spawn(async move { app.request_as(Method::POST, "/auth/password", &access, Some(body)).await })
    };

    // The login is first: its session is opened and ends with the others.
    let hold = Hold::on(&app, "INSERT ON sessions", "true").await;
    let logging_in = login(PASSWORD);
    app.until_blocked(1).await;
    let changing = change(&tokens.access, PASSWORD, "second password");
    app.until_blocked(2).await;
    hold.let_go().await;
    let stale = pair(&logging_in.await.unwrap());
    let fresh = pair(&changing.await.unwrap());
    app.refresh(&stale.refresh).await.assert_refused(REFUSED, Some("password_changed"));
    let fresh = pair(&app.refresh(&fresh.refresh).await);

    // The change is first: the login finds another password and starts over.
    let hold = Hold::on(&app, "INSERT ON sessions", "true").await;
    let changing = change(&fresh.access, "second password", "third password");
    app.until_blocked(1).await;
    let logging_in = login("second password");
    app.until_blocked(2).await;
    let sessions: i64 = app.value("SELECT count(*) FROM sessions").await;
    hold.let_go().await;
    logging_in.await.unwrap().assert_refused("Invalid credentials", None);
    pair(&changing.await.unwrap());
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions").await, sessions + 1);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions WHERE ended_at IS NULL").await, 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_two_changes_of_a_password_at_once_one_succeeds(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let hold = Hold::on(&app, "UPDATE ON users", "true").await;
    let changes: Vec<_> = ["second password", "third password"]
        .into_iter()
        .map(|new| {
            let (app, access) = (app.clone(), tokens.access.clone());
            let body = json!({"current_password": PASSWORD, "new_password": new});
            tokio::spawn(async move { app.request_as(Method::POST, "/auth/password", &access, Some(body)).await })
        })
        .collect();
    app.until_blocked(2).await;
    hold.let_go().await;
    let mut won = 0;
    for (change, new) in changes.into_iter().zip(["second password", "third password"]) {
        let answer = change.await.unwrap();
        let works = app.try_login("cust@example.com", new).await.status == 200;
        assert_eq!(works, answer.status == 200, "{new}: {}", answer.body);
        won += u32::from(works);
    }
    assert_eq!(won, 1);
}
