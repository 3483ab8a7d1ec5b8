//! A TCP proxy that misbehaves on request, for between the services and Redis, or between clients and gateways.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crate::redis::{Access, Redis};

/// Bytes forwarded at once.
const CHUNK: usize = 16 * 1024;
/// Bytes forwarded at once while it trickles.
const DRIP: usize = 7;

/// Forwards what comes to a port of its own; ends with its handle.
#[derive(Debug)]
pub struct Chaos {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The weather is another one, or it is all over.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// `None`: nobody is let in.
    upstream: Option<SocketAddr>,
    weather: Weather,
    /// How many replies are still to be cut in the middle.
    cuts: usize,
    links: Vec<Arc<Link>>,
    over: bool,
}

/// What happens to every piece that is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Nothing.
    Fair,
    /// It waits this long first.
    Slow(Duration),
    /// It comes a few bytes at a time, this long apart.
    Trickle(Duration),
    /// What the server says waits until the weather is another one; what it is told still reaches it.
    Held,
}

/// One connection through the proxy.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    /// Nothing is forwarded any more, and nobody is told.
    swallowed: Mutex<bool>,
}

impl Chaos {
    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// In front of this Redis, in fair weather.
    #[must_use]
    pub fn before(redis: &Redis) -> Self {
        Self::before_address(Some(upstream(redis)))
    }

    /// In front of whatever listens there, in fair weather; `None`: nobody is let in yet.
    #[must_use]
    pub fn before_address(upstream: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = State { upstream, weather: Weather::Fair, cuts: 0, links: Vec::new(), over: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.lock().over {
                    break;
                }
                // A Redis that is down: the client finds its connection closed.
                let _ = accepting.link(client);
            }
        });
        Self { address, shared }
    }

    /// From now on.
    pub fn set(&self, weather: Weather) {
        self.shared.lock().weather = weather;
        self.shared.changed.notify_all();
    }

    /// Cuts every connection there is now.
    pub fn cut(&self) {
        for link in std::mem::take(&mut self.shared.lock().links) {
            link.cut();
        }
    }

    /// The next `count` replies end in the middle, and their connection with them.
    pub fn cut_replies(&self, count: usize) {
        self.shared.lock().cuts = count;
    }

    /// Whether every reply that was to be cut has been.
    #[must_use]
    pub fn has_cut_replies(&self) -> bool {
        self.shared.lock().cuts == 0
    }

    /// Every connection there is now goes half-open: what is sent on it is accepted and goes nowhere. New ones work.
    pub fn swallow(&self) {
        for link in &self.shared.lock().links {
            *link.swallowed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
    }

    /// Cuts every connection and leads new ones to this Redis.
    pub fn lead_to(&self, redis: &Redis) {
        self.lead_to_address(Some(upstream(redis)));
    }

    /// Cuts every connection and leads new ones there; `None`: lets nobody in.
    pub fn lead_to_address(&self, upstream: Option<SocketAddr>) {
        self.lead_new_to(upstream);
        self.cut();
    }

    /// Leads new connections there; those that there are stay where they are.
    pub fn lead_new_to(&self, upstream: Option<SocketAddr>) {
        self.shared.lock().upstream = upstream;
    }
}

impl From<&Chaos> for Access {
    fn from(chaos: &Chaos) -> Self {
        Self::at_port(chaos.port())
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        let upstream = self.lock().upstream;
        let server = TcpStream::connect(upstream.ok_or(io::ErrorKind::ConnectionRefused)?)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let link = Arc::new(Link { client, server, swallowed: Mutex::default() });
        {
            let mut state = self.lock();
            if state.upstream != upstream {
                return Err(io::ErrorKind::ConnectionRefused.into()); // led elsewhere while it connected
            }
            state.links.push(Arc::clone(&link));
        }
        for is_reply in [false, true] {
            let (shared, link) = (Arc::clone(self), Arc::clone(&link));
            thread::spawn(move || {
                // An error is the end of the connection, like any other.
                let _ = shared.forward(&link, is_reply);
                link.cut();
                shared.lock().links.retain(|other| !Arc::ptr_eq(other, &link));
            });
        }
        Ok(())
    }

    fn forward(&self, link: &Link, is_reply: bool) -> io::Result<()> {
        let (mut from, mut to) =
            if is_reply { (&link.server, &link.client) } else { (&link.client, &link.server) };
        let mut piece = vec![0; CHUNK];
        loop {
            let length = from.read(&mut piece)?;
            if length == 0 {
                return Ok(());
            }
            let weather = if is_reply { self.weather_for_replies() } else { self.lock().weather };
            let drip = match weather {
                Weather::Fair | Weather::Held => length,
                Weather::Slow(delay) => {
                    thread::sleep(delay);
                    length
                }
                Weather::Trickle(_) => DRIP,
            };
            if link.is_swallowed() {
                continue;
            }
            if is_reply && self.takes_cut() {
                return to.write_all(&piece[..length / 2]);
            }
            for drop in piece[..length].chunks(drip) {
                to.write_all(drop)?;
                if let Weather::Trickle(delay) = weather {
                    thread::sleep(delay);
                }
            }
        }
    }

    /// Waits while replies are held.
    fn weather_for_replies(&self) -> Weather {
        let is_held = |state: &mut State| state.weather == Weather::Held && !state.over;
        self.changed.wait_while(self.lock(), is_held).unwrap_or_else(PoisonError::into_inner).weather
    }

    fn takes_cut(&self) -> bool {
        let mut state = self.lock();
        let takes = state.cuts > 0;
        state.cuts -= usize::from(takes);
        takes
    }
}

impl Link {
    fn is_swallowed(&self) -> bool {
        *self.swallowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) {
        for stream in [&self.client, &self.server] {
            // Fails when it is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn upstream(redis: &Redis) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, redis.port()).into()
}
