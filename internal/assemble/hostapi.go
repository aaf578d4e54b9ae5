package assemble

import (
	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/runtime"
)

// hosts are the functions of package runtime that make hosts.
var hosts = hostapi.Get[*runtime.Host, runtime.Options, runtime.Option, runtime.NodeType]() //nolint:gochecknoglobals // never changes

// NewOptions applies options, then the environment, then the defaults. Errors in the environment
// are returned by [Init], [Start] and [ServeBrain].
func NewOptions(opts ...runtime.Option) runtime.Options { return hosts.NewOptions(opts...) }
