"""From a trace, a machine and SLOs to a setting of the server: ``llmsched recommend`` (docs/recommend.md)."""

from llmsched_env.recommend.answer import Candidate, Capacity, Recommendation, recommend
from llmsched_env.recommend.setting import VLLM_DEFAULT, Machine, Setting
from llmsched_env.recommend.trial import Outcome, try_setting

__all__ = [
    "VLLM_DEFAULT",
    "Candidate",
    "Capacity",
    "Machine",
    "Outcome",
    "Recommendation",
    "Setting",
    "recommend",
    "try_setting",
]
