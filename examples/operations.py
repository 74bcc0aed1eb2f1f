"""Use operations of the model alone, by Triton kernels on a GPU and plain PyTorch elsewhere.

python examples/operations.py
"""

import torch

from mudreamer_fast.backend.load import load_ops
from mudreamer_fast.ops.signatures import NormLinear

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_default_device(device)
ops = load_ops("fused" if device == "cuda" else "reference")

reward, value = torch.rand(16, 64), torch.rand(16, 64)
returns = ops.lambda_return(reward, torch.ones(16, 64), value, discount=0.99, lam=0.95)
print(returns.shape)

inputs, state = torch.rand(16, 128), torch.rand(16, 256)
gru = NormLinear(torch.randn(3 * 256, 128 + 256), torch.ones(3 * 256), torch.zeros(3 * 256))
weight = gru.weight.requires_grad_()
ops.layernorm_gru(inputs, state, gru, 1e-3).sum().backward()
print(weight.grad.shape)

logits = torch.randn(16, 32, 32)
latents = ops.categorical_sample(logits, torch.rand(16, 32), unimix=0.01)
print(latents.sum(-1).unique())
torch.set_default_device("cpu")
