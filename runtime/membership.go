package runtime

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	"github.com/raylink/raylink/internal/access"
	"github.com/raylink/raylink/internal/admission"
	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/runtime/internal/listen"
	"github.com/raylink/raylink/runtime/internal/membership"
	"github.com/raylink/raylink/runtime/internal/peers"
)

// A host's membership in a system that uses TLS, and what its peers may do.
//
// A system uses TLS if its Brain listens beyond loopback, unless that is insecure on purpose. Then
// all of its hosts do, on all addresses but their Unix sockets: so a host knows how to connect to
// another one without further information.

// foundsTLS reports whether a host founds a system that uses TLS, with a CA of its own.
func foundsTLS(o *Options, hasBrain bool) (bool, error) {
	switch {
	case o.TLS && o.Open:
		return false, connect.NewError(connect.CodeInvalidArgument, "TLS is asked for (RAYLINK_TLS), and the system is to be open (--open, RAYLINK_OPEN): which one is it?")
	case !hasBrain || o.TLSCert != "" || o.Insecure || o.Open:
		return false, nil
	case !o.TLS && listen.IsLoopback(listen.HostOf(o.Listen)):
		return false, nil
	case o.Token != "" && !membership.IsToken(o.Token):
		return false, connect.Errorf(connect.CodeFailedPrecondition,
			"listening on %s, beyond loopback, uses TLS, whose tokens are made by Brain: give none (--token, --token-file, RAYLINK_TOKEN), "+
				"and see `raylink token`. Or use certificates of your own with this one (--tls-cert, RAYLINK_TLS_CERT), "+
				"or no TLS where the network is trusted (--insecure, RAYLINK_INSECURE=1)", o.Listen)
	}
	return true, nil
}

// secure makes this host a member of a system that uses TLS, if there is one. It returns the CA if
// that is in this process.
func (h *Host) secure(ctx context.Context, parts hostapi.Parts, founds bool) (*admission.Authority, error) {
	if !founds {
		return nil, h.becomeMember(ctx)
	}
	authority, err := h.found(parts)
	if err == nil {
		parts.Brain.SetAccess(authority)
	}
	return authority, err
}

// found opens the CA of the system that this host founds, or makes it.
func (h *Host) found(parts hostapi.Parts) (*admission.Authority, error) {
	dir := parts.PKI
	if dir == "" {
		dir = filepath.Join(h.dir.Path(), "pki") // it ends with the system
	}
	authority, err := admission.Open(dir, parts.CertificateLifetime)
	if err != nil {
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "opening the CA of this system: %v", err).WithCause(err)
	}
	if h.member, err = membership.Found(h.memberConfig(), authority, h.certificateHosts()); err != nil {
		return nil, err
	}
	// It is what the processes of this host's nodes join by.
	h.options.Token = authority.JoinToken().Reveal()
	return authority, nil
}

// becomeMember joins a system that uses TLS, if the options are for one.
func (h *Host) becomeMember(ctx context.Context) (err error) {
	o := &h.options
	var local net.IP
	switch {
	case o.TLSCert != "":
		h.member, err = membership.OwnPKI(h.memberConfig(), pki.Files{Cert: o.TLSCert, Key: o.TLSKey, CA: o.TLSCA})
		local = membership.RouteTo(ctx, o.Brain)
	case h.embedded == nil && membership.IsToken(o.Token) && o.Brain != "":
		if h.member, err = membership.Join(ctx, h.memberConfig(), o.Brain, o.Token); err == nil {
			local = h.member.Local()
		}
	case membership.IsToken(o.Token):
		return connect.NewError(connect.CodeFailedPrecondition,
			"the token (RAYLINK_TOKEN) is that of a system with TLS: give the address of its Brain (RAYLINK_BRAIN), "+
				"or no token for a system of this process's own")
	}
	if err != nil || local == nil {
		return err
	}
	// Other machines reach this one by the address from which it reaches Brain.
	if !o.listens {
		o.Listen = net.JoinHostPort(local.String(), "0")
	}
	if ip := net.ParseIP(listen.HostOf(o.Listen)); o.Advertise == "" && ip != nil && ip.IsUnspecified() {
		o.Advertise = net.JoinHostPort(local.String(), "0")
	}
	return nil
}

func (h *Host) memberConfig() membership.Config {
	return membership.Config{Host: h.id, Log: h.log, Spawn: h.goBackground}
}

// certificateHosts are the names and IP addresses under which clients may reach Brain's host.
func (h *Host) certificateHosts() []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	add := func(host string) {
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	own := listen.HostOf(h.options.Listen)
	if ip := net.ParseIP(own); ip != nil && ip.IsUnspecified() {
		if addresses, err := net.InterfaceAddrs(); err == nil {
			const most = 32
			for _, address := range addresses[:min(len(addresses), most)] {
				if network, ok := address.(*net.IPNet); ok {
					add(network.IP.String())
				}
			}
		}
	} else if own != "" {
		add(own)
	}
	if h.options.Advertise != "" {
		add(listen.HostOf(h.options.Advertise))
	}
	if name, err := os.Hostname(); err == nil && isHostName(name) {
		add(name)
	}
	return hosts
}

// isHostName reports whether a machine's name can be in a certificate.
func isHostName(name string) bool {
	return name != "" && strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-.") == "" && !strings.Contains(name, "..") &&
		!strings.HasPrefix(name, ".") && !strings.HasSuffix(name, ".")
}

// sharedSecret is what both sides of a connection without TLS prove to know. Those are by Unix
// socket alone in a system that uses TLS.
func (h *Host) sharedSecret() string {
	if h.member != nil && h.member.IsNamed() {
		return h.member.Secret()
	}
	return h.options.Token
}

// sharedRole is the role of a peer that knows the shared secret.
func (h *Host) sharedRole() pki.Role {
	if h.member != nil && h.member.IsNamed() {
		return pki.RoleJoin
	}
	return pki.RoleAdmin
}

// dialTLS is how this host connects by TCP; nil without TLS.
func (h *Host) dialTLS() *peers.TLS {
	if h.member == nil {
		return nil
	}
	within := h.tunnelConfig()
	if h.member.IsNamed() {
		within.Token = "" // certificates prove more
	}
	return &peers.TLS{Client: h.member.Client, Tunnel: within}
}

// serveTLS is how this host serves TCP; nil without TLS.
func (h *Host) serveTLS() (*listen.TLS, error) {
	if h.member == nil {
		return nil, nil //nolint:nilnil // there is none
	}
	h.log.Info("connections are encrypted", slog.String("by", h.member.Describe()))
	return h.member.Server(h.dialTLS().Tunnel)
}

// onAccess takes over which clients are served from now on, and ends the connections of others.
func (h *Host) onAccess(policy *brainv1.AccessPolicy) {
	if h.member == nil {
		return
	}
	h.member.OnPolicy(policy, func() {
		h.listener.CloseRevoked(h.member.Revoked)
		h.peers.CloseRevoked(h.member.Revoked)
	})
}

// onExpelled ends the nodes of this host: Brain has declared them dead.
func (h *Host) onExpelled(reason error) {
	h.log.Error("this host is no part of the system any more: its nodes end", slog.Any("error", reason))
	for _, n := range h.localNodes() {
		if !n.isStopping() {
			n.fail(reason)
		}
	}
	// Nodes drain, but what calls them is not served any more. This host calls no others either.
	h.listener.CloseConnections()
	h.peers.Close(reason)
}

// requiredRole returns the role that a call of the host's own services needs; "" for none. Each
// service that is not listed needs the role join.
func requiredRole(procedure string) pki.Role {
	service, _, _ := nodename.CutProcedure(procedure)
	switch {
	case strings.HasPrefix(procedure, "/grpc.health."):
		return ""
	case strings.HasPrefix(procedure, "/grpc.reflection."), procedure == brainv1connect.TokenServiceGetCAProcedure:
		return pki.RoleCall
	case service == brainv1connect.TokenServiceName:
		return pki.RoleAdmin
	}
	switch procedure {
	case brainv1connect.BrainServiceHelloProcedure, brainv1connect.BrainServiceLookupProcedure, brainv1connect.BrainServiceListProcedure,
		brainv1connect.BrainServiceWatchProcedure, brainv1connect.BrainServiceListMachinesProcedure, brainv1connect.BrainServiceWatchMachinesProcedure:
		return pki.RoleCall
	}
	return pki.RoleJoin
}

// authorize refuses a call of the host's own services that its caller's role does not allow.
func (h *Host) authorize(peer pki.Peer, procedure string) *connect.Error {
	if need := requiredRole(procedure); need != "" && !peer.Role.Includes(need) {
		return roleError(peer, need, nodename.MethodFullName(procedure))
	}
	if h.member != nil && peer.TokenID != "" && h.member.Revoked(peer.TokenID) {
		// Its connection is about to be closed.
		return connect.Errorf(connect.CodePermissionDenied, "%v (token %s)", pki.ErrRevoked, peer.TokenID)
	}
	return nil
}

// authorizeRequest is authorize for the caller in a context, if it has one.
func (h *Host) authorizeRequest(ctx context.Context, procedure string) error {
	if peer, known := access.Peer(ctx); known {
		if err := h.authorize(peer, procedure); err != nil {
			return err
		}
	}
	return nil
}

// authorizeMethod refuses a call of a node's method that its caller's role does not allow.
func authorizeMethod(peer pki.Peer, m *Method) error {
	if m.role == "" && peer.Role != "" {
		return nil // all may call
	}
	need := m.role
	if need == "" {
		need = pki.RoleCall
	}
	if !peer.Role.Includes(need) {
		return roleError(peer, need, m.fullName())
	}
	return nil
}

func roleError(peer pki.Peer, need pki.Role, method string) *connect.Error {
	by := ""
	if peer.TokenID != "" {
		by = " (token " + peer.TokenID + ")"
	}
	return connect.Errorf(connect.CodePermissionDenied, "%s requires the role %s, and the caller has the role %q%s: use a token with that role", method, need, peer.Role, by)
}
