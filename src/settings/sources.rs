//! Where settings come from, the strongest first: flags, the environment, `.env`, `claviger.toml`, the defaults.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::table::{Kind, TABLE, setting_of};

/// The settings file that is read where none is named.
const DEFAULT_FILE: &str = "claviger.toml";
/// How many characters of a wrong value a message repeats.
const SHOWN: usize = 80;

/// The values that are set, by name.
#[derive(Default)]
pub struct Sources {
    values: HashMap<String, (String, String)>,
    problems: Vec<Problem>,
}

/// One setting that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting's name.
    pub name: String,
    /// What is wrong with it.
    pub message: String,
    /// Where it was set.
    pub origin: String,
}

/// The settings that are wrong, all of them.
#[derive(Debug, thiserror::Error)]
pub struct SettingsError(pub Vec<Problem>);

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings are not valid:")?;
        for Problem { name, message, origin } in &self.0 {
            write!(f, "\n  {name}: {message} [{origin}]")?;
        }
        Ok(())
    }
}

impl Sources {
    /// The real ones: `flags` by the names of the variables, the process's environment, `.env` and the settings file where
    /// they are there. A file that is named must be. What is wrong with them is reported by `Settings::load`.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn from_environment(flags: impl IntoIterator<Item = (&'static str, String)>, file: Option<&Path>) -> Self {
        let mut sources = Self::default();
        match file {
            Some(path) => sources.read_toml(path),
            None if Path::new(DEFAULT_FILE).exists() => sources.read_toml(Path::new(DEFAULT_FILE)),
            None => {}
        }
        if Path::new(".env").exists() {
            sources.read_dotenv();
        }
        let files = TABLE.iter().filter(|setting| setting.kind == Kind::Secret).map(|s| format!("{}_FILE", s.name));
        for name in TABLE.iter().map(|setting| setting.name.to_owned()).chain(files) {
            match std::env::var(&name) {
                Ok(value) => sources.set(name, value, "in the environment"),
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => sources.fail(name, "is not text", "in the environment"),
            }
        }
        for (name, value) in flags {
            sources.set(name.to_owned(), value, "on the command line");
        }
        sources
    }

    /// Exactly these, by the names of the variables.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut sources = Self::default();
        for (name, value) in pairs {
            sources.set(name.into(), value.into(), "as given");
        }
        sources
    }

    /// An empty or blank value counts as not set: that is how containers leave a variable out.
    fn set(&mut self, name: String, value: String, origin: &str) {
        if setting_of(&name).is_none() {
            self.fail(name, "there is no such setting", origin);
        } else if !value.trim().is_empty() {
            self.values.insert(name, (value, origin.to_owned()));
        }
    }

    fn fail(&mut self, name: impl Into<String>, message: impl Into<String>, origin: &str) {
        self.problems.push(Problem { name: name.into(), message: message.into(), origin: origin.to_owned() });
    }

    /// `.env` may be shared with other programs, so what is not known is left alone, as in the environment.
    fn read_dotenv(&mut self) {
        // dotenvy's own message repeats the line, which may hold a secret.
        let mut fail = |message: String| self.fail(".env", message, "settings file");
        let text = match std::fs::read_to_string(".env") {
            Ok(text) => text,
            Err(error) => return fail(format!("cannot be read: {error}")),
        };
        let mut pairs = Vec::new();
        for pair in dotenvy::from_read_iter(text.as_bytes()) {
            let Ok(pair) = pair else {
                // Its error has the line's text, but not its number.
                let after = pairs.last().map_or(String::new(), |(name, _): &(String, _)| format!(" after {name}"));
                return fail(format!("a line{after} is no NAME=value: what has blanks stands in quotes"));
            };
            pairs.push(pair);
        }
        for (name, value) in pairs {
            if setting_of(&name).is_some() {
                self.set(name, value, "in .env");
            }
        }
        // Half of a password would be replaced by nothing, and the other half be the password.
        for name in text.lines().filter_map(replaced).filter(|name| setting_of(name).is_some()) {
            self.fail(name, "has a $, which names a variable to put there: single quotes keep it", "in .env");
        }
    }

    fn read_toml(&mut self, path: &Path) {
        let file = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return self.fail(file, format!("cannot be read: {error}"), "settings file"),
        };
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            // The message alone: with its place it would show the line, which may hold a secret.
            Err(error) => {
                let line =
                    error.span().and_then(|span| text.get(..span.start)).map_or(1, |before| before.split('\n').count());
                return self.fail(file, format!("line {line}: {}", error.message()), "settings file");
            }
        };
        let origin = format!("in {file}");
        for (key, value) in table {
            let name = key.to_ascii_uppercase();
            if key != key.to_ascii_lowercase() || setting_of(&name).is_none() {
                self.fail(key, "there is no such setting", &origin);
                continue;
            }
            match value {
                toml::Value::String(text) => self.set(name, text, &origin),
                toml::Value::Integer(number) => self.set(name, number.to_string(), &origin),
                toml::Value::Boolean(switch) => self.set(name, switch.to_string(), &origin),
                _ => self.fail(key, "must be a text, a number or true or false", &origin),
            }
        }
    }
}

/// The name in a line of `.env` whose value has a `$` that does not stand for itself.
fn replaced(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
    let value = value.trim_start();
    let is_literal = name.starts_with('#') || value.starts_with('\'');
    (!is_literal && value.replace("\\$", "").contains('$')).then(|| name.trim())
}

/// Reads typed values out of the sources and gathers what is wrong.
pub(super) struct Reader<'a> {
    sources: &'a Sources,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(sources: &'a Sources) -> Self {
        Self { sources, problems: sources.problems.clone() }
    }

    /// The setting's value, or the default where it is not set or wrong.
    pub(super) fn or<T>(&mut self, name: &str, default: T, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        let Some((value, origin)) = self.sources.values.get(name) else { return default };
        match parse(value.trim()) {
            Ok(value) => value,
            Err(message) => {
                let is_shown = setting_of(name).is_some_and(|setting| setting.kind == Kind::Plain);
                let shown: String = value.chars().take(SHOWN).collect();
                let message = if is_shown { format!("{shown:?} {message}") } else { message };
                self.fail(name, message, origin.clone());
                default
            }
        }
    }

    /// A secret, from the setting itself or from the file that `<name>_FILE` names.
    pub(super) fn secret(
        &mut self,
        name: &str,
        check: impl FnOnce(&str) -> Result<(), String>,
    ) -> Option<SecretString> {
        let file_name = format!("{name}_FILE");
        let (value, origin) = match (self.sources.values.get(name), self.sources.values.get(&file_name)) {
            (None, None) => return None,
            (Some(_), Some((_, origin))) => {
                self.fail(&file_name, format!("is set together with {name}"), origin.clone());
                return None;
            }
            (Some((value, origin)), None) => (value.clone(), origin.clone()),
            (None, Some((path, origin))) => match std::fs::read_to_string(PathBuf::from(path)) {
                Ok(text) => (text.trim_end_matches(['\n', '\r']).to_owned(), format!("in the file of {file_name}")),
                Err(error) => {
                    self.fail(&file_name, format!("cannot be read: {error}"), origin.clone());
                    return None;
                }
            },
        };
        match check(&value) {
            Ok(()) => Some(value.into()),
            Err(message) => {
                self.fail(name, message, origin);
                None
            }
        }
    }

    /// A secret that is more than text.
    pub(super) fn secret_as<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let mut parsed = None;
        self.secret(name, |text| {
            parsed = Some(parse(text.trim())?);
            Ok(())
        });
        parsed
    }

    /// Notes a setting that is not set and must be.
    pub(super) fn needs(&mut self, name: &str, message: &str) {
        if !self.sources.values.contains_key(name) {
            self.fail(name, message.to_owned(), "not set".to_owned());
        }
    }

    /// Notes a setting that is set to what another forbids.
    pub(super) fn refuse(&mut self, name: &str, message: &str) {
        if let Some((_, origin)) = self.sources.values.get(name) {
            self.fail(name, message.to_owned(), origin.clone());
        }
    }

    fn fail(&mut self, name: &str, message: String, origin: String) {
        self.problems.push(Problem { name: name.to_owned(), message, origin });
    }

    pub(super) fn finish(mut self) -> Result<(), SettingsError> {
        self.problems.sort_by(|a, b| a.name.cmp(&b.name));
        if self.problems.is_empty() { Ok(()) } else { Err(SettingsError(self.problems)) }
    }
}
