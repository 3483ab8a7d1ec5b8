"""A client made with Python's `websockets`: python3 websockets.py ws://HOST:PORT/ws/odds TOKEN MARKET. The caller
publishes the market while this runs. Exits with 0 if the gateway behaves as docs/protocol.md says."""

import asyncio
import json
import sys

# This file has the name of the library, and would be imported in its place.
sys.path.pop(0)
import websockets

try:
    from websockets.asyncio.client import connect as open_connection

    HEADERS = "additional_headers"
except ImportError:  # before version 13
    from websockets import connect as open_connection

    HEADERS = "extra_headers"

url, token, market = sys.argv[1:]


async def connect(address, headers=(), **options):
    # Without ping_interval=None `websockets` sends pings of its own.
    socket = await open_connection(
        address, compression="deflate", ping_interval=None, **{HEADERS: dict(headers)}, **options
    )
    extensions = socket.extensions if hasattr(socket, "extensions") else socket.protocol.extensions
    assert not extensions, "the gateway must not accept permessage-deflate"
    return socket


async def message(socket, kind):
    """Returns the next message of a type, and drops those before it."""
    while True:
        received = json.loads(await socket.recv())
        if received["type"] == kind:
            return received


async def follows(socket):
    await socket.send(json.dumps({"type": "subscribe", "markets": [market]}))
    ack = await message(socket, "ack")
    assert (ack["ok"], ack["subscribed"]) == (True, [int(market)]), ack
    after = ack["positions"][market]["seq"]
    for seq in range(after + 1, after + 4):
        assert (await message(socket, "odds_update"))["seq"] == seq
    await socket.send(json.dumps({"type": "unsubscribe", "markets": [market]}))
    assert (await message(socket, "ack"))["unsubscribed"] == [int(market)]


async def end(socket):
    """Reads until the gateway closes. Returns the code, the reason, and the last message."""
    last = None
    try:
        while True:
            last = json.loads(await socket.recv())
    except websockets.exceptions.ConnectionClosed:
        return socket.close_code, socket.close_reason, last


async def main():
    in_query = await connect(f"{url}?token={token}")
    in_header = await connect(url, {"Authorization": f"Bearer {token}"})
    in_protocol = await connect(url, subprotocols=["kmarket.v1", f"token.{token}"])
    sockets = [in_query, in_header, in_protocol]
    assert [socket.subprotocol for socket in sockets] == [None, None, "kmarket.v1"]
    for socket in sockets:
        await follows(socket)

    await in_query.send(['{"type":"ping",', '"ts":7,"note":"caf\u00e9', '\u20ac"}'])
    assert (await message(in_query, "pong"))["ts"] == 7
    # Resolves when a pong with the same payload arrives.
    await (await in_query.ping(b"\x00\xffpayload"))

    # The library answers ping frames. Nothing else is sent for longer than HEARTBEAT_TIMEOUT.
    for _ in range(8):
        await message(in_header, "ping")

    await in_query.close(1000, "done")
    assert in_query.close_code == 1000
    await in_header.close(4001)
    assert in_header.close_code == 4001
    await in_protocol.send(b"\x01\x02\x03")
    code, reason, last = await end(in_protocol)
    assert (code, reason) == (1003, "TEXT_FRAMES_ONLY")
    assert (last["type"], last["code"]) == ("bye", 1003)


asyncio.run(main())
