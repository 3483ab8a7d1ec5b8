//! Close codes and what a client does about them: one table (contract, section 3).

/// Why the server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The client closed. Its close frame is answered with its own code, whichever that is.
    Normal,
    /// A frame that breaks RFC 6455.
    ProtocolError,
    /// A binary frame.
    Unsupported,
    /// Text that is not UTF-8.
    InvalidUtf8,
    /// A message longer than `MAX_MESSAGE_BYTES`.
    TooBig,
    /// The pod is draining.
    Draining,
    /// The pod could not answer a request in time: another one may, or this one later.
    Unavailable,
    /// The token has expired.
    TokenExpired,
    /// Not allowed any more.
    NotAllowed,
    /// Silent for `HEARTBEAT_TIMEOUT`.
    Silent,
    /// Unwritable for `SLOW_AFTER`.
    TooSlow,
    /// Too many messages.
    TooManyMessages,
}

impl CloseCode {
    /// Every code, for tables and tests.
    pub const ALL: [Self; 12] = [
        Self::Normal,
        Self::ProtocolError,
        Self::Unsupported,
        Self::InvalidUtf8,
        Self::TooBig,
        Self::Draining,
        Self::Unavailable,
        Self::TokenExpired,
        Self::NotAllowed,
        Self::Silent,
        Self::TooSlow,
        Self::TooManyMessages,
    ];

    /// Number, reason, and whether the client should come back.
    const fn row(self) -> (u16, &'static str, bool) {
        match self {
            Self::Normal => (1000, "NORMAL", false),
            Self::ProtocolError => (1002, "PROTOCOL_ERROR", false),
            Self::Unsupported => (1003, "TEXT_FRAMES_ONLY", false),
            Self::InvalidUtf8 => (1007, "INVALID_UTF8", false),
            Self::TooBig => (1009, "MESSAGE_TOO_BIG", false),
            Self::Draining => (1012, "DRAINING", true),
            Self::Unavailable => (1013, "TRY_AGAIN_LATER", true),
            Self::TokenExpired => (4401, "TOKEN_EXPIRED", true),
            Self::NotAllowed => (4403, "NOT_ALLOWED", false),
            Self::Silent => (4408, "HEARTBEAT_TIMEOUT", true),
            Self::TooSlow => (4409, "TOO_SLOW", true),
            Self::TooManyMessages => (4429, "TOO_MANY_MESSAGES", true),
        }
    }

    /// The code in the close frame.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.row().0
    }

    /// The reason, in the close frame and in `bye`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        self.row().1
    }

    /// Whether the client should reconnect.
    #[must_use]
    pub const fn reconnect(self) -> bool {
        self.row().2
    }

    /// The least time the client waits before it reconnects, milliseconds; a draining pod spreads it further.
    #[must_use]
    pub const fn after_ms(self) -> u64 {
        match self {
            Self::TooManyMessages => 5_000,
            Self::TooSlow | Self::Unavailable => 1_000,
            _ => 0,
        }
    }
}
