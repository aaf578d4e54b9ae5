package engine

import (
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAttach(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, sent    string
		stopped, lost int
	}{
		{"stop", "secret\nstop\n", 1, 0},
		{"stop twice", "secret\n" + strings.Repeat("stop\n", 2), 1, 0},
		{"end", "secret\n", 0, 1},
		{"cut", "secret\nsto", 0, 1},
		{"other lines", "secret\nwhat\n", 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				in, out := io.Pipe()
				var stopped, lost int
				go func() {
					_, err := io.WriteString(out, c.sent)
					assert.NoError(t, err)
					assert.NoError(t, out.Close())
				}()
				secret, err := Attach(in, func() { stopped++ }, func() { lost++ })
				require.NoError(t, err)
				synctest.Wait()
				assert.Equal(t, "secret", secret)
				assert.Equal(t, c.stopped, stopped)
				assert.Equal(t, c.lost, lost)
			})
		})
	}
}

func TestAttachNeedsALine(t *testing.T) {
	t.Parallel()
	in, out := io.Pipe()
	require.NoError(t, out.Close())
	_, err := Attach(in, nil, nil)
	assert.ErrorContains(t, err, "the token (--attached): EOF")
}
