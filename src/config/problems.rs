//! Reading single settings, and gathering what is wrong with them.

use std::str::FromStr;

use secrecy::SecretString;

/// Everything that is wrong with the settings, a sentence each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// Gathers problems while the settings are read.
#[derive(Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    pub(super) fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    pub(super) fn none_or<T>(self, value: Option<T>) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(ConfigError(self.0)),
        }
    }

    /// A whole number within bounds.
    pub(super) fn number<T>(
        &mut self,
        name: &str,
        given: Option<&String>,
        default: T,
        bounds: std::ops::RangeInclusive<T>,
    ) -> T
    where
        T: FromStr + PartialOrd + std::fmt::Display + Copy,
    {
        let Some(text) = set(given) else { return default };
        match text.parse() {
            Ok(number) if bounds.contains(&number) => number,
            _ => {
                self.add(format!(
                    "{name} must be a whole number from {} to {}, not '{text}'",
                    bounds.start(),
                    bounds.end()
                ));
                default
            }
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, name: &str, given: Option<&String>, default: T, words: &[(&str, T)]) -> T {
        let Some(text) = set(given) else { return default };
        if let Some((_, value)) = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)) {
            return *value;
        }
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        self.add(format!("{name} must be {}, not '{text}'", known.join(" or ")));
        default
    }

    /// A list, of which every entry must parse.
    pub(super) fn list<T>(
        &mut self,
        name: &str,
        given: Option<&String>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let mut values = Vec::new();
        for entry in set(given).into_iter().flat_map(|text| text.split(',')).map(str::trim) {
            match parse(entry) {
                Ok(value) => values.push(value),
                Err(problem) => self.add(format!("{name}: '{entry}' {problem}")),
            }
        }
        values
    }

    /// A secret, from its variable or from the file that another variable names.
    pub(super) fn secret(&mut self, name: &str, given: Option<&String>, file: Option<&String>) -> Option<SecretString> {
        let given = set(given);
        let Some(file) = set(file) else {
            return given.map(SecretString::from);
        };
        if given.is_some() {
            self.add(format!("{name} and {name}_FILE are both set; set one"));
        }
        match std::fs::read_to_string(file) {
            Ok(text) if !text.trim_end().is_empty() => Some(text.trim_end().into()),
            Ok(_) => {
                self.add(format!("{name}_FILE: {file} is empty"));
                None
            }
            Err(error) => {
                self.add(format!("{name}_FILE: {file}: {error}"));
                None
            }
        }
    }
}

/// An empty variable counts as unset: compose files pass them on that way.
pub(super) fn set(given: Option<&String>) -> Option<&str> {
    given.map(String::as_str).filter(|text| !text.is_empty())
}
