package table

import (
	"os"
	"unsafe" //nolint:depguard // to name memory to the kernel, which neither reads nor writes it

	"golang.org/x/sys/unix"
)

// hugeSlab is the size in bytes from which memory is to have huge pages, of at most half of it.
const hugeSlab = 4 << 20

// adviseHuge asks for huge pages for a slab that was just allocated. If that fails, only speed is
// lost.
func adviseHuge[T any](slab []T) {
	var element T
	size := uintptr(len(slab)) * unsafe.Sizeof(element)
	if size < hugeSlab {
		return
	}
	page := uintptr(os.Getpagesize())
	//nolint:gosec // the slab's bytes, and the address of the first one
	first := (*byte)(unsafe.Pointer(unsafe.SliceData(slab)))
	skip := -uintptr(unsafe.Pointer(first)) & (page - 1) //nolint:gosec // as above
	memory := unsafe.Slice(first, size)[skip:]           //nolint:gosec // as above
	_ = unix.Madvise(memory[:uintptr(len(memory))&^(page-1)], unix.MADV_HUGEPAGE)
}
