package tunnel

import (
	"iter"
	"strings"

	"connectrpc.com/connect/v2"
)

// Field is a key with one value.
type Field struct {
	// Key is in lower case.
	Key string
	// Value may hold any octets.
	Value string
}

// Header is the metadata of a call: keys in lower case, each with any number of values, in the
// order in which they were added. nil is the empty header. A header must not be modified after it
// was passed to a call.
type Header []Field //nolint:recvcheck // as in [net/http.Header], methods that only read use the value; methods that write may replace the slice

// Get returns the key's first value, or "".
func (h Header) Get(key string) string {
	key = strings.ToLower(key)
	for _, f := range h {
		if f.Key == key {
			return f.Value
		}
	}
	return ""
}

// Values returns all values of the key.
func (h Header) Values(key string) []string {
	key = strings.ToLower(key)
	var values []string
	for _, f := range h {
		if f.Key == key {
			values = append(values, f.Value)
		}
	}
	return values
}

// Add appends a value for the key.
func (h *Header) Add(key, value string) {
	*h = append(*h, Field{Key: strings.ToLower(key), Value: value})
}

// Set replaces all values of the key by one.
func (h *Header) Set(key, value string) {
	h.Del(key)
	h.Add(key, value)
}

// Del removes all values of the key.
func (h *Header) Del(key string) {
	key = strings.ToLower(key)
	kept := (*h)[:0]
	for _, f := range *h {
		if f.Key != key {
			kept = append(kept, f)
		}
	}
	*h = kept
}

// All returns an iterator over all keys and values in order.
func (h Header) All() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, f := range h {
			if !yield(f.Key, f.Value) {
				return
			}
		}
	}
}

// HeaderFrom converts a connect header. It returns nil for an empty one. By connect's convention
// the values of keys that end in `-bin` are base64; they are decoded, since a Header holds octets.
// Reserved keys (see [Reserved]) are skipped, as connect's transports do. A field that no call can
// carry is an error, as in [Header.Validate].
func HeaderFrom(from *connect.Header) (Header, error) {
	if from.Len() == 0 {
		return nil, nil
	}
	h := make(Header, 0, from.Len())
	for key, values := range from.All() {
		key = strings.ToLower(key)
		if Reserved(key) {
			continue
		}
		for _, value := range values {
			if !isBinary(key) {
				h = append(h, Field{Key: key, Value: value})
				continue
			}
			// HTTP may join the values of a key with commas, which base64 does not use.
			for part := range strings.SplitSeq(value, ",") {
				octets, err := connect.DecodeBinaryHeader(strings.TrimSpace(part))
				if err != nil {
					return nil, illegal(key, "its value is not base64, as HTTP and connect's headers carry binary values: "+
						"use connect.EncodeBinaryHeader there")
				}
				h = append(h, Field{Key: key, Value: string(octets)})
			}
		}
	}
	if err := h.Validate(); err != nil {
		return nil, err
	}
	return h, nil
}

// CopyTo adds all fields to a connect header, with binary values in base64. It is the inverse of
// [HeaderFrom].
func (h Header) CopyTo(to *connect.Header) {
	for _, f := range h {
		value := f.Value
		if isBinary(f.Key) {
			value = connect.EncodeBinaryHeader([]byte(value))
		}
		to.Add(f.Key, value)
	}
}

// fieldCost is charged for a field in addition to its octets, and approximates the memory that it
// uses: an empty field takes only two octets on the wire.
const fieldCost = 32

// size returns what is charged for a header. It is more than append writes.
func (h Header) size() int {
	n := varintBytes
	for _, f := range h {
		n += fieldCost + len(f.Key) + len(f.Value)
	}
	return n
}

func (h Header) append(b []byte) []byte {
	b = appendInt(b, len(h))
	for _, f := range h {
		b = appendString(b, f.Key)
		b = appendString(b, f.Value)
	}
	return b
}

// header reads a header and returns what is charged for it. If that exceeds room, the header is
// skipped and h is nil.
func (p *parser) header(room int) (h Header, cost int) {
	before := len(p.rest)
	count := p.int()
	// A field takes at least two bytes, so the length of the body limits the count.
	if count > len(p.rest)/2 {
		p.failf("a header of %d fields in %d bytes", count, len(p.rest))
		return nil, 0
	}
	cost = count * fieldCost
	if count > 0 && cost <= room {
		h = make(Header, 0, count)
	}
	for range count {
		key, value := p.bytes(), p.bytes()
		if h != nil && cost+before-len(p.rest) > room {
			h = nil
		}
		if h != nil {
			h = append(h, Field{Key: strings.ToLower(string(key)), Value: string(value)})
		}
	}
	return h, cost + before - len(p.rest)
}
