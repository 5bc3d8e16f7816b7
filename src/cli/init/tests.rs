//! `init` against a real server, and `check` on what it writes.

use super::*;
use crate::cli::check;
use crate::source::slot::tests::Stage;

#[test]
fn the_next_step_says_how_the_password_is_written() {
    let draft = |form| Draft { text: String::new(), listed: 1, left_out: 0, password: form };
    let of = |form| next_steps(Path::new("w.toml"), &draft(form));
    assert!(of(Some(draft::PasswordForm::PercentEncoded)).contains("percent-encoded"));
    assert!(of(Some(draft::PasswordForm::Quoted)).contains("DATABASE_PASSWORD='…'"));
    assert!(!of(None).contains("DATABASE_PASSWORD"));
}

#[tokio::test]
async fn what_init_writes_passes_check_and_is_never_overwritten_unasked() {
    let sql = "create table orders (id int primary key); create table bare (v int);
               create table \"Odd Name\" (id int primary key);
               create table parts (id int primary key) partition by range (id);
               create table parts_1 partition of parts for values from (0) to (10); create view seen as select 1;";
    let stage = Stage::new(&[], sql).await;
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("walhook.toml");
    let args = InitArgs { url: stage.cluster.url("postgres"), output: output.clone(), force: false };
    assert_eq!(init(args.clone()).await, 0);
    let text = std::fs::read_to_string(&output).unwrap();
    assert!(text.contains("    # \"public.bare\",") && text.contains("REPLICA IDENTITY FULL;"), "{text}");
    assert!(text.contains("public.\"Odd Name\"") && !text.contains("parts_1") && !text.contains("seen"), "{text}");

    let findings = check::look(&output, false).await;
    assert_eq!(check::exit_code(&findings), 0, "{text}\n{findings:#?}");
    assert!(findings.iter().any(|finding| finding.subject == "public.parts"));
    assert!(findings.iter().any(|finding| finding.subject == "public.Odd Name"));

    assert_eq!(init(args.clone()).await, 1);
    std::fs::write(&output, "mine").unwrap();
    assert_eq!(init(args.clone()).await, 1);
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "mine");
    assert_eq!(init(InitArgs { force: true, ..args.clone() }).await, 0);
    assert_eq!(init(InitArgs { url: "nonsense".to_owned(), force: true, ..args.clone() }).await, 78);
    stage.cluster.stop("fast").unwrap();
    assert_eq!(init(InitArgs { force: true, ..args }).await, 69);
}

#[test]
fn an_address_from_standard_input_is_its_first_line() {
    assert_eq!(from_input(&b"  postgres://u:p@h/d \nmore"[..]).unwrap(), "postgres://u:p@h/d");
    assert_eq!(from_input(&b""[..]).unwrap(), "");
    let endless = std::io::BufReader::new(std::io::repeat(b'x'));
    assert_eq!(from_input(endless).unwrap().len(), 64 << 10);
    assert!(from_input(&b"\xff\n"[..]).is_err());
}
