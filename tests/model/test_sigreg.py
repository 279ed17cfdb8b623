"""SIGReg in one process: value and gradient against the equation, its behaviour, its directions, and bad input."""

import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel
from levljepa_hf.model import sigreg_levljepa
from levljepa_hf.model.sigreg_levljepa import SIGReg, draw_directions


def equation(z, directions, num_knots=17, t_max=3.0, scale=None):
    """SIGReg as the paper has it, in float64."""
    z, directions = z.double(), directions.double()
    t = torch.linspace(0, t_max, num_knots, dtype=torch.float64)
    spacing = t_max / (num_knots - 1)
    weights = torch.full_like(t, 2 * spacing)
    weights[0] = weights[-1] = spacing
    phi = torch.exp(-(t**2) / 2)
    x = (z @ directions)[..., None] * t  # (..., N, S, K)
    error = (x.cos().mean(-3) - phi) ** 2 + x.sin().mean(-3) ** 2
    return ((z.shape[-2] if scale is None else scale) * (error * weights * phi).sum(-1)).mean()


def value_and_gradient(function, z):
    z = z.detach().clone().requires_grad_()
    value = function(z)
    value.backward()
    return value.detach(), z.grad


def assert_equals_equation(module, z, directions, scale=None, rtol=1e-5):
    value, gradient = value_and_gradient(lambda z: module(z, directions=directions), z)
    knots = {"num_knots": module.num_knots, "t_max": module.t_max, "scale": scale}
    expected, expected_gradient = value_and_gradient(lambda z: equation(z, directions, **knots), z.double())
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=1e-6)
    error = (gradient - expected_gradient).norm() / expected_gradient.norm()
    assert error < rtol, f"relative error of the gradient {error:.1e}"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# --- the equation ---


@pytest.mark.parametrize("implementation", ["auto", "tiled", "plain"])
@pytest.mark.parametrize(
    "shape, num_directions",
    [((50, 24), 30), ((3, 20, 7), 33), ((2, 3, 4, 5), 6), ((1, 5), 3), ((400, 8), 500)],
    ids=["batch", "views", "views of views", "one sample", "several tiles"],
)
def test_value_and_gradient_equal_the_equation(shape, num_directions, implementation):
    z = 1.5 * torch.randn(shape) + 0.3
    assert_equals_equation(SIGReg(implementation=implementation), z, torch.randn(shape[-1], num_directions))


@pytest.mark.parametrize("num_knots, t_max", [(2, 3.0), (3, 1.0), (4, 3.0), (10, 5.0), (18, 3.0), (33, 4.0)])
def test_any_number_of_knots(num_knots, t_max):
    assert_equals_equation(SIGReg(num_knots=num_knots, t_max=t_max), torch.randn(40, 8), torch.randn(8, 20) / 3)


def test_float64_is_exact():
    z, directions = torch.randn(30, 6, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    assert_equals_equation(SIGReg(), z, directions, rtol=1e-12)


def test_sums_and_their_gradient_in_two_passes():
    """The path of data-parallel training and of CUDA: the statistic outside of the operator."""
    module, z, directions = SIGReg(), torch.randn(2, 30, 6), torch.randn(6, 9)
    expected = value_and_gradient(lambda z: module(z, directions=directions), z)
    module._in_one_pass = lambda z: False
    torch.testing.assert_close(value_and_gradient(lambda z: module(z, directions=directions), z), expected)


def test_non_contiguous_input():
    z = torch.randn(12, 2, 40).permute(2, 1, 0)[:, 1]
    assert not z.is_contiguous()
    assert_equals_equation(SIGReg(), z, torch.randn(12, 20))


def test_sample_size_scale_replaces_the_batch():
    assert_equals_equation(SIGReg(sample_size_scale=256), torch.randn(40, 8), torch.randn(8, 20), scale=256)


def test_gradient_with_respect_to_directions():
    z, directions = torch.randn(20, 4), torch.randn(4, 7, requires_grad=True)
    SIGReg()(z, directions=directions).backward()
    _, expected = value_and_gradient(lambda directions: equation(z, directions), directions.double())
    torch.testing.assert_close(directions.grad.double(), expected, rtol=1e-4, atol=1e-6)


# --- what it measures ---


@pytest.mark.parametrize("samples", [16, 64, 256, 1024])
def test_about_one_on_a_standard_normal(samples):
    values = torch.stack([SIGReg(64)(torch.randn(samples, 256)) for _ in range(20)])
    assert values.mean() == pytest.approx(1.0, abs=0.15)


def test_grows_with_the_batch_on_collapse():
    collapsed = [SIGReg(64)(torch.ones(samples, 16)).item() for samples in (16, 64, 256)]
    assert collapsed[0] > 3
    torch.testing.assert_close(torch.tensor(collapsed[1:]) / collapsed[0], torch.tensor([4.0, 16.0]))


def test_descent_makes_a_collapsed_batch_normal():
    z = (1e-2 * torch.randn(128, 4) + 2.0).requires_grad_()
    module, optimizer = SIGReg(32), torch.optim.Adam([z], lr=0.1)
    before = module(z).item()
    for _ in range(100):
        optimizer.zero_grad()
        module(z).backward()
        optimizer.step()
    assert before > 20 > 2 > module(z).item()
    torch.testing.assert_close(torch.cov(z.detach().t()), torch.eye(4), rtol=0, atol=0.5)


# --- directions ---


def marginal_cdf(dim):
    """P(<a, e> <= x) for a uniform on the sphere of R^dim: its density goes with (1 - x^2)^((dim - 3) / 2)."""
    grid = torch.linspace(-math.pi / 2, math.pi / 2, 20_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(grid.cos() ** (dim - 2), grid)
    mass = torch.cat([mass.new_zeros(1), mass / mass[-1]])

    def cdf(x):
        position = (x.double().asin() + math.pi / 2) / math.pi * 20_000
        low = position.long().clamp(0, 19_999)
        return mass[low] + (position - low) * (mass[low + 1] - mass[low])

    return cdf


def kolmogorov_smirnov(x, cdf):
    """sqrt(n) times the largest distance to the law: above 1.95 with a probability of 0.001."""
    steps = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    expected = cdf(x.sort().values)
    return len(x) ** 0.5 * torch.maximum(steps[1:] - expected, expected - steps[:-1]).max().item()


@pytest.mark.parametrize("dim", [4, 5, 6, 8, 64])
def test_each_direction_is_uniform_on_the_sphere(dim):
    rows = draw_directions(0, torch.tensor(7), dim, 40_000)
    assert rows.shape == (40_000, dim) and rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(40_000))
    others = torch.linalg.qr(torch.randn(dim, dim)).Q
    for turn in rows.chunk(4):  # the four directions of a draw: independent within a turn
        n = len(turn)
        torch.testing.assert_close(turn.mean(0) * (n * dim) ** 0.5, torch.zeros(dim), rtol=0, atol=4.0)
        torch.testing.assert_close(dim * turn.t() @ turn / n, torch.eye(dim), rtol=0, atol=4.5 * (2 / n) ** 0.5)
        for projection in [*turn.t()[:4], *turn.t()[-4:], *(turn @ others).t()[:6]]:
            assert kolmogorov_smirnov(projection, marginal_cdf(dim)) < 2.2


def test_draws_are_independent():
    """Neighbours in the stream, of one step and the next, of one seed and the next: no correlation, nor of squares."""
    dim, number = 8, 20_000
    one = sigreg_levljepa._draw(3, torch.tensor(5), dim, number)
    others = {
        "next draw": one.roll(1, 0),
        "draw 256 later": one.roll(256, 0),
        "next step": sigreg_levljepa._draw(3, torch.tensor(6), dim, number),
        "next seed": sigreg_levljepa._draw(4, torch.tensor(5), dim, number),
        "seed and step exchanged": sigreg_levljepa._draw(5, torch.tensor(3), dim, number),
        "negative step": sigreg_levljepa._draw(3, torch.tensor(-1), dim, number),
        "high bits of the seed": sigreg_levljepa._draw(3 + (1 << 40), torch.tensor(5), dim, number),
    }
    for name, other in others.items():
        for function in (lambda x: x, torch.square, torch.abs):
            a, b = ((x - x.mean(0)) / x.std(0) for x in (function(one), function(other)))
            worst = (a.t() @ b / number).abs().max() * number**0.5
            assert worst < 4.5, f"{name}: a correlation {worst:.1f} standard deviations from 0"
    assert (one[:, :4] * one[:, 4:]).mean(0).abs().max() < 4.5 / dim / number**0.5  # cosine and sine of one angle


@pytest.mark.parametrize("dim", [4, 12, 256])
def test_four_directions_of_a_draw(dim):
    """Orthogonal maps of the draw, none of which keeps an axis, or the mean of all axes, for two directions."""
    draws = torch.cat([torch.eye(dim), torch.full((1, dim), dim**-0.5)])
    maps = sigreg_levljepa._expand(draws, 4).unflatten(0, (4, -1))
    for i, one in enumerate(maps):
        torch.testing.assert_close(one[:dim] @ one[:dim].t(), torch.eye(dim))
        for other in maps[:i]:
            # w, an axis or the mean of all, projects the draw b to <A w, b> and <B w, b>: these are uncorrelated.
            for w in draws[[0, dim // 2, -2, -1]]:
                assert abs((one[:dim] @ w) @ (other[:dim] @ w)) < 1e-6


EMBEDDINGS = {
    "normal": lambda z: z,
    "scales": lambda z: z * torch.linspace(0.1, 2, z.shape[1]),
    "dead half": lambda z: z * (torch.arange(z.shape[1]) < z.shape[1] // 2),
    "one large": lambda z: z * (1 + 9 * (torch.arange(z.shape[1]) == 3)),
    "mean": lambda z: z + 1,
    "low rank": lambda z: z[:, :5] @ torch.randn(5, z.shape[1]),
    "clusters": lambda z: 8 * torch.eye(z.shape[1])[torch.randint(z.shape[1], (len(z),))],
    "point": lambda z: z[:1].expand_as(z),
}


@pytest.mark.parametrize("embeddings", EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_estimate_is_that_of_independent_directions(embeddings):
    """The same mean, and a variance about the same, over draws; `generator` draws every direction independently."""
    z, module, generator, calls = embeddings(torch.randn(64, 64)), SIGReg(128), torch.Generator().manual_seed(0), 400
    ours = torch.stack([module(z) for _ in range(calls)])
    independent = torch.stack([module(z, generator=generator) for _ in range(calls)])
    error = ((ours.var() + independent.var()) / calls).sqrt()
    assert abs(ours.mean() - independent.mean()) < 4 * error
    assert 0.5 < ours.var() / independent.var() < 1.35  # each is known to 7 %


def test_directions_follow_from_splitmix64_and_lowbias32():
    """The same on every machine: resumed runs go on with the stream they began with."""
    golden, wrap = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def mix64(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & wrap
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & wrap
        return x ^ (x >> 31)

    def mix32(x):
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        return x ^ (x >> 16)

    def signed(x):
        return x - (x >> 31 << 32)

    for seed, step in ((0, 0), (3, 7), (-1, -1)):
        key = mix64((step + mix64((seed + golden) & wrap)) & wrap)
        keys = [mix64(((key + count) * golden) & wrap) for count in range(1, 5)]
        bits = [[signed(mix32(mix32(c ^ (k & 0xFFFFFFFF)) ^ (k >> 32))) for c in range(6)] for k in keys]
        radius = torch.tensor([[math.sqrt(-2 * math.log((abs(b) + 1) / 2**31)) for b in row[:3]] for row in bits])
        angle = torch.tensor([[math.pi * b / 2**31 for b in row[3:]] for row in bits])
        expected = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :5]
        rows = draw_directions(seed, torch.tensor(step), 5, 4)
        torch.testing.assert_close(rows, expected / expected.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)


def test_directions_do_not_depend_on_the_blocks_they_are_drawn_in(monkeypatch):
    expected = draw_directions(0, torch.tensor(1), 5, 11)
    monkeypatch.setattr(sigreg_levljepa, "_DRAW_BLOCK", 17)
    assert torch.equal(draw_directions(0, torch.tensor(1), 5, 11), expected)


@pytest.mark.parametrize("bits", [0, -1, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("dim", [1, 2, 6])
def test_directions_are_unit_vectors_whatever_the_bits(monkeypatch, dim, bits):
    monkeypatch.setattr(sigreg_levljepa, "_lowbias32", lambda x: torch.full_like(x, bits))
    torch.testing.assert_close(draw_directions(0, torch.tensor(1), dim, 3).norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("implementation", ["auto", "tiled", "plain"])
@pytest.mark.parametrize("one_pass", [True, False], ids=["one pass", "two passes"])
@pytest.mark.parametrize(
    "shape, num_directions",
    [((30, 8), 12), ((30, 8), 13), ((2, 20, 5), 8), ((2, 300, 12), 2000), ((1, 4), 1), ((3, 64), 4)],
    ids=["groups", "part of a group", "no groups", "several panels", "one direction", "one group"],
)
def test_drawn_directions_are_those_of_draw_directions(shape, num_directions, one_pass, implementation):
    module, z = SIGReg(num_directions, seed=5, implementation=implementation), 1.5 * torch.randn(shape) + 0.3
    if not one_pass:
        module._in_one_pass = lambda z: False
    value, gradient = value_and_gradient(module, z)
    directions = draw_directions(5, torch.tensor(0), shape[-1], num_directions).t()
    expected, expected_gradient = value_and_gradient(lambda z: equation(z, directions), z.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert (gradient - expected_gradient).norm() < 1e-5 * expected_gradient.norm()


def test_directions_depend_on_seed_and_step_alone():
    keys = [(seed, step) for seed in (0, 1, -3) for step in (0, 1, 2)]
    first, second = (torch.stack([draw_directions(s, torch.tensor(t), 5, 8) for s, t in keys]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.cdist(first.flatten(1), first.flatten(1)).fill_diagonal_(9).min() > 1


def test_step_counts_training_calls_and_resumes():
    z = torch.randn(20, 6)
    module = SIGReg(16)
    values = [module(z).item() for _ in range(4)]
    assert len(set(values)) == 4 and module.step == 4
    resumed = SIGReg(16)
    resumed.load_state_dict({"step": torch.tensor(2)})
    assert [resumed(z).item() for _ in range(2)] == values[2:]
    assert SIGReg(16, seed=1)(z).item() != values[0]


def test_eval_mode_repeats_itself_whatever_the_step():
    z, module = torch.randn(20, 6), SIGReg(16).eval()
    before = module(z)
    module.step.fill_(5)
    assert module(z) == before and module.step == 5
    assert SIGReg(16, seed=1).eval()(z) != before != SIGReg(16)(z)


def test_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    SIGReg(16)(torch.ones(4, 3))
    torch.testing.assert_close(torch.get_rng_state(), state)


def test_generator_draws_the_directions():
    z, module = torch.randn(20, 6), SIGReg(16)
    first, second, third = (module(z, generator=torch.Generator().manual_seed(s)).item() for s in (1, 1, 2))
    assert first == second != third and module.step == 0
    rows = module._draws(z, None, torch.Generator().manual_seed(1))[0]
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(16))


# --- precision, transformations, compilation ---


def test_float32_under_autocast():
    z, directions = torch.randn(60, 8), torch.randn(8, 20)
    expected = value_and_gradient(lambda z: SIGReg()(z, directions=directions), z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(value_and_gradient(lambda z: SIGReg()(z, directions=directions), z), expected)
    half = SIGReg()(z.bfloat16(), directions=directions)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, SIGReg()(z.bfloat16().float(), directions=directions))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_comes_through(value):
    z = torch.randn(20, 6)
    z[3, 2] = value
    result, gradient = value_and_gradient(SIGReg(16), z)
    assert not result.isfinite() and not gradient[3].isfinite().all()


class Head(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.linear, self.sigreg = nn.Linear(width, width), SIGReg(24)

    def forward(self, x):
        return self.sigreg(self.linear(x)) + self.sigreg(x.new_ones(3, 2, 5))


needs_inductor = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="inductor needs a C++ compiler, and this machine has none",
)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_inductor)])
def test_compiles_without_a_graph_break(backend):
    x, eager, compiled = torch.randn(20, 6), Head(), Head()
    compiled.load_state_dict(eager.state_dict())
    function = torch.compile(compiled, fullgraph=True, backend=backend)
    for _ in range(2):
        expected, result = eager(x), function(x)
        expected.backward()
        result.backward()
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(compiled.linear.weight.grad, eager.linear.weight.grad)
    assert compiled.sigreg.step == eager.sigreg.step == 4


@pytest.mark.parametrize("group", [1, 4])
def test_operators_tell_a_compiler_their_shapes(group):
    z, draws, grad_sums = torch.randn(2, 9, 8), torch.randn(3, 8), torch.randn(2, 3 * group, 32)
    for operator, arguments in (
        (sigreg_levljepa._column_sums, (z, draws, 17, 3.0, group, "tiled")),
        (sigreg_levljepa._column_sums_backward, (grad_sums, z, draws, 17, 3.0, group, "tiled")),
        (sigreg_levljepa._statistic_and_gradient, (z, draws, 17, 3.0, group, True)),
    ):
        torch.library.opcheck(operator, arguments, test_utils="test_faketensor")


@needs_inductor
@pytest.mark.parametrize("constant", [True, False], ids=["constant step", "step as a tensor"])
def test_compiled_directions_are_those_of_eager(constant):
    """Integers of 64 bits wrap around in the draw, and must not be taken for indices, which do not."""

    def draw(step):
        step = torch.full_like(step, -1) if constant else step
        return torch.stack([draw_directions(seed, step, 8, 7) for seed in (2**63, 2**64 - 5)])

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(draw, fullgraph=True)(torch.tensor(3)), draw(torch.tensor(3)))


def test_torch_func():
    module, z, directions = SIGReg().eval(), torch.randn(3, 12, 5), torch.randn(5, 9)

    def sigreg(z):
        return module(z, directions=directions)

    gradients, values = torch.func.vmap(torch.func.grad_and_value(sigreg))(z)
    expected = [value_and_gradient(sigreg, sample) for sample in z]
    torch.testing.assert_close(values, torch.stack([value for value, _ in expected]))
    torch.testing.assert_close(gradients, torch.stack([gradient for _, gradient in expected]))
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(sigreg, (z,), (z,))


@pytest.mark.parametrize("in_one_pass", [True, False])
def test_second_derivative_is_refused(in_one_pass):
    module, z = SIGReg(9), torch.randn(5, 3, requires_grad=True)
    module._in_one_pass = lambda z: in_one_pass
    (gradient,) = torch.autograd.grad(module(z), z, create_graph=True)
    with pytest.raises(RuntimeError, match='implementation="plain"'):
        gradient.square().sum().backward()


def test_second_derivative_of_the_plain_form():
    z, directions = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, dtype=torch.float64)
    module = SIGReg(implementation="plain")
    assert torch.autograd.gradgradcheck(lambda z: module(z, directions=directions), z)


# --- bad input ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_directions": 0}, "at least 1 direction"),
        ({"num_knots": 1}, "at least 2 knots"),
        ({"t_max": 0.0}, "t_max=0.0"),
        ({"sample_size_scale": -1.0}, "sample_size_scale=-1.0"),
        ({"implementation": "fast"}, "choose one of auto, tiled"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SIGReg(**arguments)


@pytest.mark.parametrize(
    "z, directions, message",
    [
        (torch.ones(5, 4), torch.ones(3, 7), r"\(3, 7\) do not fit embeddings of width 4"),
        (torch.ones(5, 4), torch.ones(4, 0), "at least 1 direction"),
        (torch.ones(5, 4), torch.ones(4), r"directions of shape \(4,\)"),
        (torch.ones(4), None, r"shape \(\.\.\., N, D\), got \(4,\)"),
        (torch.ones(0, 4), None, "empty batch"),
        (torch.ones(0, 5, 4), None, r"got \(0, 5, 4\)"),
        (torch.ones(5, 0), None, r"got \(5, 0\)"),
    ],
)
def test_bad_input(z, directions, message):
    with pytest.raises(ValueError, match=message):
        SIGReg(8)(z, directions=directions)


# --- Triton ---

CPU = torch.device("cpu")


@pytest.fixture
def tiled_as_triton(monkeypatch):
    """The tiled form in the place of the kernels."""

    def sums(z, directions, *constants):
        return sigreg_levljepa._tiled(z, directions, *constants)[0]

    def gradient(grad_sums, z, directions, *constants):
        return sigreg_levljepa._tiled(z, directions, *constants, grad_sums=grad_sums)[1]

    monkeypatch.setattr(sigreg_levljepa, "_triton_sums", sums)
    monkeypatch.setattr(sigreg_levljepa, "_triton_gradient", gradient)


def last(result):
    """Only the last direction, sample or view is off, as where a tile that is not full goes wrong."""
    result[-1, -1] *= 1.5
    return result


WRONG = {
    "half": lambda result: result / 2,
    "last": last,
    "slightly": lambda result: result * 1.001,
    "noise": lambda result: result + 1e-3 * result.abs().max(),
    "nan": lambda result: result * float("nan"),
}


@pytest.mark.parametrize("name", ["_triton_sums", "_triton_gradient"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_kernels_that_give_wrong_numbers_are_refused(tiled_as_triton, monkeypatch, name, wrong):
    works = sigreg_levljepa._triton_works.__wrapped__
    state = torch.get_rng_state()
    assert works(CPU) and torch.equal(torch.get_rng_state(), state)
    right = getattr(sigreg_levljepa, name)
    monkeypatch.setattr(sigreg_levljepa, name, lambda *arguments: wrong(right(*arguments)))
    number = r"(\d\.\de[-+]\d\d|nan)"
    message = f"SIGReg on cpu runs without .*: their sums are off by {number} and their gradient by {number} of"
    with pytest.warns(UserWarning, match=message) as warnings:
        assert not works(CPU)
    errors = [float(error) for error in re.findall(number, str(warnings[0].message))]
    assert (errors[0] < 1e-4) == (name == "_triton_gradient") and (errors[1] < 1e-4) == (name == "_triton_sums")


def test_kernels_get_all_directions_of_the_draws(tiled_as_triton):
    z = torch.randn(30, 8)
    expected = value_and_gradient(SIGReg(12), z)
    torch.testing.assert_close(value_and_gradient(SIGReg(12, implementation="triton"), z), expected)


def test_kernels_that_fail_are_refused(tiled_as_triton, monkeypatch):
    def failing(*arguments):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(sigreg_levljepa, "_triton_gradient", failing)
    with pytest.warns(UserWarning, match=r"more slowly: RuntimeError\('no compiler'\)"):
        assert not sigreg_levljepa._triton_works.__wrapped__(CPU)


def test_tf32_is_allowed_where_torch_is_allowed_it(tiled_as_triton, monkeypatch):
    right = sigreg_levljepa._triton_sums
    monkeypatch.setattr(sigreg_levljepa, "_triton_sums", lambda *arguments: right(*arguments) * 1.003)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert sigreg_levljepa._triton_works.__wrapped__(CPU)


TRITON_CHECK = """
from unittest.mock import patch
import torch
from test_sigreg import CPU, SIGReg, assert_equals_equation, sigreg_levljepa

torch.manual_seed(0)
module = SIGReg(implementation="triton")
assert_equals_equation(module, 1.5 * torch.randn(130, 24) + 0.3, torch.randn(24, 70))
assert_equals_equation(module, torch.randn(2, 9, 40), torch.randn(40, 5))
assert_equals_equation(SIGReg(num_knots=6, implementation="triton"), torch.randn(1, 3), torch.randn(3, 1))
with patch.object(torch.cuda, "device_of", wraps=torch.cuda.device_of) as device_of:
    assert max(sigreg_levljepa._triton_errors(CPU)) < 1e-5
assert device_of.call_count == 2, "kernels are launched on their tensors' device, the current one or not"
"""


def test_triton_kernels_in_the_interpreter():
    """In a process of its own: Triton reads TRITON_INTERPRET when the kernels are made."""
    pytest.importorskip("triton", reason="needs Triton, which this platform's torch does not bring")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", TRITON_CHECK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.filterwarnings("error:SIGReg on cuda")
def test_triton_kernels_at_full_size():
    """Against the tiled form in float64, which the equation's tensors of 2 GB would not fit beside."""
    assert sigreg_levljepa._triton_works(torch.device("cuda", torch.cuda.current_device()))
    z, directions = 1.2 * torch.randn(4096, 256, device="cuda") + 0.1, torch.randn(256, 4096, device="cuda")
    directions /= directions.norm(dim=0)
    expected, expected_gradient = value_and_gradient(
        lambda z: SIGReg(implementation="tiled")(z, directions=directions), z.double()
    )
    for implementation in ("triton", "auto"):
        module = SIGReg(implementation=implementation)
        value, gradient = value_and_gradient(lambda z, m=module: m(z, directions=directions), z)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=0)
        assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


@pytest.mark.gpu
def test_model_step_in_bfloat16_is_near_float32():
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug")).cuda().train()
    batch = {"pixel_values": torch.randn(64, 3, 32, 32), "input_ids": torch.randint(0, 50000, (64, 9))}
    batch = {name: tensor.cuda() for name, tensor in batch.items()}
    losses, gradients = [], []
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        model.sigreg.step.zero_()
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98
