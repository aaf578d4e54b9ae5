package runtime

import "encoding/binary"

// appendString appends a string with its length as a prefix.
func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// cutString decodes what appendString has encoded.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)-k) { //nolint:gosec // k is at most len(b)
		return "", nil, false
	}
	return string(b[k : k+int(n)]), b[k+int(n):], true //nolint:gosec // n is at most len(b)
}
