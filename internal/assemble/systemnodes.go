package assemble

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/storage"
)

// The paths of the nodes that every system has.
const (
	StoragePath = "storage-0"
	CaptainPath = "ps-0"
)

// withSystemTypes adds the node types that every process can host: storages, replays and parameter
// servers. If a name or a service is the program's own too, the program's type takes precedence.
func withSystemTypes(o runtime.Options) runtime.Options {
	hosts.SetSystemTypes(&o, append([]runtime.NodeType{storage.Type(), replay.Type()}, ps.Types()...))
	return o
}

// Configuration is that of the system's own nodes. The zero value has their defaults.
type Configuration struct {
	// Storage configures the storage; nil means its defaults, with which the data are only in
	// memory.
	Storage *storagev1.StorageConfig
	// Captain configures the parameter server's captain; nil means its defaults.
	Captain *psv1.CaptainConfig
}

// StartInProcess creates the system's own nodes in this process, for an embedded Brain: they end
// with it, after all other nodes.
func (c Configuration) StartInProcess(ctx context.Context, h *runtime.Host) error {
	return c.start(ctx, h, hosts.ProvideNode)
}

// StartSupervised creates the system's own nodes, each in a process of its own, for a Brain that
// has a process of its own: they outlive its death, and are restarted after theirs. A node that has
// outlived the last Brain keeps its configuration until it is restarted.
func (c Configuration) StartSupervised(ctx context.Context, h *runtime.Host) error {
	return c.start(ctx, h, hosts.SuperviseNode)
}

func (c Configuration) start(
	ctx context.Context, h *runtime.Host, add func(ctx context.Context, h *runtime.Host, service string, config proto.Message) error,
) error {
	var storage, captain proto.Message // a nil pointer in one of them would be a configuration
	if c.Storage != nil {
		storage = c.Storage
	}
	if err := add(ctx, h, storagev1raylink.StorageName, storage); err != nil {
		return fmt.Errorf("the storage: %w", err)
	}
	if c.Captain != nil {
		captain = c.Captain
	}
	if err := add(ctx, h, psv1raylink.CaptainName, captain); err != nil {
		return fmt.Errorf("the parameter server: %w", err)
	}
	return nil
}
