"""SIGReg: how far a batch of embeddings is from an isotropic Gaussian, as a differentiable scalar.

This file travels to the Hub as remote code, so it imports nothing but torch (and, lazily, Triton). From the top: the
directions, the equation, the plain form, the tiled form for any device, the Triton form, the operators, the module.
"""

import functools
import itertools
import math
import re
import warnings

import torch
from torch import Tensor, nn

IMPLEMENTATIONS = ("auto", "tiled", "triton", "plain")

# --- directions ------------------------------------------------------------------------------------------------------

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # the constants of splitmix64, as signed 64-bit integers
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_LOW_1 = 0x7FEB352D  # those of lowbias32, as signed 32-bit integers
_LOW_2 = 0x846CA68B - (1 << 32)
_GROUP = 4  # directions of one draw
_DRAW_BLOCK = 1 << 18  # numbers drawn at a time on the CPU, so that the integers stay in cache


# What was made here is changed in place: new memory costs more than this arithmetic.


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of an int32 or int64 tensor; torch's own is arithmetic."""
    return (x >> bits).bitwise_and_((1 << (8 * x.element_size() - bits)) - 1)


def _splitmix64(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: a bijection of 64-bit integers whose outputs look random."""
    x = (x ^ _shift_right(x, 30)).mul_(_MIX_1)
    x = x.bitwise_xor_(_shift_right(x, 27)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift_right(x, 31))


def _lowbias32(x: Tensor) -> Tensor:
    """The same for 32-bit integers (github.com/skeeto/hash-prospector)."""
    x = (x ^ _shift_right(x, 16)).mul_(_LOW_1)
    x = x.bitwise_xor_(_shift_right(x, 15)).mul_(_LOW_2)
    return x.bitwise_xor_(_shift_right(x, 16))


def _normalised(rows: Tensor) -> Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def _draw_rows(keys: Tensor, dim: int) -> Tensor:
    """A unit vector of R^dim for each of the (R, 1) keys: two rounds of lowbias32 on a counter, then Box-Muller."""
    # A generator without a state: number i of a row is a hash of i and the row's key, so any part can be made alone.
    # Of 32 bits, as vector units multiply those; of keys of 64, one half goes into each round.
    half = (dim + 1) // 2
    counter = torch.arange(2 * half, device=keys.device, dtype=torch.int32)
    bits = _lowbias32(_lowbias32(counter ^ keys.to(torch.int32)).bitwise_xor_((keys >> 32).to(torch.int32)))
    first, second = bits.split(half, dim=1)
    uniform = first.float().abs_().add_(1.0).mul_(2.0**-31 - 2.0**-55)  # in (0, 1): no radius is infinite, or 0
    radius = uniform.log_().mul_(-2.0).sqrt_()
    angle = second.float().mul_(math.pi * 2.0**-31)  # signed bits: in [-pi, pi]
    return _normalised(torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)], dim=1)[:, :dim])


def _draw(seed: int, step: Tensor, dim: int, number: int) -> Tensor:
    """(number, D) independent unit vectors, uniform on the sphere. Each has a key of 64 bits, by splitmix64."""
    seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)  # any integer of Python, as one of int64
    # Hashed before the step is added: else seed 1 at step 0 would draw what seed 0 draws at step 1.
    key = _splitmix64(step + _splitmix64(torch.full_like(step, seed) + _GOLDEN))
    # key - ~counter is key + counter + 1, but inductor's arithmetic of indices, which does not wrap around, ends at ~.
    keys = _splitmix64((key - ~torch.arange(number, device=step.device)) * _GOLDEN)[:, None]
    if step.device.type != "cpu" or torch.compiler.is_compiling():  # a compiler fuses; eager needs the cache
        return _draw_rows(keys, dim)
    return torch.cat([_draw_rows(block, dim) for block in keys.split(max(1, _DRAW_BLOCK // dim))])


def _group_size(dim: int) -> int:
    """How many directions a draw gives."""
    return _GROUP if dim % _GROUP == 0 else 1


def _signs(group: int, like: Tensor) -> Tensor:
    """(group, group): a symmetric Hadamard matrix, without a copy from the CPU, which would wait for the device."""
    matrix = like.new_ones(1, 1)
    while len(matrix) < group:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _reflected(rows: Tensor, group: int) -> Tensor:
    """(..., D) -> (..., group, D / group): an orthogonal map, its own inverse, that spreads each part over all."""
    parts = rows.unflatten(-1, (group, -1))
    return parts.sum(-2, keepdim=True) * (2 / group) - parts


def _expand(draws: Tensor, group: int) -> Tensor:
    """(G, D) -> (group * G, D), the directions: those of all draws with the first row of signs, then the second ..."""
    # The signs alone would leave the four with equal |coordinates|: along an axis they would all see the same. The
    # reflection spreads each quarter over all of them.
    signs = _signs(group, draws)[:, None, :, None]
    return _reflected((signs * draws.unflatten(-1, (group, -1))).flatten(2), group).flatten(2).flatten(0, 1)


def draw_directions(seed: int, step: Tensor, dim: int, num_directions: int) -> Tensor:
    """Unit vectors of R^dim, uniform on the sphere, as the rows of a float32 (S, D) tensor on the device of `step`.

    A pure function of its arguments. The generator is counter-based and made of tensor operations: the directions are
    the same on every rank and after a resume, the global random state is not touched, and nothing waits for a device.

    Where 4 divides D, one independent draw gives four directions: its quarters take the signs of a row of a Hadamard
    matrix, and a fixed orthogonal matrix mixes them. A uniform vector stays uniform under an orthogonal map, so every
    direction has exactly the law of an independent one, and the mean over directions the same expectation. Its
    variance is at most that of S / 4 independent directions; measured, it is that of S, unless the coordinates of z
    repeat the same scales in every quarter.

    Args:
        seed: any integer.
        step: 0-dim int64 tensor.
        dim: D.
        num_directions: S.
    """
    group = _group_size(dim)
    return _expand(_draw(seed, step, dim, -(-num_directions // group)), group)[:num_directions]


# --- the equation ----------------------------------------------------------------------------------------------------
#
# Let x = t_1 u, so that t_k u = k x. The knot k = 0 contributes nothing, and M = K - 1 harmonics remain. `sums` of
# shape (..., S, 2M) holds sum_n cos(k x_n) for k = 1 .. M, then sum_n sin(k x_n). The statistic is quadratic in them.


def _target_and_weights(num_knots: int, t_max: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """What the means should be (phi_k, then 0) and how much each counts (w_k phi_k, twice): two vectors of 2M."""
    spacing = t_max / (num_knots - 1)
    k = torch.arange(1, num_knots, device=like.device, dtype=like.dtype)
    phi = torch.exp(-0.5 * (k * spacing).square())
    weights = 2.0 * spacing * phi * torch.where(k < num_knots - 1, 1.0, 0.5)
    return torch.cat([phi, torch.zeros_like(phi)]), torch.cat([weights, weights])


def _statistic(sums: Tensor, count: Tensor | int, num_knots: int, t_max: float) -> Tensor:
    """(..., S, 2M) sums over `count` samples -> (...), the statistic without its factor N, mean over directions."""
    target, weights = _target_and_weights(num_knots, t_max, sums)
    return (weights * (sums / count - target).square()).sum(-1).mean(-1)


def _plain_sums(z: Tensor, directions: Tensor, num_knots: int, t_max: float) -> Tensor:
    """The sums as the equation has them: differentiable any number of times, with (V, N, S, M) tensors in memory."""
    knots = torch.arange(1, num_knots, device=z.device, dtype=z.dtype) * (t_max / (num_knots - 1))
    angles = (z @ directions.t()).unsqueeze(-1) * knots
    return torch.cat([angles.cos().sum(-3), angles.sin().sum(-3)], dim=-1)


# --- tiles -----------------------------------------------------------------------------------------------------------


class _AngleSums:
    """How cos(k x) and sin(k x), k = 1 .. M, are made of few functions, as products of two.

    Every k is a + b or a - b with a in {B, 3B, 5B, ...} and 0 <= b <= B. By the angle-sum theorems cos(k x) and
    sin(k x) are sums of products of one *coarse* function, cos(a x) or sin(a x), and one *fine* function: 1, cos(b x)
    or sin(b x). Hence the sums over samples are linear in the matrix sum_n coarse_n fine_n^T, and a trigonometric
    polynomial is coarse^T G fine: both are small batched matrix products. For M = 16: 4 coarse and 9 fine.

    The functions are the rows of a table: 1, cos b and sin b for 0 < b < B, then cos a and sin a of every a, then
    scratch. So the fine rows come first, and the coarse ones overlap their end. Chebyshev's recurrence makes each row
    from others, up to a known constant factor, so that one `addcmul` does it.
    """

    def __init__(self, num_harmonics: int):
        # As few rows as possible, and of these choices the one with few coarse rows.
        base = min(range(1, num_harmonics + 1), key=lambda b: 2 * b + 4 * math.ceil(num_harmonics / (2 * b)))
        coarse = [base * (2 * j + 1) for j in range(math.ceil(num_harmonics / (2 * base)))]
        order = [*range(1, base)]
        names = [("cos", 0), *(("cos", b) for b in order), *(("sin", b) for b in order)]
        names += [(kind, a) for a in coarse for kind in ("cos", "sin")]
        self.fine = slice(0, 2 * base + 1)
        self.coarse = slice(2 * base - 1, len(names))
        if len(coarse) > 1:
            names += [("cos", 2 * base), ("sin", 2 * base)]
        self.row = {name: index for index, name in enumerate(names)}
        self.num_coarse, self.num_fine, self.num_rows = 2 * len(coarse), 2 * base + 1, len(names)

        self.recurrences: list[tuple[int, int | None, int, int, float]] = []
        self.factor = {("cos", 0): 1.0, ("cos", 1): 1.0, ("sin", 1): 1.0}
        for b in range(2, base + 1):
            self._add_recurrence((b + 1) // 2, b // 2)
        if len(coarse) > 1:
            self._add_recurrence(base, base)
        for a in coarse[:-1]:
            self._add_recurrence(max(a, 2 * base), min(a, 2 * base))
        self.to_sums = self._linear_map(num_harmonics, base, coarse)  # (coarse * fine, 2M)

    def _add_recurrence(self, p: int, q: int) -> None:
        """Row p + q from rows p >= q and p - q: f(p + q) = 2 f(p) cos(q) - f(p - q) for f = cos and f = sin."""
        row, factor = self.row, self.factor
        for kind in ("cos", "sin"):
            scale = factor[kind, p] * factor["cos", q]
            if kind == "sin" and p == q:
                step, factor[kind, p + q] = (row[kind, p + q], None, row[kind, p], row["cos", q], 1.0), scale / 2
            else:
                rest = factor[kind, p - q]
                step = (row[kind, p + q], row[kind, p - q], row[kind, p], row["cos", q], -2 * rest / scale)
                factor[kind, p + q] = -rest
            self.recurrences.append(step)

    def _linear_map(self, num_harmonics: int, base: int, coarse: list[int]) -> Tensor:
        """From the matrix sum_n coarse_n fine_n^T to the sums, by the angle-sum theorems."""
        matrix = torch.zeros(self.num_coarse, self.num_fine, 2, num_harmonics, dtype=torch.float64)
        for k in range(1, num_harmonics + 1):
            j = min((k - 1) // (2 * base), len(coarse) - 1)
            b, sign = abs(k - coarse[j]), math.copysign(1.0, k - coarse[j])
            terms = [(0, "cos", "cos", 1.0), (1, "sin", "cos", 1.0)]
            if b > 0:
                terms += [(0, "sin", "sin", -sign), (1, "cos", "sin", sign)]
            for which, outer, inner, value in terms:
                value /= self.factor[outer, coarse[j]] * self.factor[inner, b]
                matrix[2 * j + (outer == "sin"), self.row[inner, b], which, k - 1] = value
        return matrix.view(self.num_coarse * self.num_fine, 2 * num_harmonics)


_angle_sums = functools.lru_cache(_AngleSums)


def _derivative(num_knots: int, t_max: float, like: Tensor) -> Tensor:
    """(2M, 2M): from the coefficients of a trigonometric polynomial in u, as rows, to those of its derivative."""
    knots = torch.arange(1, num_knots, device=like.device, dtype=like.dtype) * (t_max / (num_knots - 1))
    zeros = torch.zeros(num_knots - 1, num_knots - 1, device=like.device, dtype=like.dtype)
    return torch.cat([torch.cat([zeros, -knots.diag()], 1), torch.cat([knots.diag(), zeros], 1)])


class _Tile:
    """The table of `_AngleSums` for some directions times all samples, (R, N), in memory that is given."""

    def __init__(self, plan: _AngleSums, table: Tensor, factors: Tensor):
        self.plan = plan
        self.rows = table.unbind(0)  # the rows of (table rows, R, N)
        self.coarse, self.fine = table[plan.coarse].transpose(0, 1), table[plan.fine].transpose(0, 1)
        self.factors = factors  # (R, coarse, N)
        self.terms = list(zip(factors.unbind(1), self.rows[plan.coarse], strict=True))

    def load(self, x: Tensor) -> None:
        """Writes all functions of `x` (R, N); row 0 holds ones already."""
        rows = self.rows
        torch.cos(x, out=rows[self.plan.row["cos", 1]])
        torch.sin(x, out=rows[self.plan.row["sin", 1]])
        for target, rest, p, q, value in self.plan.recurrences:
            if rest is None:
                torch.mul(rows[p], rows[q], out=rows[target])
            else:
                torch.addcmul(rows[rest], rows[p], rows[q], value=value, out=rows[target])

    def sums(self) -> Tensor:
        """(R, coarse * fine): the products of coarse and fine functions, summed over samples."""
        return torch.bmm(self.coarse, self.fine.transpose(1, 2)).flatten(1)

    def polynomial(self, coefficients: Tensor, out: Tensor) -> None:
        """The combination (R, N) of these products that `coefficients` (R, coarse * fine) gives."""
        torch.bmm(coefficients.view(-1, self.plan.num_coarse, self.plan.num_fine), self.fine, out=self.factors)
        (factor, row), *others = self.terms
        torch.mul(factor, row, out=out)
        for factor, row in others:
            out.addcmul_(factor, row)


def _tile_sizes(samples: int, num_directions: int, device: torch.device) -> tuple[int, int]:
    """Directions per tile and per panel; a tile's table should fit the cache, a panel shares its matrix products."""
    threads = torch.get_num_threads()
    if device.type != "cpu":
        elements = 1 << 21
    else:  # several threads wait for each other at every loop: fewer and longer ones
        elements = 1 << 16 if threads == 1 else (1 << 17) * min(8, threads)
    tile = max(1, min(num_directions, elements // samples))
    return tile, max(1, 4 * elements // (samples * tile)) * tile


@torch.no_grad()
def _tiled(
    z: Tensor,
    draws: Tensor,
    num_knots: int,
    t_max: float,
    group: int = 1,
    grad_sums: Tensor | None = None,
    with_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """The sums (V, S, 2M) of z (V, N, D), the gradient (V, N, D) or both, in one pass over tiles that stay in cache.

    The draws (G, D) stand for S = group * G directions, as in `_expand`. With H the Hadamard matrix, b and y the mixed
    parts of a draw and of a sample, the j-th direction of the draw projects the sample to sum_m H_jm <b_m, y_m>: the
    products of the draws alone, and sums of a few numbers.

    Samples are contiguous in a tile. Without `grad_sums`, the sums are computed, and `with_gradient` adds the gradient
    of `_statistic` on the same tiles. With `grad_sums`, the gradient of the sums is taken with these, and the sums
    returned are empty.
    """
    (views, samples, _), num_draws = z.shape, draws.shape[0]
    num_directions = group * num_draws
    with_sums, with_gradient = grad_sums is None, with_gradient or grad_sums is not None
    sums = z.new_zeros(views, num_directions if with_sums else 0, 2 * (num_knots - 1))
    gradient = torch.zeros_like(z) if with_gradient else z.new_empty(0)
    if samples == 0:
        return sums, gradient

    plan = _angle_sums(num_knots - 1)
    to_sums = plan.to_sums.to(z)
    to_polynomial = _derivative(num_knots, t_max, z) @ to_sums.t()
    means, weights = _target_and_weights(num_knots, t_max, z)
    weights = weights * (2.0 / (samples * num_directions))

    size, panel = _tile_sizes(samples, num_directions, z.device)
    panel = min(-(-panel // group), num_draws)
    size = min(size, panel)
    table = z.new_empty(plan.num_rows, size, samples)
    table[0] = 1.0
    factors = z.new_empty(size if with_gradient else 0, plan.num_coarse, samples)
    whole = _Tile(plan, table, factors)
    memory = z.new_empty(2, group * panel * samples)
    signs = _signs(group, z)
    parts = draws.unflatten(1, (group, -1)).transpose(0, 1)
    for view in range(views):
        angles = _reflected(z[view] * (t_max / (num_knots - 1)), group).permute(1, 2, 0)  # (group, D / group, N)
        gradient_parts = torch.zeros_like(angles.transpose(1, 2)) if with_gradient else None
        for first in range(0, num_draws, panel):
            rows = parts[:, first : first + panel]
            products, u = memory[:, : group * rows.shape[1] * samples].view(2, group, -1, samples)
            torch.bmm(rows, angles, out=products)
            torch.mm(signs, products.flatten(1), out=u.flatten(1))
            for turn, start in itertools.product(range(group), range(0, rows.shape[1], size)):
                x = u[turn, start : start + size]
                tile = whole if len(x) == size else _Tile(plan, table[:, : len(x)], factors[: len(x)])
                begin = turn * num_draws + first + start
                here = slice(begin, begin + len(x))
                tile.load(x)
                if with_sums:
                    tile_sums = torch.mm(tile.sums(), to_sums, out=sums[view, here])
                    slope = weights * (tile_sums / samples - means)
                else:
                    slope = grad_sums[view, here]
                if with_gradient:
                    tile.polynomial(slope @ to_polynomial, out=x)  # the gradient takes the place of the projections
            if with_gradient:
                torch.mm(signs, u.flatten(1), out=products.flatten(1))
                gradient_parts.baddbmm_(products.transpose(1, 2), rows)
        if with_gradient:
            gradient[view] = _reflected(gradient_parts.transpose(0, 1).flatten(1), group).flatten(1)
    return sums, gradient


# --- Triton ----------------------------------------------------------------------------------------------------------


@functools.lru_cache
def _triton_kernels():
    """The two kernels, or None without Triton. Projections live in registers: they never touch device memory.

    A program works on a tile of (directions, samples), in this order because a sum over samples then stays in a warp.
    """
    global tl, _project  # a kernel sees the globals of its module only
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None

    @triton.jit
    def _project(z_ptr, rows_ptr, s, n, S, N, D: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr):
        x = tl.zeros((s.shape[0], n.shape[0]), dtype=tl.float32)
        for start in range(0, D, BD):
            d = start + tl.arange(0, BD)
            rows = tl.load(rows_ptr + s[:, None] * D + d[None, :], (s[:, None] < S) & (d[None, :] < D), 0.0)
            z = tl.load(z_ptr + n[None, :] * D + d[:, None], (n[None, :] < N) & (d[:, None] < D), 0.0)
            x = tl.dot(rows, z, x, input_precision=PRECISION)
        return x

    @triton.jit
    def sums_kernel(
        z_ptr,  # (V, N, D)
        rows_ptr,  # (S, D)
        sums_ptr,  # (V, blocks of N, 2M, S)
        N,
        S,
        spacing,
        D: tl.constexpr,
        M: tl.constexpr,
        BS: tl.constexpr,
        BN: tl.constexpr,
        BD: tl.constexpr,
        PRECISION: tl.constexpr,
    ):
        view = tl.program_id(2).to(tl.int64)
        s = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
        n = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
        x = spacing * _project(z_ptr + view * N * D, rows_ptr, s, n, S, N, D, BD, PRECISION)
        out = sums_ptr + (view * tl.num_programs(1) + tl.program_id(1)) * 2 * M * S + s
        one = tl.where(n[None, :] < N, 1.0, 0.0)
        twice = 2.0 * tl.cos(x)
        cos, sin = 0.5 * twice * one, tl.sin(x) * one
        cos_before, sin_before = one + tl.zeros_like(x), tl.zeros_like(x)
        for k in tl.static_range(M):
            tl.store(out + k * S, tl.sum(cos, axis=1), s < S)
            tl.store(out + (M + k) * S, tl.sum(sin, axis=1), s < S)
            cos, cos_before = twice * cos - cos_before, cos
            sin, sin_before = twice * sin - sin_before, sin

    @triton.jit
    def gradient_kernel(
        z_ptr,  # (V, N, D)
        rows_ptr,  # (S, D)
        polynomial_ptr,  # (V, 2M, S)
        out_ptr,  # (V, S, N)
        N,
        S,
        spacing,
        D: tl.constexpr,
        M: tl.constexpr,
        BS: tl.constexpr,
        BN: tl.constexpr,
        BD: tl.constexpr,
        PRECISION: tl.constexpr,
    ):
        view = tl.program_id(2).to(tl.int64)
        s = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
        n = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
        x = spacing * _project(z_ptr + view * N * D, rows_ptr, s, n, S, N, D, BD, PRECISION)
        coefficients = polynomial_ptr + view * 2 * M * S + s
        cos, sin = tl.cos(x), tl.sin(x)
        p, q = tl.zeros_like(x), tl.zeros_like(x)
        for i in tl.static_range(M):  # Horner's rule for Re sum_k (p_k - i q_k) exp(i x)^k, from k = M down
            p_k = tl.load(coefficients + (M - 1 - i) * S, s < S, 0.0)
            q_k = tl.load(coefficients + (2 * M - 1 - i) * S, s < S, 0.0)
            p, q = p * cos + q * sin + p_k[:, None], q * cos - p * sin + q_k[:, None]
        value = p * cos + q * sin
        out = out_ptr + view * S * N + s[:, None] * N + n[None, :]
        tl.store(out, value, (s[:, None] < S) & (n[None, :] < N))

    return {"sums": sums_kernel, "gradient": gradient_kernel}


_BLOCK_S, _BLOCK_N, _BLOCK_D, _WARPS = 64, 64, 32, 4  # a warp owns 16 directions; no register spills, 2 blocks per SM


def _triton_launch(name: str, z: Tensor, directions: Tensor, *tensors: Tensor, num_knots: int, t_max: float) -> None:
    kernels = _triton_kernels()
    if kernels is None:
        raise ImportError('SIGReg(implementation="triton") needs Triton: pip install triton, or use "auto".')
    (views, samples, dim), num_directions = z.shape, directions.shape[0]
    grid = (-(-num_directions // _BLOCK_S), -(-samples // _BLOCK_N), views)
    with torch.cuda.device_of(z):  # Triton launches on the current device, wherever the tensors are
        kernels[name][grid](
            z,
            directions,
            *tensors,
            samples,
            num_directions,
            t_max / (num_knots - 1),
            D=dim,
            M=num_knots - 1,
            BS=_BLOCK_S,
            BN=_BLOCK_N,
            BD=_BLOCK_D,
            PRECISION="tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            num_warps=_WARPS,
        )


def _triton_sums(z: Tensor, directions: Tensor, num_knots: int, t_max: float) -> Tensor:
    views, samples, _ = z.shape
    partial = z.new_empty(views, -(-samples // _BLOCK_N), 2 * (num_knots - 1), directions.shape[0])
    if samples > 0:
        _triton_launch("sums", z, directions, partial, num_knots=num_knots, t_max=t_max)
    return partial.sum(1).transpose(1, 2).contiguous()


def _triton_gradient(grad_sums: Tensor, z: Tensor, directions: Tensor, num_knots: int, t_max: float) -> Tensor:
    views, samples, _ = z.shape
    if samples == 0:
        return torch.zeros_like(z)
    polynomial = (grad_sums @ _derivative(num_knots, t_max, z)).transpose(1, 2).contiguous()
    out = z.new_empty(views, directions.shape[0], samples)
    _triton_launch("gradient", z, directions, polynomial, out, num_knots=num_knots, t_max=t_max)
    return out.transpose(1, 2) @ directions


def _triton_errors(device: torch.device) -> list[float]:
    """Largest errors of the kernels' sums and gradient, relative to the largest values, on tiles that are not full."""
    views, samples, dim, num_directions, constants = 2, _BLOCK_N + 3, _BLOCK_D + 5, _BLOCK_S + 7, (17, 3.0)
    step = torch.zeros((), dtype=torch.int64, device=device)
    z = dim**0.5 * draw_directions(0, step, dim, views * samples).view(views, samples, dim)
    directions = draw_directions(1, step, dim, num_directions)
    grad_sums = draw_directions(2, step, 32, views * num_directions).view(views, num_directions, 32)
    exact = (z.double(), directions.double(), *constants)
    expected = _tiled(*exact)[0], _tiled(*exact, grad_sums=grad_sums.double())[1]
    ours = _triton_sums(z, directions, *constants), _triton_gradient(grad_sums, z, directions, *constants)
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, expected, strict=True)]


@functools.lru_cache
def _triton_works(device: torch.device) -> bool:
    """Tries the kernels once on a device; where they fail, or give other numbers than the tiled form, says so."""
    tolerance = 1e-4 if torch.get_float32_matmul_precision() == "highest" else 1e-2  # TF32 has 10 bits
    try:
        errors = _triton_errors(device)
        if all(error <= tolerance for error in errors):
            return True
        problem = "their sums are off by {:.1e} and their gradient by {:.1e} of the largest value".format(*errors)
    except Exception as error:
        problem = repr(error)
    warnings.warn(f"SIGReg on {device} runs without its Triton kernels, more slowly: {problem}.", stacklevel=2)
    return False


def _with_triton(z: Tensor, implementation: str) -> bool:
    if implementation == "auto":
        return z.is_cuda and z.dtype == torch.float32 and _triton_works(z.device)
    return implementation == "triton"


# --- operators -------------------------------------------------------------------------------------------------------
#
# `torch.compile` takes an operator whole, without looking inside. The namespace carries the module's name, because
# remote code may load this file a second time.

_NAMESPACE = re.sub(r"\W", "_", __name__)


def _without_autocast(z: Tensor) -> torch.autocast:
    device_type = z.device.type
    return torch.autocast(device_type if torch.amp.is_autocast_available(device_type) else "cpu", enabled=False)


@torch.library.custom_op(f"{_NAMESPACE}::column_sums", mutates_args=())
def _column_sums(z: Tensor, draws: Tensor, num_knots: int, t_max: float, group: int, implementation: str) -> Tensor:
    """z (V, N, D), draws (G, D) of S = group * G directions -> (V, S, 2M)."""
    with _without_autocast(z):
        if _with_triton(z, implementation):
            return _triton_sums(z, _expand(draws, group), num_knots, t_max)
        return _tiled(z, draws, num_knots, t_max, group)[0]


@torch.library.custom_op(f"{_NAMESPACE}::column_sums_backward", mutates_args=())
def _column_sums_backward(
    grad_sums: Tensor, z: Tensor, draws: Tensor, num_knots: int, t_max: float, group: int, implementation: str
) -> Tensor:
    """The gradient (V, N, D) of `_column_sums`, from that of its result."""
    with _without_autocast(z):
        if _with_triton(z, implementation):
            return _triton_gradient(grad_sums, z, _expand(draws, group), num_knots, t_max)
        return _tiled(z, draws, num_knots, t_max, group, grad_sums=grad_sums)[1]


@torch.library.custom_op(f"{_NAMESPACE}::statistic_and_gradient", mutates_args=())
def _statistic_and_gradient(
    z: Tensor, draws: Tensor, num_knots: int, t_max: float, group: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """z (V, N, D), draws (G, D) -> (V,) statistics and their gradient (V, N, D), or an empty tensor."""
    with _without_autocast(z):
        sums, gradient = _tiled(z, draws, num_knots, t_max, group, with_gradient=with_gradient)
        return _statistic(sums, z.shape[1], num_knots, t_max), gradient


@_column_sums.register_fake
def _(z, draws, num_knots, t_max, group, implementation):
    return z.new_empty(z.shape[0], group * draws.shape[0], 2 * (num_knots - 1))


@_column_sums_backward.register_fake
def _(grad_sums, z, draws, num_knots, t_max, group, implementation):
    return torch.empty_like(z, memory_format=torch.contiguous_format)


@_statistic_and_gradient.register_fake
def _(z, draws, num_knots, t_max, group, with_gradient):
    return z.new_empty(z.shape[0]), z.new_empty(z.shape if with_gradient else 0)


def _register_vmap(operator) -> None:
    """`torch.func.vmap` as a loop: a batch of SIGRegs has no common work to share."""

    def loop(info, in_dims, *arguments):
        calls = [
            operator(*(a if dim is None else a.movedim(dim, 0)[i] for a, dim in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        return tuple(torch.stack(outputs) for outputs in zip(*calls, strict=True)), (0,) * len(calls[0])

    operator.register_vmap(loop)


for _operator in (_column_sums, _column_sums_backward, _statistic_and_gradient):
    _register_vmap(_operator)


def _refuse_second_derivative():
    raise RuntimeError(
        "The gradient of SIGReg is not itself differentiable in this implementation: "
        'for second derivatives use SIGReg(implementation="plain").'
    )


class _StatisticFunction(torch.autograd.Function):
    """`_statistic_and_gradient`, whose backward pass has only to scale the gradient that the forward pass made."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, draws: Tensor, num_knots: int, t_max: float, group: int, with_gradient: bool):
        return _statistic_and_gradient(z, draws, num_knots, t_max, group, with_gradient)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad_statistic: Tensor, grad_gradient: Tensor | None):
        if grad_gradient is not None and not torch.compiler.is_compiling():  # compilers pass zeros, and refuse too
            _refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        grad_z = None if grad_statistic is None else grad_statistic[:, None, None] * gradient
        return grad_z, None, None, None, None, None


class _ColumnSumsFunction(torch.autograd.Function):
    """`_column_sums`, whose gradient is `_column_sums_backward`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, draws: Tensor, num_knots: int, t_max: float, group: int, implementation: str) -> Tensor:
        return _column_sums(z, draws, num_knots, t_max, group, implementation)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        z, draws, *ctx.constants = inputs
        ctx.save_for_backward(z, draws)

    @staticmethod
    def backward(ctx, grad_sums: Tensor):
        gradient = _ColumnSumsBackwardFunction.apply(grad_sums.contiguous(), *ctx.saved_tensors, *ctx.constants)
        return gradient, None, None, None, None, None


class _ColumnSumsBackwardFunction(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad_sums: Tensor, z: Tensor, draws: Tensor, num_knots: int, t_max: float, group: int, implementation: str
    ) -> Tensor:
        return _column_sums_backward(grad_sums, z, draws, num_knots, t_max, group, implementation)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor):
        _refuse_second_derivative()


# --- data-parallel ---------------------------------------------------------------------------------------------------


class AllReduce(torch.autograd.Function):
    """Sum over the ranks of `group`. Every rank's loss depends on it, so its gradient is the sum of the ranks'."""

    @staticmethod
    def forward(ctx, x: Tensor, group: "torch.distributed.ProcessGroup | None") -> Tensor:
        ctx.group = group
        x = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return AllReduce.apply(grad, ctx.group), None


# --- module ----------------------------------------------------------------------------------------------------------


class SIGReg(nn.Module):
    r"""Sketched isotropic Gaussian regularisation (arXiv 2607.00784): the Epps-Pulley statistic of random projections.

    For embeddings z of shape (..., N, D) and S random unit directions, the columns of A, let u = z A. Where 4 divides
    D, the directions come in groups of four (see `draw_directions`); a `generator` draws all independently. With K
    knots t_k evenly spaced on [0, t_max], phi_k = exp(-t_k^2 / 2), and w_k the trapezoid weights doubled for the
    negative half (2 dt inside, dt at both ends, dt = t_max / (K - 1)),

        stat_s = N * sum_k w_k phi_k [ (mean_n cos(t_k u_ns) - phi_k)^2 + (mean_n sin(t_k u_ns))^2 ]

    and SIGReg is the mean of stat_s over the directions and over the leading dimensions of z (views). It is about 1 on
    N(0, I) for every N, and grows with N when the embeddings collapse.

    The factor N ties the weight of SIGReg in a loss to the batch. The released recipe used a weight of 0.02 with
    N = 256 per device and statistics per device (`distributed=False`). A fixed `sample_size_scale` keeps the weight's
    meaning when the batch or the number of devices changes.

    In training mode under torch.distributed, the means run over the samples of all ranks, which may hold different
    numbers of them (also none): after DDP's averaging of gradients, many ranks equal one process on the joined batch.

    Args:
        num_directions: S, drawn anew at each call.
        num_knots: K, knot 0 included.
        t_max: the last knot.
        sample_size_scale: replaces the factor N; None means N, the samples of all ranks together.
        seed: together with the buffer `step`, which counts the calls in training mode, it decides the directions. In
            eval mode the directions are always the same.
        distributed: False keeps the statistic to the samples of each rank.
        implementation: "tiled" (any device, never builds an (N, S, K) tensor), "triton" (CUDA), "plain" (the equation
            as it stands, differentiable twice and in forward mode), or "auto": triton on CUDA where it works, else
            tiled. Directions that require a gradient take the plain form in any case.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        num_directions: int = 4096,
        num_knots: int = 17,
        t_max: float = 3.0,
        sample_size_scale: float | None = None,
        seed: int = 0,
        distributed: bool = True,
        implementation: str = "auto",
    ):
        super().__init__()
        if num_directions < 1:
            raise ValueError(f"num_directions={num_directions}: SIGReg needs at least 1 direction.")
        if num_knots < 2:
            raise ValueError(f"num_knots={num_knots}: SIGReg needs at least 2 knots, 0 and t_max.")
        if not 0 < t_max < math.inf:
            raise ValueError(f"t_max={t_max}: the knots run from 0 to t_max, which must be positive and finite.")
        if sample_size_scale is not None and not 0 < sample_size_scale < math.inf:
            raise ValueError(f"sample_size_scale={sample_size_scale}: give a positive number, or None for the batch.")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"implementation={implementation!r}: choose one of {', '.join(IMPLEMENTATIONS)}.")
        self.num_directions = num_directions
        self.num_knots = num_knots
        self.t_max = float(t_max)
        self.sample_size_scale = sample_size_scale
        self.seed = seed
        self.distributed = distributed
        self.implementation = implementation
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"num_directions={self.num_directions}, num_knots={self.num_knots}, t_max={self.t_max}"

    def forward(self, z: Tensor, directions: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """SIGReg of a batch of embeddings, in float32 also under autocast (in float64 if `z` is).

        Args:
            z: (..., N, D) embeddings.
            directions: (D, S), used as they are instead of a draw.
            generator: draws the directions instead of seed and step.

        Returns:
            A scalar. Embeddings that are not finite give a value that is not finite.

        Raises:
            ValueError: for a batch without samples (except where other ranks have some), or directions that do not
                fit `z`.
        """
        if z.dim() < 2 or 0 in z.shape[:-2] or z.shape[-1] == 0:
            raise ValueError(f"SIGReg needs embeddings of shape (..., N, D), got {tuple(z.shape)}.")
        over_ranks = self._over_ranks()
        if z.shape[-2] == 0 and not over_ranks:
            raise ValueError(f"SIGReg of an empty batch, embeddings of shape {tuple(z.shape)}: it needs a sample.")
        draws, group = self._draws(z, directions, generator)
        dtype = z.dtype if z.dtype == torch.float64 else torch.float32
        with _without_autocast(z):
            z = (z[None] if z.dim() == 2 else z.flatten(0, -3)).to(dtype).contiguous()  # (V, N, D)
            draws = draws.to(device=z.device, dtype=dtype).contiguous()
            statistic, count = self._statistic(z, draws, group, over_ranks)
            scale = count if self.sample_size_scale is None else self.sample_size_scale
            return (scale * statistic).mean()

    def _draws(self, z: Tensor, directions: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, int]:
        """(G, D), and how many directions each row stands for."""
        dim = z.shape[-1]
        if directions is not None:
            if directions.dim() != 2 or directions.shape[0] != dim or directions.shape[1] == 0:
                raise ValueError(
                    f"directions of shape {tuple(directions.shape)} do not fit embeddings of width {dim}: "
                    f"they must have the shape ({dim}, S) with at least 1 direction."
                )
            return directions.t(), 1
        if generator is not None:
            return _normalised(torch.randn(self.num_directions, dim, generator=generator, device=generator.device)), 1
        step = self.step.to(z.device) if self.training else torch.full((), -1, device=z.device)
        if self.num_directions % _group_size(dim) == 0:
            draws, group = _draw(self.seed, step, dim, self.num_directions // _group_size(dim)), _group_size(dim)
        else:
            draws, group = draw_directions(self.seed, step, dim, self.num_directions), 1
        if self.training:
            self.step.add_(1)
        return draws, group

    def _statistic(self, z: Tensor, draws: Tensor, group: int, over_ranks: bool) -> tuple[Tensor, Tensor | int]:
        """The statistics (V,) without their factor N, and N."""
        constants = (self.num_knots, self.t_max)
        if draws.requires_grad or self.implementation == "plain":
            sums = _plain_sums(z, _expand(draws, group), *constants)
        elif self._in_one_pass(z) and not over_ranks:  # over ranks, the gradient waits for the sums of all
            with_gradient = torch.is_grad_enabled() and z.requires_grad
            return _StatisticFunction.apply(z, draws, *constants, group, with_gradient)[0], z.shape[1]
        else:
            sums = _ColumnSumsFunction.apply(z, draws, *constants, group, self.implementation)
        count = z.shape[1]
        if over_ranks:
            joined = AllReduce.apply(torch.cat([sums.flatten(), sums.new_full((1,), count)]), None)
            sums, count = joined[:-1].view_as(sums), joined[-1]
        return _statistic(sums, count, *constants), count

    def _in_one_pass(self, z: Tensor) -> bool:
        return self.implementation == "tiled" or (self.implementation == "auto" and not z.is_cuda)

    def _over_ranks(self) -> bool:
        if not (self.training and self.distributed and torch.distributed.is_available()):
            return False
        return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


__all__ = ["SIGReg", "draw_directions"]
