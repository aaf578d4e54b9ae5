// Package checkpoint has the files of a checkpoint: a copy of a replay in a directory.
//
//	checkpoint.json   the manifest: columns, counts, tables, and the size and checksum of each file
//	rows              the rows, in the order of their sequence numbers
//	table-0, ...      the items of each table, in the order of the configuration
//
// A [Writer] writes them into a directory beside the target, the manifest last, waits until they
// are on the disk, and renames the directory. So a target is complete or does not exist, whatever
// happens to the writer. Files are for this user only.
//
// A [Reader] takes no byte for granted: it refuses a directory with a file too many, too few, or of
// another size, and each chunk whose checksum is wrong, before it is used.
//
// A file of rows or items begins with eight bytes that name its kind. Chunks follow:
//
//	0   length of the content, uint64, little-endian
//	8   CRC-32C of the content, uint32
//	12  CRC-32C of the first twelve bytes, uint32
//	16  content
//
// The content of a chunk of rows is the number of runs, and of each run the first sequence number
// and the length, all as unsigned varints; then each column of all rows, back to back. That of a
// chunk of items is the number of items, a varint, and then each item, as package saved encodes it.
package checkpoint

import (
	"errors"
	"hash/crc32"
)

// Errors that a caller may act on. They are returned wrapped.
var (
	// ErrDamaged means that a directory is not a complete checkpoint: a file is missing, damaged,
	// or not one of the checkpoint's.
	ErrDamaged = errors.New("not a complete checkpoint")
	// ErrDirectory means that a checkpoint can't be written to a directory.
	ErrDirectory = errors.New("a checkpoint can't be written there")
)

// Version is that of the format.
const Version = 1

const (
	manifestName = "checkpoint.json"
	rowsName     = "rows"
	tablePrefix  = "table-"
	// unfiltered is added to the name of a table's file until it is known which rows are there.
	unfiltered = ".all"

	magicLength = 8
	rowsMagic   = "RLROWS\r\n"
	itemsMagic  = "RLITEM\r\n"
	chunkHeader = 16

	// maxManifest bounds the manifest's file.
	maxManifest = 16 << 20
	// chunkBytes is about the size of a chunk, if it has more than one row.
	chunkBytes = 4 << 20
	// maxChunkRows bounds the rows of a chunk, and itemsPerChunk its items, which have about
	// itemBytes at most. Only one with very many runs has more, and none more than maxItemBytes.
	maxChunkRows  = 1 << 16
	itemsPerChunk = 4096
	itemBytes     = 1 << 20
	maxItemBytes  = 64 << 20

	filePermissions   = 0o600
	folderPermissions = 0o700
)

//nolint:gochecknoglobals // constant
var castagnoli = crc32.MakeTable(crc32.Castagnoli)
