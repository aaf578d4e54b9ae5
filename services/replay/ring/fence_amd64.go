package ring

// fence orders the memory accesses of a head; see word.go.
type fence struct{}

// barrier orders the memory accesses before it against those after it. Here the processor does.
func (*fence) barrier() {}
