"""Grid, clip, noise, boxes, seals and the gate for bodies, each on its own; the statistical checks run in test_privacy.py."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cafe_kit import noise, release
from cafe_kit.errors import CafeError
from cafe_kit.orders import PrivacyTerms
from cafe_kit.release import (
    Box,
    GaussianNoise,
    body_from_bytes,
    body_to_bytes,
    cap,
    clip_steps,
    clip_to_norm,
    contribution,
    seal_file,
    sigma_steps,
    squared_norm,
    to_grid,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp

INT64 = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.one_of(INT64, st.integers(-3, 3), st.integers(-(2**20), 2**20))
VECTORS = st.lists(NUMBERS, max_size=30).map(lambda x: np.array(x, dtype=np.int64))


# --- grid and clip ---------------------------------------------------------------------------------------------------


def test_steps_are_exact_integers() -> None:
    terms = PrivacyTerms(mechanism="gaussian", clip_norm=0.1, noise_multiplier=1.1, grid=2**16)
    assert clip_steps(terms) == math.floor(Fraction(0.1) * 65536) == 6553
    assert sigma_steps(terms) == math.ceil(Fraction(1.1) * 6553) == 7209
    assert sigma_steps(PrivacyTerms(mechanism="none", noise_multiplier=3.0)) == 0
    assert sigma_steps(PrivacyTerms(mechanism="gaussian", noise_multiplier=0.0)) == 0


@pytest.mark.parametrize(
    ("clip_norm", "z", "grid", "code"),
    [
        (1e-9, 1.0, 2**10, "CAFE-301"),
        (1e9, 1.0, 2**10, "CAFE-301"),
        (1.0, 1e9, 2**16, "CAFE-302"),
    ],
)
def test_steps_that_cannot_be_computed_with(clip_norm: float, z: float, grid: int, code: str) -> None:
    with pytest.raises(CafeError, match=code):
        sigma_steps(PrivacyTerms(mechanism="gaussian", clip_norm=clip_norm, noise_multiplier=z, grid=grid))


def test_to_grid_rounds_to_nearest() -> None:
    assert to_grid(np.array([0.0, -0.0, 0.2, 0.3, -0.3, 1.0, 5e-324]), 4).tolist() == [0, 0, 1, 1, -1, 4, 0]
    assert to_grid(np.array([3, -2]), 8).tolist() == [24, -16]
    assert to_grid(np.array([65504.0], np.float16), 2).tolist() == [131008]
    for bad in (math.nan, math.inf, -math.inf, 1e300, 2.0**53):
        with pytest.raises(CafeError, match="CAFE-303"):
            to_grid(np.array([0.0, bad]), 1)
    with pytest.raises(CafeError, match="CAFE-303"):
        to_grid(np.array([1e308]), 2**20)  # finite, and infinite on the grid


@settings(deadline=None)
@given(VECTORS, st.integers(1, 2**31))
def test_the_clip_is_exact_and_idempotent(q: np.ndarray, limit: int) -> None:
    """Against Python's integers: never above the limit, never shorter than rounding explains, and nothing to do twice."""
    exact = sum(int(v) ** 2 for v in q)
    assert squared_norm(q) == exact
    clipped = clip_to_norm(q, limit)
    assert clipped.dtype == np.int64 and clipped.shape == q.shape
    norm2 = sum(int(v) ** 2 for v in clipped)
    assert norm2 <= limit**2
    assert (clip_to_norm(clipped, limit) == clipped).all()
    if exact <= limit**2:
        assert (clipped == q).all()
    else:
        assert math.sqrt(norm2) >= limit - 2 * math.sqrt(q.size) - 1
        assert all(int(a) * int(b) >= 0 for a, b in zip(q, clipped, strict=True)), "a sign was turned"


def test_the_clip_of_many_coordinates() -> None:
    """As many as a LoRA has; machine integers, and the same with numbers that need Python's."""
    q = np.random.default_rng(0).integers(-(2**17), 2**17, 460_800)
    for vector in (q, q * 2**40):
        clipped = clip_to_norm(vector, 2**16)
        assert 0.98 * 2**32 < squared_norm(clipped) <= 2**32


def test_nearest_rounding_keeps_what_truncation_would_lose() -> None:
    """A delta of 460,800 coordinates at the clip: the grid takes less than 1 % of its norm and none of its direction."""
    terms = PrivacyTerms(mechanism="gaussian", clip_norm=1.0, noise_multiplier=4.0, grid=2**16)
    x = np.random.default_rng(1).standard_normal(460_800)
    x /= np.linalg.norm(x)
    q = contribution(x, terms) / terms.grid
    assert np.linalg.norm(q) > 0.99 and q @ x / np.linalg.norm(q) > 0.9999


def test_cap_only_shrinks() -> None:
    assert cap(np.array([5, -7, 1, -(2**63)]), 5).tolist() == [5, -5, 1, -5]


def test_a_contribution_under_local_trust_carries_noise_of_its_own() -> None:
    terms = PrivacyTerms(mechanism="gaussian", trust="local", noise_multiplier=4.0)
    one, two = contribution(np.zeros(100), terms), contribution(np.zeros(100), terms)
    assert (one != two).any() and np.abs(one).max() <= 14 * sigma_steps(terms)
    with pytest.raises(CafeError, match="CAFE-304"):
        contribution(np.zeros(100), PrivacyTerms(mechanism="gaussian", trust="local", noise_multiplier=0.0))


# --- noise -----------------------------------------------------------------------------------------------------------


def test_there_is_no_seed() -> None:
    for function in (GaussianNoise, GaussianNoise.draw, noise._Keystream, contribution):
        assert not {"seed", "rng", "generator", "key", "random_state"} & set(inspect.signature(function).parameters)


@pytest.mark.parametrize("sigma", [0, -1, 2**31 + 1])
def test_noise_that_cannot_be_drawn(sigma: int) -> None:
    with pytest.raises(CafeError, match="CAFE-304"):
        GaussianNoise(sigma)


def test_sizes() -> None:
    gauss = GaussianNoise(1000)
    assert gauss.draw(0).shape == (0,) and gauss.draw(1).dtype == np.int64
    assert gauss.draw(2**18 + 3).shape == (2**18 + 3,)


def _oracle(sigma: int, uniform: int) -> int:
    """The rounded Gaussian at a 192-bit uniform number, by mpmath alone: the quantile, then the neighbours' borders."""
    with mp.workprec(400):
        u = mp.mpf(uniform) / mp.mpf(2) ** 192
        k = int(mp.nint(sigma * mp.sqrt(2) * mp.erfinv(2 * u - 1)))
        while mp.floor(mp.ncdf((k + mp.mpf("0.5")) / sigma) * mp.mpf(2) ** 192) <= uniform:
            k += 1
        while mp.floor(mp.ncdf((k - mp.mpf("0.5")) / sigma) * mp.mpf(2) ** 192) > uniform:
            k -= 1
        return k


class _Tape:
    """A stream of which the test knows the next 128 bits."""

    def __init__(self, rest: int) -> None:
        self.rest = rest

    def bits(self, count: int) -> int:
        assert count == 128
        return self.rest


@pytest.mark.parametrize("sigma", [1, 2, 7, 1000, 55_631, 1_400_000, 2**31])
def test_inversion_is_exact_at_random_places_and_at_borders(sigma: int) -> None:
    """Fast and exact path against the oracle: anywhere, and one unit on either side of a cell's border."""
    plan = np.random.default_rng(sigma)
    gauss = GaussianNoise(sigma)
    uniforms = [int.from_bytes(plan.bytes(24), "big") for _ in range(100)]
    for k in [0, -1, sigma, -3 * sigma, *plan.integers(-4 * sigma, 4 * sigma + 1, 20).tolist()]:
        border = gauss._border(int(k))
        uniforms += [border - 1, border, border + (1 << 128), border - (1 << 128)]
    for uniform in uniforms:
        leading = np.array([uniform >> 128], dtype=np.uint64)
        drawn = gauss._invert(leading, _Tape(uniform & (2**128 - 1)))  # type: ignore[arg-type]
        assert int(drawn[0]) == _oracle(sigma, uniform)


def test_far_tails_are_drawn_and_end() -> None:
    """Beyond the table's five sigmas and at the very ends of the uniform numbers."""
    gauss = GaussianNoise(1000)
    for leading, rest in ((2**42, 1), (2**30, 12345), (1, 2**100), (2**64 - 2**30, 7), (2**64 - 1, 5)):
        (drawn,) = gauss._invert(np.array([leading], np.uint64), _Tape(rest))  # type: ignore[arg-type]
        assert abs(drawn) > 5000 and drawn == _oracle(1000, leading << 128 | rest)
    for leading, rest, end in ((0, 0, -14_000), (2**64 - 1, 2**128 - 1, 14_000)):
        assert gauss._invert(np.array([leading], np.uint64), _Tape(rest)).tolist() == [end]  # type: ignore[arg-type]


def test_the_quantile_is_as_good_as_claimed() -> None:
    """The error bound that decides between fast and exact path, at 3,000 places, cells' ends among them."""
    cumulative, _ = noise._nodes()
    assert (np.diff(cumulative.astype(object)) > 0).all()
    places = np.concatenate(
        [
            np.random.default_rng(3).integers(2**43, 2**64 - 2**43, 1000, dtype=np.uint64),
            cumulative[:-1][::5],
            cumulative[1:][::5] - np.uint64(1),
        ]
    )
    found = noise._quantile(places)
    with mp.workprec(200):
        for u, z in zip(places.tolist(), found.tolist(), strict=True):
            if not math.isnan(z):
                exact = mp.sqrt(2) * mp.erfinv(2 * mp.mpf(u) / 2**64 - 1)
                width = mp.mpf(2) ** -64 / mp.npdf(exact)
                assert abs(z - exact) + width < noise._QUANTILE_ERROR / 4


def test_large_noise_is_normal_in_its_moments() -> None:
    """Mean, kurtosis and tail counts of 400,000 draws at a sigma that no table could hold; bounds of six standard errors."""
    z = GaussianNoise(2**30).draw(400_000) / 2**30
    assert abs(z.mean()) < 6 / math.sqrt(z.size)
    assert abs((z**4).mean() - 3) < 6 * math.sqrt(96 / z.size)
    for bar in (1.0, 2.0, 3.0, 4.0):
        expected = z.size * math.erfc(bar / math.sqrt(2))
        assert abs((np.abs(z) > bar).sum() - expected) < 6 * math.sqrt(expected) + 1


# --- boxes and seals -------------------------------------------------------------------------------------------------


def test_a_box_opens_for_its_key_and_place_only() -> None:
    key, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    box = Box.seal(b"delta", key.public_key(), b"run/2/1/0/lab")
    assert Box.open(box, key, b"run/2/1/0/lab") == b"delta"
    assert box != Box.seal(b"delta", key.public_key(), b"run/2/1/0/lab")
    flipped = [bytes([*box[:i], box[i] ^ 1, *box[i + 1 :]]) for i in range(len(box))]
    zero_key = bytes(32) + box[32:]  # the all-zero public key has no secret
    for attempt in (*flipped, box[:-1], box + b"x", b"", box[:31], zero_key):
        with pytest.raises(CafeError, match="CAFE-459"):
            Box.open(attempt, key, b"run/2/1/0/lab")
    for key_, context in ((other, b"run/2/1/0/lab"), (key, b"run/2/1/1/lab")):
        with pytest.raises(CafeError, match="CAFE-459"):
            Box.open(box, key_, context)


def test_a_sealed_file_is_whole_and_private(tmp_path: Path) -> None:
    seal_file(tmp_path / "body", b"x" * 1001)
    assert (tmp_path / "body").read_bytes() == b"x" * 1001 and (tmp_path / "body").stat().st_mode & 0o777 == 0o600
    seal_file(tmp_path / "body", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["body"] and (tmp_path / "body").read_bytes() == b""
    (tmp_path / "elsewhere").write_bytes(b"kept")
    (tmp_path / "link.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CafeError, match="CAFE-305"):
        seal_file(tmp_path / "link", b"x")  # a planted link is not written through
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"
    with pytest.raises(CafeError, match="CAFE-305"):
        seal_file(tmp_path / "no" / "folder", b"x")


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(release.os, "write", full)
    with pytest.raises(CafeError, match=r"CAFE-305.*No space"):
        seal_file(tmp_path / "body", b"abc")
    assert list(tmp_path.iterdir()) == []


# --- bodies ----------------------------------------------------------------------------------------------------------

SCHEMA = {"a": ((2, 3), "float32"), "b": ((4,), "int64")}
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4)}


def test_bodies_are_canonical() -> None:
    data = body_to_bytes(ARRAYS)
    assert data == body_to_bytes(dict(reversed(ARRAYS.items()))) == body_to_bytes({**ARRAYS, "a": np.asfortranarray(ARRAYS["a"])})
    back = body_from_bytes(data, SCHEMA)
    assert all((back[name] == ARRAYS[name]).all() and back[name].dtype == ARRAYS[name].dtype for name in ARRAYS)
    assert body_from_bytes(body_to_bytes({"v": np.zeros(0)}), {"v": ((0,), "float64")})["v"].size == 0


def _with_header(change: Callable[[dict[str, Any]], Any]) -> bytes:
    data = body_to_bytes(ARRAYS)
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _raw(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


_GOOD = body_to_bytes(ARRAYS)
_A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [32, 56]}
_B = {"dtype": "I64", "shape": [4], "data_offsets": [0, 32]}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", 451),
        (b"\0" * 7, 451),
        (b"\xff" * 100, 451),
        (_GOOD[:-1], 451),
        (_GOOD + b"\0", 451),
        (_GOOD[:40], 451),
        ((10**9).to_bytes(8, "little") + b"{}", 451),
        (_raw(b" " * 300_000), 451),
        (b"\x80\x04K\x01.", 451),
        (b"PK\x03\x04" + b"\0" * 50, 451),
        (_raw(b"not json"), 452),
        (_raw(b"[1]"), 452),
        (_raw(b"\xff\xfe"), 452),
        (_raw(b"{}"), 453),
        (_raw(b"[" * 100_000), 452),
        (_raw(b'{"a": 1}'), 452),
        (_raw(json.dumps({"a": _A})[:-1].encode() + b', "a": ' + json.dumps(_A).encode() + b"}"), 452),
        (_with_header(lambda h: h | {"__metadata__": {"x": "y"}}), 453),
        (_with_header(lambda h: {"a": h["a"]}), 453),
        (_with_header(lambda h: h | {"../../etc/passwd": _B}), 453),
        (_with_header(lambda h: h | {"a": {**h["a"], "dtype": "F64"}}), 454),
        (_with_header(lambda h: h | {"a": {**h["a"], "dtype": None}}), 454),
        (_with_header(lambda h: h | {"a": {**h["a"], "shape": [3, 2]}}), 455),
        (_with_header(lambda h: h | {"a": {**h["a"], "shape": "2,3"}}), 455),
        (_with_header(lambda h: h | {"a": {**h["a"], "data_offsets": [0, 24]}}), 452),
        (_with_header(lambda h: h | {"a": {**h["a"], "data_offsets": [8, 8]}}), 452),
        (_with_header(lambda h: h | {"a": {"dtype": "F32", "shape": [2, 3]}}), 452),
        (body_to_bytes({**ARRAYS, "a": np.full((2, 3), np.nan, np.float32)}), 456),
        (body_to_bytes({**ARRAYS, "a": np.full((2, 3), -np.inf, np.float32)}), 456),
    ],
)
def test_the_gate_refuses(data: bytes, code: int) -> None:
    with pytest.raises(CafeError, match=f"CAFE-{code}"):
        body_from_bytes(data, SCHEMA)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_body_is_refused_or_holds_the_agreed_shapes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(_GOOD)
    for place, value in changes:
        data[place] = value
    try:
        arrays = body_from_bytes(bytes(data), SCHEMA)
    except CafeError as error:
        assert error.code in {f"CAFE-{code}" for code in range(451, 457)}
    else:
        assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == SCHEMA


def test_refusals_name_at_most_three_tensors() -> None:
    many = body_to_bytes({f"layer.{i}": np.zeros(1) for i in range(50)})
    with pytest.raises(CafeError) as caught:
        body_from_bytes(many, SCHEMA)
    assert caught.value.message.count("layer") <= 3
    assert safetensors.numpy.load(_GOOD).keys() == SCHEMA.keys()
