package tunnel

import (
	"iter"
	"strings"

	"connectrpc.com/connect/v2"
)

// Field is one key with one value.
type Field struct {
	// Key is in lower case.
	Key string
	// Value is any octets.
	Value string
}

// Header is what travels with a call beside its messages: keys in lower case, each with any number
// of values, in the order they were added. nil is the empty one. A header that was given to a call
// is not changed from then on.
type Header []Field //nolint:recvcheck // reading takes the slice, as [net/http.Header] does; writing may replace it

// Get is the key's first value, or "".
func (h Header) Get(key string) string {
	key = strings.ToLower(key)
	for _, f := range h {
		if f.Key == key {
			return f.Value
		}
	}
	return ""
}

// Values are all of the key's values.
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

// Add appends a value to the key's.
func (h *Header) Add(key, value string) {
	*h = append(*h, Field{Key: strings.ToLower(key), Value: value})
}

// Set replaces the key's values by one.
func (h *Header) Set(key, value string) {
	h.Del(key)
	h.Add(key, value)
}

// Del removes the key's values.
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

// All yields every key and value in order.
func (h Header) All() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, f := range h {
			if !yield(f.Key, f.Value) {
				return
			}
		}
	}
}

// HeaderFrom copies a connect header. It is nil where that is empty. By connect's convention the
// values of keys that end in `-bin` are base64, which is decoded here: a Header has the octets.
// Reserved keys (see [Reserved]) are left out, as connect's transports leave them out. Fields that
// no call can carry are refused as [Header.Validate] does.
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
			// HTTP may join the values of one key with commas, which base64 does not use.
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

// CopyTo adds all fields to a connect header, binary values as base64: the reverse of [HeaderFrom].
func (h Header) CopyTo(to *connect.Header) {
	for _, f := range h {
		value := f.Value
		if isBinary(f.Key) {
			value = connect.EncodeBinaryHeader([]byte(value))
		}
		to.Add(f.Key, value)
	}
}

// fieldCost is what a field of a header counts for beside its octets, about what it takes to hold:
// an empty field takes two octets on the wire.
const fieldCost = 32

// size is what a header counts for, which is more than append will write.
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

// header reads a header, and returns what it counts for. One that counts for more than room is
// skipped.
func (p *parser) header(room int) (h Header, cost int) {
	before := len(p.rest)
	count := p.int()
	// A field takes two bytes at least, so the body's length bounds the count.
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
