package clamp

import (
	"os"
	"testing"
)

func TestClamp(t *testing.T) {
	for _, c := range []struct{ n, want int }{{0, 1}, {2, 2}} {
		if got := Clamp(c.n, 1, 3); got != c.want {
			t.Errorf("clamp %d: %d", c.n, got)
		}
	}
}

func TestSkipped(t *testing.T) {
	if os.Getpid() > 0 {
		t.Skip("always")
	}
	TestClamp(t)
}
