package runtime

import (
	"encoding/binary"
	"strconv"
	"strings"
)

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

// targetOf encodes one incarnation of a node for the wire: `nid` or `nid@incarnation`. The empty
// target is the host itself.
func targetOf(nid string, incarnation uint64) string {
	if incarnation == 0 {
		return nid
	}
	return nid + "@" + strconv.FormatUint(incarnation, 10)
}

// wire encodes a caller for the wire, and parseCaller decodes it. A caller outside nodes is empty.
func (c Caller) wire() string { return c.NID + " " + c.Path }

func parseCaller(s string) *Caller {
	if s == "" {
		return nil
	}
	nid, path, _ := strings.Cut(s, " ")
	return &Caller{NID: nid, Path: path}
}
