"""Handles to nodes: a method is called by the Connect protocol in JSON, through Brain's gateway."""

import json
import ssl
import urllib.error
import urllib.request


class NodeError(Exception):
    """An error of a call. code is Connect's, such as `not_found`."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Client:
    """Calls nodes of the system whose Brain is at an address, HOST:PORT. Threads may share it.

    token is the system's; ca is the PEM text of `raylink ca` in a system that uses TLS.
    """

    def __init__(self, address, token="", ca=""):
        self.address, self.token = address, token
        self._context = ssl.create_default_context(cadata=ca) if ca else None
        self._base = ("https" if ca else "http") + "://" + address

    def node(self, path):
        """Returns a handle to the node with a path, such as `counter-0`. It is not looked up."""
        return Node(self, path)

    def call(self, path, method, request=None, timeout=None):
        """Calls a unary method, such as `counter.v1.Counter/Add`, with a message as a dict, and returns the answer as a dict.

        timeout is in seconds; None for none. It raises NodeError.
        """
        headers = {"Content-Type": "application/json", "Connect-Protocol-Version": "1"}
        if self.token:
            headers["Authorization"] = "Bearer " + self.token
        if timeout is not None:
            headers["Connect-Timeout-Ms"] = str(max(1, int(timeout * 1000)))
        url = f"{self._base}/{path}/{method}"
        http = urllib.request.Request(url, json.dumps(request or {}).encode(), headers, method="POST")
        try:
            with urllib.request.urlopen(http, timeout=timeout, context=self._context) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            body = error.read().decode(errors="replace")
            try:
                fields = json.loads(body)
                raise NodeError(fields["code"], fields.get("message", "")) from None
            except (ValueError, KeyError, TypeError):
                raise NodeError("unknown", f"{error}: {body[:200]}") from None
        except TimeoutError as error:
            raise NodeError("deadline_exceeded", str(error)) from error
        except urllib.error.URLError as error:
            raise NodeError("unavailable", str(error.reason)) from error


class Node:
    """A handle to a node. It can be pickled if its client can't be needed elsewhere: pass path and address instead."""

    def __init__(self, client, path):
        self._client, self.path = client, path

    def call(self, method, request=None, timeout=None):
        """Calls a method of the node: see Client.call."""
        return self._client.call(self.path, method, request, timeout)
