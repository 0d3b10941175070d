//! The answers of the Python service, recorded from a run of it (`tests/data/python-service.json`) and replayed here.
//!
//! Every answer must be the recorded one: status, `allow`, and of the body all that JSON can compare. Where this
//! service differs on purpose, a [`Difference`] says by which rule, for which cases, and what is expected instead.
//! Nothing else is excused, and a difference that no case needs fails the test.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::http::Request;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Answer, TestApp};

#[derive(Clone, Debug, Deserialize)]
struct Case {
    group: String,
    name: String,
    request: Asked,
    response: Answered,
}

#[derive(Clone, Debug, Deserialize)]
struct Asked {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Answered {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

/// What is compared of an answer.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    status: u16,
    allow: Option<String>,
    body: Seen,
}

/// A body as far as its content is fixed.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Empty,
    Json(Value),
    /// Two tokens and their type.
    TokenPair,
    /// A list of users.
    Users,
    /// Anything.
    Other,
}

/// Stands for what differs from run to run. Eight characters, with which the longest recorded address has 254.
const RUN: &str = "k3v9x2q7";

/// Writes out the shorthand of the recording.
fn expand(text: &str) -> String {
    let mut text = text.replace("<run>", RUN).replace("<int>", "1");
    while let Some((before, rest)) = text.split_once("<'") {
        let Some((count, after)) = rest.split_once("'*").and_then(|(unit, rest)| {
            let (count, after) = rest.split_once('>')?;
            Some((unit.repeat(count.parse().ok()?), after))
        }) else {
            break;
        };
        text = format!("{before}{count}{after}");
    }
    text
}

/// The bytes of a request body: `\xff` stands for the byte, as nothing else with a high bit is escaped so.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = expand(text).into_bytes();
    while let Some(at) = bytes.windows(4).position(|window| window == br"\xff") {
        bytes.splice(at..at + 4, [0xff]);
    }
    bytes
}

impl Case {
    fn all() -> Vec<Self> {
        serde_json::from_str(include_str!("../data/python-service.json")).unwrap()
    }

    fn request(&self) -> Request<Body> {
        self.request_to(&self.request.path)
    }

    fn request_to(&self, path: &str) -> Request<Body> {
        let mut request = Request::builder().method(self.request.method.as_str()).uri(path);
        for (name, value) in &self.request.headers {
            request = request.header(name, value);
        }
        let body = self.request.body.as_deref().map_or_else(Body::empty, |body| bytes(body).into());
        request.body(body).unwrap()
    }

    /// What the Python service answered.
    fn recorded(&self) -> Expected {
        let Answered { status, headers, body } = &self.response;
        let body = match body.as_str() {
            "" => Seen::Empty,
            "same shape" => Seen::Users,
            tokens if tokens.contains("<jwt>") => Seen::TokenPair,
            json => Seen::Json(numbers(serde_json::from_str(&expand(json)).unwrap())),
        };
        Expected { status: *status, allow: headers.get("allow").cloned(), body }
    }

    /// What this service answered, as far as `expected` fixes it.
    fn seen(answer: &Answer, expected: &Expected) -> Expected {
        let parsed = serde_json::from_str(&answer.body).ok();
        let body = match (&expected.body, parsed) {
            (Seen::Other, _) => Seen::Other,
            (Seen::Users, Some(Value::Array(users))) => {
                for user in users {
                    assert!(user["id"].is_u64() && user["email"].is_string() && user["role"].is_string(), "{user}");
                    assert_eq!(user.as_object().unwrap().len(), 3, "{user}");
                }
                Seen::Users
            }
            (Seen::TokenPair, Some(pair)) => {
                assert!(pair["access_token"].is_string() && pair["refresh_token"].is_string(), "{pair}");
                assert_eq!((&pair["token_type"], pair.as_object().unwrap().len()), (&json!("bearer"), 3));
                Seen::TokenPair
            }
            _ if answer.body.is_empty() => Seen::Empty,
            (_, Some(json)) => Seen::Json(numbers(json)),
            _ => Seen::Other,
        };
        Expected { status: answer.status.as_u16(), allow: answer.header("allow").map(str::to_owned), body }
    }
}

/// One spelling for each number: `1e-07` is `1e-7`, and `-0` is `0`. Integers keep all their digits.
fn numbers(json: Value) -> Value {
    match json {
        Value::Number(number) if number.as_str().contains(['.', 'e']) => json!(number.as_f64().unwrap()),
        Value::Number(number) if number.as_str() == "-0" => json!(0),
        Value::Array(items) => items.into_iter().map(numbers).collect(),
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, numbers(value))).collect(),
        other => other,
    }
}

/// A difference on purpose.
struct Difference {
    /// As the table of differences has it.
    rule: &'static str,
    /// Turns what was recorded into what is expected here, where the rule applies.
    apply: fn(&Case, &mut Expected),
}

const DIFFERENCES: [Difference; 8] = [
    Difference {
        rule: r#"register answers the new user's id, e-mail and role: {"status":"created"}, as its published contract says"#,
        apply: |case, expected| {
            if case.request.path == "/auth/register" && expected.status == 201 {
                expected.body = Seen::Json(json!({"status": "created"}));
            }
        },
    },
    Difference {
        rule: "anyone registers as admin, or as anything: REGISTER_OPEN_ROLES lists the roles, in development these two",
        apply: |case, expected| {
            let role = case.request.body.as_deref().and_then(|body| serde_json::from_str::<Value>(body).ok());
            let role = role.as_ref().and_then(|body| body["role"].as_str()).unwrap_or("customer");
            if expected.status == 201 && !["customer", "admin"].contains(&role) {
                expected.status = 403;
                expected.body = Seen::Json(json!({"detail": "Role not open for registration"}));
            }
        },
    },
    Difference {
        rule: "422 repeats passwords and tokens in `input`: a placeholder stands for each, also inside the whole-object `input`, \
            and for a whole body that is no object and may hold one",
        apply: |_, expected| {
            let Seen::Json(body) = &mut expected.body else { return };
            for problem in body.get_mut("detail").and_then(Value::as_array_mut).into_iter().flatten() {
                let is_password = problem["loc"][1] == "password" && problem["type"] != "missing";
                let is_other_body =
                    problem["type"] == "model_attributes_type" && problem["input"].to_string().len() >= 8;
                if is_other_body || is_password && !problem["input"].is_null() {
                    problem["input"] = json!("**********");
                } else {
                    conceal(&mut problem["input"]);
                }
            }
        },
    },
    Difference {
        rule: "local part of an e-mail is case-sensitive: new accounts are stored lower-cased, look-ups ignore case",
        apply: |case, expected| {
            if case.name == "reg_local_upper_is_new_user" {
                expected.status = 409;
                expected.body = Seen::Json(json!({"detail": "Email already registered"}));
            }
        },
    },
    Difference {
        rule: "reason of a refused address: rare ones may be worded otherwise",
        apply: |_, expected| {
            let Seen::Json(body) = &mut expected.body else { return };
            let Some(problem) = body.pointer_mut("/detail/0") else { return };
            let Some(reason) = problem.pointer("/ctx/reason").and_then(Value::as_str) else { return };
            let idna = ["The part after the @-sign is invalid (", "The part after the @-sign is not valid IDNA ("];
            let reason = if idna.iter().any(|start| reason.starts_with(start)) {
                "The part after the @-sign is not a valid internationalized domain name.".to_owned()
            } else {
                reason.replace("COMBINING ACUTE ACCENT", "U+0301").replace("LINE SEPARATOR, U+007F", "U+007F, U+2028")
            };
            problem["msg"] = json!(format!("value is not a valid email address: {reason}"));
            problem["ctx"]["reason"] = json!(reason);
        },
    },
    Difference {
        rule: "HEAD answers 405: HEAD works where GET does (and so is allowed there)",
        apply: |case, expected| {
            if expected.allow.as_deref() == Some("GET") {
                if case.request.method == "HEAD" {
                    *expected = Expected { status: 200, allow: None, body: Seen::Empty };
                } else {
                    expected.allow = Some("GET, HEAD".to_owned());
                }
            }
        },
    },
    Difference {
        rule: "`/users` redirects to `/users/`, and so on: a trailing slash more or less is answered directly",
        // What exactly is answered is the answer under the other path, which the replay asks for.
        apply: |case, expected| {
            if expected.status == 307 {
                expected.body = Seen::Other;
                assert!(case.response.headers.contains_key("location"));
            }
        },
    },
    Difference {
        rule: "GET /users/me is a new route, for the bearer of a token",
        apply: |case, expected| {
            if (case.request.method.as_str(), case.request.path.as_str()) == ("GET", "/users/me") {
                *expected =
                    Expected { status: 401, allow: None, body: Seen::Json(json!({"detail": "Not authenticated"})) };
            }
        },
    },
];

/// Puts the placeholder wherever an object has a password.
fn conceal(input: &mut Value) {
    match input {
        Value::Array(items) => items.iter_mut().for_each(conceal),
        Value::Object(members) => {
            for (name, value) in members {
                if name.eq_ignore_ascii_case("password") {
                    *value = json!("**********");
                } else {
                    conceal(value);
                }
            }
        }
        _ => {}
    }
}

/// The accounts that the recorded logins belong to, as the Python service had left them: with bcrypt hashes, made by it
/// of these passwords. (Registered here they would have argon2 hashes, for which a password's every byte counts.)
const ACCOUNTS: [(&str, &str); 7] = [
    // abcdefgh
    ("pw8", "$2b$04$v10mvz05XO.RIJ0MK09vS.FD0PhJMwgP45Z1vffufPcGbzpt.p0Fq"),
    // a, 72 times
    ("pw72", "$2b$04$qdhF50YBbnGOsC/i0Bbpced3fab.RmXbgxyWoX3DBsEEE54o4tWUa"),
    // a, 73 times
    ("pw73", "$2b$04$QOv5dm8KUX45sT2vMf6dSODs1VwvdMCTEVPKNECGGKniNVvVLuw7u"),
    // x, 200 times
    ("pw200", "$2b$04$LL9pzZwMt/Cke3KT6pdkAuvDWNfI0cLyxIzHLSa4VMIDELS8xri0G"),
    // é, 37 times
    ("pwunicode37chars74bytes", "$2b$04$KFcrRUtBs8K41HbC9gGX9uGwhF2NrnvYDPKZ3GVBLI6oMsSnyq9/6"),
    // a, 71 times, and é, of which the first byte counts
    ("pwmultibytecut", "$2b$04$HSjhfbv28lgDzNMg88.9nu8NIxBGewRB373Qh2M0xcKf5nzyfDLs2"),
    // U+0001 to U+0008
    ("pwcontrolchars", "$2b$04$KAhPFMPDHGBkGX11GJ2h8uJCWjlQ4roN.C7oHF6lrqWH9g74J5LBW"),
];

async fn leave_account_as_the_python_service_did(db: &PgPool, login: &str) {
    let account = ACCOUNTS.iter().find(|(name, _)| login.contains(&format!("\"{name}.<run>@")));
    let (name, hash) = account.expect("an account for every recorded login");
    let insert = "INSERT INTO users (email, password_hash, role) VALUES ($1, $2, 'customer')
        ON CONFLICT (email) DO UPDATE SET password_hash = excluded.password_hash";
    sqlx::query(insert).bind(format!("{name}.{RUN}@example.com")).bind(hash).execute(db).await.unwrap();
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn every_recorded_answer_is_given_or_differs_by_a_rule(pool: PgPool) {
    // Hashes are left alone, as during a rollout: one recorded account logs in with two passwords that bcrypt takes for
    // the same.
    let app = TestApp::with(pool, &["--throttle=off", "--password-rehash=off"]);
    let cases = Case::all();
    assert_eq!(cases.len(), 255);
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for case in cases {
        if case.group == "password" && case.request.path == "/auth/login" {
            leave_account_as_the_python_service_did(&app.db, case.request.body.as_deref().unwrap()).await;
        }
        let mut expected = case.recorded();
        for Difference { rule, apply } in &DIFFERENCES {
            let before = expected.clone();
            apply(&case, &mut expected);
            if expected != before {
                used.insert(*rule);
            }
        }
        let answer = app.send(case.request()).await;
        if expected.status == 307 {
            let location = case.response.headers["location"].trim_start_matches("https://<hostport>");
            let direct = app.send(case.request_to(location.trim_start_matches("<base>"))).await;
            expected = Case::seen(&direct, &expected);
            assert!(!direct.status.is_redirection() && direct.status != 404, "{case:?}");
        }
        let seen = Case::seen(&answer, &expected);
        // Bodies are compared once more as text, for the order of their members.
        if seen != expected || format!("{:?}", seen.body) != format!("{:?}", expected.body) {
            wrong.push(format!("{} {}:\n  {seen:?}\n  where {expected:?} is expected", case.group, case.name));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
    let unused: Vec<&str> = DIFFERENCES.iter().map(|it| it.rule).filter(|rule| !used.contains(rule)).collect();
    assert!(unused.is_empty(), "no case needs: {unused:#?}");
}
