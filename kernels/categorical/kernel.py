"""Categorical latents: one program holds whole rows, so each pass reads and writes memory once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # elements a program holds at once: 16 a thread of 4 warps


@triton.jit
def _softmax(logit_NC):
    """Softmax over the last axis; classes that do not exist carry -inf."""
    e_NC = tl.exp(logit_NC - tl.max(logit_NC, 1)[:, None])
    return e_NC / tl.sum(e_NC, 1)[:, None]


@triton.jit
def _load_logits(ptr, offset_NC, is_row_N, c, C: tl.constexpr):
    """Logits in float32; -inf beyond the last class, 0 in rows beyond the last, which nobody stores."""
    logit_NC = tl.load(ptr + offset_NC, mask=is_row_N[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    return tl.where((c < C)[None, :], logit_NC, -float("inf"))


@triton.jit
def _sample_fwd(
    logits_ptr,
    u_ptr,
    out_ptr,
    N,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    ONEHOT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # int64: N * C may pass 2**31
    c = tl.arange(0, BLOCK_C)
    is_row_N, offset_NC = n < N, n[:, None] * C + c[None, :]
    # mutation draw-unimix-dropped
    p_NC = (1 - UNIMIX) * _softmax(_load_logits(logits_ptr, offset_NC, is_row_N, c, C)) + UNIMIX / C
    u_N = tl.load(u_ptr + n, mask=is_row_N, other=0.0)
    # The last edge is left out: rounding may put it below 1, and no draw may pass it.
    is_passed_NC = (tl.cumsum(p_NC, 1) <= u_N[:, None]) & (c < C - 1)[None, :]  # mutation draw-an-edge
    index_N = tl.sum(is_passed_NC.to(tl.int32), 1)
    if ONEHOT:
        # No class can be drawn where a probability is no number: the sample is none either.
        onehot_NC = tl.where(p_NC == p_NC, (c[None, :] == index_N[:, None]).to(tl.float32), float("nan"))
        is_kept_NC = is_row_N[:, None] & (c < C)[None, :]
        tl.store(out_ptr + offset_NC, onehot_NC.to(out_ptr.dtype.element_ty), mask=is_kept_NC)
    else:
        tl.store(out_ptr + n, index_N.to(tl.int64), mask=is_row_N)  # mutation draw-rows-tail


@triton.jit
def _sample_bwd(
    logits_ptr,
    grad_ptr,
    out_ptr,
    N,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    is_row_N, offset_NC = n < N, n[:, None] * C + c[None, :]
    is_kept_NC = is_row_N[:, None] & (c < C)[None, :]
    s_NC = _softmax(_load_logits(logits_ptr, offset_NC, is_row_N, c, C))
    # mutation sample-backward-factor
    grad_NC = (1 - UNIMIX) * tl.load(grad_ptr + offset_NC, mask=is_kept_NC, other=0.0).to(tl.float32)
    out_NC = s_NC * (grad_NC - tl.sum(s_NC * grad_NC, 1)[:, None])  # mutation sample-backward-mean
    tl.store(out_ptr + offset_NC, out_NC.to(out_ptr.dtype.element_ty), mask=is_kept_NC)


@triton.jit
def _row_start(n, T, stride_b, stride_t):
    """Where row n = b T + t of a [B, T, G, C] view begins; G and C are dense."""
    return (n // T) * stride_b + (n % T) * stride_t  # mutation kl-strides-window


@triton.jit
def _kl_fwd(
    post_ptr,
    prior_ptr,
    kl_ptr,
    T,
    post_stride_b,
    post_stride_t,
    prior_stride_b,
    prior_stride_t,
    G: tl.constexpr,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    g, c = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_C)
    is_row_G, offset_GC = g < G, g[:, None] * C + c[None, :]
    post_ptr += _row_start(n, T, post_stride_b, post_stride_t)
    prior_ptr += _row_start(n, T, prior_stride_b, prior_stride_t)  # mutation kl-prior-read
    p_GC = (1 - UNIMIX) * _softmax(_load_logits(post_ptr, offset_GC, is_row_G, c, C)) + UNIMIX / C
    q_GC = (1 - UNIMIX) * _softmax(_load_logits(prior_ptr, offset_GC, is_row_G, c, C)) + UNIMIX / C
    kl_GC = tl.where(is_row_G[:, None] & (c < C)[None, :], p_GC * (tl.log(p_GC) - tl.log(q_GC)), 0.0)
    tl.store(kl_ptr + n, tl.sum(tl.sum(kl_GC, 1), 0))


@triton.jit
def _kl_reduce(kl_ptr, out_ptr, N, free_nats, PER_STEP: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_N: tl.constexpr):
    """One program: the mean KL and the mean with free nats, in a fixed order, so that runs repeat."""
    n = tl.arange(0, BLOCK_N)
    sum_N = tl.zeros([BLOCK_N], tl.float32)
    free_N = tl.zeros([BLOCK_N], tl.float32)
    for i in range(BLOCKS):
        is_row_N = i * BLOCK_N + n < N
        kl_N = tl.load(kl_ptr + i * BLOCK_N + n, mask=is_row_N, other=0.0)
        sum_N += kl_N
        # A KL that is no number must show in the loss, as in the reference; a plain maximum would hide it.
        at_least_N = tl.maximum(kl_N, free_nats, propagate_nan=tl.PropagateNan.ALL)  # mutation kl-nan-hidden
        free_N += tl.where(is_row_N, at_least_N, 0.0)
    mean = tl.sum(sum_N, 0) / N
    free_mean = tl.maximum(mean, free_nats, propagate_nan=tl.PropagateNan.ALL)  # mutation kl-nan-hidden-from
    loss = tl.sum(free_N, 0) / N if PER_STEP else free_mean  # mutation kl-free-nats-per
    tl.store(out_ptr, loss)
    tl.store(out_ptr + 1, loss)
    tl.store(out_ptr + 2, mean)


@triton.jit
def _kl_bwd(
    post_ptr,
    prior_ptr,
    kl_ptr,
    out_ptr,
    grad_ptr,
    post_grad_ptr,
    prior_grad_ptr,
    N,
    T,
    post_stride_b,
    post_stride_t,
    prior_stride_b,
    prior_stride_t,
    free_nats,
    G: tl.constexpr,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    PER_STEP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    g, c = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_C)
    is_row_G, offset_GC = g < G, g[:, None] * C + c[None, :]
    is_kept_GC = is_row_G[:, None] & (c < C)[None, :]
    post_ptr += _row_start(n, T, post_stride_b, post_stride_t)
    prior_ptr += _row_start(n, T, prior_stride_b, prior_stride_t)  # mutation kl-backward-prior
    s_GC = _softmax(_load_logits(post_ptr, offset_GC, is_row_G, c, C))
    r_GC = _softmax(_load_logits(prior_ptr, offset_GC, is_row_G, c, C))
    p_GC, q_GC = (1 - UNIMIX) * s_GC + UNIMIX / C, (1 - UNIMIX) * r_GC + UNIMIX / C

    nats = tl.load(kl_ptr + n) if PER_STEP else tl.load(out_ptr + 2)
    share = tl.where(nats >= free_nats, (1 - UNIMIX) / N, 0.0)  # mutation kl-free-nats
    to_prior, to_post = tl.load(grad_ptr) * share, tl.load(grad_ptr + 1) * share  # mutation kl-gradients-wrong

    # d KL / d p = log p - log q + 1, whose constant a softmax's gradient ignores; d KL / d q = -p / q.
    dp_GC = tl.where(is_kept_GC, tl.log(p_GC) - tl.log(q_GC), 0.0)
    dq_GC = tl.where(is_kept_GC, -p_GC / q_GC, 0.0)
    post_grad_GC = to_post * s_GC * (dp_GC - tl.sum(s_GC * dp_GC, 1)[:, None])
    prior_grad_GC = to_prior * r_GC * (dq_GC - tl.sum(r_GC * dq_GC, 1)[:, None])
    out_GC = n * G * C + offset_GC
    tl.store(post_grad_ptr + out_GC, post_grad_GC.to(post_grad_ptr.dtype.element_ty), mask=is_kept_GC)
    tl.store(prior_grad_ptr + out_GC, prior_grad_GC.to(prior_grad_ptr.dtype.element_ty), mask=is_kept_GC)


def _blocks(C: int) -> dict[str, int]:
    """Whole rows, as many as fill a tile."""
    BLOCK_C = triton.next_power_of_2(C)
    return {"BLOCK_N": max(1, _TILE // BLOCK_C), "BLOCK_C": BLOCK_C}


def sample_fwd(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    """One-hot draws in the dtype of the logits."""
    N, C = logits_NC.shape
    onehot_NC = torch.empty((N, C), dtype=logits_NC.dtype, device=logits_NC.device)
    blocks = _blocks(C)
    grid = (triton.cdiv(N, blocks["BLOCK_N"]),)
    _sample_fwd[grid](logits_NC.contiguous(), u_N.contiguous(), onehot_NC, N, C, unimix, True, **blocks)
    return onehot_NC


def draw_fwd(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    """The classes, int64."""
    N, C = logits_NC.shape
    index_N = torch.empty((N,), dtype=torch.int64, device=logits_NC.device)
    blocks = _blocks(C)
    grid = (triton.cdiv(N, blocks["BLOCK_N"]),)
    _sample_fwd[grid](logits_NC.contiguous(), u_N.contiguous(), index_N, N, C, unimix, False, **blocks)
    return index_N


def sample_bwd(grad_NC: Tensor, logits_NC: Tensor, unimix: float) -> Tensor:
    """The gradient of the logits from that of the sample."""
    N, C = logits_NC.shape
    out_NC = torch.empty((N, C), dtype=logits_NC.dtype, device=logits_NC.device)
    blocks = _blocks(C)
    grid = (triton.cdiv(N, blocks["BLOCK_N"]),)
    _sample_bwd[grid](logits_NC.contiguous(), grad_NC.contiguous(), out_NC, N, C, unimix, **blocks)
    return out_NC


def _dense_rows(x_BTGC: Tensor) -> Tensor:
    """The same values with dense G and C; a window of steps, as the losses take, is not copied."""
    return x_BTGC if x_BTGC.stride()[2:] == (x_BTGC.shape[3], 1) else x_BTGC.contiguous()


def kl_fwd(
    post_BTGC: Tensor, prior_BTGC: Tensor, unimix: float, free_nats: float, per_step: bool
) -> tuple[Tensor, Tensor]:
    """(dynamics, representation, KL), float32 [3], and each row's KL, float32 [B T]."""
    B, T, G, C = post_BTGC.shape
    post_BTGC, prior_BTGC = _dense_rows(post_BTGC), _dense_rows(prior_BTGC)
    kl_N = torch.empty((B * T,), dtype=torch.float32, device=post_BTGC.device)
    out_3 = torch.empty((3,), dtype=torch.float32, device=post_BTGC.device)
    strides = (*post_BTGC.stride()[:2], *prior_BTGC.stride()[:2])
    blocks = {"BLOCK_G": triton.next_power_of_2(G), "BLOCK_C": triton.next_power_of_2(C)}
    _kl_fwd[(B * T,)](post_BTGC, prior_BTGC, kl_N, T, *strides, G, C, unimix, **blocks)
    # A constant number of turns: Triton 3.6's interpreter cannot loop to an argument under NumPy 2.4.
    BLOCK_N = 1024
    BLOCKS = triton.cdiv(B * T, BLOCK_N)
    _kl_reduce[(1,)](kl_N, out_3, B * T, free_nats, per_step, BLOCKS=BLOCKS, BLOCK_N=BLOCK_N)
    return out_3, kl_N


def kl_bwd(
    grad_3: Tensor,
    post_BTGC: Tensor,
    prior_BTGC: Tensor,
    out_3: Tensor,
    kl_N: Tensor,
    unimix: float,
    free_nats: float,
    per_step: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of posterior and prior logits, dense, from those of dynamics and representation."""
    B, T, G, C = post_BTGC.shape
    post_BTGC, prior_BTGC = _dense_rows(post_BTGC), _dense_rows(prior_BTGC)
    post_grad_BTGC = torch.empty((B, T, G, C), dtype=post_BTGC.dtype, device=post_BTGC.device)
    prior_grad_BTGC = torch.empty((B, T, G, C), dtype=prior_BTGC.dtype, device=prior_BTGC.device)
    strides = (*post_BTGC.stride()[:2], *prior_BTGC.stride()[:2])
    blocks = {"BLOCK_G": triton.next_power_of_2(G), "BLOCK_C": triton.next_power_of_2(C)}
    _kl_bwd[(B * T,)](
        post_BTGC,
        prior_BTGC,
        kl_N,
        out_3,
        grad_3.contiguous(),
        post_grad_BTGC,
        prior_grad_BTGC,
        B * T,
        T,
        *strides,
        free_nats,
        G,
        C,
        unimix,
        per_step,
        **blocks,
    )
    return post_grad_BTGC, prior_grad_BTGC
