"""Training students together, each on its part of the teacher's filters, with random parts missing.

Four losses a step (`StudentsRecipe.weights`): what all parts say together; what a random set of them says, drawn for every sample,
a student with an exit answering there now and then; what each says alone; and how far its filters are from the teacher's. The
first three are cross-entropy to the label and divergence from the teacher. With the filters alone a part knows what the teacher's
part knew, which is little without the others; with the third a student that is left alone still answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from zpipe.models.recipes import StudentsRecipe
from zpipe.models.students.network import Student
from zpipe.models.training import steps_per_epoch

Floats = npt.NDArray[np.float32]
Parts = Sequence[Sequence[int]]

#: Called after each epoch: (epochs done, epochs in all, mean loss, accuracy of all parts on the batches just trained on).
OnEpoch = Callable[[int, int, float, float], None]


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """One draw of the training set, and what the teacher makes of it.

    Attributes:
        images: `[samples, 3, size, size] uint8`.
        labels: `[samples] int64`.
        filters: the teacher's, `[samples, filters]`, float16 to take half the memory.
        logits: the teacher's, `[samples, classes] float32`.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    filters: npt.NDArray[np.float16]
    logits: Floats


class Pupils(nn.Module):
    """The students and the bias of what joins them.

    Args:
        students: one per part.
        parts: the filters of each.
        weight: of the teacher's last layer, `[classes, filters]`: where each student's own columns start.
        bias: of the same, `[classes]`.
        scale: the students' filters are the teacher's divided by this, so that they are about 1.
    """

    def __init__(self, students: Sequence[Student], parts: Parts, weight: Floats, bias: Floats, *, scale: float) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.bias = nn.Parameter(torch.from_numpy(bias.copy()))
        with torch.no_grad():
            for student, part in zip(students, parts, strict=True):
                student.head.scores.weight.copy_(torch.from_numpy(scale * weight[:, list(part)]))

    def learn(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores `[batch, parts, exits, classes]`, and each part's filters `[batch, its filters]`."""
        exits, filters = zip(*(student.learn(x) for student in self.students), strict=True)
        return torch.stack([torch.stack(each, 1) for each in exits], 1), list(filters)


def fit_students(
    pupils: Pupils, parts: Parts, lessons: Sequence[Lesson], recipe: StudentsRecipe, *, epochs: int, seed: int, on_epoch: OnEpoch
) -> None:
    """Train in place, and leave in eval mode; call it within `torch_settings`.

    Args:
        pupils: all of it learns.
        parts: the filters of each student.
        lessons: taken in turn, one an epoch, shuffled each time.
        recipe: how.
        epochs: passes.
        seed: of the order, and of which parts are missing.
        on_epoch: called after each.
    """
    rng = np.random.default_rng([seed, 19])
    losses = Losses(recipe, parts, lessons[0].filters, torch.Generator().manual_seed(seed))
    pupils.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(
        pupils.parameters(), lr=recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    steps = sum(steps_per_epoch(len(lessons[epoch % len(lessons)].labels), recipe.batch) for epoch in range(epochs))
    schedule = OneCycleLR(optimiser, max_lr=recipe.learning_rate, total_steps=steps + 1)
    for epoch in range(epochs):
        lesson = lessons[epoch % len(lessons)]
        order = rng.permutation(len(lesson.labels))
        mean, right, count = 0.0, 0, steps_per_epoch(len(order), recipe.batch)
        for step in range(count):
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            loss, hits = losses.of(pupils, lesson, rows)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            mean += float(loss.detach()) / count
            right += hits
        on_epoch(epoch + 1, epochs, mean, right / (count * min(recipe.batch, len(order))))
    pupils.eval()


class Losses:
    """What a step's loss is: answers and filters.

    Args:
        recipe: what counts how much.
        parts: the filters of each student.
        filters: of some samples, for their scale and spread.
        dice: which parts are missing.
    """

    def __init__(self, recipe: StudentsRecipe, parts: Parts, filters: npt.NDArray[np.float16], dice: torch.Generator) -> None:
        self._recipe, self._parts, self._dice = recipe, parts, dice
        self._scale, self._spread = filter_scale(filters), filter_spread(filters, parts)

    def of(self, pupils: Pupils, lesson: Lesson, rows: npt.NDArray[np.int64]) -> tuple[Tensor, int]:
        """The loss on these samples, and how many of them all parts together answer rightly."""
        x = torch.from_numpy(lesson.images[rows]).contiguous(memory_format=torch.channels_last)
        scores, filters = pupils.learn(x)
        wanted = torch.from_numpy(lesson.filters[rows].astype(np.float32) / np.float32(self._scale))
        labels, taught = torch.from_numpy(lesson.labels[rows]), torch.from_numpy(lesson.logits[rows])
        apart = torch.stack(
            [
                functional.mse_loss(found, wanted[:, list(part)]) / spread
                for found, part, spread in zip(filters, self._parts, self._spread, strict=True)
            ]
        ).mean()
        loss = answer_loss(scores, pupils.bias, labels, taught, self._recipe, self._dice) + self._recipe.weights[3] * apart
        return loss, int(((scores[:, :, -1].sum(1) + pupils.bias).argmax(1) == labels).sum())


def answer_loss(
    scores: Tensor, bias: Tensor, labels: Tensor, taught: Tensor, recipe: StudentsRecipe, dice: torch.Generator
) -> Tensor:
    """All parts together, random ones together, each exit alone; weighted.

    Args:
        scores: `[batch, parts, exits, classes]`.
        bias: `[classes]`.
        labels: `[batch]`.
        taught: the teacher's logits `[batch, classes]`.
        recipe: weights and probabilities.
        dice: which are missing.
    """

    def loss(logits: Tensor, repeats: int = 1) -> Tensor:
        truth, wanted = labels.repeat_interleave(repeats), (taught / recipe.temperature).log_softmax(1)
        hard = functional.cross_entropy(logits, truth)
        found = (logits / recipe.temperature).log_softmax(1)
        soft = functional.kl_div(found, wanted.repeat_interleave(repeats, 0), reduction="batchmean", log_target=True)
        return (1 - recipe.taught) * hard + recipe.taught * recipe.temperature**2 * soft

    batch, parts, exits, _ = scores.shape
    together, some, alone, _ = recipe.weights
    chosen = draw_exits(scores, recipe.early, dice)
    present = draw_present(batch, parts, recipe.present, dice)
    return (
        together * loss(scores[:, :, -1].sum(1) + bias)
        + some * loss((chosen * present[:, :, None]).sum(1) + bias)
        + alone * loss((scores + bias).flatten(0, 2), parts * exits)
    )


def draw_present(batch: int, parts: int, probability: float, dice: torch.Generator) -> Tensor:
    """1 where a part is in, 0 where it is missing, `[batch, parts]`; at least one is in."""
    present = torch.rand(batch, parts, generator=dice) < probability
    left = torch.randint(parts, (batch,), generator=dice)
    present[torch.arange(batch), left] |= ~present.any(1)
    return present.float()


def draw_exits(scores: Tensor, early: float, dice: torch.Generator) -> Tensor:
    """Scores `[batch, parts, classes]` of the exit at which each student answers, of those `[batch, parts, exits, classes]`."""
    batch, parts, exits, classes = scores.shape
    if exits == 1:
        return scores[:, :, 0]
    leaves = torch.rand(batch, parts, generator=dice) < early
    index = torch.where(leaves, torch.randint(exits - 1, (batch, parts), generator=dice), exits - 1)
    return scores.gather(2, index[:, :, None, None].expand(-1, -1, 1, classes))[:, :, 0]


def filter_scale(filters: npt.NDArray[np.float16]) -> float:
    """Root mean square of all of them."""
    return float(np.sqrt((filters.astype(np.float64) ** 2).mean())) or 1.0


def filter_spread(filters: npt.NDArray[np.float16], parts: Parts) -> list[float]:
    """Mean variance of each part's filters, over the squared scale: what guessing their means would cost."""
    variances = filters.astype(np.float64).var(0) / filter_scale(filters) ** 2
    return [float(variances[list(part)].mean()) or 1.0 for part in parts]
