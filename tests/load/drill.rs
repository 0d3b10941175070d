//! Many tabs on a bad network: is anybody signed out who did nothing wrong?
//!
//! The model of a client is a browser with some tabs of one shop. They share one stored refresh token, as tabs share
//! local storage, and each does what a sensible client does:
//!
//! - It reads the stored token and sends it. Now and then one tab wakes up, now and then some or all at once (a laptop
//!   is opened). The request takes a moment to leave, so that another tab may be faster.
//! - Of the answers a fifth never arrives: half of those are read off the wire and thrown away, for the other half the
//!   connection is cut as soon as the request is sent. The tab then sends **the same token** again at once, until there
//!   is an answer.
//! - On 200 it stores the new token, unless another tab has stored one since it read; what is stored is never replaced
//!   by something older.
//! - On 401 it waits half a second, reads the store again, and tries once more if another tab has stored a token
//!   meanwhile. If not, or if that one is refused as well, its user has to sign in again: **a false logout**.
//! - On 503 it comes back a little later.
//!
//! Pauses between awakenings are partly shorter and partly longer than the grace time, so that both a token used a
//! moment ago and one that must not be used any more would be noticed.
//!
//! In the end every stored token must still refresh; and when a thief presents a token that was used up long ago, that
//! session must end, and no other, not even another one of the same user.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use sqlx::PgConnection;
use tokio::task::LocalSet;

use crate::http::Client;
use crate::seed::User;
use crate::stats::{self, Samples};
use crate::{Outcome, Store, seed};

#[derive(Args)]
pub(crate) struct Drill {
    #[arg(long, default_value = "127.0.0.1:8000")]
    address: SocketAddr,
    #[command(flatten)]
    store: Store,
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// Tabs of each client
    #[arg(long, default_value_t = 8)]
    tabs: usize,
    #[arg(long, default_value_t = 120.0)]
    seconds: f64,
    /// Share of answers that never arrive
    #[arg(long, default_value_t = 0.2)]
    lost: f64,
    /// `REFRESH_GRACE_SECONDS` of the service
    #[arg(long, default_value_t = 10)]
    grace: u64,
    /// False logouts are counted, but do not fail the drill
    #[arg(long)]
    tolerant: bool,
}

/// What the tabs of one client share.
struct Browser {
    user: User,
    stored: RefCell<String>,
    /// A token that was exchanged, and when; what a thief may have copied.
    used: RefCell<Option<(String, Instant)>>,
}

#[derive(Default)]
struct Counts {
    answers: Samples,
    awakenings: u64,
    lost_answers: u64,
    cut_connections: u64,
    /// Refused, but saved by what another tab had stored.
    saved_by_the_store: u64,
    false_logouts: u64,
}

struct Scene {
    address: SocketAddr,
    secret: String,
    lost: f64,
    database: tokio::sync::Mutex<PgConnection>,
    counts: RefCell<Counts>,
}

impl Drill {
    pub(crate) async fn run(&self) -> Outcome<ExitCode> {
        LocalSet::new().run_until(self.play()).await
    }

    async fn play(&self) -> Outcome<ExitCode> {
        let mut database = seed::database(&self.store.dsn).await?;
        let users = seed::users(&mut database, "drill", self.clients).await?;
        let tokens = seed::sessions(&mut database, &self.store.secret, &users).await?;
        // The thief's victim is signed in elsewhere, too.
        let elsewhere = seed::sessions(&mut database, &self.store.secret, users.first()).await?;
        let scene = Rc::new(Scene {
            address: self.address,
            secret: self.store.secret.clone(),
            lost: self.lost,
            database: tokio::sync::Mutex::new(database),
            counts: RefCell::default(),
        });
        let browsers: Vec<Rc<Browser>> = users
            .into_iter()
            .zip(tokens)
            .map(|(user, token)| Rc::new(Browser { user, stored: RefCell::new(token), used: RefCell::default() }))
            .collect();

        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        let lives: Vec<_> = browsers
            .iter()
            .map(|browser| {
                tokio::task::spawn_local(live(Rc::clone(&scene), Rc::clone(browser), self.tabs, end, self.grace))
            })
            .collect();
        for life in lives {
            life.await??;
        }

        let stranded = refused(self.address, &browsers).await?;
        let (thief_refused, victim, others) = self.rob(&browsers, &elsewhere).await?;

        let counts = &mut *scene.counts.borrow_mut();
        let mut report = counts.answers.report(Duration::from_secs_f64(self.seconds));
        report["clients"] = self.clients.into();
        report["tabs"] = self.tabs.into();
        report["awakenings"] = counts.awakenings.into();
        report["lost_answers"] = counts.lost_answers.into();
        report["cut_connections"] = counts.cut_connections.into();
        report["saved_by_the_store"] = counts.saved_by_the_store.into();
        report["false_logouts"] = counts.false_logouts.into();
        report["stored_tokens_refused_in_the_end"] = stranded.into();
        report["thief_refused"] = thief_refused.into();
        report["sessions_ended_by_the_thief"] = json!({ "robbed": victim, "others": others });
        stats::print("drill", report);
        let sound = stranded == 0 && thief_refused && victim && others == 0;
        let passed = sound && (counts.false_logouts == 0 || self.tolerant) && counts.answers.count() > 0;
        Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// A thief presents an old token of the first client. Says whether he was refused, whether the client's session
    /// ended for that reason, and how many sessions ended that should not have.
    async fn rob(&self, browsers: &[Rc<Browser>], elsewhere: &[String]) -> Outcome<(bool, bool, usize)> {
        let (robbed, others) = browsers.split_first().ok_or("there are no clients")?;
        let (stolen, used_at) = robbed.used.borrow().clone().ok_or("the first client never refreshed")?;
        tokio::time::sleep_until((used_at + Duration::from_secs(self.grace + 61)).into()).await;
        let mut client = Client::new(self.address);
        let thief_refused = client.refresh(&stolen).await?.status == 401;
        let stored = robbed.stored.borrow().clone();
        let answer = client.refresh(&stored).await?;
        let ended = answer.status == 401 && answer.header("x-auth-reason") == Some("replay_detected");
        let mut wronged = refused(self.address, others).await?;
        for token in elsewhere {
            wronged += usize::from(client.refresh(token).await?.status != 200);
        }
        Ok((thief_refused, ended, wronged))
    }
}

/// Refreshes every stored token over a good line, and counts those that are refused.
async fn refused(address: SocketAddr, browsers: &[Rc<Browser>]) -> Outcome<usize> {
    let (mut client, mut refused) = (Client::new(address), 0);
    for browser in browsers {
        let token = browser.stored.borrow().clone();
        let answer = client.refresh(&token).await?;
        match (answer.status, answer.field("refresh_token")) {
            (200, Some(next)) => {
                next.clone_into(&mut browser.stored.borrow_mut());
                *browser.used.borrow_mut() = Some((token, Instant::now()));
            }
            _ => refused += 1,
        }
    }
    Ok(refused)
}

/// A client from the first awakening to the last.
async fn live(scene: Rc<Scene>, browser: Rc<Browser>, tabs: usize, end: Instant, grace: u64) -> Outcome<()> {
    let mut connections: Vec<Option<Client>> = (0..tabs).map(|_| Some(Client::new(scene.address))).collect();
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let longest = grace.max(10) as f64 * 1.5;
    loop {
        let pause = Duration::from_secs_f64(rand::random_range(0.05..longest));
        if Instant::now() + pause >= end {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        scene.counts.borrow_mut().awakenings += 1;
        // One tab, some, or all; at the very same time or within a second.
        let awake = match rand::random_range(0..3) {
            0 => 1,
            1 => rand::random_range(1..=tabs),
            _ => tabs,
        };
        let spread = if rand::random_bool(0.5) { 0.0 } else { 1.0 };
        let mut under_way = Vec::new();
        for (index, slot) in connections.iter_mut().enumerate().take(awake) {
            let Some(client) = slot.take() else { continue };
            let (scene, browser) = (Rc::clone(&scene), Rc::clone(&browser));
            let start = Duration::from_secs_f64(rand::random_range(0.0..=spread));
            under_way.push((
                index,
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(start).await;
                    let mut client = client;
                    let signed_in = refresh(&scene, &browser, &mut client).await;
                    (client, signed_in)
                }),
            ));
        }
        let mut signed_out = false;
        for (index, tab) in under_way {
            let (client, signed_in) = tab.await?;
            connections[index] = Some(client);
            signed_out |= !signed_in;
        }
        if signed_out {
            scene.counts.borrow_mut().false_logouts += 1;
            let mut database = scene.database.lock().await;
            let token = seed::sessions(&mut database, &scene.secret, [&browser.user]).await?;
            *browser.stored.borrow_mut() = token.into_iter().next().unwrap_or_default();
        }
    }
}

/// What one tab does when it needs an access token. Returns false when its user has to sign in again.
async fn refresh(scene: &Scene, browser: &Browser, client: &mut Client) -> bool {
    let mut presented = browser.stored.borrow().clone();
    let mut refused = false;
    // The request takes a moment to leave; mostly a short one.
    tokio::time::sleep(Duration::from_secs_f64(0.5 * rand::random::<f64>().powi(4))).await;
    loop {
        let started = Instant::now();
        let answer = if rand::random_bool(scene.lost) {
            lose(scene, client, &presented).await;
            None
        } else {
            let answer = client.refresh(&presented).await.ok();
            answer.map(|answer| (answer.status, answer.field("refresh_token").map(str::to_owned)))
        };
        match answer {
            Some((200, Some(next))) => {
                scene.counts.borrow_mut().answers.success(started.elapsed());
                if *browser.stored.borrow() == presented {
                    *browser.stored.borrow_mut() = next;
                    *browser.used.borrow_mut() = Some((presented, Instant::now()));
                }
                if refused {
                    scene.counts.borrow_mut().saved_by_the_store += 1;
                }
                return true;
            }
            Some((401, _)) => {
                scene.counts.borrow_mut().answers.other(&401);
                tokio::time::sleep(Duration::from_millis(500)).await;
                let stored = browser.stored.borrow().clone();
                if refused || stored == presented {
                    return false;
                }
                refused = true;
                presented = stored;
            }
            Some((status, _)) => {
                scene.counts.borrow_mut().answers.other(&status);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            None => {} // the same again
        }
    }
}

/// Exchanges the token and never learns the answer.
async fn lose(scene: &Scene, client: &mut Client, token: &str) {
    let counts = &scene.counts;
    if rand::random_bool(0.5) {
        counts.borrow_mut().lost_answers += 1;
        let _ = client.refresh(token).await;
    } else {
        counts.borrow_mut().cut_connections += 1;
        let patience = Duration::from_secs_f64(rand::random_range(0.0..0.005));
        // Dropped in the middle, sometimes before the service has begun and sometimes after it has committed.
        let _ = tokio::time::timeout(patience, client.refresh(token)).await;
    }
    client.disconnect();
}
