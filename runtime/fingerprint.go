package runtime

import (
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/invariants"
	"github.com/raylink/raylink/runtime/tunnel"
)

// A message must not be modified once it was sent or returned. The build tag `invariants` enforces
// that for calls within a process: a message gets a fingerprint, its hash, when it is sent. The
// fingerprint is verified when the node receives the message, when its method has returned, and
// when later calls of the node end. The call at which a mismatch is found fails, and the node's
// owner gets a log line with the same text.

// maxRecent is how many messages a node verifies again, and maxFingerprinted the size up to which
// it does, in bytes.
const (
	maxRecent        = 16
	maxFingerprinted = 1 << 20
)

var hashSeed = maphash.MakeSeed() //nolint:gochecknoglobals // one for all hashes that are compared

// fingerprint is a message and its hash when it was sent. It is empty unless
// [invariants.Messages] is set.
type fingerprint struct{ invariants.Value[hashed] }

type hashed struct {
	msg  proto.Message
	hash uint64
}

func fingerprintOf(msg proto.Message) (f fingerprint) {
	if invariants.Messages {
		*f.Get() = hashed{msg: msg, hash: hashOf(msg)}
	}
	return f
}

func hashOf(msg proto.Message) uint64 {
	b, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(msg)
	if err != nil {
		return 0 // an encoding error is reported elsewhere
	}
	return maphash.Bytes(hashSeed, b)
}

func (h *hashed) isModified() bool { return h.msg != nil && hashOf(h.msg) != h.hash }

// recentMessages holds the last messages that passed between a node and its callers in this
// process. It is empty unless [invariants.Messages] is set.
type recentMessages struct{ invariants.Value[messageRing] }

type messageRing struct {
	mu   sync.Mutex // guards the fields below
	seen [maxRecent]struct {
		hashed

		what string
	}
	next int
}

func (r *messageRing) add(h *hashed, what string) {
	if h.msg == nil || proto.Size(h.msg) > maxFingerprinted {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	entry := &r.seen[r.next%maxRecent]
	entry.hashed, entry.what = *h, what
	r.next++
}

// findModified returns the description of a message that was modified since it passed, and removes
// it.
func (r *messageRing) findModified() (what string, found bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.seen {
		if seen := &r.seen[i]; seen.isModified() {
			seen.msg = nil
			return seen.what, true
		}
	}
	return "", false
}

// verifySent verifies a request when the node receives it.
func (n *Node) verifySent(cc *callContext) error {
	if invariants.Messages && cc.sent.Get().isModified() {
		return n.modifiedError("the request of %s was changed after it was sent: its caller must not, even while the call waits", cc.call.method.fullName())
	}
	return nil
}

// verifyReturned verifies the request and earlier messages when a call ends, and fingerprints its
// response.
func (n *Node) verifyReturned(cc *callContext, res proto.Message) error {
	if !invariants.Messages || cc.sent.Get().msg == nil {
		return nil // nothing to verify, or the call did not come from this process
	}
	name := cc.call.method.fullName()
	if cc.sent.Get().isModified() {
		return n.modifiedError("the request of %s was changed while it was served: a node must clone what it changes, or its type say WithCopy", name)
	}
	if what, found := n.recent.Get().findModified(); found {
		return n.modifiedError("%s was changed afterwards: it must not be, so clone what you change; "+
			"a node that returns part of its state must return a clone, or its type say WithCopy", what)
	}
	n.recent.Get().add(cc.sent.Get(), "the request of an earlier "+name)
	if res != nil {
		n.recent.Get().add(&hashed{msg: res, hash: hashOf(res)}, "the response of an earlier "+name)
	}
	return nil
}

// verifyStreamed verifies a stream's message when it is received.
func (n *Node) verifyStreamed(f fingerprint, m *Method) error {
	if invariants.Messages && f.Get().isModified() {
		return n.modifiedError("a message of the stream %s was changed after it was sent", m.fullName())
	}
	return nil
}

// checkEncodes encodes a message that passes within the process, so that tests detect one that no
// other way could carry.
func (n *Node) checkEncodes(m *Method, request bool, msg proto.Message) error {
	if !invariants.Messages {
		return nil
	}
	if n.host != nil {
		if size, limit := proto.Size(msg), n.host.options.MaxMessage; size > limit {
			return tunnel.MessageTooLarge(m.spec.Procedure, request, size, limit)
		}
	}
	return tunnel.CheckMessage(m.spec.Procedure, request, msg)
}

// checkDecodes encodes and decodes a message that passes within the process, where its receiver
// would decode it.
func (*Node) checkDecodes(m *Method, request bool, msg proto.Message) error {
	if !invariants.Messages {
		return nil
	}
	return tunnel.CheckDecoding(m.spec.Procedure, request, msg)
}

func (n *Node) modifiedError(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	n.logger().Error("a rule was broken", slog.String("node", n.path), slog.String("how", text))
	return connect.Errorf(connect.CodeInternal, "%s: %s", n.path, text)
}
