"""Connects Connect clients to a RayLink system: install this package, or copy its folder.

    system = raylink.System()          # RAYLINK_BRAIN, RAYLINK_TOKEN, RAYLINK_CA
    counter = CounterClient(system.url("counter-0"), http_client=system.client())
    await counter.get(GetRequest(), headers=system.headers)

A token `rl1.FINGERPRINT.SECRET` is that of a system with TLS. Its CA is that of a PEM file (`raylink
ca` prints it), or else the one whose fingerprint the token has: then no file is needed.
"""

import base64
import hashlib
import os
import socket
import ssl

# The maximum duration of a handshake in seconds.
TIMEOUT = 10


class Refused(Exception):
    """The server can't be trusted; the text says why, and what to do."""


class System:
    """A system, by the address of its Brain (HOST:PORT), a token, and the file of the CA's certificate.

    Arguments that are not given are those of the environment: RAYLINK_BRAIN, RAYLINK_TOKEN, RAYLINK_CA.
    """

    def __init__(self, brain=None, token=None, ca=None):
        self.brain = brain or os.environ.get("RAYLINK_BRAIN") or "127.0.0.1:6800"
        self.token = token or os.environ.get("RAYLINK_TOKEN") or ""
        self.file = ca or os.environ.get("RAYLINK_CA")
        self.uses_tls = bool(self.file) or self.token.startswith("rl1.")
        self.headers = {"Authorization": "Bearer " + self.token} if self.token else {}
        self._ca = None

    def url(self, node, address=None):
        """The URL of a node, by its path, alias or nid: through Brain, or at its host's address."""
        return f"{'https' if self.uses_tls else 'http'}://{address or self.brain}/{node}"

    def client(self, http_version=None):
        """The HTTP client for the clients of nodes. It verifies Brain, or raises Refused."""
        # What needs none, such as raylink.ray, does not depend on it.
        from pyqwest import Client, HTTPTransport

        ca = self.verify() if self.uses_tls else None
        return Client(HTTPTransport(tls_ca_cert=ca, http_version=http_version, enable_cookie_store=False))

    def verify(self, address=None):
        """Verifies Brain, or a host, and returns the CA's certificate in PEM; raises Refused."""
        address = address or self.brain
        if self._ca is None:
            if self.file:
                with open(self.file, "rb") as file:
                    self._ca = file.read()
            else:
                self._ca = self._find_ca(address)
        try:
            context = ssl.create_default_context(cadata=self._ca.decode())
        except (ssl.SSLError, ValueError) as error:
            raise Refused(f"{self.file} has no certificate in PEM: write it anew (`raylink ca > {self.file}`)") from error
        try:
            _handshake(address, context, lambda _: None)
        except ssl.SSLCertVerificationError as error:
            raise Refused(self._explain(address, error)) from error
        return self._ca

    def _find_ca(self, address):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # verify does that
        fingerprint = self.token.split(".")[1]
        for cert in _handshake(address, context, _chain):
            digest = hashlib.sha256(_public_key(cert)).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == fingerprint:
                return ssl.DER_cert_to_PEM_cert(cert).encode()
        raise Refused(f"{address} is of another system than the token: use a token of that system (`raylink token make --role call` there)")

    def _explain(self, address, error):
        if "expired" in error.verify_message:
            return f"the certificate of {address} has expired: restart that process, or set this machine's clock if it is wrong"
        if "mismatch" in error.verify_message:
            return f"the certificate of {address} is not for that address: use the address under which the process listens or is advertised"
        return f"the certificate of {address} is not of the CA in {self.file}: write that of its system (`raylink ca > {self.file}`)"


def _handshake(address, context, use):
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT) as plain:
            with context.wrap_socket(plain, server_hostname=host) as connection:
                return use(connection)
    except ssl.SSLCertVerificationError:
        raise
    except ssl.SSLError as error:
        raise Refused(f"{address} does not use TLS: use a token without rl1., and no CA ({error.reason})") from error
    except OSError as error:
        raise Refused(f"no process answers at {address} ({error}): is Brain there, and is RAYLINK_BRAIN its address?") from error


def _chain(connection):
    if hasattr(connection, "get_unverified_chain"):  # Python 3.13
        return connection.get_unverified_chain()
    return [cert.public_bytes(ssl._ssl.ENCODING_DER) for cert in connection._sslobj.get_unverified_chain()]


def _public_key(cert):
    """The SubjectPublicKeyInfo of a certificate, both in DER (RFC 5280, section 4.1)."""
    _, at, _ = _element(cert, 0)
    _, at, _ = _element(cert, at)
    if cert[at] == 0xA0:  # the version
        at = _element(cert, at)[2]
    for _ in ("serial number", "signature", "issuer", "validity", "subject"):
        at = _element(cert, at)[2]
    return cert[at : _element(cert, at)[2]]


def _element(der, at):
    """The tag of an element, and where its content begins and ends."""
    tag, length, content = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, content = int.from_bytes(der[content : content + size], "big"), content + size
    return tag, content, content + length
