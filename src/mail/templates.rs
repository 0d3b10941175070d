//! The texts: minijinja templates in the binary, each of which a file can replace.
//!
//! A mail has a text, whose first line is `Subject: ...`, and an HTML form, which extends `layout.html`.

use std::path::Path;

use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde::Serialize;

use crate::domain::mail::{Locale, Template};

macro_rules! built_in {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("templates/", $name)))),+] };
}

const BUILT_IN: [(&str, &str); 21] = built_in!(
    "layout.html", "reset_password.en.txt", "reset_password.en.html", "reset_password.de.txt",
    "reset_password.de.html", "verify_email.en.txt", "verify_email.en.html", "verify_email.de.txt",
    "verify_email.de.html", "password_changed.en.txt", "password_changed.en.html", "password_changed.de.txt",
    "password_changed.de.html", "password_reset.en.txt", "password_reset.en.html", "password_reset.de.txt",
    "password_reset.de.html", "new_sign_in.en.txt", "new_sign_in.en.html", "new_sign_in.de.txt", "new_sign_in.de.html",
);

/// What a template can show. A name that is not here is a mistake.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Values<'a> {
    /// The shop's name, from `MAIL_FROM`.
    pub(super) shop: &'a str,
    pub(super) to: &'a str,
    pub(super) locale: &'a str,
    /// Only in mails with a token; the link only where there is a page.
    pub(super) token: Option<&'a str>,
    pub(super) link: Option<String>,
    /// How long the token is valid.
    pub(super) minutes: i64,
    /// Of a sign-in.
    pub(super) at: Option<String>,
    pub(super) ip: Option<String>,
}

/// A mail in words.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) subject: String,
    pub(super) text: String,
    pub(super) html: String,
}

#[derive(Debug)]
pub(super) struct Templates(Environment<'static>);

impl Templates {
    /// Reads the templates and renders each with samples, so that no mail fails by a mistake in one. The error is all that
    /// is wrong.
    pub(super) fn load(folder: Option<&Path>) -> Result<Self, Vec<String>> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, text) in BUILT_IN {
            environment.add_template(name, text).expect("BUG: a test renders the built-in templates");
        }
        let (replacements, mut problems) = match folder.map(files).transpose() {
            Ok(replacements) => (replacements.unwrap_or_default(), Vec::new()),
            Err(problem) => (Vec::new(), vec![problem]),
        };
        for (name, text) in replacements {
            if !BUILT_IN.iter().any(|(known, _)| *known == name) {
                problems.push(format!("{name} is the name of no template"));
            } else if let Err(error) = environment.add_template_owned(name, text) {
                problems.push(format!("{error:#}"));
            }
        }
        let templates = Self(environment);
        if problems.is_empty() {
            problems = templates.problems();
        }
        if problems.is_empty() {
            return Ok(templates);
        }
        Err(problems.into_iter().map(|problem| format!("MAIL_TEMPLATES_DIR: {problem}")).collect())
    }

    pub(super) fn render(&self, template: Template, locale: Locale, values: &Values<'_>) -> Result<Rendered, Error> {
        let name = format!("{}.{}", template.label(), locale.label());
        let render = |ending: &str| self.0.get_template(&format!("{name}.{ending}"))?.render(Serde(values));
        let (text, html) = (render("txt")?, render("html")?);
        let parts = text.strip_prefix("Subject: ").and_then(|text| text.split_once('\n'));
        let Some((subject, text)) = parts.filter(|(subject, _)| !subject.trim().is_empty()) else {
            return Err(Error::new(
                ErrorKind::BadSerialization,
                format!("{name}.txt does not begin with a line such as Subject: Your password"),
            ));
        };
        Ok(Rendered { subject: subject.trim().to_owned(), text: text.trim_start().to_owned(), html })
    }

    fn problems(&self) -> Vec<String> {
        let all = Template::ALL.into_iter().flat_map(|template| Locale::ALL.map(|locale| (template, locale)));
        let samples = [None, Some("https://shop.example/page#token=sample".to_owned())];
        let all = all.flat_map(|mail| samples.clone().map(|link| (mail, link)));
        all.filter_map(|((template, locale), link)| {
            let is_sign_in = template == Template::NewSignIn;
            let values = Values {
                shop: "Shop",
                to: "customer@shop.example",
                locale: locale.label(),
                token: Some("sample"),
                link,
                minutes: 60,
                at: is_sign_in.then(|| "now".to_owned()),
                ip: is_sign_in.then(|| "203.0.113.7".to_owned()),
            };
            self.render(template, locale, &values).err().map(|error| format!("{error:#}"))
        })
        .collect()
    }
}

/// The files of a folder but for hidden ones, which a mounted `ConfigMap` has.
fn files(folder: &Path) -> Result<Vec<(String, String)>, String> {
    let said = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(said)? {
        let entry = entry.map_err(said)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            let text = std::fs::read_to_string(entry.path())
                .map_err(|error| format!("{}: {error}", entry.path().display()))?;
            files.push((name, text));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("auth-templates-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (file, text) in files {
            std::fs::write(folder.join(file), text).unwrap();
        }
        folder
    }

    fn values(shop: &str) -> Values<'_> {
        let (to, locale) = ("cust@example.com", "de");
        Values { shop, to, locale, token: Some("sample"), link: None, minutes: 30, at: None, ip: None }
    }

    #[test]
    fn the_built_in_templates_render() {
        assert_eq!(Templates::load(None).map(|_| ()), Ok(()));
    }

    #[test]
    fn a_file_replaces_one_template_and_hidden_ones_are_left_alone() {
        let text = "Subject: {{ shop }} & Sie\n\nCode: {{ token }}\n";
        let folder = folder("good", &[("reset_password.de.txt", text), ("..data", "of a ConfigMap")]);
        let templates = Templates::load(Some(&folder)).unwrap();
        let mail = templates.render(Template::ResetPassword, Locale::De, &values("<Laden>")).unwrap();
        assert_eq!((mail.subject.as_str(), mail.text.as_str()), ("<Laden> & Sie", "Code: sample"));
        // HTML is escaped, and as it was.
        assert!(mail.html.contains("&lt;Laden&gt;") && !mail.html.contains("<Laden>"), "{}", mail.html);
        assert!(mail.html.contains("30 Minuten"), "{}", mail.html);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn every_template_that_does_not_render_is_named() {
        let files = [("reset_pasword.de.txt", "Subject: A\n\nB"), ("reset_password.en.txt", "Subject: A\n\n{{ token")];
        let syntax = folder("syntax", &files);
        let problems = Templates::load(Some(&syntax)).unwrap_err().join("\n");
        assert!(problems.contains("MAIL_TEMPLATES_DIR: reset_pasword.de.txt is the name of no template"), "{problems}");
        assert!(problems.contains("reset_password.en.txt:3"), "{problems}");

        let files = [
            ("verify_email.de.html", "{{ customer_name }}"),
            ("verify_email.en.txt", "Welcome"),
            ("new_sign_in.de.txt", "Subject: \n\nText"),
            ("password_changed.de.html", "{% extends 'header.html' %}"),
        ];
        let names = folder("names", &files);
        let problems = Templates::load(Some(&names)).unwrap_err().join("\n");
        for (name, _) in files {
            assert!(problems.contains(name), "{name} is not in\n{problems}");
        }
        assert!(Templates::load(Some(Path::new("there/is/none"))).unwrap_err()[0].contains("there/is/none: "));
        std::fs::remove_dir_all(syntax).unwrap();
        std::fs::remove_dir_all(names).unwrap();
    }
}
