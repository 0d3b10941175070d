//! What is made of a body: which texts are JSON, and what is said of those that are not.

use serde_json::json;
use sqlx::PgPool;

use crate::support::TestApp;

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
