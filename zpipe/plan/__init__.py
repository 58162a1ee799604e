"""What a topology could do at best, computed and not run: deterministic, without IO."""

from __future__ import annotations

from zpipe.plan.bounds import Bound, exit_reach, rate_bound

__all__ = ["Bound", "exit_reach", "rate_bound"]
