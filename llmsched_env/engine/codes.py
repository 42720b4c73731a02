"""Numbers that stand for names in compiled code, and the columns of tables."""

# Kinds of iterations.
DECODE = 0
PREFILL = 1
MIXED = 2

# What a policy's answer can be instead of an action.
STOP = -2

# Columns of a problem's requests, by position.
PROMPT = 0
OUTPUT = 1
ESTIMATE = 2
QUEUE = 3
REQUEST_COLUMNS = 4

# Columns of the clients. Rows are 32 or 64 bytes long: none lies in two lines of memory.
RUNNING = 0  # position of the running request, -1 when idle
BASE = 1  # decode count less the tokens that it has emitted
DUE = 2  # decode count at which it is expected to finish (0 when idle)
HELD = 3  # its context tokens at its end (0 while the prefill that starts it is composed)
NEXT = 4  # next client that finishes at the same decode, -1 at the end
CLIENT_COLUMNS = 8

# ... and, where clients have queues of their own, of those.
HEAD = 5  # position of the first that waits, -1 where none does
END = 6  # position after the last of the queue
WORK = 7  # estimated output tokens that wait
HEAD_PROMPT = 8  # prompt tokens of the head
HEAD_ESTIMATE = 9  # its estimated output tokens
QUEUE_COLUMNS = 16

# Columns of the ring of decodes to come.
ENDING = 0  # first client that finishes then, -1 for none
EXPECTED = 1  # clients that are expected to
RING_COLUMNS = 2

# Rankings of requests, each with an order in which late ones go last: order = 2 * ranking + late last.
RANKINGS = 2  # that have sets of their own: shortest first, longest first; by release needs none

# Orders from here on are windows of a queue that is laid out longest first: order - WINDOW sixteenths along.
WINDOW = 6
LAST_WINDOW = 16

# Rules of the KV cache.
KEEP_GROWTH = 0
VLLM_V0 = 1
VLLM_V1 = 2

# Who is let in.
FITS = 0
RESERVE = 1
PREDICTED = 2

# The label of a free block of the KV cache whose contents nobody asks for.
BLANK = -1

# What a thief takes.
STEAL_WAITING = 0
STEAL_RUNNING = 1
STEAL_CHEAPER = 2

# Rewards, as config.REWARDS.
EXCESS = 0
MAKESPAN = 1
IDLE = 2
LATENCY = 3
GOODPUT = 4
DIFFERENTIAL = 5

# What a step of an environment says, in bits: which kinds of iteration are feasible, bit by bit, then the rest.
CAN_DECODE = 1 << DECODE
CAN_PREFILL = 1 << PREFILL
CAN_MIX = 1 << MIXED
TERMINATED = 256
TRUNCATED = 512
LOG_FULL = 1024

# What a step does instead of an action.
OBSERVE = -1
CONTINUE = -2

# Columns of the log, one row an iteration.
START_NS = 0
END_NS = 1
IS_PREFILL = 2  # 0 for what counts as a decode
BUSY = 3  # clients that had a token
IS_MIXED = 4
LOG_COLUMNS = 5

# Columns of what is recorded of each request, by position.
SERVED_BY = 0  # client that served it last
PREFILL_START_NS = 1
FIRST_TOKEN_NS = 2
COMPLETION_NS = 3
SINCE_DECODE = 4  # decode count when that client took it
TOKEN_NS = 5  # its last token before the decodes that followed
TOKENS = 6  # the how many-th that is
GAP_NS = 7  # the longest time between two of those; 0 for one alone
PREEMPTED_NS = 8  # when it was preempted last; 0 for never
SERVED_COLUMNS = 9

# Columns of what happens to requests, one row an event.
POSITION = 0
CLIENT = 1
EVENT = 2
ITERATION = 3  # in which it happens; that of the next one for what happens between two
CLOCK_NS = 4
EVENT_COLUMNS = 5

# Events.
READ = 0  # the first part of a chunked prefill, whose other parts follow
DROPPED = 1  # such a request gave way: what was read is lost
STARTED = 2  # it has its first token
SUSPENDED = 3  # it is preempted, or moves to another client
RESUMED = 4  # it goes on
COMPLETED = 5

# Entries of an observation: always, and with objectives, with a KV cache, with mixed iterations (features.py).
FEATURES = 26
SLO_FEATURES = 7
MEMORY_FEATURES = 6
MIXED_FEATURES = 5
