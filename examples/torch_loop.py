"""An engine of one's own under a policy: a small torch model with continuous batching, and no vLLM.

``python examples/torch_loop.py threshold 2`` serves 24 requests; any rule, agent or ``module:Class`` may decide
(docs/engines.md). The model is an attention layer with random weights, whose KV cache is one tensor a request.
"""

from __future__ import annotations

import random
import sys
import time

import torch
from torch.nn.utils.rnn import pad_sequence

from llmsched_env import Scenario
from llmsched_env.engines.driver import Driver, Ran

WORDS, WIDTH = 64, 32


class Model(torch.nn.Module):
    """One layer of attention: the next token of each sequence, from its last token and what is cached of the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(WORDS, WIDTH)
        self.query, self.key, self.value = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def cache(self, tokens: list[int]) -> torch.Tensor:
        """(len(tokens), 2 * WIDTH) keys and values."""
        x = self.embedding(torch.tensor(tokens))
        return torch.cat([self.key(x), self.value(x)], dim=1)

    def next_tokens(self, last: list[int], caches: list[torch.Tensor]) -> list[int]:
        """One token a sequence, all in one batch; each cache holds the last token's entry, too."""
        held = pad_sequence(caches, batch_first=True)
        unused = torch.arange(held.shape[1])[None] >= torch.tensor([len(one) for one in caches])[:, None]
        query = self.query(self.embedding(torch.tensor(last)))
        scores = torch.einsum("bw,btw->bt", query, held[..., :WIDTH]) / WIDTH**0.5
        weights = scores.masked_fill(unused, -torch.inf).softmax(dim=1)
        mixed = torch.einsum("bt,btw->bw", weights, held[..., WIDTH:])
        return [int(word) for word in (mixed @ self.embedding.weight.T).argmax(dim=1)]


@torch.inference_mode()
def serve(requests: dict[str, tuple[list[int], int]], driver: Driver[str], model: Model) -> dict[str, list[int]]:
    """Serve all requests, which are there from the beginning: the tokens of each, by its key."""
    begin = time.perf_counter_ns()
    texts: dict[str, list[int]] = {key: [] for key in requests}
    caches: dict[str, torch.Tensor] = {}  # of the active requests
    for key, (prompt, most) in requests.items():
        driver.arrive(key, len(prompt), 0, most)
    while plan := driver.decide(time.perf_counter_ns() - begin):
        served = list(caches) if plan.decodes else []
        for key in served:
            caches[key] = torch.cat([caches[key], model.cache(texts[key][-1:])])
        for key, _ in plan.reads:
            caches[key] = model.cache(requests[key][0])
        served += [key for key, _ in plan.reads]
        last = [(texts[key] or requests[key][0])[-1] for key in served]
        for key, word in zip(served, model.next_tokens(last, [caches[key] for key in served]), strict=True):
            texts[key].append(word)
        # What was done: who decoded, and of each prompt how many tokens were read and how many are left.
        done = Ran(plan.decodes, [(key, tokens, 0) for key, tokens in plan.reads], mixed=plan.kind == "mixed")
        driver.ran(done, time.perf_counter_ns() - begin)
        for key in served:
            if len(texts[key]) == requests[key][1]:  # or where the model says so
                driver.finish(key)
                del caches[key]
    return texts


def drawn(count: int) -> dict[str, tuple[list[int], int]]:
    """Prompts, and how many tokens each request gets."""
    rng = random.Random(0)
    return {
        f"request {i}": ([rng.randrange(WORDS) for _ in range(rng.randint(3, 40))], rng.randint(1, 30))
        for i in range(count)
    }


def main(policy: str = "threshold", *parameters: str) -> None:
    """Serve 24 requests with eight seats."""
    scenario = Scenario(num_clients=8, queue="shared", order="fcfs", lengths="hidden")
    driver: Driver[str] = Driver(policy, scenario, parameters=list(map(int, parameters)), mean_output_tokens=15)
    texts = serve(drawn(24), driver, Model())
    view = driver.look()
    count = sum(map(len, texts.values()))
    print(f"{len(texts)} requests, {count} tokens: {view.prefills} prefills, {view.decodes} decodes")


if __name__ == "__main__":
    main(*sys.argv[1:])
