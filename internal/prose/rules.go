package prose

import "regexp"

// Rule is a way of putting things that the project does not use.
type Rule struct {
	// Not is the regular expression of what is refused, whole words in any case. A space matches
	// any white space.
	Not string
	// Except is a regular expression for what stands before, at the end of which Not is allowed.
	Except string
	// Want is the better word, as the message has it.
	Want string
	// Example is a text that the rule refuses.
	Example string

	pattern *regexp.Regexp
	except  *regexp.Regexp
}

// Rules are all rules, by the kind of mistake.
func Rules() []Rule { return rules }

var rules = compile([]Rule{ //nolint:gochecknoglobals // a table
	// Persons, for what is none.
	{Not: "nobody", Want: "name it: no caller, no reader, no process; or say what is absent", Example: "nobody reads it"},
	{Not: "somebody|someone", Want: "name it: a caller, a reader, another process", Example: "somebody holds the lock"},
	{Not: "everybody|everyone", Want: "name them: all callers, all peers", Example: "everybody waits"},
	{Not: "anybody|anyone", Want: "name it: any caller, any process", Example: "if anybody waits"},
	{Not: "whoever|whomever", Want: "the caller that, any process that", Example: "whoever reads it"},
	{
		Not: "who [a-z]+", Except: "(user|users|people|person|engineer|engineers|newcomer|reader|readers|operator|operators|author|authors) who [a-z]+$",
		Want: "a noun: reader, caller, waiter, peer, owner", Example: "who reads it polls",
	},
	{Not: "of whom|to whom|for whom|by whom|whose turn it is to", Want: "a noun: reader, caller, owner", Example: "for whom it waits"},

	// Speech and hearing, for what programs do.
	{Not: "told|tells", Want: "notify, report, pass", Example: "the caller is told"},
	{Not: "hears|heard", Want: "receive, notice, saw traffic", Example: "a peer that hears of it"},
	{Not: "says? (whether|if)", Want: "report whether", Example: "it says whether it is there"},
	{Not: "says? so", Want: "report it, return an error", Example: "and says so"},
	{Not: "(has|have|had) said", Want: "sent, declared, announced", Example: "has said its last word"},
	{Not: "last word", Want: "final frame; half-closed, closed", Example: "has said its last word"},
	{Not: "what there is to say", Want: "log output", Example: "gets what there is to say"},
	{Not: "(what|that) came of it", Want: "result", Example: "prints what came of it"},
	{Not: "without a word", Want: "silently, without an error", Example: "ends without a word"},

	// Metaphors for the field's terms.
	{Not: "put to sleep", Want: "park, block", Example: "is put to sleep"},
	{Not: "looks? (again|for a moment)", Want: "busy-poll, spin; retry", Example: "looks again and again"},
	{Not: "look(s|ed|ing)? after", Want: "sweep, watch, supervise", Example: "looks after contexts"},
	{Not: "overseer", Want: "watchdog, sweeper", Example: "the overseer tells"},
	{Not: "(lend|lends|lent|lending) (the|its) (reading|reader|connection)", Want: "yield the read loop", Example: "lends the reading"},
	{Not: "take(s|n)? (it |the reading |reading )?back", Want: "reclaim, undo", Example: "reading is taken back"},
	{Not: "obituar(y|ies)", Want: "death notice", Example: "sends an obituary"},
	{Not: "burial|bury|buries|buried", Want: "removal, declare dead", Example: "waits for the host's burial"},
	{Not: "furnish(es|ed)?", Want: "start the system nodes", Example: "furnishes the system"},
	{Not: "mend(s|ed|ing)?", Want: "fix, repair", Example: "which mends it"},
	{Not: "kids?|kin", Want: "child, sibling", Example: "its kids end"},
	{Not: "in good order", Want: "gracefully", Example: "ends in good order"},
	{Not: "without regard", Want: "unconditionally", Example: "kills it without regard"},
	{Not: "bears?|borne|bearable", Want: "tolerate; lease duration", Example: "how long silence is borne"},
	{Not: "circles?", Want: "cycle, deadlock", Example: "a circle of calls"},
	{Not: "belongs to no", Want: "is not owned; ownership passes to the callee", Example: "belongs to no one"},
	{Not: "the line to Brain", Want: "the session with Brain", Example: "on the line to Brain"},
	{Not: "of late", Want: "recently; latency EWMA", Example: "how long it took of late"},
	{Not: "see(s|n)? to (it|that)", Want: "ensure", Example: "sees to it that it lives"},
	{Not: "go(es)? on living|lives? on", Want: "continues to run, outlives", Example: "the process lives on"},
	{Not: "lets? [a-z]+ know", Want: "notify", Example: "lets callers know"},
})

func compile(list []Rule) []Rule {
	for i, r := range list {
		list[i].pattern = regexp.MustCompile(`(?i)\b(?:` + spaces.ReplaceAllString(r.Not, `\s+`) + `)\b`)
		if r.Except != "" {
			list[i].except = regexp.MustCompile(`(?i)\b` + spaces.ReplaceAllString(r.Except, `\s+`))
		}
	}
	return list
}

var spaces = regexp.MustCompile(` `)
