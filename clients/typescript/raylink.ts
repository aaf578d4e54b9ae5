// Connects Connect clients to a RayLink system: copy this file into your program.
//
//   const system = new System();      // RAYLINK_BRAIN, RAYLINK_TOKEN, RAYLINK_CA
//   const options = { httpVersion: "1.1", ...(await system.options("counter-0")) } as const;
//   const counter = createClient(Counter, createConnectTransport(options));
//
// A token `rl1.FINGERPRINT.SECRET` is that of a system with TLS. Its CA is that of a PEM file
// (`raylink ca` prints it), or else the one whose fingerprint the token has: then no file is
// needed.

import { createHash, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { env } from "node:process";
import { connect, type ConnectionOptions, type DetailedPeerCertificate, type TLSSocket } from "node:tls";

import type { Interceptor } from "@connectrpc/connect";

// The maximum duration of a handshake in milliseconds.
const timeout = 10_000;

/** The server can't be trusted; the text says why, and what to do. */
export class Refused extends Error {}

/** A system, by the address of its Brain (HOST:PORT), a token, and the file of the CA's certificate. */
export class System {
  readonly usesTLS: boolean;
  private ca?: string;

  constructor(
    readonly brain = env["RAYLINK_BRAIN"] || "127.0.0.1:6800",
    readonly token = env["RAYLINK_TOKEN"] ?? "",
    readonly file = env["RAYLINK_CA"] || undefined,
  ) {
    this.usesTLS = file !== undefined || token.startsWith("rl1.");
  }

  /** Sends the token with every call. */
  get interceptor(): Interceptor {
    return (next) => (req) => {
      if (this.token !== "") {
        req.header.set("Authorization", `Bearer ${this.token}`);
      }
      return next(req);
    };
  }

  /** The options of a transport to a node, by its path, alias or nid: through Brain, or at its host's address. */
  async options(node: string, address = this.brain) {
    const nodeOptions = this.usesTLS ? { ca: await this.verify(address) } : {};
    return { baseUrl: `${this.usesTLS ? "https" : "http"}://${address}/${node}`, interceptors: [this.interceptor], nodeOptions };
  }

  /** Verifies Brain, or a host, and returns the CA's certificate in PEM; rejects with Refused. */
  async verify(address = this.brain): Promise<string> {
    this.ca ??= this.file === undefined ? await this.findCA(address) : this.read(this.file);
    await handshake(address, { ca: this.ca }, () => undefined, (code) => this.explain(address, code));
    return this.ca;
  }

  private read(file: string): string {
    const text = readFileSync(file, "utf8");
    try {
      new X509Certificate(text);
    } catch (cause) {
      throw new Refused(`${file} has no certificate in PEM: write it anew (\`raylink ca > ${file}\`)`, { cause });
    }
    return text;
  }

  private async findCA(address: string): Promise<string> {
    const fingerprint = this.token.split(".")[1];
    const chain = await handshake(address, { rejectUnauthorized: false }, chainOf); // verify does that
    for (const cert of chain) {
      const key = cert.publicKey.export({ type: "spki", format: "der" });
      if (createHash("sha256").update(key).digest("base64url") === fingerprint) {
        return cert.toString();
      }
    }
    throw new Refused(
      `${address} is of another system than the token: use a token of that system (\`raylink token make --role call\` there)`,
    );
  }

  private explain(address: string, code: string): string | undefined {
    switch (code) {
      case "CERT_HAS_EXPIRED":
        return `the certificate of ${address} has expired: restart that process, or set this machine's clock if it is wrong`;
      case "ERR_TLS_CERT_ALTNAME_INVALID":
        return `the certificate of ${address} is not for that address: use the address under which the process listens or is advertised`;
      case "SELF_SIGNED_CERT_IN_CHAIN":
      case "UNABLE_TO_GET_ISSUER_CERT_LOCALLY":
      case "UNABLE_TO_VERIFY_LEAF_SIGNATURE":
        return `the certificate of ${address} is not of the CA in ${this.file}: write that of its system (\`raylink ca > ${this.file}\`)`;
    }
    return undefined;
  }
}

function handshake<T>(
  address: string,
  options: ConnectionOptions,
  use: (socket: TLSSocket) => T,
  explain: (code: string) => string | undefined = () => undefined,
): Promise<T> {
  const { hostname, port } = new URL(`https://${address}`);
  const host = hostname.replace(/^\[|\]$/g, "");
  const servername = isIP(host) ? "" : host; // an address is verified as host
  return new Promise((resolve, reject) => {
    const socket = connect({ ...options, host, port: Number(port || 443), servername, timeout }, () => {
      resolve(use(socket));
      socket.end();
    });
    socket.on("timeout", () => socket.destroy(new Error(`no answer within ${timeout} ms`)));
    socket.on("error", (cause: NodeJS.ErrnoException) => {
      const code = cause.code ?? "";
      const text = code.startsWith("ERR_SSL")
        ? `${address} does not use TLS: use a token without rl1., and no CA (${code})`
        : `no process answers at ${address} (${cause.message}): is Brain there, and is RAYLINK_BRAIN its address?`;
      reject(new Refused(explain(code) ?? text, { cause }));
    });
  });
}

function chainOf(socket: TLSSocket): X509Certificate[] {
  const chain: X509Certificate[] = [];
  // The last certificate is its own issuer.
  for (let cert: DetailedPeerCertificate | undefined = socket.getPeerCertificate(true); cert?.raw; cert = cert.issuerCertificate) {
    chain.push(new X509Certificate(cert.raw));
    if (cert === cert.issuerCertificate) {
      break;
    }
  }
  return chain;
}
