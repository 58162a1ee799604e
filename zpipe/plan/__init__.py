"""What a topology could do at best, and which topology is best: computed and not run; deterministic, without IO."""

from __future__ import annotations

from zpipe.plan.bounds import Bound, exit_reach, rate_bound
from zpipe.plan.cuts import Cuts, Piece, choose_cuts, equal_cuts

__all__ = ["Bound", "Cuts", "Piece", "choose_cuts", "equal_cuts", "exit_reach", "rate_bound"]
