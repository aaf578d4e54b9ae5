package runtime

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"weak"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/access"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/internal/records"
	"github.com/raylink/raylink/runtime/tunnel"
)

// dispatcher routes the calls of one tunnel to the nodes they are for.
type dispatcher struct {
	host *Host
	// client is the id of the host at the other end.
	client string
	// peer is the identity of that host.
	peer pki.Peer
	// own serves the calls for this host itself.
	own tunnel.Handler
	// only and tag are set for a tagged tunnel, which serves one node.
	only *Node
	tag  *tunnelTag
}

var _ tunnel.Handler = (*dispatcher)(nil)

func newDispatcher(h *Host, hello tunnel.Hello, peer pki.Peer) *dispatcher {
	own := tunnel.ServerHandlerWith(h.tunnelled, func(ctx context.Context) context.Context { return access.WithPeer(ctx, peer) })
	return &dispatcher{host: h, client: hello.Client, peer: peer, own: own}
}

// isLookup reports whether a procedure is the lookup of a node in Brain. It only reads memory, and
// takes less than a goroutine of its own.
func isLookup(procedure string) bool { return procedure == brainv1connect.BrainServiceLookupProcedure }

// lookup is a lookup of a node in Brain, which is in this process. It runs inline.
type lookup struct {
	host     *Host
	in       *tunnel.Incoming
	req      brainv1.LookupRequest
	response []byte
}

var _ tunnel.Work = (*lookup)(nil)

// lookups has the lookups that are over, of type [*lookup].
var lookups = sync.Pool{New: func() any { return new(lookup) }} //nolint:gochecknoglobals // a pool

// serveLookup serves a lookup without the layers of a connect server, which would take longer than
// the lookup: there are no interceptors, and Brain encodes the response.
func (d *dispatcher) serveLookup(in *tunnel.Incoming) {
	l := lookups.Get().(*lookup) //nolint:forcetypeassert // see above
	l.host, l.in = d.host, in
	if err := in.DecodeWith(func(b []byte) error { return records.UnmarshalLookupRequest(b, &l.req) }); err != nil {
		in.Reply(nil, err)
		return
	}
	in.RunInline(l)
}

// Serve implements [tunnel.Work].
func (l *lookup) Serve() {
	var err error
	if l.response, err = l.host.embedded.AppendLookup(l.response[:0], &l.req); err != nil {
		l.in.Reply(nil, err)
	} else {
		l.in.ReplyEncoded(l.response)
	}
	if l.host, l.in = nil, nil; cap(l.response) <= maxLookupResponse {
		l.req.Reset()
		lookups.Put(l)
	}
}

// maxLookupResponse bounds the buffers that are kept between lookups, in bytes.
const maxLookupResponse = 64 << 10

// find returns the node of a target if that incarnation of it lives here.
func (d *dispatcher) find(target string) (*Node, error) {
	nid, incarnation, _ := strings.Cut(target, "@")
	n := d.only
	if n == nil {
		n = d.host.localNode(nid)
	}
	if n == nil || n.nid != nid {
		return nil, notHere(connect.Errorf(connect.CodeUnavailable, "no node %s is on host %s", nid, d.host.id), nid)
	}
	if rec := n.snapshot(); incarnation != "" && incarnation != strconv.FormatUint(rec.GetIncarnation(), 10) {
		return nil, notHere(connect.Errorf(connect.CodeUnavailable, "%s was started again: the handle is for incarnation %s, this is %d",
			n.path, incarnation, rec.GetIncarnation()), nid)
	}
	return n, nil
}

// notHere marks the refusal of a call whose node, or that incarnation of it, is elsewhere. The
// caller then looks the node up and makes the call once more, provided that the refusal was sent
// with [tunnel.Incoming.ReplyNotRun]: the detail alone, which any error could contain, is not
// enough.
func notHere(err *connect.Error, nid string) error {
	if d, derr := connectproto.NewErrorDetail(&nodev1.NotHere{Nid: nid}); derr == nil {
		return err.WithDetail(d)
	}
	return err
}

// resolved is what the names of a call resolve to.
type resolved struct {
	node   *Node
	method *Method
	from   *Caller
}

// resolve finds the node and the method of a call.
func (d *dispatcher) resolve(names *tunnel.Names) (res resolved, err error) {
	if res.node, err = d.find(names.Target); err != nil {
		return res, err
	}
	res.method, err = res.node.lookupMethod(names.Procedure)
	res.from = parseCaller(names.Caller)
	return res, err
}

// cachedResolution is a resolution cached with a connection's names. It must not keep a dead node
// in memory.
type cachedResolution struct {
	host   *Host
	node   weak.Pointer[Node]
	method *Method
	from   *Caller
	// at is the host's change counter at the time of the resolution.
	at uint64
}

var _ tunnel.Resolution = (*cachedResolution)(nil)

// Current implements [tunnel.Resolution].
func (r *cachedResolution) Current() bool { return r.at == r.host.changes.Load() }

// resolveCached is resolve with a cache, for unary calls, whose names mostly repeat.
func (d *dispatcher) resolveCached(names *tunnel.Names) (resolved, error) {
	if r, ok := names.Resolution().(*cachedResolution); ok {
		if n := r.node.Value(); n != nil {
			return resolved{n, r.method, r.from}, nil
		}
	}
	at := d.host.changes.Load()
	res, err := d.resolve(names)
	if err == nil {
		names.SetResolution(&cachedResolution{d.host, weak.Make(res.node), res.method, res.from, at})
	}
	return res, err
}

// fillContext fills in the context of a call whose node and method were found.
func (d *dispatcher) fillContext(in *tunnel.Incoming, res resolved, cc *callContext) error {
	m := res.method
	if m.shape != in.StreamType {
		return connect.Errorf(connect.CodeInvalidArgument, "%s is a %v method, and was called as a %v one: caller and node have different schemas",
			m.fullName(), m.shape, in.StreamType)
	}
	cc.call.method, cc.call.way, cc.call.from, cc.caller, cc.in = m, byTunnel, res.from, in.Context(), in
	cc.call.receive(Metadata{header: in.Header()})
	if chain := in.Chain(); len(chain) > 0 {
		var err error
		if cc.chain, err = parseChain(chain); err != nil {
			return err
		}
	}
	if err := authorizeMethod(d.peer, m); err != nil {
		return err
	}
	if d.tag != nil {
		d.tag.calls.Add(1)
	}
	return nil
}

// arrival is a call that has come through a tunnel, in one allocation.
type arrival struct {
	in  tunnel.Incoming
	cc  callContext
	job job
}

var (
	_ tunnel.Work         = (*arrival)(nil)
	_ tunnel.HandlerState = (*arrival)(nil)
	_ tunnel.Allocator    = (*dispatcher)(nil)
)

// NewIncoming implements [tunnel.Allocator]. Calls for the host itself are no arrivals at a node.
func (d *dispatcher) NewIncoming(names *tunnel.Names) *tunnel.Incoming {
	if names.Target == "" && d.only == nil {
		return &tunnel.Incoming{}
	}
	a := &arrival{}
	a.in.State = a
	return &a.in
}

// Serve implements [tunnel.Work]: it runs the method inline, on the goroutine that reads the
// connection.
func (a *arrival) Serve() { a.job.cc.node.serveInline(&a.job) }

// Ended implements [tunnel.HandlerState]: the caller has stopped waiting. A call that is still
// queued never runs, and an answer is not held any more.
func (a *arrival) Ended() {
	n, j := a.cc.node, &a.job
	at := n.withdraw(j)
	if at == running {
		return
	}
	j.Refuse(n.ended(a.cc.caller, a.cc.call.method, at))
}

// ServeUnary implements [tunnel.Handler]: it puts the call into the node's mailbox, or has it run
// inline on the goroutine that reads the connection.
func (d *dispatcher) ServeUnary(in *tunnel.Incoming) {
	if in.Target == "" && d.only == nil {
		if err := d.host.authorize(d.peer, in.Procedure); err != nil {
			in.ReplyNotRun(err)
			return
		}
		if d.host.embedded != nil && isLookup(in.Procedure) {
			d.serveLookup(in)
			return
		}
		d.own.ServeUnary(in)
		return
	}
	a := in.State.(*arrival) //nolint:forcetypeassert // NewIncoming made it
	res, err := d.resolveCached(in.Names)
	if err == nil {
		err = d.fillContext(in, res, &a.cc)
	}
	if err != nil {
		in.ReplyNotRun(d.refused(in, res, err))
		return
	}
	n := res.node
	req := a.cc.call.method.newRequest()
	if err := in.Decode(req); err != nil {
		in.ReplyNotRun(d.refused(in, res, err))
		return
	}
	a.job = job{cc: &a.cc, req: req, size: in.RequestBytes, in: in}
	switch here, err := n.tryInline(&a.job, in.MoreBuffered()); {
	case err != nil:
		in.ReplyNotRun(err)
		return
	case here:
		in.RunInline(a)
		return
	}
	if err := n.submitJob(&a.job); err != nil {
		in.ReplyNotRun(err)
		return
	}
	if a.job.queued {
		in.OnEnd()
	}
}

// ServeStream implements [tunnel.Handler].
func (d *dispatcher) ServeStream(ctx context.Context, in *tunnel.Incoming, stream connect.ServerStream) error {
	if in.Target == "" && d.only == nil {
		if err := d.host.authorize(d.peer, in.Procedure); err != nil {
			in.ReplyNotRun(err)
			return err
		}
		return d.own.ServeStream(ctx, in, stream)
	}
	cc := &in.State.(*arrival).cc //nolint:forcetypeassert // NewIncoming made it
	res, err := d.resolve(in.Names)
	if err == nil {
		err = d.fillContext(in, res, cc)
	}
	if err != nil {
		in.ReplyNotRun(d.refused(in, res, err))
		return err
	}
	returned := false
	defer func() {
		if !returned { // the method has ended this goroutine
			in.Reply(nil, res.node.goexited(res.method))
		}
	}()
	reply := &replyStream{ServerStream: stream, node: res.node, call: cc, setHeader: func(md Metadata) { in.SetHeader(md.header) }}
	trailer, err := reply.end(res.node.runStream(cc, reply))
	returned = true
	in.SetTrailer(trailer.header)
	return err
}
