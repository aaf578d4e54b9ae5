package tree

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/nodename"
)

// FuzzForms checks that each valid alias is looked up as an alias, each name and nid as such, and
// that a lookup of any text from the wire returns an error of bounded length.
func FuzzForms(f *testing.F) {
	for _, seed := range []string{"", "BRAIN", "a-0", "a-", "-1", "a/b", "buffer", "00000000-0000-4000-8000-000000000000", "\xff", "é-9", "a b"} {
		f.Add(seed)
	}
	root := testRoot()
	f.Fuzz(func(t *testing.T, s string) {
		if CheckAlias(s) == nil {
			require.Equal(t, ByAlias, formOf(s))
		}
		if checkType(s) == nil {
			require.Equal(t, ByPath, formOf(nameOf(s, 7)))
			require.Equal(t, ByPath, formOf(nameOf(s, 123456789012)))
			require.Error(t, CheckAlias(nameOf(s, 7)))
		}
		rec, err := New(root, Limits{}).Lookup(ByAny, s)
		if s == nodename.RootPath {
			require.Same(t, root, rec)
			return
		}
		if IsUUID(s) && s == root.GetNid() {
			return
		}
		require.Error(t, err)
		require.LessOrEqual(t, len(err.Error()), 1024)
	})
}

func TestNewNidsAreUUIDsAndDiffer(t *testing.T) {
	seen := make(map[string]bool)
	for range 1000 {
		nid := NewUUID()
		require.True(t, IsUUID(nid), nid)
		require.Equal(t, byte('4'), nid[14])
		require.False(t, seen[nid])
		seen[nid] = true
	}
}
