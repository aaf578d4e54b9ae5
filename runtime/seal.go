//go:build invariants

package runtime

import (
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/runtime/tunnel"
)

// A message must not be modified once it was sent or returned. The build tag `invariants` enforces
// that for calls within a process: a message gets a fingerprint, its hash, when it is sent. The
// fingerprint is verified when the node receives the message, when its method has returned, and
// when later calls of the node end. The call at which a mismatch is found fails, and the node's
// owner gets a log line with the same text.

// sealing is set if messages get fingerprints.
const sealing = true

// remembered is how many messages a node verifies again, and maxSealed the size up to which it
// does, in bytes.
const (
	remembered = 16
	maxSealed  = 1 << 20
)

var sealSeed = maphash.MakeSeed() //nolint:gochecknoglobals // one for all hashes that are compared

// seal is the fingerprint of a message: the message and its hash when it was sent.
type seal struct {
	msg  proto.Message
	hash uint64
}

func sealOf(msg proto.Message) seal { return seal{msg: msg, hash: hashOf(msg)} }

func hashOf(msg proto.Message) uint64 {
	b, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(msg)
	if err != nil {
		return 0 // an encoding error is reported elsewhere
	}
	return maphash.Bytes(sealSeed, b)
}

func (s seal) broken() bool { return s.msg != nil && hashOf(s.msg) != s.hash }

// witness holds the last messages that passed between a node and its callers in this process.
type witness struct {
	mu   sync.Mutex // guards the fields below
	seen [remembered]struct {
		seal
		what string
	}
	next int
}

func (w *witness) remember(s seal, what string) {
	if s.msg == nil || proto.Size(s.msg) > maxSealed {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[w.next%remembered].seal, w.seen[w.next%remembered].what = s, what
	w.next++
}

// look returns the description of a message that was modified since it passed, and removes it.
func (w *witness) look() (what string, broken bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.seen {
		if seen := &w.seen[i]; seen.broken() {
			seen.msg = nil
			return seen.what, true
		}
	}
	return "", false
}

// verifySent verifies a request when the node receives it.
func (n *Node) verifySent(cc *callContext) error {
	if cc.sent.broken() {
		return n.brokenSeal("the request of %s was changed after it was sent: its caller must not, even while the call waits", cc.call.method.fullName())
	}
	return nil
}

// verifyReturned verifies the request and earlier messages when a call ends, and fingerprints its
// response.
func (n *Node) verifyReturned(cc *callContext, res proto.Message) error {
	if cc.sent.msg == nil {
		return nil // it did not come from this process
	}
	name := cc.call.method.fullName()
	if cc.sent.broken() {
		return n.brokenSeal("the request of %s was changed while it was served: a node must clone what it changes, or its type say WithCopy", name)
	}
	if what, broken := n.witness.look(); broken {
		return n.brokenSeal("%s was changed afterwards: it belongs to nobody, so clone what you change; a node whose own state it is must return a clone, or its type say WithCopy", what)
	}
	n.witness.remember(cc.sent, "the request of an earlier "+name)
	if res != nil {
		n.witness.remember(sealOf(res), "the response of an earlier "+name)
	}
	return nil
}

// verifyPassed verifies a stream's message when it is received.
func (n *Node) verifyPassed(s seal, m *Method) error {
	if s.broken() {
		return n.brokenSeal("a message of the stream %s was changed after it was sent", m.fullName())
	}
	return nil
}

// checkTravels encodes a message that passes within the process, so that tests detect one that no
// other way could carry.
func (n *Node) checkTravels(m *Method, request bool, msg proto.Message) error {
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
	return tunnel.CheckDecoding(m.spec.Procedure, request, msg)
}

func (n *Node) brokenSeal(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	n.logger().Error("a rule was broken", slog.String("node", n.path), slog.String("how", text))
	return connect.Errorf(connect.CodeInternal, "%s: %s", n.path, text)
}
