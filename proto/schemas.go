// Package proto has the schemas that users' schemas import: the options that make a service a node, and the messages that
// travel between nodes. Protoc-gen-raylink carries them, and writes them into a user's repository with --export.
package proto

import "embed"

// Schemas are the files, by the paths that an import statement uses.
//
//go:embed raylink/options/v1/options.proto raylink/node/v1/node.proto
var Schemas embed.FS
