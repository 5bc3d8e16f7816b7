//! Reads HTTP/1.1 requests from a bare socket.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// From 1, over the receiver's life.
    pub(crate) number: u64,
    /// Method.
    pub(crate) method: String,
    /// Path with query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    /// As it came.
    pub(crate) body: Vec<u8>,
    /// The messages in it, whichever form the body has.
    pub(crate) messages: Vec<Value>,
    /// When it had been read.
    pub(crate) arrived: Instant,
}

/// When a request came and went, without its messages.
#[derive(Debug, Clone)]
pub(crate) struct Visit {
    /// When it had been read.
    pub(crate) arrived: Instant,
    /// When its answer went out, or the client hung up.
    pub(crate) ended: Option<Instant>,
    /// What was answered; 0 where there was no answer.
    pub(crate) status: u16,
    /// Requests being answered when it had come, itself among them.
    pub(crate) concurrent: usize,
}

impl Request {
    /// A header's value, or "".
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// The next request of a connection; `buffer` keeps what was read past it. None when the client has gone.
pub(crate) async fn read_request(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        read_more(socket, buffer).await?;
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = if headers.get("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
        read_chunks(socket, buffer).await?
    } else {
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        read_exactly(socket, buffer, length).await?
    };
    let messages = messages_of(&body);
    Some(Request { number: 0, method, path, headers, body, messages, arrived: Instant::now() })
}

async fn read_more(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    match socket.read_buf(buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}

async fn read_exactly(socket: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    while buffer.len() < length {
        read_more(socket, buffer).await?;
    }
    Some(buffer.drain(..length).collect())
}

async fn read_chunks(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            read_more(socket, buffer).await?;
        };
        let size = usize::from_str_radix(std::str::from_utf8(&buffer[..end]).ok()?, 16).ok()?;
        buffer.drain(..end + 2);
        let chunk = read_exactly(socket, buffer, size + 2).await?;
        body.extend_from_slice(&chunk[..size]);
        if size == 0 {
            return Some(body);
        }
    }
}

/// The messages of a body of any of the three forms; none if it is no JSON.
fn messages_of(body: &[u8]) -> Vec<Value> {
    match serde_json::from_slice(body) {
        Ok(Value::Array(messages)) => messages,
        Ok(Value::Object(mut object)) => match object.remove("data") {
            Some(Value::Array(messages)) => messages,
            _ => vec![Value::Object(object)],
        },
        _ => Vec::new(),
    }
}
