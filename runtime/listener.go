package runtime

import (
	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/runtime/internal/listen"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/tunnel"
)

// listen binds the host's addresses and starts to serve.
func (h *Host) listen(brain hostapi.Brain) error {
	guard, err := newWebGuard(h)
	if err != nil {
		return err
	}
	h.guard, h.ownCalls = guard, tunnel.ServerHandler(h.server)
	h.listener, err = listen.New(h.life, listen.Config{
		Address: h.options.Listen, Advertise: h.options.Advertise, Socket: h.dir.Socket(), Tunnel: h.tunnelConfig(),
		Self: tunnel.Welcome{Host: h.id, Build: launch.Build()}, Admit: h.admit, Log: h.log, Spawn: h.goBackground,
	})
	if err != nil {
		return err
	}
	handler := newNodeHandler(h)
	if brain != nil {
		handler = brain.Gateway(handler, h.peers.DialHTTP)
	}
	h.listener.Serve(guard.guard(handler))
	return nil
}

// admit returns the dispatcher for a dialler, which has proven that it knows the token.
func (h *Host) admit(hello tunnel.Hello) (tunnel.Handler, func(*tunnel.Conn), error) {
	if hello.Protocol != "" {
		return nil, nil, connect.Errorf(connect.CodeUnimplemented, "a host's connections carry no %q", hello.Protocol)
	}
	if hello.Tag == "" {
		return &dispatcher{host: h, client: hello.Client}, h.tunnelAccepted, nil
	}
	n := h.localNode(hello.Target)
	if n == nil {
		return nil, nil, connect.Errorf(connect.CodeUnavailable, "no node %s is on host %s", hello.Target, h.id)
	}
	tag, err := n.tunnelTag(hello.Tag)
	if err != nil {
		return nil, nil, err
	}
	opened := func(conn *tunnel.Conn) {
		h.tunnelAccepted(conn)
		tag.carry(conn)
	}
	return &dispatcher{host: h, client: hello.Client, only: n, tag: tag}, opened, nil
}
