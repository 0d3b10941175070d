//! The README's own lines, and those of deploy/mail.md, executed, so that the pages cannot rot. And of all pages the links and
//! the commands.
//!
//! Every block fenced as `console` that mentions `localhost:8000` is run, in the order of the pages, in one shell and
//! against one fresh service: a line that begins with `$ ` is a command (it goes on in the next line after a `\`), and the
//! lines up to the next command are what it prints. Where the page has `…`, anything may stand on that line.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::stack::{Database, Service, auth, finish, scratch};

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

/// Every page, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "deploy", "deploy/gateways", "src", "tests"].map(|folder| root.join(folder));
    let entries = folders.iter().flat_map(|folder| folder.read_dir().expect("there is such a folder"));
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let pages = paths.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    pages.map(|path| (path.clone(), std::fs::read_to_string(path).expect("it can be read"))).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let kept = |letter: &char| letter.is_alphanumeric() || " -_".contains(*letter);
    headings
        .map(|line| line.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect::<String>())
        .map(|heading| heading.replace(' ', "-"))
        .collect()
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    let mut broken = Vec::new();
    let mut count = 0;
    for (path, text) in pages() {
        let links = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
        for link in links.filter(|link| !link.starts_with("https://")) {
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.with_file_name(file) };
            let leads = target.exists()
                && (anchor.is_empty()
                    || std::fs::read_to_string(&target).is_ok_and(|page| anchors(&page).contains(anchor)));
            if !leads {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(count > 50, "only {count} links were found");
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The commands in a line of a page, such as `mail retry|drop [--id ID]`: in an indented line, in backticks, or as `/auth`.
fn commands(line: &str) -> Vec<&str> {
    let indented = line.strip_prefix("    ").map(|line| line.strip_prefix("$ ").unwrap_or(line));
    let quoted = line.split('`').skip(1).step_by(2);
    let named = indented.into_iter().chain(quoted).filter_map(|text| text.strip_prefix("auth "));
    let by_path = line.split(" /auth ").skip(1);
    // What it does stands behind two blanks.
    named.chain(by_path).filter_map(|text| text.split("  ").next()?.split(['`', '<', '#']).next()).collect()
}

#[test]
fn every_command_of_the_pages_is_understood() {
    let mut tried = BTreeSet::new();
    for (path, text) in pages() {
        for command in text.lines().flat_map(commands) {
            let words = || command.split([' ', '[', ']']).filter(|word| !word.is_empty());
            let names: Vec<&str> =
                words().take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect();
            let Some((last, first)) = names.split_last() else { continue };
            // `retry|drop` are two.
            for name in last.split('|') {
                let arguments = [first, &[name, "--help"]].concat();
                let (code, help, complaint) = finish(auth().args(&arguments), "", Duration::from_secs(30));
                assert_eq!(code, 0, "{}: {command}: {complaint}", path.display());
                for flag in words().filter(|word| word.starts_with("--")) {
                    assert!(help.contains(flag), "{}: {command}: there is no {flag}", path.display());
                }
                tried.insert(arguments.join(" "));
            }
        }
    }
    assert!(tried.len() >= 20, "only {tried:?} were tried");
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
