// Calls a counter node with the Connect client for Node.js, through its host and through the
// gateway, in each protocol of the client.
//
// RAYLINK_COUNTER is the line that `counter serve` printed, RAYLINK_TOKEN the system's token.

import assert from "node:assert/strict";
import { env, exit } from "node:process";

import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Client, type Interceptor, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";

import { Counter, LimitsSchema, type SumRequestSchema, type TallyRequestSchema } from "./gen/counter/v1/counter_pb.js";

interface Endpoint {
  gateway: string;
  host: string;
  path: string;
}

const where = JSON.parse(env["RAYLINK_COUNTER"]!) as Endpoint;

// The maximum duration of a test in milliseconds.
const timeout = 20_000;

/** Sends a token with every call; none if it is empty. */
function withToken(token: string): Interceptor {
  return (next) => (req) => {
    if (token !== "") {
      req.header.set("Authorization", `Bearer ${token}`);
    }
    return next(req);
  };
}

/** Awaits a call that must fail with a code, and returns the error. */
async function refused(call: Promise<unknown>, code: Code): Promise<ConnectError> {
  try {
    await call;
  } catch (reason) {
    const error = ConnectError.from(reason);
    assert.equal(Code[error.code], Code[code], error.message);
    return error;
  }
  assert.fail(`no error instead of ${Code[code]}`);
}

async function receiveAll(stream: AsyncIterable<{ sum: bigint }>): Promise<bigint[]> {
  const sums: bigint[] = [];
  for await (const response of stream) {
    sums.push(response.sum);
  }
  return sums;
}

async function* numbers<T extends typeof SumRequestSchema | typeof TallyRequestSchema>(...by: bigint[]): AsyncIterable<MessageInitShape<T>> {
  for (const n of by) {
    yield { by: n } as MessageInitShape<T>;
  }
}

/** The argument of a test: a client that has the token, and a way to make others. */
interface Fixture {
  counter: Client<typeof Counter>;
  another: (options: { token?: string; path?: string }) => Client<typeof Counter>;
}

type Test = (fixture: Fixture) => Promise<void>;

const tests: Record<string, Test> = {
  "unary calls add up": async ({ counter }) => {
    const before = (await counter.get({})).sum;
    assert.equal((await counter.add({ by: 2n })).sum, before + 2n);
    assert.equal((await counter.add({ by: -2n })).sum, before);
  },

  "an error has its details": async ({ counter }) => {
    const before = (await counter.get({})).sum;
    const error = await refused(counter.add({ by: 5000n }), Code.OutOfRange);
    assert.equal(error.rawMessage, `${before} and 5000 more would not be within -1000 to 1000`);
    const [limits] = error.findDetails(LimitsSchema);
    assert.deepEqual([limits?.min, limits?.max, limits?.sum], [-1000n, 1000n, before]);
  },

  "a unary call ends with its deadline": async ({ counter }) => {
    await refused(counter.waitFor({ atLeast: 1000n }, { timeoutMs: 100 }), Code.DeadlineExceeded);
  },

  "a call that waits is woken by another": async ({ counter }) => {
    const before = (await counter.get({})).sum;
    const waits = counter.waitFor({ atLeast: before + 1n });
    await counter.add({ by: 1n });
    assert.ok((await waits).sum > before);
  },

  "a wrong token is refused": async ({ another }) => {
    for (const token of ["wrong", ""]) {
      const error = await refused(another({ token }).get({}), Code.Unauthenticated);
      assert.match(error.rawMessage, /token/);
      await refused(receiveAll(another({ token }).watch({ count: 1 })), Code.Unauthenticated);
    }
  },

  "no such node": async ({ another }) => {
    const error = await refused(another({ path: "counter-77" }).get({}), Code.NotFound);
    assert.match(error.rawMessage, /counter-77/);
  },

  "a server stream brings all and ends": async ({ counter }) => {
    const before = (await counter.get({})).sum;
    const sums: bigint[] = [];
    for await (const { sum } of counter.watch({ count: 2 })) {
      sums.push(sum);
      if (sums.length === 1) {
        await counter.add({ by: 3n });
      }
    }
    assert.deepEqual(sums, [before, before + 3n]);
  },

  "a server stream ends with its deadline": async ({ counter }) => {
    await refused(receiveAll(counter.watch({}, { timeoutMs: 200 })), Code.DeadlineExceeded);
  },

  "a server stream can be abandoned": async ({ counter }) => {
    const abandon = new AbortController();
    const stream = counter.watch({}, { signal: abandon.signal })[Symbol.asyncIterator]();
    assert.equal((await stream.next()).done, false);
    abandon.abort();
    await refused(stream.next(), Code.Canceled);
  },

  "a client stream is summed up": async ({ counter }) => {
    const before = (await counter.get({})).sum;
    const response = await counter.sum(numbers<typeof SumRequestSchema>(1n, 2n, 3n));
    assert.deepEqual([response.sum, response.count], [before + 6n, 3]);
  },

  "a client stream is refused with details": async ({ counter }) => {
    const error = await refused(counter.sum(numbers<typeof SumRequestSchema>(2000n, 2000n)), Code.OutOfRange);
    assert.equal(error.findDetails(LimitsSchema)[0]?.max, 1000n);
  },
};

// What needs both directions of a connection at once, which HTTP/1.1 doesn't give.
const bidiTests: Record<string, Test> = {
  "both sides of a bidi stream talk": async ({ counter }) => {
    const before = (await counter.get({})).sum;
    let answered = () => {};
    const answer = new Promise<void>((resolve) => (answered = resolve));
    async function* requests() {
      yield { by: 5n };
      // The second number depends on the first answer, so both directions are open at once.
      await answer;
      yield { by: -5n };
    }
    const sums: bigint[] = [];
    for await (const { sum } of counter.tally(requests())) {
      sums.push(sum);
      answered();
    }
    assert.deepEqual(sums, [before + 5n, before]);
  },

  "a bidi stream ends with an error and its details": async ({ counter }) => {
    const before = (await counter.get({})).sum;
    const stream = counter.tally(numbers<typeof TallyRequestSchema>(1n, 5000n))[Symbol.asyncIterator]();
    assert.equal((await stream.next()).value?.sum, before + 1n);
    const error = await refused(stream.next(), Code.OutOfRange);
    assert.equal(error.findDetails(LimitsSchema)[0]?.sum, before + 1n);
  },
};

interface Way {
  bidi: boolean;
  transport: (baseUrl: string, interceptors: Interceptor[]) => Transport;
}

const ways: Record<string, Way> = {
  "Connect over HTTP/2": {
    bidi: true,
    transport: (baseUrl, interceptors) => createConnectTransport({ baseUrl, interceptors, httpVersion: "2" }),
  },
  "Connect over HTTP/1.1": {
    bidi: false,
    transport: (baseUrl, interceptors) => createConnectTransport({ baseUrl, interceptors, httpVersion: "1.1" }),
  },
  "Connect in binary": {
    bidi: true,
    transport: (baseUrl, interceptors) => createConnectTransport({ baseUrl, interceptors, httpVersion: "2", useBinaryFormat: true }),
  },
  gRPC: {
    bidi: true,
    transport: (baseUrl, interceptors) => createGrpcTransport({ baseUrl, interceptors }),
  },
  "gRPC-Web": {
    bidi: true,
    transport: (baseUrl, interceptors) => createGrpcWebTransport({ baseUrl, interceptors, httpVersion: "2" }),
  },
};

function withTimeout(test: Promise<void>): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no end after ${timeout} ms`)), timeout);
    test.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

let passed = 0;
let failed = 0;
for (const [place, address] of [["the host", where.host], ["the gateway", where.gateway]] as const) {
  for (const [name, way] of Object.entries(ways)) {
    const another: Fixture["another"] = ({ token = env["RAYLINK_TOKEN"]!, path = where.path }) =>
      createClient(Counter, way.transport(`http://${address}/${path}`, [withToken(token)]));
    const fixture: Fixture = { counter: another({}), another };
    for (const [title, test] of Object.entries(way.bidi ? { ...tests, ...bidiTests } : tests)) {
      try {
        await withTimeout(test(fixture));
        passed++;
      } catch (reason) {
        failed++;
        console.error(`FAILED: ${title}, ${name}, ${place}:`, reason);
      }
    }
  }
}
console.log(`typescript: ${passed} passed, ${failed} failed`);
// Sessions of HTTP/2 stay open for the next call, and would keep the process.
exit(failed > 0 ? 1 : 0);
