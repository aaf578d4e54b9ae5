package tree

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// TestCanonicalFormOfARegistrationIsStable holds the form that is stored: a repetition may come
// after an upgrade.
func TestCanonicalFormOfARegistrationIsStable(t *testing.T) {
	tree := New(&nodev1.NodeRecord{Nid: NewUUID()}, Limits{})
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.StringN(0, 10, 20), rapid.SampledFrom([]string{"", "\"a b\"", "caf\xe9", "ü\n"}))
		place := &nodev1.Place{
			Resources: rapid.MapOfN(text, rapid.Int64(), 0, 3).Draw(t, "resources"), Labels: rapid.MapOfN(text, text, 0, 3).Draw(t, "labels"),
			On: text.Draw(t, "on"), Near: text.Draw(t, "near"), Strategy: nodev1.PlaceStrategy(rapid.Int32Range(-1, 9).Draw(t, "strategy")),
		}
		req := &brainv1.RegisterRequest{
			Parent: text.Draw(t, "parent"), Type: text.Draw(t, "type"), Service: text.Draw(t, "service"), Count: rapid.Uint32Range(0, 9).Draw(t, "count"),
			Alias: text.Draw(t, "alias"), Restarts: rapid.Bool().Draw(t, "restarts"), RequestId: NewUUID(), Place: place,
		}
		want := fmt.Sprintf("%q %q %q %d %q %t", req.GetParent(), req.GetType(), req.GetService(), max(int(req.GetCount()), 1), req.GetAlias(), req.GetRestarts())
		of := fmt.Sprintf(" %v %q %q %q %d", place.GetResources(), place.GetLabels(), place.GetOn(), place.GetNear(), place.GetStrategy())
		if len(of) > 256 {
			of = fmt.Sprintf(" %x", sha256.Sum256([]byte(of)))
		}
		require.Equal(t, want+of, tree.Begin(time.Time{}).asked(req))
	})
}
