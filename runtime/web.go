package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/grpcreflect/v2"

	"github.com/raylink/raylink/internal/access"
	"github.com/raylink/raylink/internal/admission"
	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/nodeurl"
)

// NodeHeader is the header that names the node of a request whose URL cannot, as for gRPC clients:
// `raylink-node`.
const NodeHeader = nodeurl.NodeHeader

// nodeHandler serves HTTP at `/<path, alias or nid>/<package.Service>/<Method>`, or at
// `/<package.Service>/<Method>` with the node in [NodeHeader]; package nodeurl has the rules.
// Requests without a node are served by the host itself: reflection, health, and Brain if it is
// embedded here. For any other service they go to the host's only node of that service, if there is
// exactly one, so that gRPC tools need no header in the simplest case.
type nodeHandler struct {
	host *Host
	// methods serves all methods of all types, and own the host's own; both by the last two
	// segments of the URL.
	methods responder
	own     responder
	// ownProcedures are the procedures that own serves.
	ownProcedures map[string]bool
	errors        *connecthttp.ErrorWriter
	// memory bounds the memory used for messages.
	memory *webMemory
}

type webNodeKey struct{}

// onFirstUse returns a handler that is made by the first request: the routes of all methods take a
// process longer than joining the system, and most processes of nodes never serve HTTP.
func onFirstUse(handler func() http.Handler) http.Handler {
	made := sync.OnceValue(handler)
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { made().ServeHTTP(rw, r) })
}

// newNodeHandler registers all routes once: a connect server cannot be extended while it serves.
func newNodeHandler(h *Host) http.Handler {
	server := connect.NewServer()
	services := append([]*Service{builtins().service}, h.types.services()...)
	for _, s := range services {
		for _, m := range s.methods {
			server.Register(connect.Method{Spec: m.spec, Handler: serveWeb(m)})
		}
	}
	w := &nodeHandler{
		host: h, methods: newResponder(h, server), own: newResponder(h, countedServer(h.server)),
		ownProcedures: make(map[string]bool), errors: connecthttp.NewErrorWriter(), memory: newWebMemory(h.options.MaxMessage),
	}
	for spec := range h.server.Specs() {
		w.ownProcedures[spec.Procedure] = true
	}
	return w
}

// serveWeb serves a method on the node in the request's context.
func serveWeb(m *Method) connect.ServerFunc {
	return func(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
		n, ok := ctx.Value(webNodeKey{}).(*Node)
		if !ok {
			return connect.Errorf(connect.CodeInvalidArgument, "%s is a node's method: name the node in the URL or in the header %s", m.fullName(), NodeHeader)
		}
		if m.service != n.service && !m.builtin {
			return n.noMethod(m.spec.Procedure)
		}
		return n.serveConnect(ctx, m, countStream(ctx, stream))
	}
}

// countedServer wraps a server to count the memory of its calls' messages.
func countedServer(server *connect.Server) *connect.Server {
	counted := connect.NewServer()
	for spec := range server.Specs() {
		counted.Register(connect.Method{Spec: spec, Handler: func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
			info, _ := connect.CallInfoForServerContext(ctx)
			return server.Call(ctx, spec.Procedure, info, countStream(ctx, stream))
		}})
	}
	return counted
}

// ServeHTTP implements [http.Handler].
func (w *nodeHandler) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	to, err := nodeurl.Parse(r)
	if errors.Is(err, nodeurl.ErrNotACall) {
		http.Error(rw, err.Error(), http.StatusNotFound)
		return
	}
	if err != nil {
		w.refuse(rw, r, err)
		return
	}
	name, procedure := to.Node, to.Procedure
	counted, done, err := w.memory.counted(rw, r.Clone(r.Context()))
	if err != nil {
		w.refuse(rw, r, err)
		return
	}
	defer done()
	r = counted
	r.URL.Path, r.URL.RawPath = procedure, ""
	atRoot := name == "" || name == nodename.RootPath
	if service, _, _ := nodename.CutProcedure(procedure); atRoot && service == builtins().service.name {
		// An embedded Brain serves the built-in methods as every node does.
		name = nodename.RootPath
	} else if w.ownProcedures[procedure] && (atRoot || isHostService(procedure)) {
		if err := w.host.authorizeRequest(r.Context(), procedure); err != nil {
			w.refuse(rw, r, err)
			return
		}
		w.host.guard.untilClosed(rw, r, true, w.own.handler(r))
		return
	}
	var n *Node
	if name == "" {
		if n, err = w.host.onlyNodeServing(procedure); err != nil {
			w.refuse(rw, r, err)
			return
		}
	} else if n = w.host.localNamed(name); n == nil {
		w.refuse(rw, r, connect.Errorf(connect.CodeNotFound, "no node %q is on this host; Brain's address reaches every node", name))
		return
	}
	m, err := n.lookupMethod(procedure)
	if peer, known := access.Peer(r.Context()); err == nil && known {
		err = authorizeMethod(peer, m)
	}
	if err != nil {
		w.refuse(rw, r, err)
		return
	}
	w.host.guard.untilClosed(rw, r.WithContext(context.WithValue(r.Context(), webNodeKey{}, n)), false, w.methods.handler(r))
}

// howToName explains, in errors, how a request names its node.
const howToName = "name a node in the URL, /<path, alias or nid>/<package.Service>/<Method>, or by the header raylink-node " +
	"(grpcurl -H 'raylink-node: <path>'); Brain's address reaches every node"

// onlyNodeServing returns the node for a request that names none: the host's only node of the
// procedure's service.
func (h *Host) onlyNodeServing(procedure string) (*Node, error) {
	service, _, _ := nodename.CutProcedure(procedure)
	var found []*Node
	for _, n := range h.localNodes() {
		if n.service.name == service {
			found = append(found, n)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	if len(found) > 1 {
		paths := make([]string, 0, len(found))
		for _, n := range found {
			paths = append(paths, n.path)
		}
		slices.Sort(paths)
		const most = 10
		if more := len(paths) - most; more > 0 {
			paths = append(paths[:most], fmt.Sprintf("and %d more", more))
		}
		return nil, connect.Errorf(connect.CodeInvalidArgument, "%d nodes of this host serve %s, and the request says not which: %s; %s",
			len(found), service, strings.Join(paths, ", "), howToName)
	}
	if len(h.types.of(service)) > 0 {
		return nil, connect.Errorf(connect.CodeUnavailable, "the request names no node, and none that serves %s is on this host: %s", service, howToName)
	}
	return nil, connect.Errorf(connect.CodeUnimplemented, "the request names no node, and this host serves no %s: %s", nodename.MethodFullName(procedure), howToName)
}

// refuse responds with an error in the caller's protocol. The HTTP status of a method that does not
// exist is 404, as with connect's own servers; connect would map the code to 501.
func (w *nodeHandler) refuse(rw http.ResponseWriter, r *http.Request, err error) {
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		rw = notFoundWriter{rw}
	}
	if werr := w.errors.Write(rw, r, err); werr != nil {
		w.host.log.Debug("writing a refusal", slog.Any("error", werr))
	}
}

// notFoundWriter replaces status 501 by 404.
type notFoundWriter struct{ http.ResponseWriter }

// WriteHeader implements [http.ResponseWriter].
func (w notFoundWriter) WriteHeader(status int) {
	if status == http.StatusNotImplemented {
		status = http.StatusNotFound
	}
	w.ResponseWriter.WriteHeader(status)
}

// isHostService reports whether the host serves a procedure on behalf of its nodes: tools that are
// given a node's URL look there for reflection and health.
func isHostService(procedure string) bool {
	return strings.HasPrefix(procedure, "/grpc.reflection.") || strings.HasPrefix(procedure, "/grpc.health.")
}

// newHostServer makes the services of the host itself, for HTTP and tunnels alike.
func newHostServer(h *Host, brain hostapi.Brain, authority *admission.Authority) *connect.Server {
	server := connect.NewServer()
	if brain != nil {
		brain.Register(server)
	}
	if authority != nil {
		authority.Register(server)
	}
	mountHealth(server, h)
	names := h.serviceNames()
	for spec := range server.Specs() {
		if service, _, ok := nodename.CutProcedure(spec.Procedure); ok && !slices.Contains(names, service) {
			names = append(names, service)
		}
	}
	grpcreflect.Register(server, grpcreflect.WithNamer(grpcreflect.NamerFunc(func() []string { return names })))
	return server
}
