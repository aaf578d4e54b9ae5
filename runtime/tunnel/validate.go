package tunnel

import (
	"fmt"
	"strings"

	"connectrpc.com/connect/v2"
)

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
			"metadata of %d bytes is more than a call can carry, which is %d: send large values in messages", size, MaxHeaderSize)
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
		return illegal(key, "the transports use that key themselves")
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
