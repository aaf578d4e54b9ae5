package mailbox

// Work is what waits in a mailbox.
type Work interface {
	// Run does the work while its turn lasts. It must not panic.
	Run(turn *Turn)
	// Refuse tells the work that it will never run.
	Refuse(err error)
}

// Entry is a place in line. It is for one piece of work: only one that was refused or removed may
// be put in line again.
type Entry struct {
	// Work is what is to be run.
	Work Work
	// Label names the work in errors: the method.
	Label string
	// Bytes is its size.
	Bytes int64

	// granted is set where the turn is to be handed over to a goroutine that waits, instead of Work
	// being run.
	granted chan error
	// resumes is the turn that was lent, where it is wanted back.
	resumes *Turn

	// turn is the one that Work runs with.
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

// list is a line of entries: each can leave from the middle at no cost.
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
