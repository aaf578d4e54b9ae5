package dqn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// A serialized network consists of a header (magic, version, number of widths), the widths, and the
// parameters as float32, layer by layer, weights before biases. All numbers are little-endian.
const (
	codecMagic   = "CPQN"
	codecVersion = 1
	headSize     = 8
	widthSize    = 4
	paramSize    = 4
)

// ErrNetwork means that bytes are not a valid serialized network.
var ErrNetwork = errors.New("invalid network")

// MarshalBinary serializes the network. The error is always nil.
func (n *Network) MarshalBinary() ([]byte, error) {
	data := make([]byte, 0, headSize+widthSize*len(n.widths)+paramSize*len(n.params))
	data = append(data, codecMagic...)
	data = binary.LittleEndian.AppendUint16(data, codecVersion)
	data = binary.LittleEndian.AppendUint16(data, uint16(len(n.widths))) //nolint:gosec // at most 9
	for _, w := range n.widths {
		data = binary.LittleEndian.AppendUint32(data, uint32(w)) //nolint:gosec // at most 4096
	}
	for _, v := range n.params {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return data, nil
}

// ParseNetwork parses the result of [Network.MarshalBinary]. The input is untrusted: allocations
// are bounded by its length, and parameters that are not finite numbers are rejected.
func ParseNetwork(data []byte) (*Network, error) {
	if len(data) < headSize || string(data[:len(codecMagic)]) != codecMagic {
		return nil, fmt.Errorf("%w: wrong magic number, not %q", ErrNetwork, codecMagic)
	}
	if version := binary.LittleEndian.Uint16(data[4:]); version != codecVersion {
		return nil, fmt.Errorf("%w: version %d, but this program supports only %d", ErrNetwork, version, codecVersion)
	}
	count := int(binary.LittleEndian.Uint16(data[6:]))
	data = data[headSize:]
	if count > maxLayers+1 || len(data) < widthSize*count {
		return nil, fmt.Errorf("%w: invalid number of widths %d", ErrNetwork, count)
	}
	widths := make([]int, count)
	for i := range widths {
		widths[i] = int(min(binary.LittleEndian.Uint32(data[widthSize*i:]), maxWidth+1))
	}
	data = data[widthSize*count:]
	params, err := checkWidths(widths)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNetwork, err)
	}
	if len(data) != paramSize*params {
		return nil, fmt.Errorf("%w: widths %v need %d bytes of parameters instead of %d",
			ErrNetwork, widths, paramSize*params, len(data))
	}
	values := make([]float32, params)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[paramSize*i:]))
		if v := float64(values[i]); math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%w: parameter %d is not a finite number", ErrNetwork, i)
		}
	}
	return bind(widths, values), nil
}

// ParsePolicy parses a network, and returns a policy that uses it if it has the right size for the
// task.
func ParsePolicy(data []byte) (*Policy, error) {
	network, err := ParseNetwork(data)
	if err != nil {
		return nil, err
	}
	return NewPolicy(network)
}
