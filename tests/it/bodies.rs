//! What is made of a body: which texts are JSON, and what is said of those that are not.

use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::TestApp;

/// A body, and what the Python service made of it.
#[derive(Debug, Deserialize)]
struct Case {
    path: String,
    #[serde(default = "json_content_type")]
    content_type: Option<String>,
    body: Option<String>,
    hex: Option<String>,
    repeat: Option<Vec<(String, usize)>>,
    status: u16,
    #[serde(default)]
    detail: Vec<Value>,
}

#[expect(clippy::unnecessary_wraps, reason = "serde wants the type of the field")]
fn json_content_type() -> Option<String> {
    Some("application/json".to_owned())
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        if let Some(body) = &self.body {
            return body.clone().into_bytes();
        }
        if let Some(parts) = &self.repeat {
            return parts.iter().map(|(text, times)| text.repeat(*times)).collect::<String>().into_bytes();
        }
        let digits: Vec<char> = self.hex.as_deref().unwrap_or_default().chars().collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).unwrap()).collect()
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_body_is_judged_as_the_python_service_judged_it(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    let cases: Vec<Case> = serde_json::from_str(include_str!("../data/bodies.json")).unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        let answer = app.post_raw(&format!("/auth{}", case.path), case.content_type.as_deref(), case.bytes()).await;
        // What becomes of a body that is good is told elsewhere.
        let status = match answer.status.as_u16() {
            status @ (400 | 422) => status,
            _ => 200,
        };
        let in_short = |problem: &Value| {
            let mut short = json!({"type": problem["type"], "loc": problem["loc"]});
            if problem["type"] == "json_invalid" {
                short["error"] = problem["ctx"]["error"].clone();
            }
            short
        };
        let detail: Vec<_> = answer.json()["detail"].as_array().into_iter().flatten().map(in_short).collect();
        if (status, &detail) != (case.status, &case.detail) {
            wrong.push(format!("{case:?}\n  is {status} {detail:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_problem_has_pydantics_keys_in_its_order(pool: PgPool) {
    let app = TestApp::new(pool);
    for (path, body, expected) in [
        ("/login", "null", r#"[{"type":"missing","loc":["body"],"msg":"Field required","input":null}]"#),
        (
            "/refresh",
            "{not json",
            r#"[{"type":"json_invalid","loc":["body",1],"msg":"JSON decode error","input":{},"ctx":{"error":"Expecting property name enclosed in double quotes"}}]"#,
        ),
        (
            "/refresh",
            "[1]",
            r#"[{"type":"model_attributes_type","loc":["body"],"msg":"Input should be a valid dictionary or object to extract fields from","input":[1]}]"#,
        ),
        (
            "/logout",
            r#"{"refresh_token":"x","scope":"every"}"#,
            r#"[{"type":"literal_error","loc":["body","scope"],"msg":"Input should be 'this', 'others' or 'all'","input":"every","ctx":{"expected":"'this', 'others' or 'all'"}}]"#,
        ),
        (
            "/login",
            r#"{"email":"x","password":1}"#,
            r#"[{"type":"value_error","loc":["body","email"],"msg":"value is not a valid email address: An email address must have an @-sign.","input":"x","ctx":{"reason":"An email address must have an @-sign."}},{"type":"string_type","loc":["body","password"],"msg":"Input should be a valid string","input":"**********"}]"#,
        ),
        (
            "/register",
            r#"{"role":1e-7,"password":"short"}"#,
            r#"[{"type":"missing","loc":["body","email"],"msg":"Field required","input":{"role":1e-7,"password":"**********"}},{"type":"string_too_short","loc":["body","password"],"msg":"String should have at least 8 characters","input":"**********","ctx":{"min_length":8}},{"type":"string_type","loc":["body","role"],"msg":"Input should be a valid string","input":1e-7}]"#,
        ),
        (
            "/register",
            &format!(r#"{{"email":"a@example.com","password":"Cust-pass1\u0000","role":"{}"}}"#, "x".repeat(33)),
            &format!(
                r#"[{{"type":"value_error","loc":["body","password"],"msg":"Value error, String should not contain NUL characters","input":"**********","ctx":{{"error":"String should not contain NUL characters"}}}},{{"type":"string_too_long","loc":["body","role"],"msg":"String should have at most 32 characters","input":"{}","ctx":{{"max_length":32}}}}]"#,
                "x".repeat(33)
            ),
        ),
    ] {
        let answer = app.post_raw(&format!("/auth{path}"), None, body.to_owned()).await;
        assert_eq!((answer.status.as_u16(), answer.body), (422, format!(r#"{{"detail":{expected}}}"#)), "{body}");
    }
}

/// The `input` of the first problem.
async fn input(app: &TestApp, path: &str, content_type: Option<&str>, body: &str) -> Value {
    app.post_raw(path, content_type, body.to_owned()).await.json()["detail"][0]["input"].clone()
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn only_what_is_no_secret_comes_back(pool: PgPool) {
    let app = TestApp::new(pool);
    for (body, shown) in [
        (r#"{"password":"hunter2"}"#, json!({ "password": "**********" })),
        (r#"{"password":null}"#, json!({ "password": null })),
        (r#"{"pass\u0077ord":"hunter2"}"#, json!({ "password": "**********" })),
        (r#"{"Email":"a@example.com","ROLE":"x"}"#, json!({ "Email": "a@example.com", "ROLE": "x" })),
        (r#"{"pw":"x","pin":1234,"credential":true}"#, {
            json!({ "pw": "**********", "pin": "**********", "credential": "**********" })
        }),
        (r#"{"a":[{"b":{"password":"x","email":"y"}}]}"#, {
            json!({ "a": [{ "b": { "password": "**********", "email": "y" } }] })
        }),
        (r#"{"form":[{"name":"password","value":"x"}]}"#, {
            json!({ "form": [{ "name": "**********", "value": "**********" }] })
        }),
        (r#"{"role":["hunter2",{"email":[7]}]}"#, json!({ "role": ["**********", { "email": ["**********"] }] })),
        (r#"{"a":{"eyJhbGciOiJIUzI1NiJ9.e30.x":1},"b":null}"#, json!({ "a": "**********", "b": null })),
        (r#"{"password=hunter2":""}"#, json!("**********")),
        (r#"["hunter2"]"#, json!("**********")),
        (r#""hunter2""#, json!("**********")),
        ("12345678", json!("**********")),
        ("1234", json!(1234)),
        (r#"{"a":{"b":{}}}"#, json!({ "a": { "b": {} } })),
    ] {
        assert_eq!(input(&app, "/auth/login", Some("application/json"), body).await, shown, "{body}");
    }
    for value in [r#""hunter2""#, "1", "[1]", "{}", r#"{"email":"hunter2"}"#] {
        let body = format!(r#"{{"email":"a@example.com","password":{value}}}"#);
        assert_eq!(input(&app, "/auth/register", None, &body).await, json!("**********"), "{value}");
    }
    for text in ["email=a%40example.com&%70assword=x", "refresh_token=x", "r\0e\0f\0r\0e\0s\0h\0", "pin: 1234"] {
        assert_eq!(input(&app, "/auth/refresh", Some("text/plain"), text).await, json!("**********"), "{text}");
    }
    assert_eq!(input(&app, "/auth/refresh", Some("text/plain"), "<a/>").await, json!("<a/>"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_long_input_does_not_come_back(pool: PgPool) {
    let app = TestApp::new(pool);
    let long = "x".repeat(4_094);
    assert_eq!(input(&app, "/auth/login", None, &format!(r#"{{"email":"{long}"}}"#)).await, json!(long));
    for body in [
        format!(r#"{{"email":"{long}x"}}"#),
        format!(r#"{{"email":"{}"}}"#, r"\u0001".repeat(683)),
        format!(r#"{{"role":"{long}"}}"#),
        format!("{{{}}}", (0..600).map(|number| format!(r#""a{number}":1"#)).collect::<Vec<_>>().join(",")),
    ] {
        assert_eq!(input(&app, "/auth/register", None, &body).await, json!("**********"), "{body}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn broken_json_is_answered_with_pythons_words_and_the_position_in_characters(pool: PgPool) {
    let app = TestApp::new(pool);
    for (body, position, message) in [
        ("[1,\n]", 4, "Expecting value"),
        ("[1", 2, "Expecting ',' delimiter"),
        ("[é, 1]", 1, "Expecting value"),
        ("{\n", 2, "Expecting property name enclosed in double quotes"),
        (r#"{"a" "x"}"#, 5, "Expecting ':' delimiter"),
        (r#"{"a":"b""#, 8, "Expecting ',' delimiter"),
        (r#"{"a":01}"#, 6, "Expecting ',' delimiter"),
        ("[1.]", 2, "Expecting ',' delimiter"),
        ("[nul]", 1, "Expecting value"),
        ("[tru", 1, "Expecting value"),
        ("{\"a\":\n\nfalsé}", 7, "Expecting value"),
        ("[NaN]", 1, "Expecting value"),
        ("{} é", 3, "Extra data"),
        ("{\n}\n\n}", 5, "Extra data"),
        (r#"{"é":"nobody"#, 5, "Unterminated string starting at"),
        (r#"{"a\\":"no\"body\\\""#, 7, "Unterminated string starting at"),
        (r#""é\x41""#, 2, "Invalid \\escape"),
        (r#""\é""#, 1, "Invalid \\escape"),
        (r#""é\u12g4""#, 3, "Invalid \\uXXXX escape"),
        (r#""\u+123""#, 2, "Invalid \\uXXXX escape"),
        (r#"{"a":"\u12"}"#, 7, "Invalid \\uXXXX escape"),
        ("\"a\u{1}b\"", 2, "Invalid control character at"),
        ("\"é\n\"", 2, "Invalid control character at"),
        ("[\n\"a\n", 4, "Invalid control character at"),
        ("\u{feff}\"é\" x", 4, "Extra data"),
        ("\u{feff}\u{feff}1", 0, "Expecting value"),
    ] {
        let answer = app.post_raw("/auth/refresh", None, body).await;
        assert_eq!(answer.status, 422, "{body} {}", answer.body);
        let problem = &answer.json()["detail"][0];
        assert_eq!(
            (&problem["loc"], &problem["ctx"]["error"]),
            (&json!(["body", position]), &json!(message)),
            "{body}"
        );
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn depth_and_the_digits_of_an_integer_are_bounded(pool: PgPool) {
    let app = TestApp::new(pool);
    let digits = "7".repeat(4_300);
    let nested = |open: &str, depth, close: &str| [open.repeat(depth), "1".to_owned(), close.repeat(depth)].concat();
    for (body, status) in [
        (nested("[", 127, "]"), 422),
        (nested("[", 128, "]"), 400),
        (nested(r#"{"a":"#, 127, "}"), 422),
        (nested(r#"{"a":"#, 128, "}"), 400),
        (digits.clone(), 422),
        (format!("-{digits}"), 422),
        (format!("0.{digits}7"), 422),
        (format!("{digits}7"), 400),
        (format!("[-{digits}7]"), 400),
        (format!(r#"{{"a":[{digits}7]}}"#), 400),
    ] {
        assert_eq!(app.post_raw("/auth/refresh", None, body.clone()).await.status, status, "{body}");
    }
}
