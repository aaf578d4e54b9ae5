package main

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "4096": 4096, "17B": 17, "1KiB": 1024, "64MiB": 64 << 20, "64 MiB": 64 << 20, "1.5GiB": 3 << 29,
		"2GiB": 2 << 30, "3TiB": 3 << 40, " 7 ": 7, "18446744073709551615": math.MaxUint64,
	} {
		got, err := parseSize(text)
		require.NoError(t, err, text)
		assert.Equal(t, byteSize(want), got, text)
	}
	for _, text := range []string{
		"", "MiB", "-1", "+1", "1MB", "1M", "1kib", "1 i", "1.2.3GiB", "NaN", "Inf", "1e3", "0x10", "1_000", "16777216TiB", "18446744073709551616", "1Bi",
	} {
		_, err := parseSize(text)
		assert.Error(t, err, text)
	}
}

// TestSizesSurvivePrinting shows that a printed size is within 5 % of the number, and parses.
func TestSizesSurvivePrinting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(0, math.MaxUint64>>1).Draw(t, "bytes")
		text := formatSize(n)
		got, err := parseSize(text)
		require.NoError(t, err, text)
		require.InDelta(t, float64(n), float64(got), float64(n)*0.05+0.5, text)
	})
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1 MiB", 64 << 20: "64 MiB", 1 << 50: "1024 TiB",
	} {
		assert.Equal(t, want, formatSize(n))
	}
}
