//! Where settings come from, the strongest first: flags, the environment, `.env`, `claviger.toml`, the defaults.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::table::TABLE;

/// The settings file that is read where none is named.
const DEFAULT_FILE: &str = "claviger.toml";

/// The values that are set, by name.
#[derive(Default)]
pub struct Sources {
    values: HashMap<String, (String, String)>,
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
    /// they are there. A file that is named must be.
    ///
    /// # Errors
    /// Where a file cannot be read or sets what is not known.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn from_environment(
        flags: impl IntoIterator<Item = (&'static str, String)>,
        file: Option<&Path>,
    ) -> Result<Self, SettingsError> {
        let mut sources = Self::default();
        match file {
            Some(path) => sources.read_toml(path)?,
            None if Path::new(DEFAULT_FILE).exists() => sources.read_toml(Path::new(DEFAULT_FILE))?,
            None => {}
        }
        if Path::new(".env").exists() {
            let wrong = || file_problem(Path::new(".env"), "cannot be read as lines of NAME=value".to_owned());
            for pair in dotenvy::dotenv_iter().map_err(|_| wrong())? {
                let (name, value) = pair.map_err(|_| wrong())?;
                sources.set(name, value, "in .env");
            }
        }
        for name in TABLE.iter().flat_map(|setting| [setting.name.to_owned(), format!("{}_FILE", setting.name)]) {
            match std::env::var(&name) {
                Ok(value) => sources.set(name, value, "in the environment"),
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => {
                    let problem = Problem { name, message: "is not text".into(), origin: "in the environment".into() };
                    return Err(SettingsError(vec![problem]));
                }
            }
        }
        for (name, value) in flags {
            sources.set(name.to_owned(), value, "on the command line");
        }
        Ok(sources)
    }

    /// Exactly these, by the names of the variables.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut sources = Self::default();
        for (name, value) in pairs {
            sources.set(name.into(), value.into(), "as given");
        }
        sources
    }

    /// An empty value counts as not set: that is how containers leave a variable out.
    fn set(&mut self, name: String, value: String, origin: &str) {
        if !value.is_empty() {
            self.values.insert(name, (value, origin.to_owned()));
        }
    }

    fn read_toml(&mut self, path: &Path) -> Result<(), SettingsError> {
        let text =
            std::fs::read_to_string(path).map_err(|error| file_problem(path, format!("cannot be read: {error}")))?;
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| file_problem(path, error.message().to_owned()))?;
        let origin = format!("in {}", path.display());
        let mut problems = Vec::new();
        for (key, value) in table {
            let name = key.to_uppercase();
            let is_known = TABLE.iter().any(|s| s.name == name || name.strip_suffix("_FILE") == Some(s.name));
            let text = match value {
                _ if !is_known || key != key.to_lowercase() => Err("there is no such setting"),
                toml::Value::String(text) => Ok(text),
                toml::Value::Integer(number) => Ok(number.to_string()),
                toml::Value::Boolean(switch) => Ok(switch.to_string()),
                _ => Err("must be a text, a number or true or false"),
            };
            match text {
                Ok(text) => self.set(name, text, &origin),
                Err(message) => problems.push(Problem { name: key, message: message.into(), origin: origin.clone() }),
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(SettingsError(problems)) }
    }
}

fn file_problem(path: &Path, message: String) -> SettingsError {
    SettingsError(vec![Problem { name: path.display().to_string(), message, origin: "settings file".into() }])
}

/// Reads typed values out of the sources and gathers what is wrong.
pub(super) struct Reader<'a> {
    sources: &'a Sources,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(sources: &'a Sources) -> Self {
        let unknown = sources.values.iter().filter(|(name, _)| {
            !TABLE.iter().any(|setting| setting.name == *name || name.strip_suffix("_FILE") == Some(setting.name))
        });
        // The environment holds what is other programs': what is set there and not known is never seen here but from `.env`.
        let problems = unknown
            .filter(|(_, (_, origin))| origin != "in .env")
            .map(|(name, (_, origin))| Problem {
                name: name.clone(),
                message: "there is no such setting".into(),
                origin: origin.clone(),
            })
            .collect();
        Self { sources, problems }
    }

    /// The setting's value, or the default where it is not set or wrong.
    pub(super) fn or<T>(&mut self, name: &str, default: T, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        let Some((value, origin)) = self.sources.values.get(name) else { return default };
        match parse(value.trim()) {
            Ok(value) => value,
            Err(message) => {
                // A URL may hold a password, so the value is not repeated.
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
                Ok(text) => (text.trim_end_matches(['\n', '\r']).to_owned(), origin.clone()),
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

    fn fail(&mut self, name: &str, message: String, origin: String) {
        self.problems.push(Problem { name: name.to_owned(), message, origin });
    }

    pub(super) fn finish(mut self) -> Result<(), SettingsError> {
        self.problems.sort_by(|a, b| a.name.cmp(&b.name));
        if self.problems.is_empty() { Ok(()) } else { Err(SettingsError(self.problems)) }
    }
}
