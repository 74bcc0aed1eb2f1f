"""Fused Triton kernels, under the same names and signatures as `mudreamer_fast.reference`."""

import importlib.util

if __name__ == "kernels":
    raise ImportError("import this package as mudreamer_fast.kernels")

__all__: list[str] = []

if importlib.util.find_spec("triton") is not None:
    from mudreamer_fast.kernels.batchnorm_posterior import batchnorm_posterior
    from mudreamer_fast.kernels.categorical import (
        categorical_entropy,
        categorical_kl,
        categorical_sample,
    )
    from mudreamer_fast.kernels.lambda_return import lambda_return
    from mudreamer_fast.kernels.layernorm_gru import layernorm_gru
    from mudreamer_fast.kernels.linear_norm_act import linear_norm_act, mlp
    from mudreamer_fast.kernels.rssm_imagine import rssm_imagine
    from mudreamer_fast.kernels.rssm_observe import (
        rssm_initial,
        rssm_observe,
        rssm_observe_persistent,
    )
    from mudreamer_fast.kernels.two_hot import two_hot_loss, two_hot_mean

    __all__ += [
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
        "rssm_observe_persistent",
        "two_hot_loss",
        "two_hot_mean",
    ]
