"""Calls a counter of a system with TLS, and servers that must be refused.

RAYLINK_COUNTER is the line that `counter serve` printed, STRANGERS that of clients/strangers,
RAYLINK_TOKEN a token with the role call, and RAYLINK_CA the file of the CA's certificate.
"""

import asyncio
import json
import os
import sys
import traceback

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from pyqwest import HTTPVersion

import raylink
from gen.counter.v1.counter_connect import CounterClient
from gen.counter.v1.counter_pb import AddRequest, WatchRequest

WHERE = json.loads(os.environ["RAYLINK_COUNTER"])
STRANGERS = json.loads(os.environ["STRANGERS"])
TOKEN, CA = os.environ["RAYLINK_TOKEN"], os.environ["RAYLINK_CA"]
del os.environ["RAYLINK_CA"]  # so that only the fingerprint is left


async def served(address, ca, **options):
    system = raylink.System(address, TOKEN, ca)
    counter = CounterClient(system.url(WHERE["path"]), http_client=system.client(HTTPVersion.HTTP2), **options)
    before = (await counter.add(AddRequest(by=0), headers=system.headers)).sum
    async for response in counter.watch(WatchRequest(count=1), headers=system.headers):
        assert response.sum == before


async def wrong_token():
    system = raylink.System(WHERE["gateway"], TOKEN[: TOKEN.rindex(".") + 1] + "A" * 43)
    try:
        await CounterClient(system.url(WHERE["path"]), http_client=system.client()).add(AddRequest(by=1), headers=system.headers)
    except ConnectError as error:
        assert error.code == Code.UNAUTHENTICATED and "the token is missing or wrong" in error.message, error
        return
    raise AssertionError("a wrong token was accepted")


async def refused(text, address, token=TOKEN, ca=None):
    try:
        raylink.System(address, token, ca).client()
    except raylink.Refused as error:
        assert text in str(error), error
        assert token not in str(error)
        return
    raise AssertionError(f"no error instead of: {text}")


TESTS = {
    "the host, by the CA's file": lambda: served(WHERE["host"], CA),
    "the gateway, by the CA's file": lambda: served(WHERE["gateway"], CA),
    "the host, by the token's fingerprint": lambda: served(WHERE["host"], None),
    "the gateway, by the token's fingerprint": lambda: served(WHERE["gateway"], None),
    "gRPC": lambda: served(WHERE["gateway"], None, protocol=ProtocolType.GRPC),
    "a wrong token": wrong_token,
    "a wrong CA": lambda: refused("is not of the CA in", WHERE["gateway"], ca=STRANGERS["ca"]),
    "another system": lambda: refused("is of another system than the token", STRANGERS["other"]),
    "an expired certificate": lambda: refused("has expired: restart", STRANGERS["expired"], ca=STRANGERS["ca"]),
    "an expired certificate, by fingerprint": lambda: refused("has expired: restart", STRANGERS["expired"], STRANGERS["token"]),
    "no PEM": lambda: refused("has no certificate in PEM", WHERE["gateway"], ca=__file__),
    "nothing": lambda: refused("no process answers", "127.0.0.1:1"),
}


async def main():
    failed = 0
    for title, test in TESTS.items():
        try:
            await asyncio.wait_for(test(), 20)
        except Exception:
            failed += 1
            print(f"FAILED: {title}", file=sys.stderr)
            traceback.print_exc()
    print(f"python over TLS: {len(TESTS) - failed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(asyncio.run(main()))
