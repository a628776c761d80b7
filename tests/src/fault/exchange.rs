//! One call through the proxy.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::UnixStream;
use tokio::time::sleep;

use super::{Fault, Shared};

/// Longest head of a request or an answer.
const HEAD_LIMIT: usize = 64 << 10;

/// What garbage looks like.
const GARBAGE: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00 this is no HTTP \xff\xfe\r\n\r\n{]";

/// A head, and what was read beyond it.
struct Head {
    text: String,
    rest: Vec<u8>,
}

async fn head(stream: &mut UnixStream) -> io::Result<Option<Head>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            return Ok(Some(Head { text, rest }));
        }
        if bytes.len() > HEAD_LIMIT || stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// The head with one call a connection, where it is no upgrade.
fn for_one_call(head: &str) -> String {
    if header(head, "upgrade").is_some() {
        return head.to_owned();
    }
    let kept: Vec<&str> = head
        .trim_end()
        .lines()
        .filter(|line| !line.to_ascii_lowercase().starts_with("connection:"))
        .collect();
    format!("{}\r\nConnection: close\r\n\r\n", kept.join("\r\n"))
}

/// Serves one connection: one call.
pub(super) async fn serve(shared: &Shared, mut client: UnixStream) -> io::Result<()> {
    let Some(mut request) = head(&mut client).await? else {
        return Ok(());
    };
    let length: usize = header(&request.text, "content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    while request.rest.len() < length {
        if client.read_buf(&mut request.rest).await? == 0 {
            return Ok(());
        }
    }
    let mut words = request.text.split(' ');
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let (fault, lifted) = shared.befalls(method, path);
    let Some(fault) = fault else {
        let mut engine = ask(shared, &request).await?;
        copy_bidirectional(&mut client, &mut engine).await?;
        return Ok(());
    };
    tokio::select! {
        // What hangs ends with the rules, as a connection to an engine that is restarted does.
        () = lifted.cancelled() => Ok(()),
        done = suffer(shared, fault, client, &request) => done,
    }
}

/// Hands the call on.
async fn ask(shared: &Shared, request: &Head) -> io::Result<UnixStream> {
    let mut engine = UnixStream::connect(&shared.engine).await?;
    engine
        .write_all(for_one_call(&request.text).as_bytes())
        .await?;
    engine.write_all(&request.rest).await?;
    Ok(engine)
}

/// Hands the call on and reads the whole answer.
async fn answer(shared: &Shared, request: &Head) -> io::Result<Vec<u8>> {
    let mut engine = ask(shared, request).await?;
    let mut bytes = Vec::new();
    engine.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

async fn hang() -> io::Result<()> {
    std::future::pending().await
}

async fn suffer(
    shared: &Shared,
    fault: Fault,
    mut client: UnixStream,
    request: &Head,
) -> io::Result<()> {
    match fault {
        Fault::Hang => hang().await,
        Fault::Delay(time) => {
            sleep(time).await;
            let mut engine = ask(shared, request).await?;
            copy_bidirectional(&mut client, &mut engine).await.map(drop)
        }
        Fault::Refuse(status, message) => {
            let body = format!("{{\"message\":\"{message}\"}}");
            let refusal = format!(
                "HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            client.write_all(refusal.as_bytes()).await
        }
        Fault::Close => Ok(()),
        Fault::DropAnswer => answer(shared, request).await.map(drop),
        Fault::HoldAnswer => {
            answer(shared, request).await?;
            hang().await
        }
        Fault::HalfAnswer | Fault::HalfAndHang => {
            let bytes = answer(shared, request).await?;
            client.write_all(&bytes[..bytes.len() / 2]).await?;
            if fault == Fault::HalfAndHang {
                return hang().await;
            }
            Ok(())
        }
        Fault::HalfDocument => {
            let bytes = answer(shared, request).await?;
            client.write_all(&half_document(&bytes)).await
        }
        Fault::Garbage => {
            answer(shared, request).await?;
            client.write_all(GARBAGE).await
        }
        Fault::Drip(pause) => drip(shared, client, request, pause).await,
        Fault::Doubled | Fault::Silent => {
            let mut engine = ask(shared, request).await?;
            let Some(head) = head(&mut engine).await? else {
                return Ok(());
            };
            client.write_all(head.text.as_bytes()).await?;
            if fault == Fault::Silent {
                return hang().await;
            }
            doubled(engine, client, head.rest).await
        }
    }
}

/// The same answer with the first half of its body, and a length that fits.
fn half_document(answer: &[u8]) -> Vec<u8> {
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map_or(answer.len(), |end| end + 4);
    let (head, body) = answer.split_at(end);
    let text = String::from_utf8_lossy(head);
    let plain = if header(&text, "transfer-encoding").is_some() {
        unchunked(body)
    } else {
        body.to_vec()
    };
    let half = &plain[..plain.len() / 2];
    let kept: Vec<&str> = text
        .trim_end()
        .lines()
        .filter(|line| {
            let line = line.to_ascii_lowercase();
            !line.starts_with("content-length:") && !line.starts_with("transfer-encoding:")
        })
        .collect();
    let mut whole = format!(
        "{}\r\nContent-Length: {}\r\n\r\n",
        kept.join("\r\n"),
        half.len()
    )
    .into_bytes();
    whole.extend_from_slice(half);
    whole
}

/// The parts of a chunked body, and what is left of a part that is not whole.
fn chunks(mut body: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut parts = Vec::new();
    loop {
        let whole = body
            .windows(2)
            .position(|two| two == b"\r\n")
            .and_then(|end| {
                let size = std::str::from_utf8(&body[..end]).ok()?;
                let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
                (body.len() >= end + size + 4).then_some((end + 2, size))
            });
        let Some((start, size)) = whole else {
            return (parts, body.to_vec());
        };
        parts.push(body[start..start + size].to_vec());
        body = &body[start + size + 2..];
    }
}

fn unchunked(body: &[u8]) -> Vec<u8> {
    chunks(body).0.concat()
}

/// Hands each chunk on twice.
async fn doubled(
    mut engine: UnixStream,
    mut client: UnixStream,
    mut held: Vec<u8>,
) -> io::Result<()> {
    loop {
        let (parts, left) = chunks(&held);
        held = left;
        for part in parts {
            let chunk = [
                format!("{:x}\r\n", part.len()).into_bytes(),
                part,
                b"\r\n".to_vec(),
            ]
            .concat();
            client.write_all(&chunk).await?;
            client.write_all(&chunk).await?;
        }
        if engine.read_buf(&mut held).await? == 0 {
            return Ok(());
        }
    }
}

/// Hands a few bytes on at a time.
async fn drip(
    shared: &Shared,
    mut client: UnixStream,
    request: &Head,
    pause: Duration,
) -> io::Result<()> {
    let bytes = answer(shared, request).await?;
    // So that no answer takes for ever, however long it is: a hundred drops at most.
    for drop in bytes.chunks(bytes.len().div_ceil(100).max(1)) {
        client.write_all(drop).await?;
        client.flush().await?;
        sleep(pause).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_document_is_whole_as_http() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nX: y\r\n\r\n[{\"a\":1}";
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n3\r\n[{\"\r\n5\r\na\":1}\r\n0\r\n\r\n";
        for answer in [plain.as_slice(), chunked.as_slice()] {
            let half = String::from_utf8(half_document(answer)).unwrap();
            assert_eq!(
                half,
                "HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 4\r\n\r\n[{\"a"
            );
        }
    }

    #[test]
    fn a_part_that_is_not_whole_waits() {
        let (parts, left) = chunks(b"2\r\nab\r\n3\r\ncd");
        assert_eq!(parts, [b"ab".to_vec()]);
        assert_eq!(left, b"3\r\ncd");
    }
}
