//! The one table of close codes, and of what a client does after each: `docs/protocol.md#close-codes`.

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The client closed. The server answers its close frame with the same code, whichever that is.
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
    /// The pod could not read a requested market in time.
    Unavailable,
    /// The token has expired.
    TokenExpired,
    /// The token was revoked.
    NotAllowed,
    /// The client was silent for `HEARTBEAT_TIMEOUT`.
    Silent,
    /// The socket accepted no byte for `SLOW_AFTER`.
    TooSlow,
    /// The client sent too many messages.
    TooManyMessages,
}

impl CloseCode {
    /// Every code.
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

    /// Returns the number, the reason, and whether the client should reconnect.
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

    /// Returns the code with this number, if the server has one.
    #[must_use]
    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }

    /// Returns the number in the close frame.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.row().0
    }

    /// Returns the reason in the close frame and in `bye`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        self.row().1
    }

    /// Returns true if the client should reconnect.
    #[must_use]
    pub const fn reconnect(self) -> bool {
        self.row().2
    }

    /// Returns the minimum wait before the client reconnects, milliseconds. A draining pod adds to it.
    #[must_use]
    pub const fn after_ms(self) -> u64 {
        match self {
            Self::TooManyMessages => 5_000,
            Self::TooSlow | Self::Unavailable => 1_000,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_by_its_number() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_number(code.number()), Some(code));
        }
        assert_eq!(CloseCode::from_number(1006), None);
    }
}
