package runtime

import (
	"context"

	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	"github.com/raylink/raylink/internal/hostapi"
)

func init() { //nolint:gochecknoinits // hostapi cannot import this package
	hostapi.Set(hostapi.Functions[*Host, Options, Option, NodeType]{
		NewOptions: newOptions,
		IgnoreBrainFromEnvironment: func() Option {
			return optionFunc(func(o *Options) { o.alone = true })
		},
		SetSystemTypes: func(o *Options, types []NodeType) { o.systemTypes = types },
		Start:          startHost,
		ServeChild:     serveChild,
		ProvideNode:    provideNode,
		SuperviseNode:  superviseNode,
		Machine:        func(h *Host) *machinev1.Machine { return h.machines.declared },
		CloseMachine:   func(ctx context.Context, h *Host) error { return h.machines.close(ctx) },
		WatchMachines:  watchMachines,
		DeclaredDead:   func(h *Host) <-chan struct{} { return h.declaredDead },
	})
}
