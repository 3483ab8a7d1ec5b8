//! The bare loop of send(2).

use std::net::{Ipv4Addr, SocketAddr};
use std::{cell::RefCell, collections::HashMap, io::ErrorKind, rc::Rc, thread};

use ::tests::frame::{Side, last, opcode, parse, unmasked_frame};
use ::tests::raw::ACCEPT;
use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use super::protocol::{RUN, Run, ack, announce, subscribed, update};
use crate::{client::runtime, clock::sleep_until};

type Markets = Rc<RefCell<HashMap<u64, Market>>>;

#[derive(Default)]
struct Market {
    seq: u64,
    subscribers: Vec<Rc<TcpStream>>,
}

/// Linux allows no more by default.
const BACKLOG: u32 = 4096;

const TEXT: u8 = last(opcode::TEXT);

pub(super) fn serve() -> Result<()> {
    LocalSet::new().block_on(&runtime()?, async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let listener = socket.listen(BACKLOG)?;
        announce(listener.local_addr()?);
        let markets = Markets::default();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // An error is the end of the connection.
            spawn_local(handle(stream, Rc::clone(&markets)));
        }
    })
}

/// Serves one client, or runs a schedule.
async fn handle(mut stream: TcpStream, markets: Markets) -> Result<()> {
    let mut received = Vec::with_capacity(4096);
    let request = receive(&mut stream, &mut received, http_request).await?;
    if let Some(run) = request {
        follow(run, &markets);
        let latest: HashMap<_, _> = markets.borrow().iter().map(|(id, market)| (*id, market.seq)).collect();
        send(&stream, format!("HTTP/1.1 200 OK\r\n\r\n{}", serde_json::to_string(&latest)?).as_bytes());
        return Ok(());
    }
    let switching = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    send(&stream, format!("{switching}sec-websocket-accept: {ACCEPT}\r\n\r\n").as_bytes());
    let wanted = receive(&mut stream, &mut received, subscribe).await?;
    drop(received);
    let stream = Rc::new(stream);
    let latest = wanted.iter().map(|id| {
        let mut markets = markets.borrow_mut();
        let market = markets.entry(*id).or_default();
        market.subscribers.push(Rc::clone(&stream));
        (*id, market.seq)
    });
    let latest: Vec<_> = latest.collect();
    send(&stream, &unmasked_frame(TEXT, ack(&latest).as_bytes()));
    // Clients of this tool send nothing more to a server without heartbeats.
    while stream.readable().await.is_ok() && !matches!(stream.try_read(&mut [0; 64]), Ok(0)) {}
    for id in &wanted {
        let mut markets = markets.borrow_mut();
        let market = markets.get_mut(id).context("it was subscribed to")?;
        market.subscribers.retain(|subscriber| !Rc::ptr_eq(subscriber, &stream));
    }
    Ok(())
}

/// Reads until `parse` finds a request at the beginning, and removes it.
async fn receive<T>(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    parse: fn(&[u8]) -> Option<(T, usize)>,
) -> Result<T> {
    loop {
        if let Some((request, length)) = parse(received) {
            received.drain(..length);
            return Ok(request);
        }
        ensure!(stream.read_buf(received).await? > 0, "the client is gone");
    }
}

fn follow(run: Run, markets: &Markets) {
    let mut markets = markets.borrow_mut();
    let ids: Vec<u64> = markets.keys().copied().collect();
    for (due_us, payload) in run.due() {
        sleep_until(due_us);
        let id = ids[rand::random_range(0..ids.len())];
        let Some(market) = markets.get_mut(&id) else { continue };
        market.seq += 1;
        let frame = unmasked_frame(TEXT, update(id, market.seq, &payload).as_bytes());
        market.subscribers.iter().for_each(|subscriber| send(subscriber, &frame));
    }
}

/// Sends all of it, and waits for a client that does not read. A client that is gone shows when it is read.
fn send(stream: &TcpStream, mut bytes: &[u8]) {
    // Not tokio's write: that would wait for this thread to look at epoll.
    let socket = SockRef::from(stream);
    while !bytes.is_empty() {
        match socket.send(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// `None` inside: to upgrade.
fn http_request(bytes: &[u8]) -> Option<(Option<Run>, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    if !bytes.starts_with(format!("POST {RUN} ").as_bytes()) {
        return Some((None, head));
    }
    let mut bodies = serde_json::Deserializer::from_slice(&bytes[head..]).into_iter();
    let run = bodies.next()?.ok()?;
    Some((Some(run), head + bodies.byte_offset()))
}

/// The markets of the frame of a subscribe.
fn subscribe(bytes: &[u8]) -> Option<(Vec<u64>, usize)> {
    let frame = parse(bytes, Side::Client).ok()??;
    Some((subscribed(&frame.payload).unwrap_or_default(), frame.length))
}

#[cfg(test)]
mod tests {
    use ::tests::{frame::frame, raw::upgrade_request};

    use super::*;
    use crate::load::Schedule;

    #[test]
    fn a_request_is_to_upgrade_or_to_run() {
        let upgrade = upgrade_request("h", "t");
        assert_eq!(http_request(upgrade.as_bytes()), Some((None, upgrade.len())));
        assert_eq!(http_request(&upgrade.as_bytes()[..upgrade.len() - 1]), None);
        let schedule = Schedule { start_us: 1, rate: 2.5, updates: 3, payload_bytes: 4 };
        let run = Run { schedule, until_us: 5 };
        let post = format!("POST /run HTTP/1.1\r\n\r\n{}", serde_json::to_string(&run).unwrap());
        assert_eq!(http_request(post.as_bytes()), Some((Some(run), post.len())));
        assert_eq!(http_request(&post.as_bytes()[..post.len() - 1]), None);
    }

    #[test]
    fn a_subscribe_is_read_when_it_is_complete() {
        for markets in [1, 50] {
            let list: Vec<_> = (0..markets).map(|market| format!("\"{market}\"")).collect();
            let text = format!(r#"{{"type":"subscribe","markets":[{}]}}"#, list.join(","));
            let bytes = frame(TEXT, text.as_bytes());
            assert_eq!(subscribe(&bytes), Some(((0..markets).collect(), bytes.len())));
            assert_eq!(subscribe(&bytes[..bytes.len() - 1]), None);
        }
    }
}
