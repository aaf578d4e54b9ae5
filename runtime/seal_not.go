//go:build !invariants

package runtime

import "google.golang.org/protobuf/proto"

// sealing says that messages are sealed.
const sealing = false

// Without the build tag `invariants` nothing is sealed and nothing looked at: see seal.go.
type (
	seal    struct{}
	witness struct{} //nolint:unused // the build tag invariants uses it
)

func sealOf(proto.Message) seal { return seal{} }

func (n *Node) verifySent(*callContext) error { return nil }

func (n *Node) verifyReturned(*callContext, proto.Message) error { return nil }

func (n *Node) verifyPassed(seal, *Method) error { return nil }

func (n *Node) checkTravels(*Method, bool, proto.Message) error { return nil }
