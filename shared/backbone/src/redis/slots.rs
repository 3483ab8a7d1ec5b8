//! The cluster slots of keys.

use protocol::ids::MarketId;

/// The number of slots of a cluster.
const SLOTS: u16 = 16_384;

/// Returns the slot of a market's keys, which all have the hash tag `{id}`.
pub(super) fn slot_of(market: MarketId) -> u16 {
    slot_of_key(&market.to_string())
}

/// Returns the slot of a key without a hash tag, or of the content of a hash tag.
pub(super) fn slot_of_key(key: &str) -> u16 {
    crc16(key.as_bytes()) % SLOTS
}

/// CRC-16/XMODEM, as the Redis cluster specification requires.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot_of(MarketId::new(1001).unwrap()), crc16(b"1001") % 16_384);
    }
}
