// Package proto has the schemas that users' schemas import: the options that make a service a node, the messages that travel
// between nodes, and those of the services that every system has. Protoc-gen-raylink carries them, and writes them into a
// user's repository with --export.
package proto

import "embed"

// Schemas are the files, by the paths that an import statement uses.
//
//go:embed raylink/options/v1/options.proto raylink/node/v1/node.proto raylink/tensor/v1/tensor.proto
//go:embed raylink/replay/v1/replay.proto raylink/storage/v1/storage.proto raylink/ps/v1/ps.proto raylink/brain/v1/brain.proto
var Schemas embed.FS
