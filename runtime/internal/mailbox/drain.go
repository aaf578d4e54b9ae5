package mailbox

// takeForLine takes a turn for a goroutine that is about to drain the line, if one is free and
// somebody waits for it. The lock is held.
func (m *Mailbox) takeForLine() bool {
	if m.free == 0 || m.line.len+m.resuming.len <= m.starting {
		return false
	}
	m.free--
	m.holding++
	m.starting++
	return true
}

// next hands the turn that the caller holds to whoever is first: it returns work for the caller to
// run with that turn, or nil when the turn went elsewhere or is free again. The lock is held.
func (m *Mailbox) next() *Entry {
	if e := m.resuming.pop(); e != nil {
		m.restore(e.resumes)
		return nil
	}
	e := m.line.pop()
	if e == nil {
		m.free++
		m.holding--
		m.settle()
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

// drain runs what waits, with the turn that was taken for it.
func (m *Mailbox) drain() {
	m.mu.Lock()
	m.starting--
	e := m.next()
	m.step()
	m.mu.Unlock()
	m.drainFrom(e)
}

// drainFrom runs e and what waits behind it, with the turn that the goroutine holds.
func (m *Mailbox) drainFrom(e *Entry) {
	for e != nil {
		e = m.run(e)
	}
}

// run runs one piece of work, and returns the next to run with the same turn. Work that ends its
// goroutine (runtime.Goexit) must not take the turn with it.
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

// busy says that something runs or waits. The lock is held.
func (m *Mailbox) busy() bool { return m.holding+m.lent+m.beside+m.line.len > 0 }

// settle ends the mailbox when it is closed and nothing is left. The lock is held.
func (m *Mailbox) settle() {
	if m.refusal == nil || m.over || m.busy() {
		return
	}
	m.over = true
	close(m.idle)
}
