// Package proto embeds the schemas that users' schemas import: the options that make a service a
// node, the messages that travel between nodes, and the schemas of the services that every system
// has. protoc-gen-raylink embeds this package, and writes the schemas into a user's repository with
// --export.
package proto

import "embed"

// Schemas holds the files under the paths that import statements use.
//
//go:embed raylink/options/v1/options.proto raylink/node/v1/node.proto raylink/tensor/v1/tensor.proto
//go:embed raylink/replay/v1/*.proto raylink/storage/v1/storage.proto raylink/ps/v1/ps.proto raylink/brain/v1/brain.proto
//go:embed raylink/brain/v1/access.proto raylink/machine/v1/machine.proto raylink/agent/v1/agent.proto
var Schemas embed.FS
