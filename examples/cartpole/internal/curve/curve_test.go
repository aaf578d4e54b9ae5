package curve

import (
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func anyCurve() Curve {
	rng := rand.New(rand.NewPCG(1, 1))
	c := Curve{Title: "CartPole-v1, seed 1", Goal: 475, Best: 500}
	for i := range uint64(200) {
		c.Training = append(c.Training, Point{Steps: i * 100, Return: min(500, 10+float64(i)*2.5*rng.Float64()*1.5)})
	}
	for i := range uint64(10) {
		c.Exams = append(c.Exams, Point{Steps: i * 2000, Return: float64(i) * 54})
	}
	return c
}

func TestCurveIsWrittenAsPNG(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]Curve{
		"whole":     anyCurve(),
		"nothing":   {Title: "nothing yet", Goal: 475, Best: 500},
		"one point": {Exams: []Point{{Steps: 1, Return: 9}}, Goal: 475, Best: 500},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "curve.png")
		require.NoError(t, c.WritePNG(path), name)

		file, err := os.Open(path)
		require.NoError(t, err, name)
		size, err := png.DecodeConfig(file)
		require.NoError(t, err, name)
		require.NoError(t, file.Close(), name)
		assert.Greater(t, size.Width, size.Height, name)

		entries, err := os.ReadDir(dir)
		require.NoError(t, err, name)
		assert.Len(t, entries, 1, "no temporary file is left")
	}
}

func TestFailedWriteLeavesNoFile(t *testing.T) {
	t.Parallel()
	require.ErrorIs(t, anyCurve().WritePNG(filepath.Join(t.TempDir(), "missing", "curve.png")), os.ErrNotExist)

	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	require.NoError(t, os.MkdirAll(filepath.Join(taken, "by a directory"), 0o700))
	require.Error(t, anyCurve().WritePNG(taken))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "no temporary file is left")
}

func TestSmoothIsMovingAverage(t *testing.T) {
	t.Parallel()
	rising := make([]Point, 40)
	for i := range rising {
		rising[i] = Point{Steps: uint64(i), Return: float64(i)}
	}
	got := smooth(rising)
	assert.InDelta(t, 0, got[0].Return, 1e-9)
	assert.InDelta(t, 0.5, got[1].Return, 1e-9)
	assert.InDelta(t, 29.5, got[39].Return, 1e-9, "the mean of 20 to 39")
	assert.Equal(t, uint64(39), got[39].Steps)
}
