//! How settings are read and checked; none is named here.
//!
//! A setting is a clap argument with `env`. Its flag has the variable's name, and a secret can also come from the file that
//! `NAME_FILE` names. clap knows all of this from the one declaration, but stops at the first wrong value. So [`Given`]
//! takes all settings as text from clap, and then has each text read by the declared parser.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::marker::PhantomData;

use clap::builder::Resettable;
use clap::error::Error;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};

/// Settings that are read together.
///
/// A field with `required` needs `default_value = ""`, so that the other settings can be checked where it is not set.
/// A field with `hide_env_values` is a secret. An `alias` is another name of the variable, in lower case. Text of a field
/// with `ignore_case` is read in lower case.
pub trait Settings: Args {
    /// What is wrong with values that are right each by itself.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Everything that is wrong with the settings, a sentence each. No sentence repeats a secret.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// The settings `T` as text, by variable: what is set and not empty, because compose files pass unset variables on as
/// empty ones.
#[derive(Clone)]
pub struct Given<T> {
    texts: HashMap<String, OsString>,
    settings: PhantomData<T>,
}

impl<T: Settings> Given<T> {
    /// The settings, or everything that is wrong with them.
    pub fn resolve(&self) -> Result<T, ConfigError> {
        self.read().map(|(settings, _)| settings)
    }

    /// The settings in effect, one a line as in an environment file. A secret is masked as a whole.
    pub fn effective(&self) -> Result<String, ConfigError> {
        let (_, matches) = self.read()?;
        let mut lines = String::new();
        for setting in declared::<T>() {
            let value = effective_value(&matches, &setting);
            let value = if is_secret(&setting) && !value.is_empty() { "********" } else { &value };
            let _ = writeln!(lines, "{}={value}", variable(&setting));
        }
        Ok(lines)
    }

    /// The same texts, for some of the settings.
    pub fn part<U: Settings>(&self) -> Given<U> {
        Given { texts: self.texts.clone(), settings: PhantomData }
    }

    /// Whether a value comes from a file, so that [`resolve`](Self::resolve) may find another one later.
    pub fn has_files(&self) -> bool {
        let file = |name: String| self.texts.contains_key(&format!("{name}_FILE"));
        declared::<T>().any(|setting| is_secret(&setting) && names(&setting).any(file))
    }

    fn read(&self) -> Result<(T, ArgMatches), ConfigError> {
        let mut problems = Vec::new();
        let mut flags = Vec::new();
        let mut unset = Vec::new();
        let command = Command::new("settings").no_binary_name(true).args(declared::<T>().map(flag_only));
        for setting in declared::<T>() {
            match self.text(&setting) {
                Err(problem) => problems.push(problem),
                Ok(None) => unset.push(setting),
                Ok(Some((name, text))) => {
                    // Other defaults depend on this text, and clap compares it as it stands.
                    let text = if setting.is_ignore_case_set() { text.to_lowercase() } else { text };
                    let flag = format!("--{}={text}", flag_name(&variable(&setting)));
                    match command.clone().try_get_matches_from([&flag]) {
                        Ok(_) => flags.push(flag),
                        Err(error) => problems.push(format!("{name} {}", reason(&error))),
                    }
                }
            }
        }
        // What is wrong stands at its default here, so that the rest is checked all the same.
        let matches = command.try_get_matches_from(flags).expect("BUG: each flag was accepted above");
        let settings = T::from_arg_matches(&matches).expect("BUG: every setting has a value or may be absent");
        for setting in unset.iter().filter(|setting| setting.is_required_set()) {
            if effective_value(&matches, setting).is_empty() {
                problems.push(format!("{} is not set. {}", variable(setting), help(setting)));
            }
        }
        problems.extend(settings.problems());
        if problems.is_empty() { Ok((settings, matches)) } else { Err(ConfigError(problems)) }
    }

    /// What a setting is set to, and by which variable.
    fn text(&self, setting: &Arg) -> Result<Option<(String, String)>, String> {
        for name in names(setting) {
            let file = format!("{name}_FILE");
            return match (self.texts.get(&name), self.texts.get(&file)) {
                (None, None) => continue,
                (Some(_), Some(_)) => Err(format!("{name} and {file} are both set; set one")),
                (Some(text), None) => match text.to_str() {
                    Some(text) => Ok(Some((name, text.to_owned()))),
                    None => Err(format!("{name} is not valid UTF-8")),
                },
                (None, Some(path)) => match std::fs::read_to_string(path) {
                    Ok(text) => match without_byte_order_mark(&text).trim_end() {
                        "" => Err(format!("{file}: {} is empty", path.display())),
                        text => Ok(Some((file, text.to_owned()))),
                    },
                    Err(error) => Err(format!("{file}: {}: {error}", path.display())),
                },
            };
        }
        Ok(None)
    }
}

/// Some editors and shells begin a text file with this mark. It belongs to no secret.
pub fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn declared<T: Settings>() -> impl Iterator<Item = Arg> {
    T::augment_args(Command::new("settings")).get_arguments().cloned().collect::<Vec<_>>().into_iter()
}

fn variable(setting: &Arg) -> String {
    setting.get_env().unwrap_or_default().to_string_lossy().into_owned()
}

/// The setting's variable, and other names that are read where it is not set.
fn names(setting: &Arg) -> impl Iterator<Item = String> {
    let aliases = setting.get_all_aliases().unwrap_or_default();
    std::iter::once(variable(setting)).chain(aliases.into_iter().map(str::to_uppercase))
}

fn flag_name(variable: &str) -> String {
    variable.to_lowercase().replace('_', "-")
}

fn is_secret(setting: &Arg) -> bool {
    setting.is_hide_env_values_set()
}

fn help(setting: &Arg) -> String {
    setting.get_help().map(ToString::to_string).unwrap_or_default()
}

fn effective_value(matches: &ArgMatches, setting: &Arg) -> String {
    let raw = matches.get_raw(setting.get_id().as_str()).and_then(|mut values| values.next());
    raw.unwrap_or_default().to_string_lossy().into_owned()
}

/// The setting as a flag that takes nothing from the environment.
fn flag_only(setting: Arg) -> Arg {
    let flag = flag_name(&variable(&setting));
    setting.long(flag).env(Resettable::Reset).required(false).alias(Resettable::Reset)
}

/// The variables of a setting as arguments of the command line, each with its flag, all as text.
fn as_text(setting: &Arg) -> Vec<Arg> {
    let name = variable(setting);
    let visible_aliases = setting.get_visible_aliases().unwrap_or_default();
    let text = |name: &str| {
        let arg = setting.clone().id(name.to_owned()).long(flag_name(name)).env(name.to_owned());
        arg.required(false).alias(Resettable::Reset).value_parser(value_parser!(OsString))
    };
    let other = |name: &str, help: String| text(name).default_value(Resettable::Reset).help(help);
    let mut args = Vec::new();
    for variable in names(setting) {
        args.push(if variable == name {
            text(&name).hide_default_value(setting.is_hide_default_value_set() || setting.get_default_values() == [""])
        } else {
            let hidden = !visible_aliases.contains(&&*variable.to_lowercase());
            other(&variable, format!("Used where `{name}` is not set")).hide(hidden)
        });
        if is_secret(setting) {
            let file = other(&format!("{variable}_FILE"), format!("File that holds the value of `{variable}`"));
            args.push(file.value_name("PATH").hide_env_values(false));
        }
    }
    args
}

/// Why clap's parser refused a value, without the value: it may be a secret.
fn reason(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| "is not valid".to_owned(), ToString::to_string)
}

impl<T: Settings> Args for Given<T> {
    fn augment_args(command: Command) -> Command {
        command.args(declared::<T>().flat_map(|setting| as_text(&setting)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Settings> FromArgMatches for Given<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut texts = HashMap::new();
        for arg in declared::<T>().flat_map(|setting| as_text(&setting)) {
            let name = variable(&arg);
            let given = matches.value_source(&name).is_some_and(|source| source != ValueSource::DefaultValue);
            if given && let Some(text) = matches.get_one::<OsString>(&name).filter(|text| !text.is_empty()) {
                texts.insert(name, text.clone());
            }
        }
        Ok(Self { texts, settings: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T> std::fmt::Debug for Given<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Given").field("variables", &self.texts.keys()).finish()
    }
}
