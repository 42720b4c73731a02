"""Real engines: policies that drive them, and what their recordings say (docs/engines.md)."""
