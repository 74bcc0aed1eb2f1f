"""Every operation of the model in plain PyTorch: the maths that the fused kernels must match."""

from mudreamer_fast.reference.batchnorm_posterior import batchnorm_posterior
from mudreamer_fast.reference.categorical import (
    categorical_entropy,
    categorical_kl,
    categorical_sample,
)
from mudreamer_fast.reference.lambda_return import lambda_return
from mudreamer_fast.reference.layernorm_gru import layernorm_gru
from mudreamer_fast.reference.linear_norm_act import linear_norm_act, mlp
from mudreamer_fast.reference.rssm_imagine import rssm_imagine
from mudreamer_fast.reference.rssm_observe import rssm_initial, rssm_observe
from mudreamer_fast.reference.two_hot import two_hot_loss, two_hot_mean

__all__ = [
    "batchnorm_posterior",
    "categorical_entropy",
    "categorical_kl",
    "categorical_sample",
    "lambda_return",
    "layernorm_gru",
    "linear_norm_act",
    "mlp",
    "rssm_imagine",
    "rssm_initial",
    "rssm_observe",
    "two_hot_loss",
    "two_hot_mean",
]
