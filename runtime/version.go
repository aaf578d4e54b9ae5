package runtime

// Generated code states the version of its contract with this package; the constants below are the
// range of versions that this package supports. A generated file outside that range does not
// compile, and the comment beside its guard says how to fix it.
const (
	// MinGenerated is the oldest version of generated code that this package supports.
	MinGenerated = 2
	// MaxGenerated is the newest version of generated code that this package supports: the version
	// that its own plugin emits.
	MaxGenerated = 2
)

// EnforceVersion is the type of the guard: a constant of it cannot be negative. Generated code
// contains
//
//	const (
//		// Too old for this runtime? Run: go install github.com/raylink/raylink/cmd/protoc-gen-raylink && buf generate
//		_ = runtime.EnforceVersion(2 - runtime.MinGenerated)
//		// Too new for this runtime? Run: go get github.com/raylink/raylink
//		_ = runtime.EnforceVersion(runtime.MaxGenerated - 2)
//	)
type EnforceVersion uint
