"""What a topology's nodes are started by on boards of their own, and where their files lie there.

`layout` says the places, the same for `zpipe push`, for the units of `zpipe deploy` and for `zpipe fleet`; `render_unit` makes the
systemd unit, and `zpipe.deploy.kubernetes` the manifests for a cluster.
"""

from zpipe.deploy.layout import Layout, layout
from zpipe.deploy.systemd import STOP_SECONDS, Unit, UnitOptions, render_unit

__all__ = ["STOP_SECONDS", "Layout", "Unit", "UnitOptions", "layout", "render_unit"]
