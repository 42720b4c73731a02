// Package sim has what BLIS's batch formation and step need around them: a queue in order of arrival, a KV cache
// that always has room and knows no prefix, no priorities, no metrics, and events that nobody waits for.
package sim

// Batch holds the requests that run.
type Batch struct{ Requests []*Request }

// States of a request.
const (
	StateQueued    = "queued"
	StateRunning   = "running"
	StateCompleted = "completed"
)

// Request has the fields that the batch formation and the step read or write.
type Request struct {
	ID                                string
	InputTokens, OutputTokens         []int
	State                             string
	ArrivalTime, ProgressIndex        int64
	FirstTokenTime                    int64
	NumNewTokens                      int
	ScheduledStepIdx, FinishedStepIdx int
	TTFTSet, LengthCapped             bool
	ITL                               []int64
	Priority                          float64
}

// WaitQueue is first in, first out.
type WaitQueue struct{ waiting []*Request }

func (q *WaitQueue) Len() int                       { return len(q.waiting) }
func (q *WaitQueue) Items() []*Request              { return q.waiting }
func (q *WaitQueue) Peek() *Request                 { return q.waiting[0] }
func (q *WaitQueue) Enqueue(request *Request)       { q.waiting = append(q.waiting, request) }
func (q *WaitQueue) DequeueBatch()                  { q.waiting = q.waiting[1:] }
func (q *WaitQueue) Reorder(order func([]*Request)) { order(q.waiting) }
func (q *WaitQueue) PrependFront(*Request)          { panic("a preemption, though there is room") }

// KVStore is never full.
type KVStore struct{}

func (KVStore) AllocateKVBlocks(*Request, int64, int64, []int64) bool { return true }
func (KVStore) GetCachedBlocks([]int) []int64                         { return nil }
func (KVStore) ReleaseKVBlocks(*Request)                              {}
func (KVStore) BlockSize() int64                                      { return 16 }
func (KVStore) MirrorToCPU([]*Request)                                {}
func (KVStore) SetClock(int64)                                        {}
func (KVStore) ConsumePendingTransferLatency() int64                  { return 0 }

type none struct{}

func (none) Compute(*Request, int64) float64  { return 0 }
func (none) OrderQueue([]*Request, int64)     {}
func (none) OutputTokenProcessingTime() int64 { return 0 }

// noting is the model: it writes down whom it is given.
type noting struct {
	none
	batch []Scheduled
}

func (n *noting) StepTime(batch []*Request) int64 {
	n.batch = nil
	for _, request := range batch {
		reads := request.ProgressIndex < int64(len(request.InputTokens))
		n.batch = append(n.batch, Scheduled{request, request.NumNewTokens, reads, request.ProgressIndex})
	}
	return 1
}

// Scheduled is a request of a batch: its tokens, and whether they are of its prompt.
type Scheduled struct {
	Request *Request
	Tokens  int
	Reads   bool
	before  int64
}

// Emitted tells whether the step gave it a token.
func (s Scheduled) Emitted() bool {
	return s.Request.ProgressIndex > s.before && s.Request.ProgressIndex >= int64(len(s.Request.InputTokens))
}

type requestMetrics struct{ LengthCapped bool }

type metrics struct {
	PreemptionCount, TotalOutputTokens, KVAllocationFailures, LengthCappedRequests int
	TTFTSum                                                                        int64
	RequestSchedulingDelays                                                        map[string]int64
	RequestTTFTs                                                                   map[string]float64
	Requests                                                                       map[string]requestMetrics
}

// ScheduledEvent, RequestLeftEvent and StepEvent are told to nobody.
type (
	ScheduledEvent struct {
		time    int64
		Request *Request
	}
	RequestLeftEvent struct {
		time    int64
		Request *Request
	}
	StepEvent struct{ time int64 }
)

// Simulator has the fields that the step reads or writes.
type Simulator struct {
	WaitQ                                  *WaitQueue
	KVCache                                KVStore
	RunningBatch                           *Batch
	Metrics                                *metrics
	OnRequestDone                          func(*Request, int64) []*Request
	maxRunningReqs, maxScheduledTokens     int64
	longPrefillTokenThreshold, maxModelLen int64
	stepCount                              int
	stepEvent                              any
	reqNumComputedTokens                   map[string]int64
	batchFormation                         BatchFormation
	latencyModel                           *noting
	priorityPolicy, scheduler              none
}

func (sim *Simulator) Schedule(any)                     {}
func (sim *Simulator) InjectArrival(*Request)           {}
func (sim *Simulator) recordQueueSnapshots()            {}
func (sim *Simulator) recordKVUsageMetrics(int64)       {}
func (sim *Simulator) recordRequestCompletion(*Request) {}

// New has nobody in it.
func New(clients, tokens int64) *Simulator {
	return &Simulator{
		WaitQ:                &WaitQueue{},
		RunningBatch:         &Batch{},
		Metrics:              &metrics{0, 0, 0, 0, 0, map[string]int64{}, map[string]float64{}, nil},
		maxRunningReqs:       clients,
		maxScheduledTokens:   tokens,
		reqNumComputedTokens: map[string]int64{},
		batchFormation:       NewBatchFormation(),
		latencyModel:         &noting{},
	}
}

// Batch is what the last step ran.
func (sim *Simulator) Batch() []Scheduled { return sim.latencyModel.batch }

// Forget empties that.
func (sim *Simulator) Forget() { sim.latencyModel.batch = nil }

// min and max came with Go 1.21.
func min[T int | int64](a, b T) T {
	if a < b {
		return a
	}
	return b
}

func max[T int | int64](a, b T) T {
	if a > b {
		return a
	}
	return b
}
