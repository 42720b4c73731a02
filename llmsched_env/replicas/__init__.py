"""Several accelerators of one's own behind a router: whole runs, and an environment whose action is the replica."""

from llmsched_env.replicas.fleet import Fleet, FleetRun, make_fleet, simulate_replicas
from llmsched_env.replicas.routers import ROUTERS, Router, make_router

__all__ = ["ROUTERS", "Fleet", "FleetRun", "Router", "make_fleet", "make_router", "simulate_replicas"]
