//! stub
pub enum DatabaseUrl { Sqlite(std::path::PathBuf), Postgres(secrecy::SecretString) }
