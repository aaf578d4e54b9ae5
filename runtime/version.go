package runtime

// Generated code says for which version of its contract with this package it was made; the two
// constants below say which ones this package fulfils. A file that does not fit does not compile,
// and the comment beside its guard says how to mend it.
const (
	// MinGenerated is the oldest generated code that this package supports.
	MinGenerated = 2
	// MaxGenerated is the newest generated code that this package supports: what its own plugin
	// emits.
	MaxGenerated = 2
)

// EnforceVersion is the guard's type: a constant of it can't be negative. Generated code holds
//
//	const (
//		// Too old for this runtime? Run: go install github.com/raylink/raylink/cmd/protoc-gen-raylink && buf generate
//		_ = runtime.EnforceVersion(2 - runtime.MinGenerated)
//		// Too new for this runtime? Run: go get github.com/raylink/raylink
//		_ = runtime.EnforceVersion(runtime.MaxGenerated - 2)
//	)
type EnforceVersion uint
