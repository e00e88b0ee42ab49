"""Faults made by hand in the kernels, each of which the tests must catch: `python tests/mutations.py [NAME ...]`.

Each fault is put into a copy of the repository, where the tests of its operation run until the first failure. Its place
is a comment of the kernel, `# mutation <place>`, behind the line that it replaces or on a line of its own before it. Exits
with 1 if a fault survives, if the tests do not end in time under it, if its place is not there exactly once, or if the
tests fail without one.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """A wrong line of `kernels/<op>/kernel.py`."""

    op: str
    place: str
    line: str

    def put(self, text: str) -> str:
        """The kernel with the fault.

        Raises:
            ValueError: where its place is not marked exactly once.
        """
        mark, lines = re.compile(rf"# mutation {re.escape(self.place)}$"), text.splitlines(keepends=True)
        marked = [i for i, line in enumerate(lines) if mark.search(line.rstrip())]
        if len(marked) != 1:
            raise ValueError(f"want one line marked `# mutation {self.place}` in {self.op}; got {len(marked)}")
        i = marked[0] + lines[marked[0]].lstrip().startswith("#")
        indent = lines[i][: len(lines[i]) - len(lines[i].lstrip())]
        return "".join([*lines[:i], f"{indent}{self.line}\n", *lines[i + 1 :]])


FAULTS = {
    "draw: unimix dropped": Fault(
        "categorical", "draw-unimix-dropped", "p_NC = _softmax(_load_logits(logits_ptr, offset_NC, is_row_N, c, C))"
    ),
    "draw: an edge belongs to the class below": Fault(
        "categorical", "draw-an-edge", "is_passed_NC = (tl.cumsum(p_NC, 1) < u_N[:, None]) & (c < C - 1)[None, :]"
    ),
    "draw: one class too far": Fault(
        "categorical", "draw-an-edge", "is_passed_NC = (tl.cumsum(p_NC, 1) <= u_N[:, None]) & (c < C)[None, :]"
    ),
    "draw: rows of the tail not masked": Fault(
        "categorical", "draw-rows-tail", "tl.store(out_ptr + n, index_N.to(tl.int64))"
    ),
    "sample backward: factor 1 - unimix missing": Fault(
        "categorical",
        "sample-backward-factor",
        "grad_NC = tl.load(grad_ptr + offset_NC, mask=is_kept_NC, other=0.0).to(tl.float32)",
    ),
    "sample backward: mean of the gradient not subtracted": Fault(
        "categorical", "sample-backward-mean", "out_NC = s_NC * grad_NC"
    ),
    "KL: strides of the window swapped": Fault(
        "categorical", "kl-strides-window", "return (n // T) * stride_t + (n % T) * stride_b"
    ),
    "KL: prior read with the posterior's strides": Fault(
        "categorical", "kl-prior-read", "prior_ptr += _row_start(n, T, post_stride_b, post_stride_t)"
    ),
    "KL backward: prior read with the posterior's strides": Fault(
        "categorical", "kl-backward-prior", "prior_ptr += _row_start(n, T, post_stride_b, post_stride_t)"
    ),
    "KL: free nats never flatten the gradient": Fault("categorical", "kl-free-nats", "share = (1 - UNIMIX) / N"),
    "KL: free nats per step taken of the mean": Fault(
        "categorical", "kl-free-nats-per", "loss = tl.maximum(mean, free_nats) if PER_STEP else free_mean"
    ),
    "KL: gradients to the wrong side": Fault(
        "categorical",
        "kl-gradients-wrong",
        "to_post, to_prior = tl.load(grad_ptr) * share, tl.load(grad_ptr + 1) * share",
    ),
    "KL: a NaN hidden from the loss of a step": Fault(
        "categorical", "kl-nan-hidden", "at_least_N = tl.maximum(kl_N, free_nats)"
    ),
    "KL: a NaN hidden from the loss of a batch": Fault(
        "categorical", "kl-nan-hidden-from", "free_mean = tl.maximum(mean, free_nats)"
    ),
    "two-hot: a NaN hidden from the target": Fault("twohot", "twohot-nan-hidden", "x = tl.maximum(x, low)"),
    "two-hot: next bin": Fault(
        "twohot",
        "twohot-next-bin",
        "is_lower_NV, is_upper_NV = v[None, :] == lower_N[:, None] + 1, v[None, :] == lower_N[:, None] + 2",
    ),
    "two-hot: V bins instead of V - 1 gaps": Fault("twohot", "twohot-v-bins", "SPACING: tl.constexpr = 2 * BOUND / V"),
    "two-hot: weights not clamped": Fault(
        "twohot", "twohot-weights-clamped", "upper_weight_N = (y_N - _bin(lower_N, V, BOUND)) / SPACING"
    ),
    "two-hot: sign of symlog lost": Fault("twohot", "twohot-sign-symlog", "return log"),
    "two-hot: masked logits count in the softmax": Fault("twohot", "twohot-masked-logits", "return logit_NV"),
    "two-hot backward: gradient in the margin": Fault(
        "twohot", "twohot-margin-gradient", "return tl.where((v < V)[None, :], grad_NV, 1.0)"
    ),
    "two-hot backward: incoming gradient ignored": Fault(
        "twohot", "twohot-backward-incoming", "out_NV = 1.0 * (tl.exp(logit_NV - lse_N[:, None]) - p_NV)"
    ),
    "two-hot: symexp without the - 1": Fault("twohot", "twohot-symexp-without", "grown = tl.exp(tl.abs(y))"),
    "decode backward: slope of symexp missing": Fault(
        "twohot", "decode-backward-slope", "grad_N = tl.load(grad_ptr + n, mask=is_row_N, other=0.0)"
    ),
    "decode backward: expected bin not subtracted": Fault(
        "twohot", "decode-backward-expected", "out_NV = grad_N[:, None] * p_NV * (_bin(v, V, BOUND)[None, :])"
    ),
    "lambda-return: bootstraps swapped": Fault(
        "lambda_return",
        "lambda_return-bootstraps-swapped",
        "value_BT = tl.load(value_ptr + b[:, None] * (T + 1) + t[None, :] + 1 - NEXT, mask=is_kept_BT, other=0.0)",
    ),
    "lambda-return: scan in the order of time": Fault(
        "lambda_return",
        "lambda_return-scan-order",
        "slope_BT, shift_BT = tl.associative_scan((slope_BT, offset_of_BT), 1, _compose)",
    ),
    "lambda-return: factor 1 - lambda missing": Fault(
        "lambda_return", "lambda_return-factor-1", "offset_of_BT = reward_BT + discount_BT * value_BT.to(tl.float32)"
    ),
    "lambda-return: padding is not the identity": Fault(
        "lambda_return", "lambda_return-padding-identity", "slope_BT = slope_BT + 0.0"
    ),
    "reach: an end counts for its own step": Fault(
        "lambda_return",
        "reach-an-end",
        "end_BT = tl.load(end_ptr + offset_BT, mask=has_before_BT, other=0.0).to(tl.float32)",
    ),
    "attention: the future is seen": Fault(
        "attention",
        "attention-future-seen",
        'return tl.where((s_S[None, :] >= 0) & (s_S < T)[None, :], score_TS, -float("inf"))',
    ),
    "attention: a step does not see itself": Fault(
        "attention",
        "attention-future-seen",
        'return tl.where(((s_S[None, :] < t_T[:, None]) | (s_S[None, :] == 0)) & (s_S < T)[None, :], score_TS, -float("inf"))',
    ),
    "attention: scale missing": Fault(
        "attention", "attention-scale-missing", "score_TS = _dot(q_TK, tl.trans(k_SK)) * 1.0"
    ),
    "attention: dropout without rescaling": Fault(
        "attention", "attention-dropout-without", "p_TS = tl.where(kept_TS, p_TS, 0.0)"
    ),
    "attention: the same dropout in every head": Fault(
        "attention",
        "attention-same-dropout",
        "place_TS = (t_T[:, None] * ((T + 3) // 4) + four_S[None, :]).to(tl.int32)",
    ),
    "attention: rows share the dropout of their ends": Fault(
        "attention",
        "attention-same-dropout",
        "place_TS = ((bh * T + t_T)[:, None] * (T // 4) + four_S[None, :]).to(tl.int32)",
    ),
    "attention: dropout keeps what it should drop": Fault(
        "attention", "attention-dropout-keeps", "return tl.reshape(u_TS22, (t_T.shape[0], BLOCK_S)) < dropout"
    ),
    "attention: heads of q interleaved wrongly": Fault(
        "attention", "attention-heads-q", "head_ptr = qkv_ptr + b * T * 3 * H * K + h * 3 * K"
    ),
    "attention backward: delta missing": Fault(
        "attention", "attention-backward-delta", "return met_TS.to(q_TK.dtype), (p_TS * dp_TS * scale).to(q_TK.dtype)"
    ),
    "attention backward: dropout missing in dv": Fault("attention", "attention-backward-dropout", "met_TS = p_TS"),
    "attention backward: scale missing": Fault(
        "attention",
        "attention-backward-delta",
        "return met_TS.to(q_TK.dtype), (p_TS * (dp_TS - delta_T[:, None])).to(q_TK.dtype)",
    ),
    "attention backward: later blocks skipped": Fault(
        "attention", "attention-backward-later", "if i == mine:  # later queries meet my keys"
    ),
    "prefill: values cached as keys": Fault(
        "attention",
        "prefill-values-cached",
        "tl.store(k_cache_ptr + cache_SK, v_SK.to(k_cache_ptr.dtype.element_ty), mask=is_k_SK)",
    ),
    "step: stale row of the cache": Fault("attention", "step-stale-row", "is_mine_S1 = (s == position + 1)[:, None]"),
    "step: oldest key forgotten": Fault(
        "attention", "step-oldest-key", 'score_S = tl.where((s <= position) & (s > 0), score_S, -float("inf"))'
    ),
    "step: written one place too far": Fault(
        "attention",
        "step-written-place",
        "tl.store(k_cache_ptr + cache + (position + 1) * K + kk, k_K.to(k_cache_ptr.dtype.element_ty), mask=kk < K)",
    ),
    "first_conv backward: one tile a program": Fault("first_conv", "filters-bwd-one-tile", "for step in range(1):"),
    "first_conv backward: index ignored": Fault("first_conv", "filters-bwd-index", "frame = n"),
    "first_conv backward: pixels behind a frame's last": Fault(
        "first_conv", "filters-bwd-tail", "is_kept_MO = (m >= 0)[:, None] & (o < FILTERS)[None, :]"
    ),
    "first_conv backward: not scaled": Fault("first_conv", "filters-bwd-scaled", "sum_KO = sum_KO / 1.0"),
    "first_conv backward: parts that nobody wrote": Fault(
        "first_conv", "filters-reduce-parts", "is_part_SR = (s >= 0)[:, None] & is_kept_R[None, :]"
    ),
    "first_conv backward: rows and columns exchanged": Fault(
        "first_conv",
        "filters-reduce-place",
        "place_R = o_R * (16 * P) + j_R // P * (4 * P) + filter_row_R * P + j_R % P",
    ),
    "conv_relu: bias of the wrong channel": Fault("conv_relu", "conv_relu-bias-wrong", "channel = o % P"),
    "conv_relu: bias missing": Fault(
        "conv_relu",
        "conv_relu-bias-missing",
        "y = tl.load(x_ptr + o, mask=is_kept, other=0.0).to(tl.float32) + 0 * tl.load(bias_ptr + channel)",
    ),
    "conv_relu: not clipped": Fault("conv_relu", "conv_relu-clipped", "y = y * tl.sigmoid(y) if SILU else y"),
    "conv_relu: NaN clipped": Fault("conv_relu", "conv_relu-clipped", "y = tl.where(y > 0, y, 0.0)  # keeps NaN"),
    "conv_relu: tail not masked": Fault(
        "conv_relu", "conv_relu-tail-masked", "tl.store(out_ptr + o, y.to(out_ptr.dtype.element_ty))"
    ),
    "deconv_error: a column beyond the border read": Fault(
        "deconv_error",
        "deconv-border",
        "is_in_M = (m < PIXELS) & (i_M + di >= 0) & (i_M + di < Y) & (j_M + dj >= 0) & (j_M + dj <= X)",
    ),
    "deconv_error: rows and columns of the filter exchanged": Fault(
        "deconv_error", "deconv-taps", "ky_Q, kx_Q = px_Q + 1 - 2 * dj, py_Q + 1 - 2 * di"
    ),
    "deconv_error: filters turned": Fault(
        "deconv_error", "deconv-taps", "ky_Q, kx_Q = py_Q + 1 + 2 * di, px_Q + 1 + 2 * dj"
    ),
    "deconv_error: bias of the wrong colour": Fault(
        "deconv_error",
        "deconv-bias",
        "y_MQ += tl.load(bias_ptr + 0 * p_Q, mask=q < 4 * P, other=0.0).to(tl.float32)[None, :]",
    ),
    "deconv_error: mean missing": Fault("deconv_error", "deconv-mean", "y_MQ += 0.0"),
    "deconv_error: not scaled": Fault(
        "deconv_error",
        "deconv-scaled",
        "d_MQ = y_MQ - tl.load(obs_ptr + frame + o_MQ, mask=is_kept_MQ, other=0).to(tl.float32) / 256.0",
    ),
    "deconv_error: pixels of the tail in the sums": Fault("deconv_error", "deconv-tail", "d_MQ = d_MQ + 0.0"),
    "deconv_error: sums of all colours": Fault(
        "deconv_error", "deconv-colour", "tl.store(sum_ptr + n * P + p, tl.sum(colour_Q, 0))"
    ),
    "deconv_error backward: every frame the first one's gradient": Fault(
        "first_conv", "filters-bwd-scale-of", "x_MK *= tl.load(scale_ptr)"
    ),
    "norm: eps missing": Fault(
        "norm", "norm-eps-missing", "rstd_N = 1.0 / tl.sqrt(tl.sum(off_ND * off_ND, 1) / D + 0.0 * eps)"
    ),
    "norm: variance as the mean of squares less the square of the mean": Fault(
        "norm", "norm-eps-missing", "rstd_N = 1.0 / tl.sqrt(tl.sum(sum_ND * sum_ND, 1) / D - mean_N * mean_N + eps)"
    ),
    "norm: variance divided by D - 1": Fault(
        "norm", "norm-eps-missing", "rstd_N = 1.0 / tl.sqrt(tl.sum(off_ND * off_ND, 1) / (D - (D > 1)) + eps)"
    ),
    "norm: masked columns count in the variance": Fault(
        "norm", "norm-masked-columns", "off_ND = sum_ND - mean_N[:, None]"
    ),
    "norm: residual of the wrong row": Fault(
        "norm", "norm-residual-wrong", "m = (n.to(tl.int32) // M).to(tl.int64) if REPEAT else n"
    ),
    "norm: residual forgotten": Fault(
        "norm",
        "norm-residual-forgotten",
        "sum_ND += 0.0 * tl.load(residual_ptr + m[:, None] * D + d[None, :], mask=is_kept_ND, other=0.0).to(tl.float32)",
    ),
    "norm: a NaN hidden by the ReLU": Fault(
        "norm",
        "norm-nan-hidden",
        "y_ND = tl.where(y_ND > 0, y_ND, 0.0)  # a NaN stays one, where a plain maximum would hide it",
    ),
    "norm: rows of the tail not masked": Fault("norm", "norm-rows-tail", "tl.store(mean_ptr + n, mean_N)"),
    "norm: columns of the tail written": Fault(
        "norm",
        "norm-columns-tail",
        "tl.store(out_ptr + n[:, None] * D + d[None, :], y_ND.to(out_ptr.dtype.element_ty), mask=is_row_N[:, None])",
    ),
    "norm backward: gradient passes the ReLU": Fault(
        "norm",
        "norm-backward-gradient",
        "grad_ND = tl.where(unit_ND * weight_D[None, :] + bias_D[None, :] <= 0, 1.0 * grad_ND, grad_ND)",
    ),
    "norm backward: mean of the gradient not subtracted": Fault(
        "norm", "norm-backward-mean", "out_ND = rstd_N[:, None] * (to_unit_ND - unit_ND * along_N[:, None])"
    ),
    "norm backward: part along the values not subtracted": Fault(
        "norm", "norm-backward-mean", "out_ND = rstd_N[:, None] * (to_unit_ND - level_N[:, None])"
    ),
    "norm backward: weight missing": Fault("norm", "norm-backward-weight", "to_unit_ND = grad_ND"),
    "norm backward: weight's gradient before the ReLU": Fault(
        "norm",
        "norm-backward-weight-gradient",
        "grad_ND = tl.load(grad_ptr + offset_ND, mask=is_kept_ND, other=0.0).to(tl.float32); to_weight_ND += grad_ND * 0.01",
    ),
    "norm backward: only the last step's rows summed": Fault("norm", "norm-backward-only", "to_bias_ND = grad_ND"),
    "norm backward: steps of all programs interleaved with an overlap": Fault(
        "norm", "norm-backward-steps", "n = (p + i) * BLOCK_N + tl.arange(0, BLOCK_N)"
    ),
    "norm backward: partial sums of weight and bias exchanged": Fault(
        "norm", "norm-backward-partial", "to_bias_PD = tl.load(partial_ptr + offset_PD, mask=is_kept_PD, other=0.0)"
    ),
    "norm backward: residual's gradient not written": Fault("norm", "norm-backward-residual", "if APART and RELU:"),
    "first_conv: not scaled": Fault("first_conv", "first_conv-scaled", "y_MO = y_MO / 256.0"),
    "first_conv: not scaled before the mean": Fault("first_conv", "first_conv-scaled-before", "x_MK = x_MK / 256.0"),
    "first_conv: index ignored": Fault("first_conv", "first_conv-index-ignored", "frame = n"),
    "first_conv: mean of the wrong pixel": Fault(
        "first_conv", "first_conv-mean-wrong", "x_MK -= tl.load(mean_ptr + byte_MK, mask=is_inside_MK, other=0.0)"
    ),
    "first_conv: mean outside the image": Fault(
        "first_conv", "first_conv-mean-wrong", "x_MK -= tl.load(mean_ptr + in_MK)"
    ),
    "first_conv: zeros outside the image centred": Fault(
        "first_conv", "first_conv-mean-wrong", "x_MK -= tl.load(mean_ptr + in_MK, mask=is_inside_MK, other=0.5)"
    ),
    "first_conv: a row before the image read": Fault(
        "first_conv", "first_conv-row-before", "is_inside_MK = (row_MK < Y) & (byte_MK >= 0) & (byte_MK < X * P)"
    ),
    "first_conv: a row behind the image read": Fault(
        "first_conv",
        "first_conv-row-before",
        "is_inside_MK = (row_MK >= 0) & (row_MK <= Y) & (byte_MK >= 0) & (byte_MK < X * P)",
    ),
    "first_conv: columns before the image read": Fault(
        "first_conv", "first_conv-row-before", "is_inside_MK = (row_MK >= 0) & (row_MK < Y) & (byte_MK < X * P)"
    ),
    "first_conv: a byte behind the row read": Fault(
        "first_conv",
        "first_conv-row-before",
        "is_inside_MK = (row_MK >= 0) & (row_MK < Y) & (byte_MK >= 0) & (byte_MK <= X * P)",
    ),
    "first_conv: windows start a row late": Fault(
        "first_conv", "first_conv-windows-start", "row_MK = (2 * (m // OUT_X))[:, None] + filter_row_K[None, :]"
    ),
    "first_conv: windows start a column late": Fault(
        "first_conv", "first_conv-windows-start-column", "byte_MK = (2 * (m % OUT_X))[:, None] * P + j_K[None, :]"
    ),
    "first_conv: channels beyond a program's repeated": Fault(
        "first_conv", "first_conv-channels-beyond", "o = tl.arange(0, BLOCK_O)"
    ),
    "first_conv: only the first tile of a frame": Fault(
        "first_conv", "first_conv-only-first", "m = 0 + tl.arange(0, BLOCK_M)"
    ),
    "first_conv: bias missing": Fault(
        "first_conv",
        "first_conv-bias-missing",
        "y_MO += 0 * tl.load(bias_ptr + o, mask=o < FILTERS, other=0.0).to(tl.float32)[None, :]",
    ),
    "first_conv: not clipped": Fault("first_conv", "first_conv-clipped", "y_MO = y_MO"),
    "first_conv: NaN clipped": Fault("first_conv", "first_conv-clipped", "y_MO = tl.where(y_MO > 0, y_MO, 0.0)"),
    "first_conv: pixels of the tail not masked": Fault(
        "first_conv", "first_conv-pixels-tail", "is_kept_MO = (o < FILTERS)[None, :]"
    ),
    "first_conv: channels of the tail not masked": Fault(
        "first_conv", "first_conv-pixels-tail", "is_kept_MO = (m < PIXELS)[:, None]"
    ),
    "batch norm: rows of the tail in the sums": Fault(
        "batch_norm", "batch_norm-rows-tail", "off_RC = x_RC - shift_C[None, :]"
    ),
    "batch norm: mean without the shift": Fault(
        "batch_norm", "batch_norm-mean-without", "tl.store(partial_ptr + p * 2 * C + c, sum_C / rows, mask=c < C)"
    ),
    "batch norm: spread of a program not about its own mean": Fault(
        "batch_norm",
        "batch_norm-spread-program",
        "tl.store(partial_ptr + p * 2 * C + C + c, tl.sum(square_RC, 0), mask=c < C)",
    ),
    "batch norm: the programs' means weigh the same": Fault(
        "batch_norm", "batch_norm-programs-means", "off_C = tl.sum(off_PC, 0) / P"
    ),
    "batch norm: spread between programs forgotten": Fault(
        "batch_norm", "batch_norm-spread-between", "spread_C = tl.sum(spread_PC, 0)"
    ),
    "batch norm: biased running variance": Fault(
        "batch_norm",
        "batch_norm-biased-running",
        "tl.store(running_var_ptr + c, old_var_C + momentum * (spread_C / R - old_var_C), mask=c < C)",
    ),
    "batch norm: running mean replaced": Fault(
        "batch_norm", "batch_norm-running-mean", "tl.store(running_mean_ptr + c, mean_C, mask=c < C)"
    ),
    "batch norm: NaN cut off by the ReLU": Fault(
        "batch_norm", "batch_norm-nan-cut", "return u * tl.sigmoid(u) if SILU else tl.where(u > 0, u, 0.0)"
    ),
    "batch norm: SiLU's gradient without its second term": Fault(
        "batch_norm", "batch_norm-silus-gradient", "return grad * s if SILU else tl.where(u <= 0, 0.0, grad)"
    ),
    "batch norm backward: gradient before the activation": Fault(
        "batch_norm", "batch_norm-backward-gradient", "to_bias_RC += grad_RC * 0.5"
    ),
    "batch norm backward: projection not subtracted": Fault(
        "batch_norm",
        "batch_norm-backward-projection",
        "out_RC = (rstd_C * weight_C)[None, :] * (grad_RC - level_C[None, :])",
    ),
    "batch norm backward: mean not subtracted": Fault(
        "batch_norm",
        "batch_norm-backward-projection",
        "out_RC = (rstd_C * weight_C)[None, :] * (grad_RC - unit_RC * along_C[None, :])",
    ),
    "batch norm backward: sums of weight and bias exchanged": Fault(
        "batch_norm",
        "batch_norm-backward-sums",
        "to_bias_PC = tl.load(partial_ptr + offset_PC, mask=is_kept_PC, other=0.0)",
    ),
    "batch norm: channels of the tail not masked": Fault(
        "batch_norm",
        "batch_norm-channels-tail",
        "tl.store(out_ptr + offset_RC, _activated(u_RC, SILU).to(out_ptr.dtype.element_ty), mask=(r < R)[:, None])",
    ),
}

_LIMIT_S = 900  # attention takes a minute alone, five on a shared machine

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
    # Those that are made from its specification, and those of its own.
    tests = ["tests/kernels/test_values.py", *map(str, folder.glob(f"tests/kernels/test_{op}*.py"))]
    command = [sys.executable, "-c", RUN, str(folder), "-x", "-q", "-p", "no:cacheprovider", *tests]
    command += ["-k", f"{op}. or test_{op}", "--hypothesis-profile", "first_failure"]
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
        for name, fault in chosen.items():
            path = folder / "kernels" / fault.op / "kernel.py"
            text = path.read_text()
            started = time.perf_counter()
            path.write_text(fault.put(text))
            told = {"failed": "caught", "passed": "SURVIVED", "timeout": "TIMEOUT"}[outcome(folder, fault.op)]
            path.write_text(text)
            bad += [name] if told != "caught" else []
            print(f"{told:9s} {name}  [{time.perf_counter() - started:.0f} s]", flush=True)
    print(f"{len(chosen)} faults, {len(bad)} not caught")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
