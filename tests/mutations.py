"""Faults made by hand in the kernels, each of which the tests must catch: `python tests/mutations.py [NAME ...]`.

Each fault is put into a copy of the repository, where the tests of its operation run until the first failure. Exits
with 1 if a fault survives, if the tests do not end in time under it, if the text that it replaces is not there exactly
once, or if the tests fail without one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """One wrong edit of `kernels/<op>/kernel.py`."""

    op: str
    right: str
    wrong: str


FAULTS = {
    "draw: unimix dropped": Fault(
        "categorical",
        "p_NC = (1 - UNIMIX) * _softmax(_load_logits(logits_ptr, offset_NC, is_row_N, c, C)) + UNIMIX / C",
        "p_NC = _softmax(_load_logits(logits_ptr, offset_NC, is_row_N, c, C))",
    ),
    "draw: an edge belongs to the class below": Fault(
        "categorical", "tl.cumsum(p_NC, 1) <= u_N", "tl.cumsum(p_NC, 1) < u_N"
    ),
    "draw: one class too far": Fault("categorical", "(c < C - 1)[None, :]\n", "(c < C)[None, :]\n"),
    "draw: rows of the tail not masked": Fault(
        "categorical",
        "tl.store(out_ptr + n, index_N.to(tl.int64), mask=is_row_N)",
        "tl.store(out_ptr + n, index_N.to(tl.int64))",
    ),
    "sample backward: factor 1 - unimix missing": Fault(
        "categorical", "grad_NC = (1 - UNIMIX) * tl.load", "grad_NC = tl.load"
    ),
    "sample backward: mean of the gradient not subtracted": Fault(
        "categorical", "out_NC = s_NC * (grad_NC - tl.sum(s_NC * grad_NC, 1)[:, None])", "out_NC = s_NC * grad_NC"
    ),
    "KL: strides of the window swapped": Fault(
        "categorical", "(n // T) * stride_b + (n % T) * stride_t", "(n // T) * stride_t + (n % T) * stride_b"
    ),
    "KL: prior read with the posterior's strides": Fault(
        "categorical",
        "prior_ptr += _row_start(n, T, prior_stride_b, prior_stride_t)\n    p_GC",
        "prior_ptr += _row_start(n, T, post_stride_b, post_stride_t)\n    p_GC",
    ),
    "KL backward: prior read with the posterior's strides": Fault(
        "categorical",
        "prior_ptr += _row_start(n, T, prior_stride_b, prior_stride_t)\n    s_GC",
        "prior_ptr += _row_start(n, T, post_stride_b, post_stride_t)\n    s_GC",
    ),
    "KL: free nats never flatten the gradient": Fault(
        "categorical", "tl.where(nats >= free_nats, (1 - UNIMIX) / N, 0.0)", "(1 - UNIMIX) / N"
    ),
    "KL: free nats per step taken of the mean": Fault(
        "categorical",
        "loss = tl.sum(free_N, 0) / N if PER_STEP else",
        "loss = tl.maximum(mean, free_nats) if PER_STEP else",
    ),
    "KL: gradients to the wrong side": Fault(
        "categorical",
        "to_prior, to_post = tl.load(grad_ptr) * share, tl.load(grad_ptr + 1) * share",
        "to_post, to_prior = tl.load(grad_ptr) * share, tl.load(grad_ptr + 1) * share",
    ),
    "KL: a NaN hidden from the loss of a step": Fault(
        "categorical",
        "at_least_N = tl.maximum(kl_N, free_nats, propagate_nan=tl.PropagateNan.ALL)",
        "at_least_N = tl.maximum(kl_N, free_nats)",
    ),
    "KL: a NaN hidden from the loss of a batch": Fault(
        "categorical",
        "free_mean = tl.maximum(mean, free_nats, propagate_nan=tl.PropagateNan.ALL)",
        "free_mean = tl.maximum(mean, free_nats)",
    ),
    "two-hot: a NaN hidden from the target": Fault(
        "twohot", "x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)", "x = tl.maximum(x, low)"
    ),
    "two-hot: next bin": Fault(
        "twohot",
        "is_lower_NV, is_upper_NV = v[None, :] == lower_N[:, None], v[None, :] == lower_N[:, None] + 1",
        "is_lower_NV, is_upper_NV = v[None, :] == lower_N[:, None] + 1, v[None, :] == lower_N[:, None] + 2",
    ),
    "two-hot: V bins instead of V - 1 gaps": Fault(
        "twohot",
        "SPACING: tl.constexpr = 2 * BOUND / (V - 1)\n    # Twice",
        "SPACING: tl.constexpr = 2 * BOUND / V\n    # Twice",
    ),
    "two-hot: weights not clamped": Fault(
        "twohot",
        "_clamp((y_N - _bin(lower_N, V, BOUND)) / SPACING, 0.0, 1.0)",
        "(y_N - _bin(lower_N, V, BOUND)) / SPACING",
    ),
    "two-hot: sign of symlog lost": Fault("twohot", "tl.where(x < 0, -log, log)", "log"),
    "two-hot: masked logits count in the softmax": Fault(
        "twohot", 'return tl.where((v < V)[None, :], logit_NV, -float("inf"))', "return logit_NV"
    ),
    "two-hot backward: incoming gradient ignored": Fault(
        "twohot", "out_NV = grad_N[:, None] * (tl.exp", "out_NV = 1.0 * (tl.exp"
    ),
    "two-hot: symexp without the - 1": Fault("twohot", "tl.exp(tl.abs(y)) - 1.0", "tl.exp(tl.abs(y))"),
    "decode backward: slope of symexp missing": Fault("twohot", " * tl.exp(tl.abs(y_N))", ""),
    "decode backward: expected bin not subtracted": Fault("twohot", "[None, :] - y_N[:, None])", "[None, :])"),
    "lambda-return: bootstraps swapped": Fault("lambda_return", "t[None, :] + NEXT", "t[None, :] + 1 - NEXT"),
    "lambda-return: scan in the order of time": Fault("lambda_return", ", reverse=True)", ")"),
    "lambda-return: factor 1 - lambda missing": Fault(
        "lambda_return", "discount_BT * (1 - LAM) * value", "discount_BT * value"
    ),
    "lambda-return: padding is not the identity": Fault(
        "lambda_return", "slope_BT = tl.where((t < T)[None, :], slope_BT, 1.0)", "slope_BT = slope_BT + 0.0"
    ),
    "reach: an end counts for its own step": Fault("lambda_return", "end_ptr + offset_BT - 1", "end_ptr + offset_BT"),
    "attention: the future is seen": Fault(
        "attention", "(s_S[None, :] <= t_T[:, None]) & (s_S < T)", "(s_S[None, :] >= 0) & (s_S < T)"
    ),
    "attention: a step does not see itself": Fault(
        "attention", "s_S[None, :] <= t_T[:, None]", "(s_S[None, :] < t_T[:, None]) | (s_S[None, :] == 0)"
    ),
    "attention: scale missing": Fault(
        "attention", "_dot(q_TK, tl.trans(k_SK)) * scale", "_dot(q_TK, tl.trans(k_SK)) * 1.0"
    ),
    "attention: dropout without rescaling": Fault(
        "attention", "p_TS = tl.where(kept_TS, p_TS / (1.0 - dropout), 0.0)", "p_TS = tl.where(kept_TS, p_TS, 0.0)"
    ),
    "attention: the same dropout in every head": Fault(
        "attention", "((bh * T + t_T)[:, None] * ((T", "(t_T[:, None] * ((T"
    ),
    "attention: rows share the dropout of their ends": Fault("attention", "((T + 3) // 4)", "(T // 4)"),
    "attention: dropout keeps what it should drop": Fault("attention", ">= dropout", "< dropout"),
    "attention: heads of q interleaved wrongly": Fault(
        "attention",
        "head_ptr = qkv_ptr + b * T * 3 * H * K + h * K\n    is_q_TK",
        "head_ptr = qkv_ptr + b * T * 3 * H * K + h * 3 * K\n    is_q_TK",
    ),
    "attention backward: delta missing": Fault("attention", "(dp_TS - delta_T[:, None])", "dp_TS"),
    "attention backward: dropout missing in dv": Fault(
        "attention", "met_TS = tl.where(kept_TS, p_TS / (1.0 - dropout), 0.0)", "met_TS = p_TS"
    ),
    "attention backward: scale missing": Fault(
        "attention", "(dp_TS - delta_T[:, None]) * scale)", "(dp_TS - delta_T[:, None]))"
    ),
    "attention backward: later blocks skipped": Fault("attention", "if i >= mine:", "if i == mine:"),
    "step: reads beyond the cache": Fault(
        "attention", "((s < place) & (s < S_CACHE))[:, None]", "(s < place)[:, None]"
    ),
    "prefill: values cached as keys": Fault(
        "attention", "tl.store(k_cache_ptr + cache_SK, k_SK", "tl.store(k_cache_ptr + cache_SK, v_SK"
    ),
    "step: stale row of the cache": Fault(
        "attention", "is_mine_S1 = (s == place)[:, None]", "is_mine_S1 = (s == place + 1)[:, None]"
    ),
    "step: oldest key forgotten": Fault(
        "attention", "tl.where(s <= place, score_S", "tl.where((s <= place) & (s > 0), score_S"
    ),
    "step: a position before the cache written": Fault(
        "attention", "(place >= 0) & (place < S_CACHE)", "place < S_CACHE"
    ),
    "step: written one place too far": Fault(
        "attention", "tl.store(k_cache_ptr + cache + place * K", "tl.store(k_cache_ptr + cache + (place + 1) * K"
    ),
    "frames: not scaled": Fault("frames", ".to(tl.float32) / 255.0", ".to(tl.float32) / 256.0"),
    "frames: rows and colours exchanged": Fault(
        "frames", "(o % PIXELS) * P + o // PIXELS", "(o // P) + (o % P) * PIXELS"
    ),
    "frames: index ignored": Fault("frames", "row = tl.load(index_ptr + n) if GATHER else n", "row = n"),
    "frames: mean added": Fault("frames", "x -= tl.load(mean_ptr", "x += tl.load(mean_ptr"),
    "conv_relu: bias of the wrong channel": Fault("conv_relu", "(o // PIXELS) % P", "o % P"),
    "conv_relu: bias missing": Fault("conv_relu", "+ tl.load(bias_ptr + channel)", "+ 0 * tl.load(bias_ptr + channel)"),
    "conv_relu: not clipped": Fault("conv_relu", "tl.where(y < 0, 0.0, y)", "y"),
    "conv_relu: NaN clipped": Fault("conv_relu", "tl.where(y < 0, 0.0, y)", "tl.where(y > 0, y, 0.0)"),
    "conv_relu: tail not masked": Fault(
        "conv_relu", "y.to(out_ptr.dtype.element_ty), mask=is_kept)", "y.to(out_ptr.dtype.element_ty))"
    ),
    "reconstruction: not scaled": Fault("reconstruction", ".to(tl.float32) / 255.0", ".to(tl.float32) / 256.0"),
    "reconstruction: rows and colours exchanged": Fault(
        "reconstruction", "(o % PIXELS) * P + o // PIXELS", "(o // P) + (o % P) * PIXELS"
    ),
    "reconstruction: only a frame's last tile counted": Fault(
        "reconstruction", "sum_O += error_O * error_O", "sum_O = error_O * error_O"
    ),
    "reconstruction backward: factor 2 missing": Fault("reconstruction", "2.0 * tl.load(grad_ptr", "tl.load(grad_ptr"),
    "reconstruction backward: every frame the first one's gradient": Fault(
        "reconstruction", "tl.load(grad_ptr + n)", "tl.load(grad_ptr)"
    ),
    "norm: eps missing": Fault("norm", "off_ND * off_ND, 1) / D + eps)", "off_ND * off_ND, 1) / D + 0.0 * eps)"),
    "norm: variance as the mean of squares less the square of the mean": Fault(
        "norm", "tl.sum(off_ND * off_ND, 1) / D + eps", "tl.sum(sum_ND * sum_ND, 1) / D - mean_N * mean_N + eps"
    ),
    "norm: variance divided by D - 1": Fault(
        "norm", "tl.sum(off_ND * off_ND, 1) / D + eps", "tl.sum(off_ND * off_ND, 1) / (D - (D > 1)) + eps"
    ),
    "norm: masked columns count in the variance": Fault(
        "norm", "tl.where((d < D)[None, :], sum_ND - mean_N[:, None], 0.0)", "sum_ND - mean_N[:, None]"
    ),
    "norm: residual of the wrong row": Fault("norm", "(n.to(tl.int32) % M)", "(n.to(tl.int32) // M)"),
    "norm: residual forgotten": Fault("norm", "sum_ND += tl.load(residual_ptr", "sum_ND += 0.0 * tl.load(residual_ptr"),
    "norm: a NaN hidden by the ReLU": Fault(
        "norm", "y_ND = tl.where(y_ND <= 0, 0.0, y_ND)", "y_ND = tl.where(y_ND > 0, y_ND, 0.0)"
    ),
    "norm: rows of the tail not masked": Fault(
        "norm", "tl.store(mean_ptr + n, mean_N, mask=is_row_N)", "tl.store(mean_ptr + n, mean_N)"
    ),
    "norm: columns of the tail written": Fault(
        "norm",
        "y_ND.to(out_ptr.dtype.element_ty), mask=is_kept_ND)",
        "y_ND.to(out_ptr.dtype.element_ty), mask=is_row_N[:, None])",
    ),
    "norm backward: gradient passes the ReLU": Fault("norm", "<= 0, 0.0, grad_ND)", "<= 0, 1.0 * grad_ND, grad_ND)"),
    "norm backward: mean of the gradient not subtracted": Fault(
        "norm", "to_unit_ND - level_N[:, None] -", "to_unit_ND -"
    ),
    "norm backward: part along the values not subtracted": Fault("norm", " - unit_ND * along_N[:, None])", ")"),
    "norm backward: weight missing": Fault("norm", "to_unit_ND = grad_ND * weight_D[None, :]", "to_unit_ND = grad_ND"),
    "norm backward: weight's gradient before the ReLU": Fault(
        "norm",
        "grad_ND = tl.load(grad_ptr + offset_ND, mask=is_kept_ND, other=0.0).to(tl.float32)",
        "grad_ND = tl.load(grad_ptr + offset_ND, mask=is_kept_ND, other=0.0).to(tl.float32)\n"
        "        to_weight_ND += grad_ND * 0.01",
    ),
    "norm backward: only the last step's rows summed": Fault("norm", "to_bias_ND += grad_ND", "to_bias_ND = grad_ND"),
    "norm backward: steps of all programs interleaved with an overlap": Fault(
        "norm", "n = (p * steps + i) * BLOCK_N", "n = (p + i) * BLOCK_N"
    ),
    "norm backward: partial sums of weight and bias exchanged": Fault(
        "norm", "tl.load(partial_ptr + D + offset_PD", "tl.load(partial_ptr + offset_PD"
    ),
    "norm backward: residual's gradient not written": Fault("norm", "if APART:", "if APART and RELU:"),
}

_LIMIT_S = 900  # attention takes a minute alone, five on a shared machine
TESTS = {"frames": "test_frames.py", "conv_relu": "test_conv_relu.py"}

# pytest on the folder's copy. An editable install's finder comes before all folders: pytest would test the original in
# place of the copy with the fault.
RUN = """
import sys
folder = sys.argv.pop(1)
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "_editable_skbc_storm_fast"]
sys.path.insert(0, folder)
import storm_fast
if not storm_fast.__file__.startswith(folder):
    print(f"want the copy in {folder}; got {storm_fast.__file__}")
    sys.exit(4)  # not 1, which says that a test failed
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""

Outcome = Literal["passed", "failed", "timeout"]


def outcome(folder: Path, op: str) -> Outcome:
    """What the tests of an operation come to there; those that end in no time have neither passed nor failed."""
    tests = f"tests/kernels/{TESTS.get(op, f'test_{op}_kernel.py')}"
    # The contract with torch and compiling say nothing about values and take longest.
    command = [sys.executable, "-c", RUN, str(folder), "-x", "-q", "-p", "no:cacheprovider", tests]
    command += ["-k", "not contract and not compiles", "--hypothesis-profile", "first_failure"]
    environment = os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": str(folder / ".hypothesis")}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.returncode < 0:  # a write outside of all margins may end the process
        return "failed"
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return "failed" if done.returncode == 1 else "passed"


def main(names: list[str]) -> int:
    """Try the faults named, or all."""
    chosen = {name: fault for name, fault in FAULTS.items() if not names or any(word in name for word in names)}
    bad = []
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent).resolve() / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)
        for op in sorted({fault.op for fault in chosen.values()}):
            if (found := outcome(folder, op)) != "passed":
                bad.append(op)
                print(f"BROKEN    {op}: without a fault its tests end in {found!r}")
        for name, (op, right, wrong) in chosen.items():
            path = folder / "kernels" / op / "kernel.py"
            text = path.read_text()
            started = time.perf_counter()
            if text.count(right) != 1:
                told = f"NOT MADE  ({text.count(right)} places)"
            else:
                path.write_text(text.replace(right, wrong))
                told = {"failed": "caught", "passed": "SURVIVED", "timeout": "TIMEOUT"}[outcome(folder, op)]
                path.write_text(text)
            bad += [name] if told != "caught" else []
            print(f"{told:9s} {name}  [{time.perf_counter() - started:.0f} s]", flush=True)
    print(f"{len(chosen)} faults, {len(bad)} not caught")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
