package brain

import (
	"context"
	"net"
	"net/http"

	"github.com/raylink/raylink/brain/internal/gateway"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Gateway makes the handler for Brain's listener, which reaches every node: `/<path, alias or
// nid>/<package.Service>/<Method>`, or `/<package.Service>/<Method>` with the header
// `raylink-node`, is forwarded to the node's host. local serves
//
//   - requests that name no node, unchanged;
//   - requests for Brain itself (`BRAIN` or its nid), as `/<package.Service>/<Method>`;
//   - requests for nodes of this process's own host, the one given to [Brain.SetHost], as
//     `/<nid>/<package.Service>/<Method>`.
//
// Authorization is up to the listener around the handler, which also answers browsers' preflight
// requests. The caller's Authorization header is not forwarded, and neither are `Origin`,
// `Sec-Fetch-*`, cookies and proxies' credentials: dial opens connections to hosts on which both
// sides have proven that they know the token. If dial is nil, connections are plain, which is for
// tests.
func (b *Brain) Gateway(local http.Handler, dial func(ctx context.Context, host *nodev1.HostInfo) (net.Conn, error)) http.Handler {
	g := gateway.New(gateway.Options{
		ID:      b.id,
		Resolve: b.Resolve,
		Local:   local,
		IsLocal: b.isLocal,
		Cause:   b.causeOfDeath,
		Connect: dial,
		Dial:    b.opts.Dial,
		Silence: b.opts.Lease / 2,
		Logger:  b.opts.Logger,
	})
	b.gatewaysMu.Lock()
	defer b.gatewaysMu.Unlock()
	b.gateways = append(b.gateways, g)
	return g
}

// isLocal reports whether a host is this process.
func (b *Brain) isLocal(host *nodev1.HostInfo) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	own := b.tree.Root().GetHost().GetId()
	return own != "" && host.GetId() == own
}
