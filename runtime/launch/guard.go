//go:build !unguarded

package launch

// guarded is false only in the builds that show that the checkers would notice: there a parent
// listens to any build.
const guarded = true
