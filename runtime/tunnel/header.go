package tunnel

import (
	"fmt"
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

// The rules for metadata are the same for every path of a call, and are defined here: within a
// process, through a tunnel, and over HTTP/1.1 and HTTP/2 in each of connect's protocols. A rule of
// one path only would let a program work until its parts are deployed differently.

// MaxHeaderSize limits the metadata of one call in each direction: of its request, and of its
// response including trailers. A field counts as its key, its value and 32 bytes, as in HPACK (RFC
// 7541).
const MaxHeaderSize = 32 << 10

const fieldOverhead = 32

// Size returns what counts towards [MaxHeaderSize].
func (h Header) Size() int {
	n := 0
	for _, f := range h {
		n += fieldOverhead + len(f.Key) + len(f.Value)
	}
	return n
}

// Validate returns an InvalidArgument error that names the first field that no call can carry, or a
// ResourceExhausted error if the header is larger than [MaxHeaderSize].
func (h Header) Validate() error {
	for _, f := range h {
		if err := ValidateField(f.Key, f.Value); err != nil {
			return err
		}
	}
	return h.ValidateSize()
}

// ValidateSize returns a ResourceExhausted error if the header is larger than [MaxHeaderSize].
func (h Header) ValidateSize() error {
	if size := h.Size(); size > MaxHeaderSize {
		return connect.Errorf(connect.CodeResourceExhausted,
			"metadata of %d bytes exceeds the limit of %d: send large values in messages", size, MaxHeaderSize)
	}
	return nil
}

// ValidateField returns an InvalidArgument error if no call can carry the field. Keys consist of
// a-z, 0-9, `-`, `_` and `.`, and must not be reserved. Keys that end in `-bin` may have any octets
// as values; the values of others are printable ASCII without leading or trailing spaces.
func ValidateField(key, value string) error {
	if key == "" {
		return illegal(key, "a key must not be empty")
	}
	for _, c := range []byte(key) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return illegal(key, "keys consist of letters, digits, '-', '_' and '.'")
		}
	}
	if Reserved(key) {
		return illegal(key, "the key is reserved for transports")
	}
	if isBinary(key) {
		return nil
	}
	for i := range len(value) {
		if value[i] < ' ' || value[i] > '~' {
			return illegal(key, fmt.Sprintf("byte %d of its value is %#02x; values are printable ASCII, unless the key ends in -bin", i, value[i]))
		}
	}
	if strings.TrimSpace(value) != value {
		return illegal(key, "its value begins or ends with a space, which HTTP removes; use a key that ends in -bin")
	}
	return nil
}

func illegal(key, why string) *connect.Error {
	return connect.Errorf(connect.CodeInvalidArgument, "metadata %q can't be sent: %s", key, why)
}

func isBinary(key string) bool { return strings.HasSuffix(key, "-bin") }

// Reserved reports whether a key, in lower case, is reserved for transports and cannot be metadata.
// Reserved are the keys that HTTP, connect, gRPC and gRPC-Web use to carry calls, and those that
// concern admission: credentials, cookies, and what browsers send about pages.
func Reserved(key string) bool {
	if reservedKeys[key] {
		return true
	}
	for _, prefix := range reservedPrefixes {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

//nolint:gochecknoglobals // constant
var (
	reservedPrefixes = []string{
		"raylink-", "connect-", "grpc-", "trailer-", // connect's unary trailers are headers with this prefix
		"proxy-", "sec-", "access-control-", "x-forwarded-",
	}
	reservedKeys = map[string]bool{
		"connection": true, "keep-alive": true, "te": true, "trailer": true, "transfer-encoding": true, "upgrade": true,
		"http2-settings": true, "host": true, "expect": true, "date": true, "user-agent": true, "x-user-agent": true,
		"x-grpc-web": true, "accept": true, "accept-encoding": true,
		"content-type": true, "content-length": true, "content-encoding": true,
		"authorization": true, "cookie": true, "cookie2": true, "set-cookie": true, "origin": true,
	}
)
