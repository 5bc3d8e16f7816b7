//! The repository checks itself.

use std::path::{Path, PathBuf};

use crate::daemon::root;

/// Rust files that may be longer than 500 lines, with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Every file of the repository that is text of ours.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if path.is_dir() && ![".git", "target", "walhook-state"].contains(&name.as_str()) {
                folders.push(path);
            } else if path.is_file() && name != "Cargo.lock" && name != ".git" {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 20, "found only {found:?}");
    found
}

fn texts() -> impl Iterator<Item = (String, String)> {
    files().into_iter().filter_map(|path| {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        Some((name, std::fs::read_to_string(path).ok()?))
    })
}

fn rust() -> impl Iterator<Item = (String, String)> {
    texts().filter(|(name, _)| Path::new(name).extension().is_some_and(|extension| extension == "rs"))
}

#[test]
fn rust_files_stay_short() {
    let exempt = |name: &str| LONG_FILES.iter().any(|(long, _)| *long == name);
    let long: Vec<_> = rust()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(name, lines)| *lines > 500 && !exempt(name))
        .collect();
    assert!(long.is_empty(), "split where a second noun appears: {long:?}");
}

#[test]
fn rust_files_open_with_what_they_are_for() {
    let bare: Vec<_> = rust().filter(|(_, text)| !text.starts_with("//!")).map(|(name, _)| name).collect();
    assert!(bare.is_empty(), "no module documentation: {bare:?}");
}

#[test]
fn no_marks_are_left_over() {
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat(), ["HA", "CK"].concat()];
    let mut left = Vec::new();
    for (name, text) in texts().filter(|(name, _)| !name.starts_with("LICENSE")) {
        let words = text.lines().enumerate().flat_map(|(number, line)| {
            line.split(|c: char| !c.is_ascii_alphanumeric()).map(move |word| (number + 1, word))
        });
        left.extend(
            words.filter(|(_, word)| marks.iter().any(|mark| mark == word)).map(|(line, _)| format!("{name}:{line}")),
        );
    }
    assert!(left.is_empty(), "{left:?}");
}

/// `Row::get` panics where a pooler, a fork or a newer server answers another type than was asked for.
#[test]
fn rows_of_a_server_are_read_fallibly() {
    let mut found = Vec::new();
    for (name, text) in texts().filter(|(name, _)| name.starts_with("src/source") || name.starts_with("src/cli")) {
        if name.contains("tests") {
            continue;
        }
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        let reads =
            product.lines().enumerate().filter(|(_, line)| line.contains("row.get(") || line.contains("row.get::<"));
        // A row of the simple protocol answers `Option`.
        found.extend(
            reads.filter(|(_, line)| !line.contains("row.get(1)?")).map(|(at, _)| format!("{name}:{}", at + 1)),
        );
    }
    assert!(found.is_empty(), "try_get: {found:?}");
}

#[test]
fn no_path_of_one_machine_is_named() {
    let paths = [["/ho", "me/"].concat(), ["/ro", "ot/"].concat(), ["/Us", "ers/"].concat(), ["/wo", "rk/"].concat()];
    // A path begins where no letter, digit or dot stands before the slash; elsewhere it is a piece of an address.
    let begins = |text: &str, at: usize| {
        !text.as_bytes()[..at].last().is_some_and(|before| before.is_ascii_alphanumeric() || b".}_-*".contains(before))
    };
    let named: Vec<_> = texts()
        .flat_map(|(name, text)| {
            let found = paths.iter().flat_map(|path| text.match_indices(path.as_str()).collect::<Vec<_>>());
            found
                .filter(|(at, _)| begins(&text, *at))
                .map(|(at, path)| format!("{name}: {path} at byte {at}"))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(named.is_empty(), "{named:?}");
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for (name, text) in
        texts().filter(|(name, _)| Path::new(name).extension().is_some_and(|extension| extension == "md"))
    {
        let folder = root().join(&name).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                broken.push(format!("{name} → {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:?}");
}

#[test]
fn the_changelog_has_room_for_what_comes() {
    let text = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(text.contains("\n## [Unreleased]\n"));
}

#[test]
fn dependencies_come_with_their_reason() {
    let text = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (mut in_dependencies, mut reason_above) = (false, false);
    for line in text.lines() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies]");
        }
        let is_dependency = in_dependencies && line.contains('=') && !line.starts_with('#');
        assert!(!is_dependency || line.contains('#') || reason_above, "no reason: {line}");
        reason_above = line.starts_with('#');
    }
}
