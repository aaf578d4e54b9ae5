// Calls a counter from TypeScript. COUNTER is the node's URL, RAYLINK_TOKEN the system's token.

import { env } from "node:process";

import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";

import { Counter, LimitsSchema } from "./gen/counter/v1/counter_pb.js";

const withToken: Interceptor = (next) => (req) => {
  req.header.set("Authorization", `Bearer ${env["RAYLINK_TOKEN"]}`);
  return next(req);
};

const counter = createClient(
  Counter,
  createConnectTransport({ baseUrl: env["COUNTER"]!, httpVersion: "1.1", interceptors: [withToken] }),
);

// A unary call.
console.log("added 2:", String((await counter.add({ by: 2n })).sum));

// An error with a detail.
try {
  await counter.add({ by: 5000n });
} catch (reason) {
  const error = ConnectError.from(reason);
  console.log("refused:", Code[error.code], "at most", String(error.findDetails(LimitsSchema)[0]?.max));
}

// A deadline. It ends the method's context too.
try {
  await counter.waitFor({ atLeast: 1000n }, { timeoutMs: 100 });
} catch (reason) {
  console.log("waited:", Code[ConnectError.from(reason).code]);
}

// A server stream.
for await (const { sum } of counter.watch({ count: 2 })) {
  console.log("watched:", String(sum));
  if (sum === 2n) {
    await counter.add({ by: 1n });
  }
}
