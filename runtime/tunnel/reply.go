package tunnel

// Responses on the dialling side. Everything here runs on the connection's reader.

// slotOf returns the slot of an open call, or nil. The caller must hold c.mu.
func (c *Conn) slotOf(id uint32) *slot {
	if int(id) >= len(c.slots) || !c.slots[id].busy {
		return nil
	}
	return &c.slots[id]
}

func (c *Conn) wasOpened(id uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(id) < c.idsUsed
}

// responseMetadata parses the header and trailer of a response into r.
func (p *parser) responseMetadata(r *outcome, flags uint8, most int) {
	header, trailer := 0, 0
	if flags&replyHeader != 0 {
		r.header, header = p.header(most)
	}
	if flags&replyTrailer != 0 {
		r.trailer, trailer = p.header(most - header)
	}
	if header+trailer > most && r.err == nil {
		// The peer knew the limit from the handshake.
		r.err = tooLarge("the header and trailer of the response", header+trailer, most, "the receiver's header")
	}
}

func (c *Conn) onReply(h frameHeader, body []byte) error {
	var r outcome
	p := parser{rest: body}
	flags := h.flags()
	if flags&replyError != 0 {
		failure := p.errorBlock()
		if flags&replyNotRun != 0 {
			failure = notRun(failure)
		}
		r.err = failure
	}
	if flags&(replyHeader|replyTrailer) != 0 {
		p.responseMetadata(&r, flags, c.own.maxHeader)
	}
	total := 0
	if flags&flagSized != 0 {
		total = p.totalSize()
	}
	if flags&replyMessage == 0 {
		p.end()
	}
	if p.err == nil && (flags&flagSized != 0 && flags&replyMessage == 0 || flags&replyMessage != 0 && flags&replyError != 0) {
		p.failf("a REPLY with flags 0x%02x", flags)
	}
	if p.err != nil {
		return p.err
	}
	c.mu.Lock()
	s := c.slotOf(h.id())
	if s == nil {
		over := c.err != nil
		c.mu.Unlock()
		if over {
			return nil
		}
		return violation("REPLY for call %d, which is not open", h.id())
	}
	if s.stream != nil {
		stream := s.stream
		c.out.close(&stream.queue, errCallOver)
		c.releaseID(h.id())
		c.mu.Unlock()
		if flags&replyMessage != 0 {
			return violation("a REPLY with a message for the stream %d", h.id())
		}
		stream.inbox.reply(&r)
		return nil
	}
	if s.reply != nil { // superseded: the peer gave up in the middle of a message
		c.returnReplyWindow(s.reply)
		s.reply = nil
	}
	if s.call != nil { // a peer may answer before it has received all of the request
		c.out.drop(s.call.outMessage)
	}
	if flags&flagSized != 0 {
		defer c.mu.Unlock()
		return c.beginReply(s, &partialReply{outcome: r}, total, p.rest)
	}
	call := s.call
	c.releaseID(h.id())
	c.mu.Unlock()
	if call != nil {
		c.answered = c.answered || call == c.readingFor
		if r.err == nil && len(p.rest) > c.own.maxMessage {
			r.err = responseTooLarge(call.Procedure, len(p.rest), c.own.maxMessage)
		}
		call.complete(&r, p.rest, false)
	}
	return nil
}

// beginReply handles the first fragment of a large response. The caller must hold c.mu.
func (c *Conn) beginReply(s *slot, r *partialReply, total int, first []byte) error {
	r.assembly = assembly{total: total, discard: s.call == nil}
	if c.replyBytes > 0 && c.replyBytes+total > c.own.window {
		return violation("responses of %d bytes at once, the window is %d", c.replyBytes+total, c.own.window)
	}
	c.replyBytes += total
	s.reply = r
	if total > c.own.maxMessage {
		// The peer knew the limit from the handshake. Only this call fails, and the rest of the
		// message is discarded.
		r.err = responseTooLarge("the call", total, c.own.maxMessage)
		r.discard = true
	}
	if !r.discard {
		r.buf = newUnaryAssembly(total, c.aliasing[s.call.Procedure]).buf
	}
	return r.add(first)
}

// replyComplete ends a call whose response of several fragments is complete.
func (c *Conn) replyComplete(id uint32) {
	c.mu.Lock()
	s := &c.slots[id]
	if !s.busy || s.reply == nil {
		c.mu.Unlock()
		return
	}
	r, call := s.reply, s.call
	c.returnReplyWindow(r)
	c.releaseID(id)
	c.mu.Unlock()
	if call == nil {
		r.buf.Free()
		return
	}
	c.answered = c.answered || call == c.readingFor
	var body []byte
	if r.buf != nil {
		body = r.buf.B
	}
	procedure := call.Procedure // the Call must not be accessed once it is complete
	c.recordAliasing(procedure, r.buf, call.complete(&r.outcome, body, true))
}

// returnReplyWindow returns the window that a large response used to the peer. The caller must hold
// c.mu.
func (c *Conn) returnReplyWindow(r *partialReply) {
	c.replyBytes -= r.total
	c.out.frame(kindCredit, 0, appendInt(nil, r.total))
	c.kick()
}

func (c *Conn) onHead(id uint32, body []byte) error {
	p := parser{rest: body}
	header, cost := p.header(c.own.maxHeader)
	if p.end(); p.err != nil {
		return p.err
	}
	c.mu.Lock()
	s := c.slotOf(id)
	if s == nil || s.stream == nil {
		late := s != nil || c.err != nil
		c.mu.Unlock()
		if late {
			return nil
		}
		return violation("HEAD for call %d, which is not open", id)
	}
	stream := s.stream
	c.mu.Unlock()
	if cost > c.own.maxHeader {
		stream.abort(tooLarge("the header of "+stream.req.Procedure, cost, c.own.maxHeader, "the receiver's header"))
		return nil
	}
	if stream.gotHead {
		return violation("a second HEAD for the stream %d", id)
	}
	stream.gotHead = true
	stream.inbox.head(header)
	return nil
}
