//! The README's own lines, and those of deploy/mail.md, executed, so that the pages cannot rot.
//!
//! Every block fenced as `console` that mentions `localhost:8000` is run, in the order of the pages, in one shell and
//! against one fresh service: a line that begins with `$ ` is a command (it goes on in the next line after a `\`), and the
//! lines up to the next command are what it prints. Where the page has `…`, anything may stand on that line.

use std::{path::Path, process::Command, time::Duration};

use crate::stack::{Database, Service, finish, scratch};

struct Step {
    page: &'static str,
    line: usize,
    command: String,
    output: Vec<String>,
}

fn steps(page: &'static str) -> Vec<Step> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("there is such a page");
    let mut blocks: Vec<Vec<(usize, &str)>> = Vec::new();
    let mut inside = false;
    for (number, line) in (1..).zip(text.lines()) {
        match (inside, line.trim_end()) {
            (false, "```console") => {
                inside = true;
                blocks.push(Vec::new());
            }
            (true, "```") => inside = false,
            (true, line) => blocks.last_mut().expect("BUG: it was opened").push((number, line)),
            (false, _) => {}
        }
    }
    blocks.retain(|block| block.iter().any(|(_, line)| line.contains("localhost:8000")));

    let mut steps: Vec<Step> = Vec::new();
    for (line, text) in blocks.into_iter().flatten() {
        if let Some(command) = text.strip_prefix("$ ") {
            steps.push(Step { page, line, command: command.to_owned(), output: Vec::new() });
            continue;
        }
        let step = steps.last_mut().unwrap_or_else(|| panic!("{page}:{line} stands before any command"));
        if step.command.ends_with('\\') {
            step.command = format!("{}\n{text}", step.command);
        } else {
            step.output.push(text.to_owned());
        }
    }
    steps
}

/// Whether `line` is `pattern`, where each `…` stands for anything.
fn matches(pattern: &str, line: &str) -> bool {
    let mut pieces = pattern.split('…');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else {
        return rest.is_empty();
    };
    for piece in pieces {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[tokio::test]
async fn every_curl_line_of_the_readme_prints_what_the_readme_says() {
    let steps: Vec<_> = ["README.md", "deploy/mail.md"].into_iter().flat_map(steps).collect();
    let calls = steps.iter().filter(|step| step.command.contains("curl ")).count();
    assert!(calls >= 8, "the pages show {calls} calls; the first screen has more");

    let database = Database::create().await;
    // What the service writes lies where the commands look for it.
    let home = scratch("home", "d");
    std::fs::create_dir_all(&home).expect("target/ takes folders");
    let service = Service::start_in(&home, &database.dsn()).await;
    let address = service.address.to_string();

    // One shell for all, so that a variable set in one command is there in the next; a mark after each one's output.
    let mark = "-- end of a command of the README --";
    let end = format!("\nprintf '\\n%s\\n' '{mark}'\n");
    let mut script = String::from("exec 2>&1\n");
    for step in &steps {
        script.push_str(&step.command.replace("localhost:8000", &address));
        script.push_str(&end);
    }
    // For curl: no waiting for ever, no proxy, no settings of whoever runs the tests.
    std::fs::write(home.join(".curlrc"), "max-time = 30\nnoproxy = \"*\"\n").expect("target/ takes files");
    let (_, output, _) = finish(
        Command::new("bash").arg("-s").env("CURL_HOME", &home).env("HOME", &home).current_dir(&home),
        &script,
        Duration::from_mins(2),
    );

    let output = output.replace('\r', "").replace(&address, "localhost:8000");
    let printed: Vec<&str> = output.split(mark).collect();
    assert_eq!(printed.len(), steps.len() + 1, "not every command ran:\n{output}");
    let mut wrong = Vec::new();
    for (step, printed) in steps.iter().zip(printed) {
        let printed: Vec<&str> = printed.trim_matches('\n').lines().collect();
        let as_said = printed.len() == step.output.len()
            && step.output.iter().zip(&printed).all(|(said, line)| matches(said, line));
        if !as_said {
            wrong.push(format!(
                "{}:{}\n$ {}\nsays\n{}\nbut it prints\n{}\n",
                step.page,
                step.line,
                step.command,
                step.output.join("\n"),
                printed.join("\n")
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n{}", wrong.join("\n"), service.log());
}

#[test]
fn an_ellipsis_stands_for_anything_and_nothing_else_does() {
    assert!(matches("same", "same"));
    assert!(matches(r#"{"a":"…","b":"…"}"#, r#"{"a":"1","b":"2"}"#));
    assert!(matches("…", ""));
    assert!(!matches("same", "same, longer"));
    assert!(!matches(r#"{"a":"…","b":1}"#, r#"{"a":"1","b":2}"#));
    assert!(!matches(r#"{"a":"…","b":1}"#, r#"{"b":1,"a":"1"}"#));
    assert!(!matches("…x", "y"));
}
