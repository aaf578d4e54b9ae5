// Package invariants says which of the checks that are too expensive for release builds this build
// performs. The constants are false in release builds, so that the compiler removes the checks:
//
//	if invariants.Enabled {
//		if err := m.audit(); err != nil {
//			panic(err)
//		}
//	}
package invariants

// Enabled is set with the race detector and with the build tag `invariants`. Packages then audit
// their own state, and panic if it is inconsistent.
const Enabled = RaceEnabled || Messages

// Messages is set with the build tag `invariants` only. Messages that pass within the process then
// have fingerprints, and are encoded and decoded as on any other way. A call fails that breaks the
// rules for messages, so the race detector alone does not enable this: it must not change the
// result of a call.
const Messages = tagged
