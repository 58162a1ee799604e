"""How much there is to do at a node: for its own choices, and for the Reports its neighbours get (rules A5, A6, A8, A9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zpipe.model import Report
from zpipe.policy.allocation import Chains, Lookahead, Usage, Withholding
from zpipe.policy.offload import LEFT_FREE
from zpipe.policy.priority import is_before

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zpipe.model import Task
    from zpipe.policy.offload import Offload
    from zpipe.policy.state import Neighbour, NodeConfig, Run
    from zpipe.policy.tasks import TaskTable


class Load:
    """A look at queues and runs; changes none of them.

    Args:
        config: of the node.
        offload: its strategy: what of the following it needs.
        service: Gamma, {stage: smoothed seconds per sample}.
        neighbours: as last reported.
        tasks: I and O.
        runs: batches in the executor.

    Attributes:
        usage: shares of this node's time, of strategies that look ahead or go along chains, else None.
        lookahead: of strategies that look ahead (A6).
        withholding: of strategies whose nodes withhold stages (A8).
        chains: of strategies that go along them (A9).
    """

    def __init__(
        self,
        config: NodeConfig,
        offload: Offload,
        *,
        service: Mapping[int, float],
        neighbours: Mapping[int, Neighbour],
        tasks: TaskTable,
        runs: Mapping[int, Run],
    ) -> None:
        self._service = service
        self._tasks = tasks
        self._runs = runs
        self.usage: Usage | None = None
        self.lookahead: Lookahead | None = None
        self.withholding: Withholding | None = None
        self.chains: Chains | None = None
        if offload.looks_ahead or offload.chained:
            self.usage = Usage(config.classes, {*config.nearer, config.rank}, now=0.0)
        if offload.looks_ahead:
            self.lookahead = Lookahead(config, service=service, neighbours=neighbours)
        if self.usage is not None and offload.withholds:
            self.withholding = Withholding(config, service=service, usage=self.usage, neighbours=neighbours)
        if offload.chained:
            usage = self.usage if offload.chained == LEFT_FREE else None
            self.chains = Chains(config, service=service, usage=usage, neighbours=neighbours)

    def heard(self) -> None:
        """Somebody's Gamma changed."""
        if self.lookahead is not None:
            self.lookahead.forget()

    def service_seconds(self, stage: int) -> float:
        """Gamma of a stage hosted here."""
        return self._service[stage] if stage in self._service else self._guess()

    def backlog(self, now: float) -> dict[int, float]:
        """{stage: seconds of work here}: I, what runs by what is left of it, and O as far as this node may take it back (A3)."""
        tasks, output, service = self._tasks, self._tasks.output, self._service
        backlog = dict.fromkeys(tasks.input, 0.0)
        if tasks.input_length or tasks.output_length:
            for stage, queue in tasks.input.items():
                waiting = output.get(stage)
                length = len(queue) + len(waiting) if waiting else len(queue)
                if length:
                    backlog[stage] = length * (service[stage] if stage in service else self._guess())
        since = None  # of the first, which the device works on; those behind it wait
        for run in self._runs.values():
            since, stage = run.began_at if since is None else now, run.stage
            left = len(run.tasks) * (service[stage] if stage in service else self._guess()) - (now - since)
            if left > 0.0:
                backlog[stage] += left
        return backlog

    def ahead(self, now: float) -> dict[int, float]:
        """{class: seconds of work here, all that is left of each sample}; of O what this node may take back (A6)."""
        assert self.lookahead is not None
        lasts, tasks = self.lookahead.here(), self._tasks
        ahead: dict[int, float] = {}
        for stage, queue in tasks.input.items():
            for task in (*queue, *tasks.output.get(stage, ())):
                ahead[task.priority] = ahead.get(task.priority, 0.0) + lasts.get(stage, 0.0)
        for run in self._runs.values():
            done = self._done_of_each(run, now)
            for task in run.tasks:
                ahead[task.priority] = ahead.get(task.priority, 0.0) + max(0.0, lasts.get(run.stage, 0.0) - done)
        return ahead

    def ahead_of(self, task: Task, now: float) -> float:
        """Seconds of work here that goes before a task that waits in O (A6): of what runs and comes behind it, this batch alone."""
        assert self.lookahead is not None
        lasts, tasks = self.lookahead.here(), self._tasks
        seconds = 0.0
        for stage, queue in tasks.input.items():
            count = sum(1 for other in queue if is_before(other, task))
            waiting = tasks.output.get(stage)
            if waiting:
                count += sum(1 for other in waiting if other is not task and is_before(other, task))
            if count:
                seconds += count * lasts.get(stage, 0.0)
        for run in self._runs.values():
            done, service = self._done_of_each(run, now), self._service.get(run.stage, 0.0)
            for other in run.tasks:
                seconds += max(0.0, (lasts.get(run.stage, 0.0) if is_before(other, task) else service) - done)
        return seconds

    def _done_of_each(self, run: Run, now: float) -> float:
        """Seconds of work done by now for each task of a batch."""
        rows = len(run.tasks)
        return min(now - run.began_at, rows * self._service.get(run.stage, 0.0)) / rows

    def _guess(self) -> float:
        """Gamma of a stage that never ran here."""
        service = self._service.values()
        return sum(service) / len(service) if service else 0.0

    def report(self, *, accepting: bool, now: float) -> Report:
        """What neighbours are told."""
        length = self._tasks.input_length + sum(len(run.tasks) for run in self._runs.values())
        report = Report(length, self._tasks.output_length, dict(self._service), self.backlog(now), accepting)
        if self.usage is not None:
            self.usage.look_around(now)
        if self.lookahead is not None and self.usage is not None:
            self.lookahead.forget()
            report.ahead_seconds, report.usage = self.ahead(now), dict(self.usage.by_class)
        if self.withholding is not None:
            self.withholding.look_around(now)
            report.withheld = dict(self.withholding.withheld)
        if self.chains is not None:
            self.chains.look_around()
            report.rates = dict(self.chains.rates)
        return report
