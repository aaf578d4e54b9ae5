package mailbox

// takeForQueue acquires a turn for a goroutine that is about to drain the queue, if one is free and
// work is waiting for it. The caller must hold m.mu.
func (m *Mailbox) takeForQueue() bool {
	if m.free == 0 || m.queue.len+m.resuming.len <= m.starting {
		return false
	}
	m.free--
	m.holding++
	m.starting++
	return true
}

// next passes the caller's turn on to the first waiter. It returns work for the caller to run with
// that turn, or nil if the turn went elsewhere or is free again. The caller must hold m.mu.
func (m *Mailbox) next() *Entry {
	if e := m.resuming.pop(); e != nil {
		m.restore(e.resumes)
		return nil
	}
	e := m.queue.pop()
	if e == nil {
		m.free++
		m.holding--
		m.endIfIdle()
		return nil
	}
	m.bytes -= e.Bytes
	if e.granted != nil {
		e.granted <- nil
		return nil
	}
	e.turn = Turn{mailbox: m, held: 1, drained: true, of: e.Work}
	m.running.push(&e.turn)
	return e
}

// drain runs queued work with the turn acquired by takeForQueue.
func (m *Mailbox) drain() {
	m.mu.Lock()
	m.starting--
	e := m.next()
	m.step()
	m.mu.Unlock()
	m.drainFrom(e)
}

// drainFrom runs e and the work queued behind it, with the turn that the goroutine holds.
func (m *Mailbox) drainFrom(e *Entry) {
	for e != nil {
		e = m.run(e)
	}
}

// run runs one piece of work and returns the next to run with the same turn; nil if the work has
// given the turn back, with which another goroutine continues. If the work ends its goroutine
// (runtime.Goexit), another goroutine continues with the turn, too.
func (m *Mailbox) run(e *Entry) (next *Entry) {
	returned := false
	defer func() {
		m.mu.Lock()
		next = m.end(&e.turn)
		m.step()
		m.mu.Unlock()
		if !returned && next != nil {
			go m.drainFrom(next)
		}
	}()
	e.Work.Run(&e.turn)
	returned = true
	return nil
}

// busy reports whether anything is running or waiting. The caller must hold m.mu.
func (m *Mailbox) busy() bool { return m.holding+m.suspended+m.turnless+m.concurrent+m.queue.len > 0 }

// endIfIdle ends the mailbox if it is closed and nothing is left. The caller must hold m.mu.
func (m *Mailbox) endIfIdle() {
	if m.refusal == nil || m.over || m.busy() {
		return
	}
	m.over = true
	close(m.idle)
}
