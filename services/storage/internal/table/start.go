package table

// StartAfter has the first write of an empty table get the id that follows id. What Since returns
// begins there. It must be called before the first write.
func (t *Table) StartAfter(id uint64) {
	if t.lastID != 0 {
		panic("table: it has writes already")
	}
	t.lastID, t.committedID = id, id
}
