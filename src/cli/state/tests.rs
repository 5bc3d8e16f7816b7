//! The commands on a real store.

use std::path::Path;

use super::*;
use crate::change::Lsn;
use crate::change::TableName;
use crate::store::{Batch, KeptProgress, NewBinding, Note, NoteKey, NoteKind, Op, Store};

/// A configuration with a store of its own that a daemon has used: a sink that is there, paused, and one that left.
fn rig(directory: &Path) -> Config {
    let text = "[source.app]\nurl = \"postgres://u@h/app\"\n[sink.orders]\nurl = \"http://h\"\ntables = [\"a.b\"]\n";
    let config = config::parse(text, &directory.join("walhook.toml"), &|_| None, &[]).unwrap();
    let store = Store::open(&config.state, 2).unwrap();
    let (name, database, slot) = ("app".to_owned(), "shop".to_owned(), "walhook_app".to_owned());
    store
        .bind(&NewBinding { name, system_id: 7_439_000_000_000_000_001, timeline: 1, database, slot, from: None })
        .unwrap();
    store.register("app", &["orders", "mails"]).unwrap();
    for (sink, ops) in [("orders", vec![Op::Paused { why: "dlv_1 was given up".to_owned() }]), ("mails", Vec::new())] {
        let (key, _) = store.load("app", sink).unwrap();
        let progress = Some(KeptProgress { resolved: Lsn(0x500), high: None, unresolved: Vec::new() });
        drop(store.submit(Batch { sink: key, ops, progress }));
    }
    store.register("app", &["orders"]).unwrap();
    store.close();
    config
}

fn run(config: &Config, command: StateCommand) -> Result<String, (String, u8)> {
    let args = StateArgs { command: Some(command), config: config.file.clone(), json: false };
    carry_out(&args, config).map_err(|refusal| told(refusal, config))
}

fn named(name: &str, source: Option<&str>) -> SinkName {
    SinkName { name: name.to_owned(), source: source.map(str::to_owned) }
}

fn show(config: &Config) -> String {
    run(config, StateCommand::Show { json: false }).unwrap()
}

#[test]
fn it_shows_sources_and_sinks_and_what_is_paused_and_absent() {
    let directory = tempfile::tempdir().unwrap();
    let config = rig(directory.path());
    let text = show(&config);
    for part in [
        "slot walhook_app of database shop in cluster 7439000000000000001, resolved by all sinks up to 0/500",
        "orders  app     paused  0/500     –       nothing",
        "mails   app     absent  0/500",
        "paused: dlv_1 was given up",
        "10.0 GiB",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let json = run(&config, StateCommand::Show { json: true }).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["sources"][0]["resolved_lsn"], "0/500");
    assert_eq!(json["sinks"][1]["paused_why"], "dlv_1 was given up");
}

#[test]
fn a_pause_is_ended_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = rig(directory.path());
    let resume = || run(&config, StateCommand::Resume { sink: named("orders", None) }).unwrap();
    assert!(resume().contains("dlv_1 was given up"));
    assert!(resume().contains("neither paused nor blocked"));
    assert!(show(&config).contains("orders  app     active"), "{}", show(&config));
}

#[test]
fn a_sink_is_forgotten_and_one_that_is_still_configured_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    let config = rig(directory.path());
    let forget = |sink: &str| run(&config, StateCommand::Forget { sink: named(sink, None) });
    assert!(forget("orders").unwrap().contains("begins anew"));
    assert!(forget("mails").unwrap().ends_with("forgot sink mails of source app: nothing\n"));
    let (text, code) = forget("mails").unwrap_err();
    assert!(text.contains("knows no sink") && code == UNAVAILABLE, "{code}: {text}");
    assert!(!show(&config).contains("mails"));
}

#[test]
fn a_gap_is_accepted_for_the_only_source_and_for_none_that_is_not_known() {
    let directory = tempfile::tempdir().unwrap();
    let config = rig(directory.path());
    assert!(run(&config, StateCommand::AcceptGap { table: None, source: None }).unwrap().contains("source app"));
    assert!(show(&config).contains("a gap is accepted"));
    let (text, code) =
        run(&config, StateCommand::AcceptGap { table: None, source: Some("apq".to_owned()) }).unwrap_err();
    assert!(text.contains("knows no source") && code == UNAVAILABLE, "{code}: {text}");
}

#[test]
fn a_running_daemon_is_left_alone_and_a_missing_store_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let config = rig(directory.path());
    let daemon = Store::open(&config.state, 1).unwrap();
    for command in [
        StateCommand::Forget { sink: named("mails", None) },
        StateCommand::AcceptGap { table: None, source: None },
        StateCommand::Resume { sink: named("orders", None) },
    ] {
        let (text, code) = run(&config, command).unwrap_err();
        assert!(text.contains("stop it") && code == UNAVAILABLE, "{code}: {text}");
    }
    assert!(show(&config).contains("orders"), "showing works beside it");
    daemon.close();
    std::fs::remove_dir_all(&config.state.path).unwrap();
    let (text, code) = run(&config, StateCommand::Show { json: false }).unwrap_err();
    assert!(text.contains("there is no store") && code == UNAVAILABLE, "{code}: {text}");
}

#[test]
fn of_sinks_of_one_name_only_the_one_that_is_meant_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let config = rig(directory.path());
    let store = Store::open(&config.state, 2).unwrap();
    store.register("old", &["orders"]).unwrap();
    let (key, _) = store.load("old", "orders").unwrap();
    let ops = vec![Op::Paused { why: "dlv_2 was given up".to_owned() }];
    store.submit(Batch { sink: key, ops, progress: None }).blocking_recv().unwrap();
    store.close();
    for command in
        [StateCommand::Forget { sink: named("orders", None) }, StateCommand::Resume { sink: named("orders", None) }]
    {
        let (text, code) = run(&config, command).unwrap_err();
        assert!(text.contains("app, old") && text.contains("--source") && code == UNAVAILABLE, "{code}: {text}");
    }
    assert!(show(&config).contains("walhook state resume orders --source old"), "{}", show(&config));
    let resumed = run(&config, StateCommand::Resume { sink: named("orders", Some("old")) }).unwrap();
    assert!(resumed.contains("dlv_2"), "{resumed}");
    let forgotten = run(&config, StateCommand::Forget { sink: named("orders", Some("old")) }).unwrap();
    assert_eq!(forgotten, "forgot sink orders of source old: nothing\n", "the one of app stays in the configuration");
    assert!(show(&config).contains("orders  app     paused"), "{}", show(&config));
    let (text, _) = run(&config, StateCommand::Forget { sink: named("orders", Some("old")) }).unwrap_err();
    assert!(text.contains("knows no sink"), "{text}");
}

fn table(name: &str) -> TableName {
    TableName { schema: "public".to_owned(), table: name.to_owned() }
}

#[test]
fn what_is_noted_of_tables_is_shown_and_accepted_by_table() {
    let directory = tempfile::tempdir().unwrap();
    let config = rig(directory.path());
    let store = Store::open(&config.state, 1).unwrap();
    let gap = Note::new(NoteKey::new(NoteKind::Identity, table("a")), 7);
    let leaf = NoteKey { other: Some(table("leaf")), ..NoteKey::new(NoteKind::UnloggedPartition, table("a")) };
    let open = Note { from: Some(Lsn(0x100)), ..gap };
    for note in [open.clone(), Note::new(leaf, 8), Note::new(NoteKey::new(NoteKind::EarlyRows, table("a")), 9)] {
        store.put_note("app", &note).unwrap();
    }
    store.close();
    let text = show(&config);
    for part in ["from 0/100 on are not captured", "public.leaf is an unlogged partition", "had been written to before"]
    {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let published = Note { from: None, ..open.clone() };
    let accept_gap = || StateCommand::AcceptGap { source: None, table: Some("public.a".to_owned()) };
    // A table that is out may never come back.
    assert!(run(&config, accept_gap()).unwrap().contains("from 0/100 on are not captured"));
    let store = Store::open(&config.state, 1).unwrap();
    store.put_note("app", &published).unwrap();
    store.close();
    let (refused, code) = run(&config, accept_gap()).unwrap_err();
    assert!(code == 69 && refused.contains("has no gap yet"), "{code}: {refused}");
    let store = Store::open(&config.state, 1).unwrap();
    store.put_note("app", &Note { to: Some(Lsn(0x200)), ..open }).unwrap();
    store.close();
    assert!(run(&config, accept_gap()).unwrap().contains("from 0/100 to 0/200"));
    let accept = |table: &str| StateCommand::AcceptMissed { table: table.to_owned(), source: None };
    assert!(run(&config, accept("public.leaf")).unwrap().contains("public.leaf is an unlogged partition"));
    let json: serde_json::Value =
        serde_json::from_str(&run(&config, StateCommand::Show { json: true }).unwrap()).unwrap();
    let tables = json["sources"][0]["tables"].as_array().unwrap();
    let seen: Vec<_> = tables.iter().map(|note| (note["kind"].as_str().unwrap(), note["accepted"].as_bool())).collect();
    assert_eq!(seen, [("early_rows", Some(false)), ("unlogged_partition", Some(true))]);
    run(&config, accept("public.a")).unwrap();
    assert!(show(&config).contains("unlogged partition of public.a: its changes are not captured"), "it is still so");
    for command in [accept("public.b"), accept_gap()] {
        let (text, code) = run(&config, command).unwrap_err();
        assert!(code == 69 && text.contains("notes nothing of a table"), "{code}: {text}");
    }
}
