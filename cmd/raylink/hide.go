package main

import (
	"os"
	"strings"
	"unsafe" //nolint:depguard // it makes bytes of os.Args, which lie in memory that is this process's to write
)

// hideArgument overwrites a flag's value in this process's arguments, which every user can list.
// The strings of os.Args lie in the memory that the kernel shows; it is writable, and nothing else
// refers to it. Until this function has run, the value is visible: a file or the environment avoids
// that.
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
