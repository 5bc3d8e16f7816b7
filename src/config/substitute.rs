//! `${NAME}` and `${NAME:-default}` inside the strings of the file.

/// A string with its variables filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) text: String,
    /// Whether a variable, or its default, is in it.
    pub(super) has_variable: bool,
}

/// Why a string cannot be filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfilled {
    pub(super) reason: String,
    /// It wants nothing but a variable that is not set.
    pub(super) is_unset: bool,
}

impl Unfilled {
    fn malformed(reason: &str) -> Self {
        Self { reason: reason.to_owned(), is_unset: false }
    }
}

/// Fills `text`: `${NAME}` is the variable, `${NAME:-default}` the default when the variable is unset or empty, `$$` a
/// single `$`; any other `$` stands for itself. The error says why that cannot be done.
pub(super) fn substitute(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Filled, Unfilled> {
    let mut filled = Filled { text: String::with_capacity(text.len()), has_variable: false };
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        filled.text.push_str(before);
        if let Some(next) = after.strip_prefix('$') {
            filled.text.push('$');
            rest = next;
        } else if let Some(inside) = after.strip_prefix('{') {
            let (expression, next) = inside
                .split_once('}')
                .ok_or_else(|| Unfilled::malformed("has ${ without a closing }; a literal $ is $$"))?;
            filled.text.push_str(&value_of(expression, environment)?);
            filled.has_variable = true;
            rest = next;
        } else {
            filled.text.push('$');
            rest = after;
        }
    }
    filled.text.push_str(rest);
    Ok(filled)
}

fn value_of(expression: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, Unfilled> {
    let (name, default) = match expression.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (expression, None),
    };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(Unfilled::malformed("has ${…} around something that is not a variable's name; a literal $ is $$"));
    }
    match (environment(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (Some(_) | None, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            let reason = format!("needs the environment variable {name}, which is not set");
            Err(Unfilled { reason, is_unset: true })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> Result<String, String> {
        let environment = |name: &str| match name {
            "HOST" => Some("db".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        substitute(text, &environment).map(|filled| filled.text).map_err(|error| error.reason)
    }

    #[test]
    fn variables_defaults_and_literal_dollars() {
        assert_eq!(fill("a ${HOST} b").unwrap(), "a db b");
        assert_eq!(fill("${EMPTY}${EMPTY:-x}${NONE:-y:-z}${NONE:-}").unwrap(), "xy:-z");
        assert_eq!(fill("$$ $${HOST} $x $").unwrap(), "$ ${HOST} $x $");
        assert_eq!(fill("${HOST}${HOST}").unwrap(), "dbdb");
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        assert!(fill("${NONE}").unwrap_err().contains("NONE"));
        for text in ["${", "${HOST", "${}", "${1A}", "${A B}", "${:-x}"] {
            assert!(fill(text).is_err(), "{text}");
        }
    }
}
