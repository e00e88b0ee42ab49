"""The lambda-return and the weights of its steps."""

from storm_fast.kernels.lambda_return.op import lambda_return as lambda_return
from storm_fast.kernels.lambda_return.op import reach_weights as reach_weights
