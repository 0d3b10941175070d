//! The same request again and again: logins, registrations, paths.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use crate::http::{self, Client};
use crate::stats::{Samples, Window};
use crate::{Load, Outcome, Store, seed};

/// Different access tokens that are verified.
const TOKENS: usize = 5000;

/// Runs one closed loop per connection and reports them together. `request` is given the number of the connection and
/// of the request.
async fn measure(
    kind: &str,
    load: &Load,
    expected: u16,
    request: impl Fn(usize, u64) -> Vec<u8> + Clone + 'static,
) -> Outcome<()> {
    let window = load.window();
    let loops = (0..load.connections).map(|connection| {
        let (client, request) = (Client::new(load.address), request.clone());
        repeat(client, window, expected, move |number| request(connection, number))
    });
    load.measure(kind, window, loops).await
}

async fn repeat(mut client: Client, window: Window, expected: u16, request: impl Fn(u64) -> Vec<u8>) -> Samples {
    let mut samples = Samples::default();
    for number in 0.. {
        let request = request(number);
        let sent = Instant::now();
        if sent >= window.end {
            break;
        }
        let answer = client.ask(&request).await;
        let done = Instant::now();
        let counts = window.contains(done);
        match answer {
            Ok(answer) if answer.status == expected => {
                if counts {
                    samples.success(done - sent);
                }
                continue;
            }
            Ok(answer) => samples.other(&answer.status),
            Err(error) => samples.other(&error.kind()),
        }
        // What goes wrong must not become a load of its own.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    samples
}

pub(crate) async fn login(load: &Load, store: &Store) -> Outcome<()> {
    let mut database = seed::database(&store.dsn).await?;
    let users = seed::users(&mut database, "login", load.connections).await?;
    let requests: Vec<Vec<u8>> = users.iter().map(|user| login_request(&user.email)).collect();
    measure("login", load, 200, move |connection, _| requests[connection].clone()).await
}

pub(crate) fn login_request(email: &str) -> Vec<u8> {
    http::post("/auth/login", &json!({ "email": email, "password": seed::PASSWORD }).to_string())
}

pub(crate) async fn register(load: &Load) -> Outcome<()> {
    let run = Uuid::new_v4().simple().to_string();
    measure("register", load, 201, move |connection, number| {
        let email = format!("{run}-{connection}-{number}@example.com");
        http::post("/auth/register", &json!({ "email": email, "password": seed::PASSWORD }).to_string())
    })
    .await
}

/// Many tokens, each good, of as many sessions.
pub(crate) async fn verify(load: &Load, secret: &str) -> Outcome<()> {
    let tokens = (0..TOKENS).map(|number| {
        let token = seed::access_token(secret, &format!("cust-{number}@example.com"), Uuid::now_v7())?;
        Ok(http::get("/auth/verify", Some(&token)))
    });
    let requests: Vec<Vec<u8>> = tokens.collect::<Outcome<_>>()?;
    measure("verify", load, 200, move |connection, number| {
        let number = usize::try_from(number).unwrap_or_default();
        requests[(connection * 101 + number) % TOKENS].clone()
    })
    .await
}

pub(crate) async fn get(load: &Load, path: &str, store: Option<&Store>) -> Outcome<()> {
    let bearer = match store {
        Some(store) => Some(administrator(load, store).await?),
        None => None,
    };
    let request = http::get(path, bearer.as_deref());
    measure("get", load, 200, move |_, _| request.clone()).await
}

/// The access token of a seeded administrator.
async fn administrator(load: &Load, store: &Store) -> Outcome<String> {
    let mut database = seed::database(&store.dsn).await?;
    let users = seed::users(&mut database, "administrator", 1).await?;
    sqlx::query("UPDATE users SET role = 'admin' WHERE id = $1").bind(users[0].id).execute(&mut database).await?;
    let mut client = Client::new(load.address);
    let answer = client.ask(&login_request(&users[0].email)).await?;
    let token = answer.field("access_token").ok_or("the administrator cannot sign in")?;
    Ok(token.to_owned())
}
