package runtime

import "github.com/raylink/raylink/internal/hostapi"

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
	})
}
