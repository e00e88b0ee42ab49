"""Products with states that begin one-hot: on a CPU a gather of the rows of weights that they select."""

from typing import Any

import torch
from torch import Tensor, nn

from storm_fast.kernels import backend


class OneHotLinear(nn.Linear):
    """A linear layer without bias, [..., F] -> [..., D], whose input begins with G one-hot groups of C classes.

    In bf16 on a CPU, where no gradient flows to the input, what the groups contribute is the sum of G rows of a table
    of 1 MB that stays in the cache, in place of a product with mostly zeros: 5.2 ms, not 41.9, at 8,192 x 1,042 -> 512
    on one core (bench/LOG.md). Everywhere else it is `multiplied`, the definition.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, classes: int, wide_in: bool = False) -> None:
        """Args: of the whole input and of the result, the groups, and whether the weight may have a margin (margin.py).

        Who calls it then makes the input as wide as the weight.
        """
        super().__init__(inputs, outputs, bias=False)
        self.groups, self.classes, self.wide_in = groups, classes, wide_in

    def forward(self, x_NF: Tensor) -> Tensor:
        """The product; the caller guarantees that the groups are one-hot."""
        is_learned = x_NF.requires_grad and torch.is_grad_enabled()
        is_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        is_readable = self.classes <= 256  # class numbers are exact in bf16
        if x_NF.device.type != "cpu" or is_learned or not is_bf16 or not is_readable:
            return self.multiplied(x_NF)
        y_ND: Tensor = _Gathered.apply(  # type: ignore[no-untyped-call]  # torch's own
            x_NF, self.weight, self.groups, self.classes
        )
        return y_ND

    def multiplied(self, x_NF: Tensor) -> Tensor:
        """The full product, zeros included; the definition."""
        return super().forward(x_NF)


class LatentActionLinear(OneHotLinear):
    """A linear layer without bias of a latent and an action, both one-hot (STORM Table 5); weight [D, Z + A]."""

    def __init__(self, groups: int, classes: int, num_actions: int, outputs: int) -> None:
        """Args: the latent's groups and classes, the size of the action set, and of the result."""
        super().__init__(groups * classes + num_actions, outputs, groups, classes, wide_in=True)

    def mix(self, z_NZ: Tensor, action_N: Tensor) -> Tensor:
        """y_ND of z_NZ and integer action_N."""
        if backend.is_triton(z_NZ) and not torch.is_grad_enabled() and z_NZ.dtype == self.weight.dtype:
            return self.mixed_by_row(z_NZ, action_N)
        return self.mixed(z_NZ, action_N)

    def mixed(self, z_NZ: Tensor, action_N: Tensor) -> Tensor:
        """The product with both in one row; the definition."""
        # Not nn.functional.one_hot, which on a CPU reads its input back to check it. As wide as the weight, whose copy
        # may have a margin: no action is there.
        A = self.weight.shape[1] - z_NZ.shape[-1]
        onehot_NA = (action_N[..., None] == torch.arange(A, device=action_N.device)).to(z_NZ.dtype)
        y_ND: Tensor = self(torch.cat([z_NZ, onehot_NA], dim=-1))
        return y_ND

    def mixed_by_row(self, z_NZ: Tensor, action_N: Tensor) -> Tensor:
        """The action picks a row, to which one product adds the latent's: two launches on a GPU, not five."""
        Z = z_NZ.shape[-1]
        row_MD = self.weight[:, Z:].t().index_select(0, action_N.flatten())
        y_MD = torch.addmm(row_MD, z_NZ.flatten(0, -2), self.weight[:, :Z].t())
        y_ND: Tensor = y_MD.unflatten(0, z_NZ.shape[:-1])
        return y_ND


class _Gathered(torch.autograd.Function):
    """The product by a gather, in bf16; the weight's gradient is that of the plain product."""

    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, weight_DF: Tensor, G: int, C: int) -> Tensor:
        x_MF = x_NF.flatten(0, -2).to(torch.bfloat16)
        weight_FD = weight_DF.t().to(torch.bfloat16).contiguous()
        Z = G * C
        # A product that reads off the classes exactly: each group adds one number of at most 255, and zeros.
        class_MG = x_MF[:, :Z].unflatten(1, (G, C)) @ torch.arange(C, device=x_MF.device).to(torch.bfloat16)
        row_MG = class_MG.nan_to_num().long() + C * torch.arange(G, device=x_MF.device)
        y_MD = nn.functional.embedding_bag(row_MG, weight_FD[:Z], mode="sum")
        y_MD += (class_MG - class_MG).sum(1, keepdim=True)  # NaN where a latent is NaN, as the full product gives
        if x_MF.shape[1] > Z:
            y_MD.addmm_(x_MF[:, Z:], weight_FD[Z:])
        ctx.save_for_backward(x_MF, weight_DF)
        y_ND: Tensor = y_MD.unflatten(0, x_NF.shape[:-1])
        return y_ND

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[None, Tensor, None, None]:
        x_MF, weight_DF = ctx.saved_tensors
        return None, (grad_ND.flatten(0, -2).t() @ x_MF).to(weight_DF.dtype), None, None
