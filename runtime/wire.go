package runtime

import "encoding/binary"

// appendString writes a string with its length in front.
func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// cutString reads what appendString wrote.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)-k) { //nolint:gosec // k is at most len(b)
		return "", nil, false
	}
	return string(b[k : k+int(n)]), b[k+int(n):], true //nolint:gosec // n is at most len(b)
}
