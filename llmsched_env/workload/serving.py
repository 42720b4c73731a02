"""Requests that come over time: lengths from one workload, release times from an arrival process."""

from __future__ import annotations

from dataclasses import dataclass

from llmsched_env.errors import ConfigError
from llmsched_env.workload.arrivals import ArrivalProcess, GammaArrivals, check_process
from llmsched_env.workload.gsm8k import Gsm8kWorkload
from llmsched_env.workload.protocol import Workload, check_case, check_num_requests
from llmsched_env.workload.quantiles import QuantileWorkload
from llmsched_env.workload.requests import Requests

__all__ = ["AZURE_SYNTHETIC", "ServingWorkload"]

GSM8K = Gsm8kWorkload()
BURSTY = GammaArrivals(cv=2.0)


@dataclass(frozen=True)
class ServingWorkload:
    """Lengths of one workload with the arrivals of a process, at one request per second in the mean.

    Case k takes its lengths from case k of ``lengths`` (whose release times are not used) and its times from case k of
    ``arrivals``; which lengths come when is chance. Bring it to a rate with
    :meth:`~llmsched_env.workload.requests.Requests.at_rate` or ``at_load``. ``mean_output_tokens`` is that of
    ``lengths``. A smaller scaled case is a prefix of a larger one where that holds of ``lengths``: for GSM8K, of all
    sizes but 1319, the one that is drawn without replacement.

    Attributes:
        name: what tables call it.
        lengths: where prompts and outputs come from.
        arrivals: when they come.
        num_requests: natural size of a case.

    Raises:
        ConfigError: a parameter that is not as described.
    """

    name: str = "serving"
    lengths: Workload = GSM8K
    arrivals: ArrivalProcess = BURSTY
    num_requests: int = 5000

    def __post_init__(self) -> None:
        if isinstance(self.lengths, type) or not isinstance(self.lengths, Workload):
            raise ConfigError(
                f"lengths = {self.lengths!r} is not a workload: pass one, as from llmsched_env.workload.workload(name)."
            )
        check_process("arrivals", self.arrivals)
        check_num_requests(self.num_requests)

    def pool_size(self, split: str) -> int | None:
        """Number of cases in the default pool of a split: that of ``lengths``."""
        return self.lengths.pool_size(split)

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """The requests of one case; see :class:`~llmsched_env.workload.protocol.Workload`."""
        split, number = check_case(split, number)
        count = self.num_requests if num_requests is None else check_num_requests(num_requests)
        lengths = self.lengths.requests(split, number, num_requests=count)
        return Requests.of(
            lengths.prompt_tokens,
            lengths.output_tokens,
            release_ns=self.arrivals.release_ns(split, number, count),
            predicted_tokens=lengths.predicted_tokens,
            mean_output_tokens=lengths.mean_output_tokens,
        )


AZURE_SYNTHETIC = ServingWorkload("azure-synthetic", QuantileWorkload(), GammaArrivals(cv=1.09))
"""Synthetic, after the Azure 2023 conversation trace: its quantiles of both lengths, the CV of its gaps."""
