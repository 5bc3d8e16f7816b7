//! Odd forms of answers: each is an acknowledgement or a failure with a name, and the connection is never out of step.

use tokio::sync::mpsc;

use super::rig::{Rig, delivery, failure};
use crate::deliver::endpoint::Endpoint;

/// What comes of an answer, of which `END` marks that the connection is closed after it.
async fn outcome(answer: &[u8]) -> (String, Vec<u8>) {
    let (bytes, close) = match answer.strip_suffix(b"END") {
        Some(bytes) => (bytes.to_vec(), true),
        None => (answer.to_vec(), false),
    };
    let (told, mut written) = mpsc::channel(8);
    let rig = Rig::start(move |mut peer| {
        let (bytes, told) = (bytes.clone(), told.clone());
        async move {
            while let Some(request) = peer.request().await {
                // The second request asks whether the connection is in step.
                let answer = if request.header("walhook-attempt") == Some("1") { &bytes[..] } else { STEP };
                let goes_on = peer.write(answer).await && !close;
                if !goes_on {
                    drop(peer);
                    return told.send(()).await.unwrap();
                }
                told.send(()).await.unwrap();
            }
        }
    })
    .await;
    let mut sink = rig.sink();
    sink.request_timeout = std::time::Duration::from_secs(3);
    let endpoint = Endpoint::new(&sink).unwrap();
    let first = endpoint.attempt(&delivery(100), 1).await;
    // What stands behind an answer has been written, and the connection closed if it is to be; that is here at once.
    written.recv().await.unwrap();
    let second = endpoint.attempt(&delivery(100), 2).await;
    assert_eq!((second.status, &second.response.body[..]), (Some(299), &b"step"[..]), "out of step: {second:?}");
    assert_eq!(rig.arrived().len(), 2, "each request arrived once");
    let word = if first.verdict.is_acknowledged() { "acknowledged" } else { failure(&first).0 };
    (word.to_owned(), first.response.body.to_vec())
}

const STEP: &[u8] = b"HTTP/1.1 299 Step\r\ncontent-length: 4\r\n\r\nstep";

macro_rules! forms {
    ($($name:ident: $($answer:literal)|+ => $word:literal, $body:literal;)*) => { $(
        #[tokio::test]
        async fn $name() {
            for answer in [$(&$answer[..]),+] {
                let (word, body) = outcome(answer).await;
                let shown = String::from_utf8_lossy(answer);
                assert_eq!((word.as_str(), &*String::from_utf8_lossy(&body)), ($word, $body), "{shown}");
            }
        }
    )* };
}

forms! {
    a_folded_header_line_is_accepted:
        b"HTTP/1.1 200 OK\r\nx-long: one\r\n two\r\n\tthree\r\ncontent-length: 2\r\n\r\nhi"
        | b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-last: one\r\n two\r\n\r\nhi" => "acknowledged", "hi";
    a_space_before_the_colon_is_accepted:
        b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\nx-a \t: b\r\n\r\nhi" => "acknowledged", "hi";
    a_reason_may_be_missing_or_in_any_letters:
        b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi"
        | b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nhi"
        | b"HTTP/1.1 200 \xd0\x9e\xd0\x9a\r\ncontent-length: 2\r\n\r\nhi"
        | b"HTTP/1.1 200 \xe9t\xe9\r\ncontent-length: 2\r\n\r\nhi" => "acknowledged", "hi";
    values_may_have_letters_of_any_kind:
        b"HTTP/1.1 200 OK\r\nserver: caf\xe9 \xd0\x9e\r\ncontent-length: 2\r\n\r\nhi" => "acknowledged", "hi";
    bare_line_feeds_end_lines_too:
        b"HTTP/1.1 200 OK\ncontent-length: 2\n\nhi" => "acknowledged", "hi";
    http_1_0_is_accepted_with_a_length_and_without:
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhiEND"
        | b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi"
        | b"HTTP/1.0 200 OK\r\n\r\nhiEND" => "acknowledged", "hi";
    a_body_may_end_with_the_connection:
        b"HTTP/1.1 200 OK\r\n\r\nhiEND" | b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhiEND" => "acknowledged", "hi";
    interim_answers_are_passed_over:
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
        | b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
        | b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
        => "acknowledged", "hi";
    switching_protocols_is_no_final_answer:
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" => "protocol_error", "";
    a_204_has_no_body_whatever_it_says:
        b"HTTP/1.1 204 No Content\r\n\r\n"
        | b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"
        | b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nhi"
        | b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        | b"HTTP/1.1 204 No Content\r\n\r\nhi" => "acknowledged", "";
    bytes_behind_an_answer_are_not_taken_for_the_next_one:
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"
        | b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi\r\n" => "acknowledged", "hi";
    chunks_may_have_extensions_and_trailers:
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n0\r\ndigest: z\r\n\r\n"
        | b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n" => "acknowledged", "hi";
    chunks_go_before_a_length:
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
        => "acknowledged", "hi";
    a_length_said_twice_must_be_the_same:
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi" => "acknowledged", "hi";
    lengths_that_differ_or_are_no_numbers_are_refused:
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi"
        | b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nhi"
        | b"HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nhi" => "protocol_error", "";
    header_lines_that_are_none_are_refused:
        b"HTTP/1.1 200 OK\r\nno colon\r\ncontent-length: 2\r\n\r\nhi"
        | b"HTTP/1.1 200 OK\r\nb\xe4d: x\r\ncontent-length: 2\r\n\r\nhi"
        | b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nhi" => "protocol_error", "";
    statuses_that_are_none_are_refused:
        b"HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n"
        | b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n"
        | b"ICY 200 OK\r\ncontent-length: 0\r\n\r\n"
        | b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n"
        | b"HTTP/3 200\r\n\r\n" => "protocol_error", "";
}

#[tokio::test]
async fn a_hundred_header_lines_are_read_and_more_are_refused() {
    for (count, word) in [(99, "acknowledged"), (300, "protocol_error")] {
        let lines: String = (0..count).map(|number| format!("x-{number}: y\r\n")).collect();
        let answer = format!("HTTP/1.1 200 OK\r\n{lines}content-length: 0\r\n\r\n");
        assert_eq!(outcome(answer.as_bytes()).await.0, word, "{count}");
    }
}
