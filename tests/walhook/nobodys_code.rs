//! Whoever owns a table decides what its types, casts, operators, indexes, policies and views call. walhook reads such tables and
//! calls none of it: a function that was called would hold a lock that no other one takes.

use serde_json::json;

use crate::daemon::{Config, Daemon, text_of, walhook};
use crate::postgres::{Postgres, state, until};
use crate::receiver::Receiver;

/// What an owner may make, each of which springs the trap.
const TRAPS: &str = "
    CREATE FUNCTION spring() RETURNS void LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN PERFORM pg_catalog.pg_advisory_lock_shared(64, 64); END $$;
    CREATE FUNCTION text_by(anyelement) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.spring(); RETURN 'trapped'; END $$;
    CREATE FUNCTION five() RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.spring(); RETURN 5; END $$;
    CREATE FUNCTION holds(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.spring(); RETURN true; END $$;";

const SPRUNG: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 64 AND objid = 64";

/// `docs` with a key of some type, a title, and a value that an update of the title leaves out.
fn docs(key: &str, keys: &str, body: &str, bodies: &str) -> String {
    format!(
        "CREATE TABLE docs (id {key} PRIMARY KEY, title text, body {body}); ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
         INSERT INTO docs SELECT {keys}, 'a', {bodies} FROM generate_series(1, 3) i;"
    )
}

fn plain() -> String {
    docs("int", "i", "text", "repeat('x', 9000)")
}

struct Case {
    postgres: Postgres,
    receiver: Receiver,
    daemon: Daemon,
    _config: Config,
}

impl Case {
    async fn begin(setup: &str) -> Self {
        let postgres = Postgres::start();
        postgres.sql(&format!("{TRAPS}{setup}")).await;
        let receiver = Receiver::start().await;
        let config =
            Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.docs\"]\nunchanged_toast = \"fetch\"");
        let daemon = Daemon::start(&config).await;
        Self { postgres, receiver, daemon, _config: config }
    }

    /// So many messages had this result, and nothing of the owner's was called.
    async fn ends(&self, what: &str, result: &str, count: f64) {
        until(&format!("{what}: {count} {result}"), || async {
            let metrics = self.daemon.metrics().await;
            let all = [
                "filled",
                "table_gone",
                "no_key",
                "denied",
                "own_code",
                "failed",
                "timeout",
                "unavailable",
                "row_gone",
            ];
            let of = |result| metrics.sum("walhook_sink_toast_fetches_total", &[("result", result)]);
            state(of(result) == Some(count), all.map(|result| (result, of(result))))
        })
        .await;
        assert_eq!(self.postgres.value(SPRUNG).await, "0", "{what}: something of the owner's was called");
    }

    /// The body that came with this title.
    fn body(&self, title: &str) -> serde_json::Value {
        let messages = self.receiver.messages();
        let message = messages.iter().find(|message| message["record"]["title"] == title);
        message.unwrap_or_else(|| panic!("nothing came with the title {title}"))["record"]["body"].clone()
    }
}

/// Sees that the trap would be seen.
#[tokio::test]
async fn a_trap_that_is_sprung_is_seen() {
    let postgres = Postgres::start();
    postgres.sql(&format!("{TRAPS}{}", plain())).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE INDEX ON docs ((id + five())); SELECT pg_advisory_unlock_all()").await.unwrap();
    assert_eq!(postgres.value(SPRUNG).await, "0");
    let client = postgres.client().await;
    // Nobody calls the function here but the planner.
    client.batch_execute("SELECT title FROM ONLY docs WHERE id = 1").await.unwrap();
    assert_eq!(postgres.value(SPRUNG).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_64_fetch_calls_no_cast_operator_or_check_of_a_columns_owner() {
    let casts = |name: &str| {
        format!(
            "CREATE FUNCTION text_of(x {name}) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT public.text_by(x) $$;
             CREATE CAST ({name} AS text) WITH FUNCTION text_of({name}) AS IMPLICIT;"
        )
    };
    let composite = format!(
        "CREATE TYPE big AS (t text); {} {}",
        casts("big"),
        docs("int", "i", "big", "ROW(repeat('x', 9000))::big")
    );
    let array = format!(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); {} {}",
        casts("mood"),
        docs("int", "i", "mood[]", "array_fill('sad'::mood, ARRAY[3000])")
    );
    let checked =
        format!("CREATE DOMAIN small AS int CHECK (holds(VALUE)); {}", docs("small", "i", "text", "repeat('x', 9000)"));
    let from_text = format!(
        "CREATE TYPE mood AS ENUM ('1', '2', '3');
         CREATE FUNCTION mood_of(text) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.spring(); RETURN '1'; END $$;
         CREATE CAST (text AS mood) WITH FUNCTION mood_of(text) AS IMPLICIT;
         CREATE FUNCTION yes(mood, mood) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spring(); RETURN true; END $$;
         CREATE FUNCTION yes(int8, int4) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spring(); RETURN true; END $$;
         CREATE OPERATOR public.= (LEFTARG = mood, RIGHTARG = mood, FUNCTION = yes);
         CREATE OPERATOR public.<= (LEFTARG = int8, RIGHTARG = int4, FUNCTION = yes); {}",
        docs("mood", "(ENUM_RANGE(NULL::mood))[i]", "text", "repeat('x', 9000)")
    );
    for (what, setup) in [
        ("a cast of a composite type", composite),
        ("a cast of an enum", array),
        ("the CHECK of a domain", checked),
        ("a cast from text, and operators", from_text),
    ] {
        let case = Case::begin(&setup).await;
        case.postgres.sql("UPDATE docs SET title = 'b'").await;
        case.ends(what, "filled", 3.0).await;
        assert_ne!(case.body("b"), json!("trapped"), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_64_fetch_reads_no_key_that_only_its_owners_code_could_compare() {
    let setup = format!(
        "CREATE DOMAIN small AS int CHECK (holds(VALUE)); CREATE TYPE smalls AS RANGE (SUBTYPE = small); {}",
        docs("smalls", "smalls(i, i + 1)", "text", "repeat('x', 9000)")
    );
    let case = Case::begin(&setup).await;
    case.postgres.sql("UPDATE docs SET title = 'b' WHERE lower(id) = 1").await;
    case.ends("a range of a domain", "no_key", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_64_fetch_reads_no_table_whose_indexes_or_partitions_call_their_owners_code() {
    let constant = "CREATE INDEX own ON docs ((id + five()))";
    let partial = "CREATE INDEX own ON docs (title) WHERE id > five()";
    let statistics = "CREATE STATISTICS own ON (id + five()), title FROM docs";
    for (what, own) in [("an index", constant), ("a partial index", partial), ("statistics", statistics)] {
        let case = Case::begin(&plain()).await;
        case.postgres.sql("UPDATE docs SET title = 'known' WHERE id = 1").await;
        case.ends(what, "filled", 1.0).await;
        // The table is known already when it becomes dangerous.
        case.postgres.sql(own).await;
        case.postgres.sql("UPDATE docs SET title = 'b' WHERE id = 2").await;
        case.ends(what, "own_code", 1.0).await;
        case.daemon.wait_logged("that no superuser owns").await;
    }
    let case = Case::begin(&plain()).await;
    case.postgres.sql("CREATE INDEX harmless ON docs (lower(title)) WHERE id > 0").await;
    case.postgres.sql("UPDATE docs SET title = 'b' WHERE id = 2").await;
    case.ends("an index that calls what came with the server", "filled", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_64_fetch_of_a_table_that_has_changed_hands_or_kind_calls_nothing() {
    let view = "ALTER TABLE docs RENAME TO real; CREATE VIEW docs AS SELECT id, title, text_by(body) AS body FROM real";
    let policy = "ALTER TABLE docs ENABLE ROW LEVEL SECURITY; ALTER TABLE docs FORCE ROW LEVEL SECURITY;
        CREATE POLICY own ON docs USING (holds(id))";
    let retyped = "CREATE TYPE mood AS ENUM ('1', '2', '3');
        CREATE FUNCTION number_of(mood) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.spring(); RETURN 2; END $$;
        CREATE CAST (mood AS int) WITH FUNCTION number_of(mood) AS IMPLICIT;
        ALTER TABLE docs ALTER id TYPE mood USING (ENUM_RANGE(NULL::mood))[id]";
    let computed = "ALTER TABLE docs RENAME TO real; CREATE TABLE docs (id int PRIMARY KEY, title text, body text);
        CREATE FUNCTION body_of() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spring(); RETURN NEW; END $$;
        CREATE TRIGGER own BEFORE UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION body_of()";
    for (what, change, result) in [
        ("a view in the table's place", view, "table_gone"),
        ("a policy", policy, "denied"),
        ("a key of another type", retyped, "failed"),
        ("another table under its name", computed, "row_gone"),
    ] {
        let case = Case::begin(&plain()).await;
        case.postgres.sql("UPDATE docs SET title = 'known' WHERE id = 1").await;
        case.ends(what, "filled", 1.0).await;
        case.postgres.sql(&format!("BEGIN; UPDATE docs SET title = 'b' WHERE id = 2; {change}; COMMIT")).await;
        case.ends(what, result, 1.0).await;
    }
}

const SUPERUSER: &str = "is a superuser";

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_is_refused_for_fetch_and_warned_of_without() {
    let postgres = Postgres::start();
    postgres.sql(&plain()).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "unchanged_toast = \"fetch\"");
    let text = std::fs::read_to_string(config.path()).unwrap().replace(&postgres.url(), &postgres.admin_url());
    config.rewrite(&text);
    let check = || walhook(&["check", "--config", &config.path().to_string_lossy()]);
    let output = check();
    let said = text_of(&output);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains(SUPERUSER) && said.contains("CREATE ROLE \"walhook\""), "{said}");
    let output = walhook(&["run", "--config", &config.path().to_string_lossy()]);
    let said = text_of(&output);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains(SUPERUSER) && said.contains("sink orders"), "{said}");

    config.rewrite(&text.replace("unchanged_toast = \"fetch\"", ""));
    let output = check();
    let said = text_of(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains(SUPERUSER), "{said}");
    let daemon = Daemon::start(&config).await;
    daemon.wait_logged(SUPERUSER).await;
    daemon.wait_ready().await;
    let (_, body) = daemon.ready().await.unwrap();
    assert!(!body.to_string().contains(SUPERUSER), "{body}");
}
