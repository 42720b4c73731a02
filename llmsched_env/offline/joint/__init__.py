"""The joint plan: in which order requests are read, and after how many decodes each prefill comes."""

from llmsched_env.offline.joint.plan import JointPlan, played
from llmsched_env.offline.joint.search import Effort, joint_plan
from llmsched_env.offline.joint.store import is_shipped, stored_plan

__all__ = ["Effort", "JointPlan", "is_shipped", "joint_plan", "played", "stored_plan"]
