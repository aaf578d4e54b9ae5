package launch

import "os"

// threadName is how many bytes of a name the kernel keeps.
const threadName = 15

// nameProcess names the process where only its executable's name is shown (top, pstree): all hosts
// would be `exe`.
func nameProcess(name string) {
	_ = os.WriteFile("/proc/self/comm", []byte(short(name, threadName)), 0) // it only helps people
}

// short is the end of a name that fits into n bytes: its index tells it from its siblings.
func short(name string, n int) string { return name[max(0, len(name)-n):] }
