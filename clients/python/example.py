"""Calls a counter from Python. COUNTER is the node's URL, RAYLINK_TOKEN the system's token."""

import asyncio
import os

from connectrpc.errors import ConnectError
from gen.counter.v1.counter_connect import CounterClient
from gen.counter.v1.counter_pb import AddRequest, Limits, WaitForRequest, WatchRequest

TOKEN = {"Authorization": "Bearer " + os.environ["RAYLINK_TOKEN"]}


async def main():
    counter = CounterClient(os.environ["COUNTER"])

    # A unary call.
    response = await counter.add(AddRequest(by=2), headers=TOKEN)
    print("added 2:", response.sum)

    # An error with a detail.
    try:
        await counter.add(AddRequest(by=5000), headers=TOKEN)
    except ConnectError as error:
        print("refused:", error.code.value, "at most", error.details[0].value(Limits).max)

    # A deadline. It ends the method's context too.
    try:
        await counter.wait_for(WaitForRequest(at_least=1000), headers=TOKEN, timeout_ms=100)
    except ConnectError as error:
        print("waited:", error.code.value)

    # A server stream.
    async for response in counter.watch(WatchRequest(count=2), headers=TOKEN):
        print("watched:", response.sum)
        if response.sum == 2:
            await counter.add(AddRequest(by=1), headers=TOKEN)


asyncio.run(main())
