// Calls nodes from a page, as a program in a browser does, and reports to the test how each call ended.
// `cases` are the test's: [{name, url, token, node}].

const encoder = new TextEncoder();
const decoder = new TextDecoder();

// A message in the envelope of streams: flags, length, payload.
function envelope(message) {
  const payload = encoder.encode(JSON.stringify(message));
  const out = new Uint8Array(5 + payload.length);
  new DataView(out.buffer).setUint32(1, payload.length);
  out.set(payload, 5);
  return out;
}

// The envelopes of a body, as [flags, text].
function envelopes(buffer) {
  const view = new DataView(buffer);
  const out = [];
  for (let at = 0; at < buffer.byteLength;) {
    const size = view.getUint32(at + 1);
    out.push([view.getUint8(at), decoder.decode(new Uint8Array(buffer, at + 5, size))]);
    at += 5 + size;
  }
  return out;
}

const calls = {
  async unary({ url, headers }) {
    const res = await fetch(`${url}/contract.v1.Probe/Who`, {
      method: "POST", body: JSON.stringify({ key: "tenant", header: "h", trailer: "t" }),
      headers: { ...headers, "content-type": "application/json", "connect-protocol-version": "1", "connect-timeout-ms": "20000", tenant: "a" },
    });
    const body = await res.json();
    return [res.status, body.code ?? body.metadata, res.headers.get("probe-header"), res.headers.get("trailer-probe-trailer")];
  },
  async get({ url, headers }) {
    const res = await fetch(`${url}/grpc.health.v1.Health/Check?connect=v1&encoding=json&message=%7B%7D`, { headers });
    const body = await res.json();
    return [res.status, body.code ?? body.status];
  },
  async missing({ url, headers }) {
    const res = await fetch(`${url}-9/contract.v1.Probe/Who`, {
      method: "POST", body: "{}", headers: { ...headers, "content-type": "application/json" },
    });
    return [res.status, (await res.json()).code];
  },
  async connectStream({ url, headers }) {
    const res = await fetch(`${url}/contract.v1.Probe/Count`, {
      method: "POST", body: envelope({ to: 3 }), headers: { ...headers, "content-type": "application/connect+json", "connect-protocol-version": "1" },
    });
    const all = envelopes(await res.arrayBuffer());
    return [res.status, all.filter(([flags]) => flags === 0).length, JSON.parse(all.at(-1)[1]).error?.code ?? "end"];
  },
  async grpcWeb({ url, headers }) {
    const res = await fetch(`${url}/contract.v1.Probe/Count`, {
      method: "POST", body: envelope({ to: 3 }),
      headers: { ...headers, "content-type": "application/grpc-web+json", "x-grpc-web": "1", "x-user-agent": "page", "grpc-timeout": "20S" },
    });
    const all = envelopes(await res.arrayBuffer());
    const trailer = all.find(([flags]) => flags & 0x80)?.[1];
    return [res.status, all.filter(([flags]) => flags === 0).length, res.headers.get("grpc-status") ?? trailer.match(/grpc-status: (\d+)/i)[1]];
  },
};

async function run(from, cases) {
  const results = {};
  for (const c of cases) {
    const headers = {};
    if (c.token) headers.authorization = `Bearer ${c.token}`;
    if (c.node) headers["raylink-node"] = c.node;
    for (const [name, call] of Object.entries(calls)) {
      if (name === "missing" && c.node) continue;
      let outcome;
      try {
        outcome = await call({ url: c.url, headers });
      } catch (e) {
        outcome = e instanceof TypeError ? "blocked" : `${e}`;
      }
      results[`${from}, ${c.name}, ${name}`] = outcome;
    }
  }
  return results;
}
