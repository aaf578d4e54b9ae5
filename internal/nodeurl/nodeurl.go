// Package nodeurl defines the URLs of nodes and of their methods. Hosts, the gateway and the
// command line share it, so that a URL or a header means the same wherever it is built or parsed.
//
//	/<node>/<package.Service>/<Method>    node is a path, an alias or an nid
//	/<package.Service>/<Method>           the node is in the header Raylink-Node, or there is none
//
// The rules:
//
//   - The URL's path is percent-decoded once, the header not at all. Slashes at either end of both
//     are ignored. A URL of fewer than two segments is no call's ([ErrNotACall]).
//   - An empty header is no header. A node that is named more than once has to be the same each
//     time.
//   - Paths are absolute: a relative path has no meaning outside of a node's own code. Names have
//     single slashes between them, and are UTF-8. The root, BRAIN, is omitted in paths.
//   - nids are compared case-insensitively; [Parse] returns them in lower case.
//
// [Parse] reads the URL and the header of a request; [Route.Path] and [Route.URL] are its inverse.
package nodeurl

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/nodename"
)

// NodeHeader names the node of a request whose URL does not. gRPC clients, which can't choose their
// URLs, send it as the metadata `raylink-node`.
const NodeHeader = "Raylink-Node"

// ViaHeader carries the id of the gateway that forwarded a request. The gateway refuses a request
// that comes back to it, which is in a cycle. It has removed the encodings that the caller accepts
// if the caller is on its machine.
const ViaHeader = "Raylink-Gateway"

// RoleHeader carries the role of the caller whose request a gateway has forwarded. A host takes the
// lesser of it and the role of the connection.
const RoleHeader = "Raylink-Role"

// ErrNotACall is the error of a request whose URL does not end in a service and a method.
var ErrNotACall = errors.New("a call's URL is /<path, alias or nid of a node>/<package.Service>/<Method>")

// Route is what a request is for.
type Route struct {
	// Node is a path, an alias, an nid, [nodename.RootPath], or empty where the request names none.
	Node string
	// Procedure is `/<package.Service>/<Method>`.
	Procedure string
}

// Path returns the unescaped URL path that stands for the route without a header.
func (r Route) Path() string {
	if r.Node == "" {
		return r.Procedure
	}
	return "/" + r.Node + r.Procedure
}

// URL returns `http://address/node/package.Service/Method`, with every name percent-encoded.
// Without a Procedure it is the node's base URL, to which clients append the procedure.
func (r Route) URL(address string) *url.URL {
	path := r.Path()
	return &url.URL{Scheme: "http", Host: address, Path: path, RawPath: escape(path)}
}

// escape percent-encodes the names of a path, and leaves the slashes between them. Unlike
// [url.URL.EscapedPath] it encodes ';' and ',', which some servers treat as separators.
func escape(path string) string { return strings.ReplaceAll(url.PathEscape(path), "%2F", "/") }

// Parse returns the route of a request. It returns [ErrNotACall], or a *connect.Error with code
// InvalidArgument if the request names its node ambiguously or in no valid form.
func Parse(r *http.Request) (Route, error) {
	node, procedure, ok := split(r.URL.Path)
	if !ok {
		return Route{}, ErrNotACall
	}
	node, err := normalize(node)
	if err != nil {
		return Route{}, err
	}
	for _, value := range r.Header.Values(NodeHeader) {
		named, err := normalize(strings.Trim(value, "/ \t"))
		if err != nil {
			return Route{}, err
		}
		switch {
		case named == "":
		case node == "":
			node = named
		case node != named:
			return Route{}, connect.Errorf(connect.CodeInvalidArgument,
				"the request names two nodes, %q and %q, in its URL or the header %s: name one",
				clip(node), clip(named), NodeHeader)
		}
	}
	return Route{Node: node, Procedure: procedure}, nil
}

// split splits a path. ok is false if the path does not end in a service and a method.
func split(path string) (node, procedure string, ok bool) {
	path = strings.Trim(path, "/")
	node, method := cutLast(path)
	node, service := cutLast(node)
	for _, part := range []string{service, method} {
		if part == "" || part == "." || part == ".." {
			return "", "", false
		}
	}
	return node, nodename.Procedure(service, method), true
}

func cutLast(path string) (before, last string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// normalize returns the canonical form of a node's path, alias or nid.
func normalize(node string) (string, error) {
	if node == "" {
		return "", nil
	}
	if !utf8.ValidString(node) {
		return "", connect.Errorf(connect.CodeInvalidArgument, "the node's name %q is not UTF-8", clip(node))
	}
	first, rest, isPath := strings.Cut(node, "/")
	if isPath && first == nodename.RootPath {
		return "", connect.Errorf(connect.CodeInvalidArgument,
			"%q is not an absolute path: the root is not written in paths, this one is %q", clip(node), clip(rest))
	}
	for name := range strings.SplitSeq(node, "/") {
		switch name {
		case "":
			return "", connect.Errorf(connect.CodeInvalidArgument,
				"%q is not an absolute path: names have single slashes between them", clip(node))
		case ".", "..":
			return "", connect.Errorf(connect.CodeInvalidArgument,
				"%q is not an absolute path: only a node's own code has a place that a relative path starts from", clip(node))
		}
	}
	if nodename.IsUUID(node) {
		return strings.ToLower(node), nil
	}
	return node, nil
}

// clip shortens text from the wire for an error.
func clip(s string) string {
	const bound = 256
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= bound {
		return s
	}
	end := bound
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "..."
}

// IsSameMachine reports whether a request comes from this machine, where compression costs time and
// saves none.
func IsSameMachine(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return true // a Unix socket
	}
	ip := net.ParseIP(host)
	if ip == nil || ip.IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.IP.Equal(ip)
}
