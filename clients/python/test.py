"""Calls a counter node with the Connect client for Python, through its host and through the gateway,
in each protocol of the client.

RAYLINK_COUNTER is the line that `counter serve` printed, RAYLINK_TOKEN the system's token.
"""

import asyncio
import json
import os
import sys
import traceback

from connectrpc.code import Code
from connectrpc.codec import proto_json_codec
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from pyqwest import Client, HTTPTransport, HTTPVersion

from gen.counter.v1.counter_connect import CounterClient
from gen.counter.v1.counter_pb import (
    AddRequest,
    GetRequest,
    Limits,
    SumRequest,
    TallyRequest,
    WaitForRequest,
    WatchRequest,
)

WHERE = json.loads(os.environ["RAYLINK_COUNTER"])
TOKEN = {"Authorization": "Bearer " + os.environ["RAYLINK_TOKEN"]}

# The maximum duration of a test in seconds.
TIMEOUT = 20


async def refused(call, code):
    """Awaits a call that must fail with a code, and returns the error."""
    try:
        got = await call
    except ConnectError as error:
        assert error.code == code, f"{error.code}: {error.message}"
        return error
    raise AssertionError(f"{got} instead of {code}")


async def numbers(request, *values):
    for value in values:
        yield request(by=value)


async def receive_all(stream):
    return [response.sum async for response in stream]


async def unary_calls_add_up(counter):
    before = (await counter.get(GetRequest(), headers=TOKEN)).sum
    assert (await counter.add(AddRequest(by=2), headers=TOKEN)).sum == before + 2
    assert (await counter.add(AddRequest(by=-2), headers=TOKEN)).sum == before


async def an_error_has_its_details(counter):
    before = (await counter.get(GetRequest(), headers=TOKEN)).sum
    error = await refused(counter.add(AddRequest(by=5000), headers=TOKEN), Code.OUT_OF_RANGE)
    assert error.message == f"{before} and 5000 more would not be within -1000 to 1000", error.message
    limits = error.details[0].value(Limits)
    assert (limits.min, limits.max, limits.sum) == (-1000, 1000, before), limits


async def an_unary_call_ends_with_its_deadline(counter):
    error = await refused(counter.wait_for(WaitForRequest(at_least=1000), headers=TOKEN, timeout_ms=100), Code.DEADLINE_EXCEEDED)
    assert not error.details


async def a_call_that_waits_is_woken_by_another(counter):
    before = (await counter.get(GetRequest(), headers=TOKEN)).sum
    waits = asyncio.create_task(counter.wait_for(WaitForRequest(at_least=before + 1), headers=TOKEN))
    await counter.add(AddRequest(by=1), headers=TOKEN)
    assert (await waits).sum >= before + 1


async def a_wrong_token_is_refused(counter):
    for headers in ({"Authorization": "Bearer wrong"}, {}):
        error = await refused(counter.get(GetRequest(), headers=headers), Code.UNAUTHENTICATED)
        assert "token" in error.message, error.message
    error = await refused(receive_all(counter.watch(WatchRequest(count=1))), Code.UNAUTHENTICATED)
    assert "token" in error.message, error.message


async def a_server_stream_brings_all_and_ends(counter):
    before = (await counter.get(GetRequest(), headers=TOKEN)).sum
    stream = counter.watch(WatchRequest(count=2), headers=TOKEN)
    first = await anext(stream)
    assert first.sum == before, first
    await counter.add(AddRequest(by=3), headers=TOKEN)
    assert await receive_all(stream) == [before + 3]


async def a_server_stream_ends_with_its_deadline(counter):
    stream = counter.watch(WatchRequest(), headers=TOKEN, timeout_ms=200)
    await anext(stream)
    await refused(anext(stream), Code.DEADLINE_EXCEEDED)


async def a_client_stream_is_summed_up(counter):
    before = (await counter.get(GetRequest(), headers=TOKEN)).sum
    response = await counter.sum(numbers(SumRequest, 1, 2, 3), headers=TOKEN)
    assert (response.sum, response.count) == (before + 6, 3), response


async def a_client_stream_is_refused_with_details(counter):
    error = await refused(counter.sum(numbers(SumRequest, 2000, 2000), headers=TOKEN), Code.OUT_OF_RANGE)
    assert error.details[0].value(Limits).max == 1000


async def both_sides_of_a_bidi_stream_send(counter):
    before = (await counter.get(GetRequest(), headers=TOKEN)).sum
    answered = asyncio.Event()

    async def requests():
        yield TallyRequest(by=5)
        # The second number depends on the first answer, so both directions are open at once.
        await answered.wait()
        yield TallyRequest(by=-5)

    stream = counter.tally(requests(), headers=TOKEN)
    assert (await anext(stream)).sum == before + 5
    answered.set()
    assert await receive_all(stream) == [before]


async def a_bidi_stream_ends_with_an_error_and_its_details(counter):
    before = (await counter.get(GetRequest(), headers=TOKEN)).sum
    stream = counter.tally(numbers(TallyRequest, 1, 5000), headers=TOKEN)
    assert (await anext(stream)).sum == before + 1
    error = await refused(anext(stream), Code.OUT_OF_RANGE)
    assert error.details[0].value(Limits).sum == before + 1


async def no_such_node(counter, address):
    nobody = CounterClient(f"http://{address}/counter-77", http_client=counter)
    error = await refused(nobody.get(GetRequest(), headers=TOKEN), Code.NOT_FOUND)
    assert "counter-77" in error.message, error.message


TESTS = [
    unary_calls_add_up,
    an_error_has_its_details,
    an_unary_call_ends_with_its_deadline,
    a_call_that_waits_is_woken_by_another,
    a_wrong_token_is_refused,
    a_server_stream_brings_all_and_ends,
    a_server_stream_ends_with_its_deadline,
    a_client_stream_is_summed_up,
    a_client_stream_is_refused_with_details,
]
# What needs both directions of a connection at once, which HTTP/1.1 doesn't give.
BIDI_TESTS = [both_sides_of_a_bidi_stream_send, a_bidi_stream_ends_with_an_error_and_its_details]

WAYS = {
    "Connect over HTTP/2": (HTTPVersion.HTTP2, {}),
    "Connect over HTTP/1.1": (HTTPVersion.HTTP1, {}),
    "Connect with JSON": (HTTPVersion.HTTP2, {"codec": proto_json_codec()}),
    "gRPC": (HTTPVersion.HTTP2, {"protocol": ProtocolType.GRPC}),
    "gRPC-Web": (HTTPVersion.HTTP2, {"protocol": ProtocolType.GRPC_WEB}),
}


async def main():
    passed, failed = 0, 0

    async def run_test(name, test):
        nonlocal passed, failed
        try:
            await asyncio.wait_for(test, TIMEOUT)
            passed += 1
        except Exception:
            failed += 1
            print(f"FAILED: {name}", file=sys.stderr)
            traceback.print_exc()

    for place, address in (("the host", WHERE["host"]), ("the gateway", WHERE["gateway"])):
        for way, (version, options) in WAYS.items():
            async with HTTPTransport(http_version=version) as transport:
                http = Client(transport)
                counter = CounterClient(f"http://{address}/{WHERE['path']}", http_client=http, **options)
                tests = TESTS if version == HTTPVersion.HTTP1 else TESTS + BIDI_TESTS
                for test in tests:
                    await run_test(f"{test.__name__}, {way}, {place}", test(counter))
                await run_test(f"no_such_node, {way}, {place}", no_such_node(http, address))
    print(f"python: {passed} passed, {failed} failed")
    return failed > 0


code = int(asyncio.run(main()))
sys.stdout.flush()
sys.stderr.flush()
# Not sys.exit: occasionally the HTTP client's native threads abort the interpreter at its end,
# after all tests have passed.
os._exit(code)
