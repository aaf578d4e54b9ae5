//go:build !invariants

package runtime

import "google.golang.org/protobuf/proto"

// sealing is set if messages get fingerprints.
const sealing = false

// Without the build tag `invariants` there are no fingerprints: see seal.go.
type (
	seal    struct{}
	witness struct{} //nolint:unused // used with the build tag invariants
)

func sealOf(proto.Message) seal { return seal{} }

func (n *Node) verifySent(*callContext) error { return nil }

func (n *Node) verifyReturned(*callContext, proto.Message) error { return nil }

func (n *Node) verifyPassed(seal, *Method) error { return nil }

func (n *Node) checkTravels(*Method, bool, proto.Message) error { return nil }

func (n *Node) checkDecodes(*Method, bool, proto.Message) error { return nil }
