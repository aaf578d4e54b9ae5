package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

// content returns parameters of which no two chunks of a version, and no two versions, are alike.
func content(id uint64, size int) []byte {
	b := make([]byte, size)
	state := id
	for i := range b {
		state = state*6364136223846793005 + 1442695040888963407
		b[i] = byte(state >> 56)
	}
	return b
}

// write writes all chunks of a draft from the given one on.
func write(d *Draft, from int, parameters []byte) error {
	for i := from; i < d.Chunks(); i++ {
		chunk := parameters[i*ChunkSize : min(len(parameters), (i+1)*ChunkSize)]
		if err := d.WriteChunk(i, chunk, Checksum(chunk)); err != nil {
			return err
		}
	}
	return nil
}

func TestIncompleteDraftIsNotPublished(t *testing.T) {
	s := newStore(t, Options{})
	parameters := content(1, 2*ChunkSize+1)
	v := &psv1.Version{Tag: "w", Id: 1, Size: uint64(len(parameters))}
	d, err := s.Reserve(v, "")
	require.NoError(t, err)
	require.NoError(t, d.WriteChunk(0, parameters[:ChunkSize], Checksum(parameters[:ChunkSize])))
	_, err = s.Publish(d, v)
	require.ErrorIs(t, err, ErrVersion)
	_, err = reader(t, s, "w").Pull()
	require.ErrorIs(t, err, ErrNoVersion)

	require.NoError(t, write(d, 1, parameters))
	published, err := s.Publish(d, v)
	require.NoError(t, err)
	require.True(t, published)
	p, err := reader(t, s, "w").Pull()
	require.NoError(t, err)
	require.Equal(t, parameters, p.Bytes())
	require.NoError(t, p.Release())
}
