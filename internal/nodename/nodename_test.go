package nodename_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/internal/nodename"
)

func TestProcedureIsCutWhereItWasJoined(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		service := rapid.StringMatching(`([a-z][a-z0-9_]*\.){0,3}[A-Z][A-Za-z0-9_]*`).Draw(t, "service")
		method := rapid.StringMatching(`[A-Za-z][A-Za-z0-9_]*`).Draw(t, "method")
		procedure := nodename.Procedure(service, method)
		gotService, gotMethod, ok := nodename.CutProcedure(procedure)
		assert.True(t, ok, procedure)
		assert.Equal(t, service, gotService)
		assert.Equal(t, method, gotMethod)
		assert.Equal(t, service+"/"+method, nodename.MethodFullName(procedure))
	})
}

func TestCutProcedureRefusesWhatIsNoProcedure(t *testing.T) {
	for _, s := range []string{"", "/", "x", "/x", "pkg.S/M"} {
		service, method, ok := nodename.CutProcedure(s)
		assert.False(t, ok, s)
		assert.Empty(t, service, s)
		assert.Empty(t, method, s)
	}
}
