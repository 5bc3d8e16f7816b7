//! `walhook config schema`: the JSON Schema of the configuration file.

use serde_json::Value;

use crate::config::raw::RawConfig;

/// The JSON Schema of the TOML, with the meaning, default and bounds of every key.
pub fn schema() -> Value {
    schemars::schema_for!(RawConfig).to_value()
}
