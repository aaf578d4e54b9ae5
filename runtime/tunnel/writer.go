package tunnel

import (
	"net"
	"runtime"

	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// batch is the input of one write: the common buffer, with the headers of fragments appended, and
// the fragments, which are written from where they are.
type batch struct {
	buf      []byte
	cuts     []cut
	messages []*outMessage
	iov      net.Buffers
	// partial is set if flush has collected the batch and written only its first done bytes.
	partial bool
	done    int
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
	b.buf, o.buf, o.spare, o.lastSize = o.buf, o.spare[:0], nil, len(o.buf)
	for total := 0; total < batchBytes && len(o.ring) > 0; {
		q := o.ring[0]
		if q.ready() { // credit and messages may be gone since the queue was added
			n := o.addFragment(q, b)
			total += n
			q.quantumUsed += n
		}
		ready := q.ready()
		if ready && q.quantumUsed < quantumBytes {
			continue
		}
		q.quantumUsed = 0
		copy(o.ring, o.ring[1:])
		if ready {
			o.ring[len(o.ring)-1] = q
			continue
		}
		o.ring[len(o.ring)-1] = nil
		o.ring = o.ring[:len(o.ring)-1]
		q.inRing = false
	}
	if len(b.buf) == 0 {
		o.spare, b.buf = b.buf, nil
		return false
	}
	return true
}

// addFragment adds the next fragment of a queue to the batch and returns its size with the frame
// header.
func (o *outbox) addFragment(q *sendQueue, b *batch) int {
	m, n := q.messages[0], q.sendable(o.maxFragment)
	k, flags, length := kindData, uint8(0), n
	var size []byte
	if !m.started {
		k, flags = m.kind, m.flags
		if n < m.remaining() {
			flags |= flagSized
			size = appendInt(size, m.remaining())
		}
		length += len(m.meta) + len(size)
		if q.stream {
			q.credit -= messageCost
		}
		m.started = true
	}
	if q.stream {
		q.credit -= n + len(size)
	}
	b.buf = makeHeader(k, flags, m.id, length).append(b.buf)
	if k != kindData || flags&flagSized != 0 {
		b.buf = append(b.buf, m.meta...)
		b.buf = append(b.buf, size...)
	}
	m.body.Next(n, func(part []byte) { b.cuts = append(b.cuts, cut{at: len(b.buf), fragment: part}) })
	if !m.inBatch {
		m.inBatch = true
		b.messages = append(b.messages, m)
	}
	m.off += n
	if m.reply {
		o.replyBytes -= n
	}
	if m.remaining() == 0 {
		q.messages[0] = nil
		q.messages = q.messages[1:]
		o.removeIfEmpty(m)
		o.finish(m)
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

// unwritten returns the unwritten part of the batch. It must not be empty.
func (b *batch) unwritten() net.Buffers {
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
	for i, m := range b.messages {
		m.inBatch = false
		if m.finished && m.body != nil {
			m.body.Free()
			m.body = nil
		}
		b.messages[i] = nil
	}
	b.messages = b.messages[:0]
	clear(b.cuts)
	b.cuts = b.cuts[:0]
	clear(b.iov) // drop references to the memory of messages
	b.iov = b.iov[:0]
	o.spare, b.buf = b.buf[:0], nil
	b.partial, b.done = false, 0
}

// maxIdleBuffer is the largest buffer kept while there is nothing to write.
const maxIdleBuffer = 4 << 10

// shrink frees large buffers when there is nothing to write, so that an idle connection holds
// little memory.
func (o *outbox) shrink() {
	if cap(o.spare) > maxIdleBuffer {
		codec.PutBytes(o.spare)
		o.spare = nil
	}
	if cap(o.buf) > maxIdleBuffer && len(o.buf) == 0 {
		codec.PutBytes(o.buf)
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
	for c.err == nil && (b.partial || c.out.collect(b)) {
		c.resumeReading()
		c.mu.Unlock()
		n, err := b.writeTo(c.nc)
		c.sent.Add(uint64(n)) //nolint:gosec // not negative
		c.mu.Lock()
		c.out.release(b)
		if err != nil {
			c.mu.Unlock()
			c.fail(lostError(err))
			c.mu.Lock()
		}
	}
	c.stopWriting()
	c.mu.Unlock()
}

func (c *Conn) stopWriting() {
	c.out.writing = false
	c.out.shrink()
	c.checkIdle()
}

// writeTo writes the part of the batch that has not been written yet.
func (b *batch) writeTo(nc net.Conn) (int64, error) {
	if len(b.cuts) == 0 {
		n, err := nc.Write(b.buf[b.done:])
		return int64(n), err
	}
	iov := b.unwritten()
	return iov.WriteTo(nc)
}
