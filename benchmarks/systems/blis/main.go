// Asks BLIS for one step after another: "CLIENTS TOKENS" on the command line, then "add REQUEST PROMPT OUTPUT" or
// "step" a line. A step is answered with "REQUEST,TOKENS,READS,EMITTED,COMPLETED" for each one that ran.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"

	"github.com/inference-sim/inference-sim/sim"
)

func main() {
	clients, _ := strconv.ParseInt(os.Args[1], 10, 64)
	tokens, _ := strconv.ParseInt(os.Args[2], 10, 64)
	simulator := sim.New(clients, tokens)
	lines := bufio.NewScanner(os.Stdin)
	for now := int64(0); lines.Scan(); {
		var id string
		var prompt, output int
		if n, _ := fmt.Sscanf(lines.Text(), "add %s %d %d", &id, &prompt, &output); n == 3 {
			simulator.WaitQ.Enqueue(&sim.Request{
				ID: id, State: sim.StateQueued, InputTokens: make([]int, prompt), OutputTokens: make([]int, output),
			})
			continue
		}
		now++
		simulator.Forget()
		simulator.Step(now)
		for _, ran := range simulator.Batch() {
			completed := ran.Request.State == sim.StateCompleted
			fmt.Printf("%s,%d,%t,%t,%t ", ran.Request.ID, ran.Tokens, ran.Reads, ran.Emitted(), completed)
		}
		fmt.Println()
	}
}
