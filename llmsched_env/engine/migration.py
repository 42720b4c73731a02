"""What stealing costs where caches lie with clients: prefixes cached at home, and running requests that migrate.

A share of each prompt is cached at the client in whose queue it waits; that client computes the rest only. A thief
brings what is cached over, or takes the victim's running request in place of a waiting one (its whole context moves,
and the victim starts its own head). Tokens are copied in ``token_ns`` each, or computed again where that is 0.
"""

from __future__ import annotations

import cython

from llmsched_env.engine import codes


class Migration:
    """The options of stealing.

    Attributes:
        enabled: whether it is anything but free and of waiting requests, or prompts are cached in part.
        cached_millionths: share of each prompt that is cached at home, below 1,000,000.
        steal: codes.STEAL_WAITING, STEAL_RUNNING or STEAL_CHEAPER.
        token_ns: time to copy a token's cache to another client; 0: it is computed again.
    """

    enabled: cython.bint
    cached_millionths: cython.longlong
    steal: cython.int
    token_ns: cython.longlong

    def __init__(self, enabled: bool = False, cached_millionths: int = 0, steal: int = 0, token_ns: int = 0) -> None:
        self.enabled = enabled
        self.cached_millionths = cached_millionths if enabled else 0
        self.steal = steal if enabled else codes.STEAL_WAITING
        self.token_ns = token_ns if enabled else 0

    def cached(self, prompt: cython.longlong) -> cython.longlong:
        """Tokens of a prompt that are cached at home; never all of them."""
        return prompt * self.cached_millionths // 1000000
