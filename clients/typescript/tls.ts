// Calls a counter of a system with TLS, and servers that must be refused.
//
// RAYLINK_COUNTER is the line that `counter serve` printed, STRANGERS that of clients/strangers,
// RAYLINK_TOKEN a token with the role call, and RAYLINK_CA the file of the CA's certificate.

import assert from "node:assert/strict";
import { argv, env, exit } from "node:process";

import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";

import { Counter } from "./gen/counter/v1/counter_pb.js";
import { Refused, System } from "./raylink.js";

const where = JSON.parse(env["RAYLINK_COUNTER"]!) as Record<"gateway" | "host" | "path", string>;
const strangers = JSON.parse(env["STRANGERS"]!) as Record<"ca" | "token" | "expired" | "other", string>;
const token = env["RAYLINK_TOKEN"]!;
const ca = env["RAYLINK_CA"]!;
delete env["RAYLINK_CA"]; // so that only the fingerprint is left

async function served(address: string, file?: string, gRPC = false): Promise<void> {
  const options = await new System(address, token, file).options(where.path);
  const counter = createClient(Counter, gRPC ? createGrpcTransport(options) : createConnectTransport({ httpVersion: "2", ...options }));
  const before = (await counter.add({ by: 0n })).sum;
  for await (const { sum } of counter.watch({ count: 1 })) {
    assert.equal(sum, before);
  }
}

async function wrongToken(): Promise<void> {
  const system = new System(where.gateway, token.slice(0, token.lastIndexOf(".") + 1) + "A".repeat(43));
  const transport = createConnectTransport({ httpVersion: "1.1", ...(await system.options(where.path)) });
  await assert.rejects(createClient(Counter, transport).add({ by: 1n }), (reason) => {
    const error = ConnectError.from(reason);
    assert.equal(Code[error.code], Code[Code.Unauthenticated]);
    assert.match(error.message, /the token is missing or wrong/);
    return true;
  });
}

async function refused(text: string, address: string, file?: string, by = token): Promise<void> {
  await assert.rejects(new System(address, by, file).options(where.path), (reason) => {
    assert(reason instanceof Refused, String(reason));
    assert(reason.message.includes(text), reason.message);
    assert(!reason.message.includes(by));
    return true;
  });
}

const tests: Record<string, () => Promise<void>> = {
  "the host, by the CA's file": () => served(where.host, ca),
  "the gateway, by the CA's file": () => served(where.gateway, ca),
  "the host, by the token's fingerprint": () => served(where.host),
  "the gateway, by the token's fingerprint": () => served(where.gateway),
  gRPC: () => served(where.gateway, undefined, true),
  "a wrong token": wrongToken,
  "a wrong CA": () => refused("is not of the CA in", where.gateway, strangers.ca),
  "another system": () => refused("is of another system than the token", strangers.other),
  "an expired certificate": () => refused("has expired: restart", strangers.expired, strangers.ca),
  "an expired certificate, by fingerprint": () => refused("has expired: restart", strangers.expired, undefined, strangers.token),
  "no PEM": () => refused("has no certificate in PEM", where.gateway, argv[1]),
  nothing: () => refused("no process answers", "127.0.0.1:1"),
};

let failed = 0;
for (const [title, test] of Object.entries(tests)) {
  try {
    await test();
  } catch (reason) {
    failed++;
    console.error(`FAILED: ${title}:`, reason);
  }
}
console.log(`typescript over TLS: ${Object.keys(tests).length - failed} passed, ${failed} failed`);
// Sessions of HTTP/2 stay open for the next call, and would keep the process.
exit(failed > 0 ? 1 : 0);
