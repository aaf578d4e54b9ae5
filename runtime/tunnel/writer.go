package tunnel

import (
	"net"
	"runtime"
)

// batch is the input of one write: the common buffer, with the headers of fragments appended, and
// the fragments, which are written from where they are.
type batch struct {
	buf   []byte
	cuts  []cut
	taken []*parcel
	iov   net.Buffers
	// begun is set if flush has collected the batch and written only its first done bytes.
	begun bool
	done  int
}

// cut inserts a fragment into the output at an offset of the buffer.
type cut struct {
	at       int
	fragment []byte
}

// collect fills the next batch, and reports whether there is anything to write.
func (o *outbox) collect(b *batch) bool {
	if len(o.buf) == 0 && len(o.ring) == 0 {
		return false
	}
	o.calls, o.pongs = 0, 0
	o.full.Store(false)
	b.buf, o.buf, o.spare, o.usual = o.buf, o.spare[:0], nil, len(o.buf)
	for total := 0; total < batchBytes && len(o.ring) > 0; {
		l := o.ring[0]
		if l.ready() { // credit and parcels may be gone since the lane was added
			n := o.take(l, b)
			total += n
			l.turn += n
		}
		ready := l.ready()
		if ready && l.turn < turnBytes {
			continue
		}
		l.turn = 0
		copy(o.ring, o.ring[1:])
		if ready {
			o.ring[len(o.ring)-1] = l
			continue
		}
		o.ring[len(o.ring)-1] = nil
		o.ring = o.ring[:len(o.ring)-1]
		l.ringed = false
	}
	if len(b.buf) == 0 {
		o.spare, b.buf = b.buf, nil
		return false
	}
	return true
}

// take adds the next fragment of a lane to the batch and returns its size with the frame header.
func (o *outbox) take(l *lane, b *batch) int {
	p, n := l.parcels[0], l.room(o.maxFragment)
	k, flags, length := kindData, uint8(0), n
	var size []byte
	if !p.started {
		k, flags = p.kind, p.flags
		if n < p.rest() {
			flags |= flagSized
			size = appendInt(size, p.rest())
		}
		length += len(p.meta) + len(size)
		if l.stream {
			l.credit -= messageCost
		}
		p.started = true
	}
	if l.stream {
		l.credit -= n + len(size)
	}
	b.buf = makeHeader(k, flags, p.id, length).append(b.buf)
	if k != kindData || flags&flagSized != 0 {
		b.buf = append(b.buf, p.meta...)
		b.buf = append(b.buf, size...)
	}
	p.body.take(n, func(part []byte) { b.cuts = append(b.cuts, cut{at: len(b.buf), fragment: part}) })
	if !p.borrowed {
		p.borrowed = true
		b.taken = append(b.taken, p)
	}
	p.off += n
	if p.reply {
		o.replyBytes -= n
	}
	if p.rest() == 0 {
		l.parcels[0] = nil
		l.parcels = l.parcels[1:]
		o.settle(p)
		o.finish(p)
	}
	return n + headerBytes
}

// vectors returns the batch as a list of buffers for writev.
func (b *batch) vectors() net.Buffers {
	b.iov = b.iov[:0]
	from := 0
	for _, c := range b.cuts {
		if c.at > from {
			b.iov = append(b.iov, b.buf[from:c.at])
		}
		b.iov = append(b.iov, c.fragment)
		from = c.at
	}
	if from < len(b.buf) {
		b.iov = append(b.iov, b.buf[from:])
	}
	return b.iov
}

// size returns the number of bytes in the batch.
func (b *batch) size() int {
	n := len(b.buf)
	for _, c := range b.cuts {
		n += len(c.fragment)
	}
	return n
}

// rest returns the unwritten part of the batch. It must not be empty.
func (b *batch) rest() net.Buffers {
	iov, skip := b.vectors(), b.done
	for skip > 0 && len(iov[0]) <= skip {
		skip -= len(iov[0])
		iov = iov[1:]
	}
	iov[0] = iov[0][skip:]
	return iov
}

// release frees the buffers of a written batch. The caller must hold c.mu.
func (o *outbox) release(b *batch) {
	for i, p := range b.taken {
		p.borrowed = false
		if p.finished && p.body != nil {
			p.body.free()
			p.body = nil
		}
		b.taken[i] = nil
	}
	b.taken = b.taken[:0]
	clear(b.cuts)
	b.cuts = b.cuts[:0]
	clear(b.iov) // drop references to the memory of messages
	b.iov = b.iov[:0]
	o.spare, b.buf = b.buf[:0], nil
	b.begun, b.done = false, 0
}

// restBytes is the largest buffer kept while there is nothing to write.
const restBytes = 4 << 10

// rest frees large buffers when there is nothing to write, so that an idle connection holds little
// memory.
func (o *outbox) rest() {
	if cap(o.spare) > restBytes {
		recycle(o.spare)
		o.spare = nil
	}
	if cap(o.buf) > restBytes && len(o.buf) == 0 {
		recycle(o.buf)
		o.buf = nil
	}
}

// kick starts a writer goroutine if there is something to write and none is running. The caller
// must hold c.mu.
func (c *Conn) kick() {
	if c.startWriting() {
		go c.writing()
	}
}

func (c *Conn) startWriting() bool {
	if c.out.writing || c.out.corked || c.err != nil || (len(c.out.buf) == 0 && len(c.out.ring) == 0) {
		return false
	}
	c.out.writing = true
	return true
}

// write is the writer goroutine: it writes until nothing is queued. What is queued during a write
// goes out with the next one. No timer delays frames, and batches grow with the load.
func (c *Conn) write() {
	b := &c.out.batch
	// Let other goroutines queue their frames first, so that they share the write.
	runtime.Gosched()
	c.mu.Lock()
	for c.err == nil && (b.begun || c.out.collect(b)) {
		c.resumeReading()
		c.mu.Unlock()
		n, err := b.writeTo(c.nc)
		c.sent.Add(uint64(n)) //nolint:gosec // not negative
		c.mu.Lock()
		c.out.release(b)
		if err != nil {
			c.mu.Unlock()
			c.fail(lost(err))
			c.mu.Lock()
		}
	}
	c.stopWriting()
	c.mu.Unlock()
}

func (c *Conn) stopWriting() {
	c.out.writing = false
	c.out.rest()
	c.checkQuiet()
}

// writeTo writes the part of the batch that has not been written yet.
func (b *batch) writeTo(nc net.Conn) (int64, error) {
	if len(b.cuts) == 0 {
		n, err := nc.Write(b.buf[b.done:])
		return int64(n), err
	}
	iov := b.rest()
	return iov.WriteTo(nc)
}
