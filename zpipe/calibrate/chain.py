"""The stages in ONNX Runtime, one after the other: every exit's raw logits, which the gates of the executors keep to themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from zpipe.bundle import Bundle
from zpipe.errors import BundleError, ExecutorError, said


class StageChain:
    """The exported stages in ONNX Runtime, one intra-op thread, run one after the other.

    This is the plain loop that everything faster is compared with.

    Args:
        paths: one file per stage.
        heads: per stage, whether it has an exit head that counts; None = where a file gives logits.

    Raises:
        BundleError: a file is no ONNX that loads.
    """

    def __init__(self, paths: Sequence[Path], heads: Sequence[bool] | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what fails is raised, too
        self._sessions = [_session(path, options) for path in paths]
        self._heads = [True] * len(paths) if heads is None else list(heads)

    @classmethod
    def of(cls, bundle: Bundle) -> StageChain:
        """The stages of a bundle, with the exit heads that its manifest has.

        Raises:
            BundleError: as above.
        """
        return cls(
            [bundle.stage_path(stage.index) for stage in bundle.stages], [stage.exit_head is not None for stage in bundle.stages]
        )

    def run_stage(
        self, stage: int, x: npt.NDArray[np.generic]
    ) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None]:
        """Activation (None after the last stage) and raw logits (None without an exit head) of one batch.

        Raises:
            ExecutorError: ONNX Runtime failed.
        """
        session = self._sessions[stage]
        names = [output.name for output in session.get_outputs()]
        try:
            values = dict(zip(names, session.run(names, {"input": x}), strict=True))
        except Exception as exc:  # onnxruntime's errors have no base class of their own
            raise ExecutorError(
                f"stage {stage}: batch {len(x)} failed in ONNX Runtime: {said(exc)}; `zpipe doctor` checks the bundle"
            ) from exc
        return values.get("activation"), values.get("logits") if self._heads[stage] else None

    def logits(
        self, images: npt.NDArray[np.generic], *, batch: int = 1, tell: Callable[[float], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Every exit's raw logits `[samples, exits, classes]`; stages without an exit head are left out.

        Args:
            images: `[samples, ...]`, as stage 0 takes them.
            batch: rows at a time. One is repeatable bit by bit whatever comes before and after.
            tell: called with the fraction done.
        """
        parts = []
        for start in range(0, len(images), batch):
            parts.append(self._chain(images[start : start + batch]))
            if tell is not None:
                tell(min(1.0, (start + batch) / len(images)))
        return np.concatenate(parts)

    def _chain(self, images: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        exits = []
        x: npt.NDArray[np.generic] | None = images
        for stage in range(len(self._sessions)):
            assert x is not None  # only the last stage gives none
            x, logits = self.run_stage(stage, x)
            if logits is not None:
                exits.append(np.asarray(logits, np.float32))
        return np.stack(exits, 1)


def _session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # as above
        raise BundleError(f"{path}: found no ONNX that loads ({said(exc)}), expected a stage; restore the bundle's files") from exc
