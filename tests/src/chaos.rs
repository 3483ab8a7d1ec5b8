//! A TCP proxy that misbehaves on request, between the services and Redis or between clients and gateways.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crate::access::Access;

/// The most bytes that are forwarded at once.
const CHUNK: usize = 16 * 1024;
/// The same under [`Weather::Trickle`].
const DRIP: usize = 7;

/// A proxy on a port of its own. Dropping the handle stops it.
#[derive(Debug)]
pub struct Chaos {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Notified when `weather` or `over` changes.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// `None`: every connection is closed at once.
    upstream: Option<SocketAddr>,
    weather: Weather,
    /// How many replies to cut in the middle.
    cuts: usize,
    links: Vec<Arc<Link>>,
    over: bool,
}

/// How the proxy treats every piece that it forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Forwards it at once.
    Fair,
    /// Forwards it after this delay.
    Slow(Duration),
    /// Forwards a few bytes at a time, with this delay between them.
    Trickle(Duration),
    /// Holds the server's replies until the weather changes. Requests still reach the server.
    Held,
}

/// One connection through the proxy.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    /// Half-open: the proxy discards what either side sends.
    swallowed: Mutex<bool>,
}

impl Chaos {
    /// The proxy's port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The proxy's address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts a proxy in front of the server at this port of 127.0.0.1, in fair weather.
    #[must_use]
    pub fn before(port: u16) -> Self {
        Self::before_address(Some(local(port)))
    }

    /// Starts a proxy in front of this address, in fair weather. With `None` it closes every connection at once.
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
                // Redis is down: the client's connection closes.
                let _ = accepting.link(client);
            }
        });
        Self { address, shared }
    }

    /// Changes how the proxy treats what it forwards.
    pub fn set(&self, weather: Weather) {
        self.shared.lock().weather = weather;
        self.shared.changed.notify_all();
    }

    /// Closes every present connection.
    pub fn cut(&self) {
        for link in std::mem::take(&mut self.shared.lock().links) {
            link.cut();
        }
    }

    /// Cuts the next `count` replies in the middle, and closes their connections.
    pub fn cut_replies(&self, count: usize) {
        self.shared.lock().cuts = count;
    }

    /// Returns true once all replies of [`Self::cut_replies`] have been cut.
    #[must_use]
    pub fn has_cut_replies(&self) -> bool {
        self.shared.lock().cuts == 0
    }

    /// Makes every present connection half-open: the proxy accepts what is sent and discards it. New connections
    /// work.
    pub fn swallow(&self) {
        for link in &self.shared.lock().links {
            *link.swallowed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
    }

    /// Closes every connection and directs new ones to the server at this port of 127.0.0.1.
    pub fn lead_to(&self, port: u16) {
        self.lead_to_address(Some(local(port)));
    }

    /// Closes every connection and directs new ones to this address; with `None` it closes them at once.
    pub fn lead_to_address(&self, upstream: Option<SocketAddr>) {
        self.lead_new_to(upstream);
        self.cut();
    }

    /// Directs new connections to this address. Present connections stay.
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
        // Wakes the accepting thread.
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
                // An error ends the connection as a close does.
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

    /// Waits while replies are held, and returns the weather after that.
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
            // Fails if it is already closed.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
