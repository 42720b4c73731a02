"""The inner loops give the same results as extension modules and as the files that those are made of."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmsched_env.extensions import compiled

PLAYED = """
import numpy as np
from llmsched_env.offline import assign_expected_max, expected_max_bound, lpt
from llmsched_env.offline.cmax_bounds import cmax_bound, exact_cmax
from llmsched_env.offline.grouping import grouped_loads
from llmsched_env.offline.kernels import compiled, resplit as kernels
from llmsched_env.offline.kernels.spans import cheapest_groups
from llmsched_env.offline.resplit import resplit

rng = np.random.default_rng(3)
loads = np.minimum(rng.lognormal(4.7, 0.6, 120).astype(np.int64), 511)
for seed, below in ((0, 0), (7, 1), (2**32 - 1, 1)):
    client_of = lpt(loads, 12)
    largest, moves = resplit(loads, client_of, 12, cmax_bound(loads, 12) - below, 40, seed)
    assert moves > 1, "LPT met the bound: nothing was searched"
    print(largest, moves, client_of.tolist())
print(grouped_loads(rng.integers(0, 80, 100), 3))
cost, counts = cheapest_groups(np.sort(rng.integers(0, 80, 100)), 100 + 7 * np.arange(13), 5)
print(cost, counts.tolist(), exact_cmax(loads[:12], 5))
means = rng.integers(100, 500, 60).astype(float)
sds = means * np.where(np.arange(60) % 2, 0.05, 0.6) * (np.arange(60) % 7 > 0)
print(assign_expected_max(means, sds, 9).tolist(), expected_max_bound(means, sds).hex())
print(compiled, kernels.__file__.rpartition(".")[2])
"""


@pytest.mark.skipif(not compiled, reason="the engine is not compiled")
def test_compiled_and_uncompiled_agree():
    shown = [
        subprocess.run(
            [sys.executable, "-c", PLAYED],
            env={**os.environ, "LLMSCHED_UNCOMPILED": uncompiled},
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()
        for uncompiled in ("0", "1")
    ]  # fmt: skip
    assert shown[0][:-1] == shown[1][:-1]
    assert len(shown[0]) == 7
    assert shown[0][-1] in {"True so", "True pyd"}
    assert shown[1][-1] == "False py"
