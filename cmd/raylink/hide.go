package main

import (
	"os"
	"strings"
	"unsafe" //nolint:depguard // it makes bytes of os.Args, which lie in memory that is this process's to write
)

// hideArgument overwrites a flag's value among this process's arguments, where whoever lists the machine's processes reads them.
// Go's strings of os.Args lie in the very memory that the system shows. That memory is the process's to write; nothing else
// refers to it. Until it has run, the value could be seen: a file or the environment keeps it from the beginning.
func hideArgument(flag string) {
	next := false
	for _, arg := range os.Args[min(1, len(os.Args)):] {
		value := ""
		switch {
		case next:
			value, next = arg, false
		case arg == flag:
			next = true
		case strings.HasPrefix(arg, flag+"="):
			value = arg[len(flag)+1:]
		}
		if value != "" {
			b := unsafe.Slice(unsafe.StringData(value), len(value)) //nolint:gosec // see above
			for i := range b {
				b[i] = 'x'
			}
		}
	}
}
