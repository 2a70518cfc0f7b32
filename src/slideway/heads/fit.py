"""Train gated attention over bags with PyTorch; the result needs no torch (`slideway.heads.abmil`).

Only what trains imports this module: torch comes with the `train` extra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from slideway.core.opinion import Kind, TaskQuestion
from slideway.heads.abmil import Abmil, Floats, Member, fit_projection, outputs_of

UNKNOWN = -1  # label of a bag that nobody labelled for a task: it does not count in that task's loss
_FIRST_GAP = 2.0  # before softplus
_PARTS = 3  # of the cases, to choose a number of steps
_CLEARLY_BETTER = 0.95  # of the loss after the fewest steps: a smaller gain is noise, and more steps are not free
_PROJECTED_TILES = 20_000  # the input layer's axes settle long before

Bags = Sequence[NDArray[Any]]
Labels = Mapping[str, NDArray[np.int64]]
Tell = Callable[[int, int], object]
LoggedTiles = tuple[Floats, Floats]  # (n_tiles, rank) and the logarithm of what each stands for


@dataclass(frozen=True)
class Training:
    """How a head is trained.

    Attributes:
        rank: Width of the input layer's output.
        hidden: Width of the hidden layer.
        attention: Width of the attention branch.
        epochs: Passes over all bags, at least.
        more_steps: Numbers of steps that are also tried where they are more than that; the number is taken that
            answers held-out bags best. A lesion of 1 % of the tiles takes 600 steps, and fifty slides with weak labels
            are learnt by heart in 200 (docs/hard.md): no one number serves both. Empty tries none.
        batch: Bags a step.
        tiles: Tiles of a bag that are drawn for one step, at most.
        kept: Tiles of a bag that are used at all, evenly spaced, at most: memory then grows with slides alone.
        rate: Learning rate of AdamW.
        decay: Weight decay: few cases, so a strong one.
        dropout: Share of hidden activations that is dropped in training.
        seeds: Members, each trained from its own seed and averaged: seeds alone move figures of small sets by ten
            points and more.
    """

    rank: int = 64
    hidden: int = 48
    attention: int = 24
    epochs: int = 40
    more_steps: tuple[int, ...] = (200, 600)
    batch: int = 32
    tiles: int = 256
    kept: int = 4_096
    rate: float = 2e-3
    decay: float = 1e-2
    dropout: float = 0.25
    seeds: tuple[int, ...] = (0, 1, 2)


def fit_abmil(
    bags: Bags,
    labels: Labels,
    questions: Sequence[TaskQuestion],
    training: Training,
    *,
    weights: Sequence[Floats] | None = None,
    groups: Sequence[str] | None = None,
    tell: Tell | None = None,
) -> Abmil:
    """Train a head on bags.

    Every task counts alike; within a task every label counts alike, however rare (masked, class-balanced loss). The
    answer to a child task is learnt from bags alone whose parent's answer is yes. The same input on the same machine
    gives the same head.

    Args:
        bags: (n_tiles, width) vectors of each slide, none empty.
        labels: For each task (n_bags,) positions in its labels, `UNKNOWN` where nobody said.
        questions: Tasks, parents before children.
        training: How.
        weights: For each bag (n_tiles,) how many tiles of the tissue each stands for; None means 1 each.
        groups: Case of each bag: held-out bags are of other cases than those learnt from; None means one each.
        tell: Told members done and members in all.

    Raises:
        ValueError: A bag is empty, no tile is a number, or a task has no bag with a label.
    """
    if any(len(bag) == 0 for bag in bags):
        raise ValueError("a bag without tiles cannot be learnt from")
    masked = mask_children(labels, questions)
    if empty := [q.id for q in questions if not (masked[q.id] != UNKNOWN).any()]:
        raise ValueError(f"no bag has a label for {', '.join(empty)}")
    projection = fit_projection(_sample_tiles(bags, _PROJECTED_TILES), rank=min(training.rank, bags[0].shape[1]))
    kept = [_spread(len(bag), training.kept) for bag in bags]
    projected = [projection(bag[places]) for bag, places in zip(bags, kept, strict=True)]
    stands_for = weights if weights is not None else [np.ones(len(bag), np.float32) for bag in bags]
    logs = [np.log(own[places].astype(np.float32)) for own, places in zip(stands_for, kept, strict=True)]
    ready = list(zip(projected, logs, strict=True))
    steps = choose_steps(ready, masked, questions, training, groups or [str(i) for i in range(len(ready))])
    members = []
    for number, seed in enumerate(training.seeds):
        members.append(_fit_network(ready, masked, questions, training, seed, steps).freeze())
        if tell is not None:
            tell(number + 1, len(training.seeds))
    return Abmil(projection, tuple(members), tuple(questions))


def mask_children(labels: Labels, questions: Sequence[TaskQuestion]) -> dict[str, NDArray[np.int64]]:
    """Labels of child tasks only where the parent's answer is yes (its last label)."""
    masked = {}
    for question in questions:
        own = np.asarray(labels[question.id], np.int64).copy()
        if question.parent in labels:
            own[np.asarray(labels[question.parent]) != 1] = UNKNOWN
        masked[question.id] = own
    return masked


def _sample_tiles(bags: Bags, most: int) -> Floats:
    """The same number of tiles of every bag, evenly spaced: a large slide counts no more than a small one."""
    each = max(1, most // len(bags))
    tiles = np.concatenate([bag[_spread(len(bag), each)] for bag in bags]).astype(np.float32)
    whole = tiles[np.isfinite(tiles).all(axis=1)]
    if not len(whole):
        raise ValueError("no tile's vector is finite; nothing can be learnt from such bags")
    return whole


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Places of at most so many of a bag's tiles, evenly spaced over the slide."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def choose_steps(
    bags: Sequence[LoggedTiles],
    labels: Labels,
    questions: Sequence[TaskQuestion],
    training: Training,
    groups: Sequence[str],
) -> int:
    """The number of steps, of those that may be tried, after which held-out bags are answered best.

    One network is trained for each number on two thirds of the cases, three times over. Where a third left out takes a
    label with it, nothing can be tried, and the fewest are taken; so they are where more gain less than a twentieth.
    """
    fewest = training.epochs * -(-len(bags) // training.batch)
    tried = [fewest, *(steps for steps in sorted(training.more_steps) if steps > fewest)]
    order = np.random.default_rng(training.seeds[0]).permutation(sorted(set(groups)))
    part_of = {name: i % _PARTS for i, name in enumerate(order.tolist())}
    part = np.array([part_of[group] for group in groups])
    if len(tried) == 1 or not all(_shows_labels(labels, part != one) for one in range(_PARTS)):
        return fewest
    losses = []
    for steps in tried:
        total = 0.0
        for one in range(_PARTS):
            known, asked = np.flatnonzero(part != one).tolist(), np.flatnonzero(part == one).tolist()
            learnt = [bags[i] for i in known]
            own = {task: values[known] for task, values in labels.items()}
            network = _fit_network(learnt, own, questions, training, training.seeds[0], steps)
            total += network.judge([bags[i] for i in asked], {task: values[asked] for task, values in labels.items()})
        losses.append(total)
    best = int(np.argmin(losses))
    return tried[best] if losses[best] < _CLEARLY_BETTER * losses[0] else fewest


def _shows_labels(labels: Labels, chosen: NDArray[np.bool_]) -> bool:
    """Whether some of the bags show at least two labels of every task."""
    return all(len(set(own[chosen & (own != UNKNOWN)].tolist())) > 1 for own in labels.values())


def _fit_network(
    bags: Sequence[LoggedTiles],
    labels: Labels,
    questions: Sequence[TaskQuestion],
    training: Training,
    seed: int,
    steps: int,
) -> _Network:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small only wait for each other; and one thread gives the same sums
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network(bags[0][0].shape[1], questions, training)
            network.train_on(bags, labels, np.random.default_rng(seed), steps)
            return network
    finally:
        torch.set_num_threads(threads)


class _Network:
    """The trainable twin of `Member`."""

    def __init__(self, rank: int, questions: Sequence[TaskQuestion], training: Training) -> None:
        self.questions, self.training = questions, training
        self.layers = nn.ModuleDict(
            {
                "hidden": nn.Linear(rank, training.hidden),
                "tanh": nn.Linear(training.hidden, training.attention),
                "gate": nn.Linear(training.hidden, training.attention),
                "score": nn.Linear(training.attention, 1, bias=False),
                **{_layer_name(q): _task_layer(q, training.hidden) for q in questions},
            }
        )
        self.drop = nn.Dropout(training.dropout)

    def train_on(
        self, projected: Sequence[LoggedTiles], labels: Labels, random: np.random.Generator, steps: int
    ) -> None:
        training = self.training
        optimiser = torch.optim.AdamW(self.layers.parameters(), training.rate, weight_decay=training.decay)
        epochs = -(-steps // -(-len(projected) // training.batch))
        steps = epochs * -(-len(projected) // training.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, training.rate, total_steps=max(steps, 2))
        weights = {q.id: _balance(labels[q.id], len(q.labels)) for q in self.questions}
        self.layers.train()
        self.drop.train()
        for _ in range(epochs):
            order = random.permutation(len(projected))
            for start in range(0, len(order), training.batch):
                picked = order[start : start + training.batch]
                outputs = self.forward(*_draw([projected[i] for i in picked], training.tiles, random))
                optimiser.zero_grad()
                self._add_losses(outputs, {task: own[picked] for task, own in labels.items()}, weights).backward()
                nn.utils.clip_grad_norm_(self.layers.parameters(), 1.0)
                optimiser.step()
                schedule.step()

    def judge(self, bags: Sequence[LoggedTiles], labels: Labels) -> float:
        """Sum of the class-balanced losses of bags that were not learnt from."""
        self.layers.eval()
        self.drop.eval()
        weights = {q.id: _balance(labels[q.id], len(q.labels)) for q in self.questions}
        total = 0.0
        with torch.no_grad():
            for i, (tiles, logs) in enumerate(bags):
                outputs = self.forward(torch.from_numpy(tiles)[None], torch.from_numpy(logs)[None])
                own = {task: values[i : i + 1] for task, values in labels.items()}
                total += float(self._add_losses(outputs, own, weights))
        return total

    def _add_losses(
        self, outputs: dict[str, torch.Tensor], labels: Labels, weights: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        total = torch.zeros(())
        for question in self.questions:
            known = torch.from_numpy(labels[question.id] != UNKNOWN)
            own = torch.from_numpy(labels[question.id])[known]
            # A sum over no bag is 0 and has a gradient of 0.
            total = total + _loss(question, outputs[question.id][known], own, weights[question.id])
        return total

    def forward(self, tiles: torch.Tensor, log_weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """(n_bags, n_tiles, rank), and the logarithm of what each stands for, to (n_bags, outputs) for each task."""
        hidden = self.drop(torch.relu(self.layers["hidden"](tiles)))
        gated = torch.tanh(self.layers["tanh"](hidden)) * torch.sigmoid(self.layers["gate"](hidden))
        raw = self.layers["score"](gated)[..., 0] + log_weights
        pooled = torch.einsum("bn,bnh->bh", torch.softmax(raw, dim=1), hidden)
        return {q.id: self._answer(q, pooled) for q in self.questions}

    def _answer(self, question: TaskQuestion, pooled: torch.Tensor) -> torch.Tensor:
        layer = self.layers[_layer_name(question)]
        if question.kind is not Kind.ORDINAL:
            answer: torch.Tensor = layer(pooled)
            return answer
        ordered: torch.Tensor = layer.direction(pooled) + _ordered_steps(layer)
        return ordered

    def freeze(self) -> Member:
        def pair(name: str) -> tuple[Floats, Floats]:
            layer = self.layers[name]
            return _array(layer.weight.T), _array(layer.bias)

        tasks = {}
        for question in self.questions:
            name = _layer_name(question)
            tasks[question.id] = self._freeze_steps(name) if question.kind is Kind.ORDINAL else pair(name)
        return Member(pair("hidden"), pair("tanh"), pair("gate"), _array(self.layers["score"].weight[0]), tasks)

    def _freeze_steps(self, name: str) -> tuple[Floats, Floats]:
        layer = self.layers[name]
        steps = _ordered_steps(layer)
        return _array(layer.direction.weight.T.expand(-1, len(steps))), _array(steps)


def _layer_name(question: TaskQuestion) -> str:
    return f"task {question.id}".replace(".", "/")  # torch takes no dot in a layer's name


def _task_layer(question: TaskQuestion, hidden: int) -> Any:
    if question.kind is not Kind.ORDINAL:
        return nn.Linear(hidden, outputs_of(question))
    layer = nn.Module()
    layer.direction = nn.Linear(hidden, 1, bias=False)
    # Steps start so far apart that every label between can lead (a gap above 2 ln 2 is needed), the middle one at 0:
    # small cohorts train for too few steps to ever move them there.
    gaps = torch.full((len(question.labels) - 2,), _FIRST_GAP)
    layer.gaps = nn.Parameter(gaps)
    layer.first = nn.Parameter(functional.softplus(gaps).sum()[None] / 2)
    return layer


def _ordered_steps(layer: nn.Module) -> torch.Tensor:
    """Steps of an ordered task, which can only lie one behind the other along one direction."""
    gaps = functional.softplus(layer.get_parameter("gaps"))
    return layer.get_parameter("first") - torch.cat([torch.zeros(1), torch.cumsum(gaps, 0)])


def _draw(bags: Sequence[LoggedTiles], most: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw tiles of each bag at random, at most `most` and at least half of a small bag.

    All are padded to one length with what stands for no tile.
    """
    sizes = [len(log) for _, log in bags]
    counts = [min(most, max(1, int(random.uniform(0.5, 1.0) * size))) if size > 8 else size for size in sizes]
    tiles = np.zeros((len(bags), max(counts), bags[0][0].shape[1]), np.float32)
    log_weights = np.full(tiles.shape[:2], -np.inf, np.float32)
    for i, ((bag, log), count) in enumerate(zip(bags, counts, strict=True)):
        drawn = random.choice(len(bag), count, replace=False)
        tiles[i, :count], log_weights[i, :count] = bag[drawn], log[drawn]
    return torch.from_numpy(tiles), torch.from_numpy(log_weights)


def _balance(labels: NDArray[np.int64], count: int) -> torch.Tensor:
    """Weight of each label so that all count alike; mean 1 over the labelled bags."""
    held = np.bincount(labels[labels != UNKNOWN], minlength=count).astype(np.float64)
    weight = np.where(held > 0, held.sum() / np.maximum(held, 1) / max(1, int((held > 0).sum())), 0)
    return torch.from_numpy(weight.astype(np.float32))


def _loss(question: TaskQuestion, outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Class-balanced loss of one task over the bags that have a label."""
    if question.kind is Kind.CLASSES:
        each = functional.cross_entropy(outputs, labels, reduction="none", label_smoothing=0.05)
    else:
        steps = _steps(labels, outputs.shape[1])
        each = functional.binary_cross_entropy_with_logits(outputs, 0.025 + 0.95 * steps, reduction="none").mean(dim=1)
    loss: torch.Tensor = (each * weights[labels]).sum() / max(1, len(labels))
    return loss


def _steps(labels: torch.Tensor, count: int) -> torch.Tensor:
    """(n, count) 1 for every step that a label lies above."""
    return (labels[:, None] > torch.arange(count)[None]).float()


def _array(tensor: torch.Tensor) -> Floats:
    array: Floats = np.ascontiguousarray(tensor.detach().numpy(), np.float32)
    return array
