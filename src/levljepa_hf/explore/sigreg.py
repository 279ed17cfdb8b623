"""SIGReg at work: a cloud that descends on its gradient, and the directions in which embeddings are least Gaussian.

    descent = Descent(make_cloud("ring", 1000))
    descent.run(100)
    plot_sigreg(descent)
    least_gaussian_directions(seen.features["image_embeds"])

Values and gradients are those of `levljepa_hf.SIGReg`, as in training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..evaluation.embedding_health import sigreg_floor
from ..model.sigreg_levljepa import SIGReg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPES = ("ring", "blobs", "square", "spiral", "cross", "line", "collapsed", "heavy tails", "normal")
LIMITS = {"num_samples": (8, 4000), "dim": (2, 64), "num_directions": (1, 1024), "num_knots": (2, 64)}
_TEST_DIRECTIONS = 512
_MAX_SAMPLES = 4096
_STARTS = 24  # from which the search for a direction goes uphill


def make_cloud(shape: str, num_samples: int = 1000, dim: int = 2, seed: int = 0) -> Tensor:
    """A cloud [N, D] to begin with: the shape in two of the dimensions, turned at random if there are more.

    Args:
        shape: One of `SHAPES`.
        num_samples: N, from 8 to 4000.
        dim: D, from 2 to 64.
        seed: Of the draw.

    Raises:
        ValueError: if one of them is out of range.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape={shape!r} is unknown: use one of {', '.join(SHAPES)}.")
    _check_limits(num_samples=num_samples, dim=dim)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_samples, dim, generator=generator)
    if shape == "normal":
        return noise
    uniform = torch.rand(num_samples, 2, generator=generator)
    angle = 2 * math.pi * uniform[:, 0]
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    if shape == "ring":
        plane = 2 * circle + 0.08 * noise[:, :2]
    elif shape == "blobs":
        centers = 2.2 * torch.tensor([[0.0, 1.0], [-0.87, -0.5], [0.87, -0.5]])
        plane = centers[(3 * uniform[:, 0]).long().clamp(max=2)] + 0.25 * noise[:, :2]
    elif shape == "square":
        plane = 4 * uniform - 2
    elif shape == "spiral":
        plane = (0.3 + 2.4 * uniform[:, :1].sqrt()) * torch.stack(
            [(9 * uniform[:, 0].sqrt()).cos(), (9 * uniform[:, 0].sqrt()).sin()], dim=1
        ) + 0.05 * noise[:, :2]
    elif shape == "cross":
        arm = 4 * uniform[:, :1] - 2
        along = torch.cat([arm, 0.06 * noise[:, :1]], dim=1)
        plane = torch.where(uniform[:, 1:] < 0.5, along, along.flip(1))
    elif shape == "line":
        plane = torch.cat([4 * uniform[:, :1] - 2, 0.04 * noise[:, :1]], dim=1)
    elif shape == "collapsed":
        plane = 1.0 + 0.02 * noise[:, :2]
    else:
        plane = (0.3 * noise[:, :2] / (1.02 - uniform[:, :1])).clamp(-12, 12)
    if dim == 2:
        return plane
    cloud = torch.cat([plane, 0.1 * noise[:, 2:]], dim=1)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    return cloud @ turn


def _check_limits(**values: int) -> None:
    for name, value in values.items():
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise ValueError(f"{name}={value} must be from {low} to {high}.")


class Descent:
    """A cloud that goes down SIGReg's gradient, by plain gradient steps with fresh directions each, as in training.

    Args:
        cloud: [N, D].
        num_directions: S, from 1 to 1024.
        num_knots: K, from 2 to 64.
        t_max: The last knot.
        step_size: Of a gradient step. A sample's gradient does not depend on N.
        seed: Of the directions.

    Attributes:
        cloud: [N, D] as it is now.
        plane: [D, 2] the two directions by which it is shown: the first two principal axes of the first cloud.
        values: SIGReg at each step, on 512 directions that stay the same; the first is that of the first cloud.
        directions: [D, S], those of the last step (the next one's before the first).
    """

    def __init__(
        self,
        cloud: Tensor,
        num_directions: int = 64,
        num_knots: int = 17,
        t_max: float = 3.0,
        step_size: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.cloud = cloud.detach().clone().float()
        dim = cloud.shape[1]
        self.plane = torch.eye(2)
        if dim > 2:
            self.plane = torch.linalg.svd(self.cloud - self.cloud.mean(0), full_matrices=False).Vh[:2].T
        self._generator = torch.Generator().manual_seed(seed)
        self.configure(num_directions, num_knots, t_max, step_size)
        self.values = [self.value()]

    def configure(self, num_directions: int, num_knots: int, t_max: float, step_size: float) -> None:
        """Other settings from here on.

        Raises:
            ValueError: if one is out of range.
        """
        _check_limits(num_directions=num_directions, num_knots=num_knots)
        if not 0 < step_size <= 100:
            raise ValueError(f"step_size={step_size} must be above 0 and at most 100.")
        self.sigreg = SIGReg(num_directions, num_knots, t_max, distributed=False)
        self._test = SIGReg(_TEST_DIRECTIONS, num_knots, t_max, distributed=False).eval()
        self.step_size = step_size
        self.directions = self._draw()

    def _draw(self) -> Tensor:
        size = (self.cloud.shape[1], self.sigreg.num_directions)
        return torch.nn.functional.normalize(torch.randn(size, generator=self._generator), dim=0)

    @property
    def floor(self) -> float:
        """What SIGReg is expected to be on as many samples of N(0, I). A cloud that is pushed may get below."""
        return sigreg_floor(self.sigreg.num_knots, self.sigreg.t_max)

    @torch.no_grad()
    def value(self) -> float:
        """SIGReg of the cloud as it is, on the directions that stay the same."""
        return self._test(self.cloud).item()

    def run(self, steps: int = 1) -> list[Tensor]:
        """Goes on by some steps. Returns the cloud after each of them, as it is shown, [N, 2].

        Raises:
            ValueError: if the cloud flies apart.
        """
        frames = []
        for _ in range(steps):
            self.directions = self._draw()
            cloud = self.cloud.requires_grad_()
            (gradient,) = torch.autograd.grad(self.sigreg(cloud, self.directions), cloud)
            self.cloud = (cloud - self.step_size * gradient).detach()
            self.values.append(self.value())
            frames.append(self.shown())
        if not self.cloud.isfinite().all():
            raise ValueError(f"The cloud has left the numbers at step_size={self.step_size}: take a smaller one.")
        return frames

    def shown(self) -> Tensor:
        """The cloud in its plane, [N, 2]."""
        return self.cloud @ self.plane


def characteristic_function(u: Tensor, num_knots: int = 17, t_max: float = 3.0) -> Tensor:
    """mean cos(t u) and mean sin(t u) of projections u [N] at the knots, [2, K]. Of N(0, 1): exp(-t^2 / 2) and 0."""
    angles = torch.linspace(0, t_max, num_knots) * u[:, None]
    return torch.stack([angles.cos().mean(0), angles.sin().mean(0)])


def direction_statistics(z: Tensor, directions: Tensor, num_knots: int = 17, t_max: float = 3.0) -> Tensor:
    """SIGReg of z [N, D] in each single direction, the columns of [D, S]: [S]."""
    sigreg = SIGReg(1, num_knots, t_max, distributed=False, implementation="plain")
    one = torch.vmap(lambda direction: sigreg(z, direction[:, None]), chunk_size=max(1, 2**19 // len(z)))
    with torch.no_grad():
        return one(directions.T.contiguous())


@dataclass(frozen=True)
class Directions:
    """Directions in which embeddings are least Gaussian, the worst first.

    Args:
        directions: [D, k], of unit length and at right angles.
        statistics: [k], SIGReg in each of them; `floor` on N(0, I).
        projections: [N, k], the embeddings along them.
        random: [S], SIGReg in random directions, to compare with.
        floor: What is expected on N(0, I).
        rows: [N], which of the embeddings were looked at.
    """

    directions: Tensor
    statistics: Tensor
    projections: Tensor
    random: Tensor
    floor: float
    rows: Tensor


def least_gaussian_directions(
    z: Tensor, k: int = 4, num_knots: int = 17, t_max: float = 3.0, num_random: int = 512, steps: int = 20
) -> Directions:
    """Projection pursuit with SIGReg as its index: from the worst of many directions uphill on the sphere.

    Each next direction is at right angles to those found. Found ones lie far above the random ones even for N(0, I),
    as they are sought.

    Args:
        z: [N, D] embeddings as SIGReg meets them, not normalised; of more than 4096, so many drawn at random.
        k: How many directions, at most D.
        num_knots: K.
        t_max: The last knot.
        num_random: S.
        steps: Uphill.

    Raises:
        ValueError: if there are fewer than 3 embeddings.
    """
    if len(z) < 3:
        raise ValueError(f"{len(z)} embeddings have no distribution to speak of: at least 3 are needed.")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(z), generator=generator)[:_MAX_SAMPLES].sort().values
    z = z[rows].float()
    dim = z.shape[1]
    random = torch.nn.functional.normalize(torch.randn(dim, num_random, generator=generator), dim=0)
    statistics = direction_statistics(z, random, num_knots, t_max)
    principal = torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh.T
    candidates = torch.cat([random, principal, torch.eye(dim)], dim=1)
    found = torch.zeros(dim, 0)
    for _ in range(min(k, dim)):
        best = _uphill(z, candidates, found, num_knots, t_max, steps)
        found = torch.cat([found, best[:, None]], dim=1)
    statistics_found = direction_statistics(z, found, num_knots, t_max)
    order = statistics_found.argsort(descending=True)
    found = found[:, order]
    return Directions(
        directions=found,
        statistics=statistics_found[order],
        projections=z @ found,
        random=statistics,
        floor=sigreg_floor(num_knots, t_max),
        rows=rows,
    )


def _uphill(z: Tensor, candidates: Tensor, found: Tensor, num_knots: int, t_max: float, steps: int) -> Tensor:
    """The best direction [D] at right angles to those `found`, by gradient steps from the best of the candidates."""

    def free_of(directions: Tensor) -> Tensor:
        return torch.nn.functional.normalize(directions - found @ (found.T @ directions), dim=0)

    rest = candidates - found @ (found.T @ candidates)
    candidates = free_of(rest[:, rest.norm(dim=0) > 1e-3])
    values = direction_statistics(z, candidates, num_knots, t_max)
    values, order = values.topk(min(_STARTS, len(values)))
    best, sizes = candidates[:, order], torch.full_like(values, 0.5)
    sigreg = SIGReg(1, num_knots, t_max, distributed=False, implementation="plain")
    for _ in range(steps):
        directions = best.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(sigreg(z, directions), directions)
        trial = free_of(best + sizes * torch.nn.functional.normalize(gradient, dim=0))
        there = direction_statistics(z, trial, num_knots, t_max)
        better = there > values
        best, values = torch.where(better, trial, best), torch.where(better, there, values)
        sizes = torch.where(better, 1.2 * sizes, sizes / 2)
    return best[:, values.argmax()]


def plot_sigreg(descent: Descent) -> "Figure":
    """The cloud with its directions, the marginal in one of them, the characteristic function, the value so far."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.3), layout="constrained")
    cloud_axis, marginal_axis, function_axis, value_axis = figure.subplots(1, 4)
    points, arrows = descent.shown(), (descent.directions[:, :32].T @ descent.plane)
    cloud_axis.scatter(*points.T, s=3, color="#1f5fa8")
    for x, y in (2.5 * arrows).tolist():
        cloud_axis.plot([0, x], [0, y], color="#c44e52", lw=0.6, alpha=0.5)
    reach = max(3.5, points.abs().max().item())
    cloud_axis.set(title=f"step {len(descent.values) - 1}", aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
    knots = (descent.sigreg.num_knots, descent.sigreg.t_max)
    _plot_marginal(marginal_axis, descent.cloud @ descent.directions[:, 0])
    marginal_axis.set(title="along the first direction")
    t = torch.linspace(0, knots[1], knots[0])
    real, imaginary = characteristic_function(descent.cloud @ descent.directions[:, 0], *knots)
    function_axis.plot(t, torch.exp(-t.square() / 2), color="#7f7f7f", label="N(0, 1)")
    function_axis.plot(t, real, "o-", ms=4, color="#1f5fa8", label="mean cos(t u)")
    function_axis.plot(t, imaginary, "o-", ms=4, color="#c44e52", label="mean sin(t u)")
    function_axis.set(title="characteristic function at the knots", xlabel="t", ylim=(-1, 1.05))
    function_axis.legend(fontsize=7)
    value_axis.plot(descent.values, color="#1f5fa8")
    value_axis.axhline(descent.floor, color="#c44e52", ls="--", lw=1)
    value_axis.set(title="SIGReg and its floor", xlabel="step", yscale="log")
    return figure


def plot_directions(found: Directions) -> "Figure":
    """The marginals in the least Gaussian directions, and how these compare with random ones."""
    from matplotlib.figure import Figure

    count = found.projections.shape[1]
    figure = Figure(figsize=(3.1 * (count + 1), 2.9), layout="constrained")
    *axes, last = figure.subplots(1, count + 1, squeeze=False)[0]
    for axis, u, statistic in zip(axes, found.projections.T, found.statistics.tolist(), strict=True):
        _plot_marginal(axis, u)
        axis.set(title=f"SIGReg {statistic:.1f}")
    last.hist(found.random.numpy(), bins=40, color="#1f5fa8")
    last.axvline(found.floor, color="#c44e52", ls="--", lw=1)
    last.set(title="SIGReg in random directions", yticks=[])
    return figure


def _plot_marginal(axis: "object", u: Tensor) -> None:
    axis.hist(u.numpy(), bins=50, density=True, color="#9db8d9")
    x = torch.linspace(-3.5, 3.5, 200)
    axis.plot(x, torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi), color="#c44e52")
    axis.set(yticks=[])


def trajectory(
    shape: str, frames: Sequence[int], num_samples: int = 600, **options: float
) -> tuple[list[Tensor], Descent]:
    """The cloud as it is shown, [N, 2], at some steps, and the descent behind it."""
    descent = Descent(make_cloud(shape, num_samples), **options)
    wanted, shown = set(frames), []
    if 0 in wanted:
        shown.append(descent.shown())
    for step in range(1, max(frames) + 1):
        (cloud,) = descent.run(1)
        if step in wanted:
            shown.append(cloud)
    return shown, descent


__all__ = [
    "Descent",
    "Directions",
    "LIMITS",
    "SHAPES",
    "characteristic_function",
    "direction_statistics",
    "least_gaussian_directions",
    "make_cloud",
    "plot_directions",
    "plot_sigreg",
    "trajectory",
]
