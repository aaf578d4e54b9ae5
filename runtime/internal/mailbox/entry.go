package mailbox

// Work is a piece of work in a mailbox.
type Work interface {
	// Run does the work while it holds the turn. It must not panic.
	Run(turn *Turn)
	// Refuse is called instead of Run if the work will never run.
	Refuse(err error)
}

// Entry is an entry of the queue, for one piece of work. It may be queued again only after it was
// refused or removed.
type Entry struct {
	// Work is the work to run.
	Work Work
	// Label names the work in errors: it is the method's name.
	Label string
	// Bytes is the size of the work, counted towards Limits.Bytes.
	Bytes int64

	// granted is set if the turn is to be passed to a waiting goroutine, instead of Work being run.
	granted chan error
	// resumes is set if the entry waits for a suspended turn: it is that turn.
	resumes *Turn

	// turn is the turn that Work runs with.
	turn Turn

	list       *list
	prev, next *Entry
}

func (e *Entry) refuse(err error) {
	if e.granted != nil {
		e.granted <- err
		return
	}
	e.Work.Refuse(err)
}

// list is a FIFO queue of entries. Any entry can be removed in constant time.
type list struct {
	head, tail *Entry
	len        int
}

func (l *list) push(e *Entry) {
	e.list, e.prev, e.next = l, l.tail, nil
	if l.tail == nil {
		l.head = e
	} else {
		l.tail.next = e
	}
	l.tail = e
	l.len++
}

func (l *list) pop() *Entry {
	e := l.head
	if e != nil {
		l.remove(e)
	}
	return e
}

func (l *list) remove(e *Entry) {
	if e.prev == nil {
		l.head = e.next
	} else {
		e.prev.next = e.next
	}
	if e.next == nil {
		l.tail = e.prev
	} else {
		e.next.prev = e.prev
	}
	e.list, e.prev, e.next = nil, nil, nil
	l.len--
}
