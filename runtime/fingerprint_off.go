//go:build !invariants

package runtime

import "google.golang.org/protobuf/proto"

// fingerprinting is set if messages get fingerprints.
const fingerprinting = false

// Without the build tag `invariants` there are no fingerprints: see fingerprint.go.
type (
	fingerprint    struct{}
	recentMessages struct{} //nolint:unused // used with the build tag invariants
)

func fingerprintOf(proto.Message) fingerprint { return fingerprint{} }

func (n *Node) verifySent(*callContext) error { return nil }

func (n *Node) verifyReturned(*callContext, proto.Message) error { return nil }

func (n *Node) verifyStreamed(fingerprint, *Method) error { return nil }

func (n *Node) checkEncodes(*Method, bool, proto.Message) error { return nil }

func (n *Node) checkDecodes(*Method, bool, proto.Message) error { return nil }
