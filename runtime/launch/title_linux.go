package launch

import "os"

// threadName is how many bytes of a name the kernel stores.
const threadName = 15

// nameProcess sets the process's name in tools that show only the executable's (top, pstree), where
// all hosts would be `exe`.
func nameProcess(name string) {
	_ = os.WriteFile("/proc/self/comm", []byte(short(name, threadName)), 0) // informational only
}

// short is the end of a name that fits into n bytes: the index at the end distinguishes siblings.
func short(name string, n int) string { return name[max(0, len(name)-n):] }
