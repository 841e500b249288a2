"""Muon (arXiv 2502.16982), with all matrices of one shape in one batch.

torch.optim.Muon takes them one by one, which is some 20 kernels for each of the toy's 72 matrices: as many as the rest
of a step on a GPU. It also computes in bfloat16 on every CPU.
"""

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the Newton-Schulz iteration, as in torch.optim.Muon
ITERATIONS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, and scaled to the usual size of AdamW's updates.

    So it takes the learning rate and the weight decay of AdamW. parameters: matrices. dtype: of the iteration.
    """

    def __init__(self, parameters, lr: float = 1e-3, weight_decay: float = 0.1, dtype: torch.dtype = torch.bfloat16):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon is for matrices, not for a parameter of {tuple(parameter.shape)}")
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self):
        """Take a step with the gradients, which every parameter must have."""
        for group in self.param_groups:
            parameters = group["params"]
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for shape in dict.fromkeys(parameter.shape for parameter in parameters):
                alike = [index for index, parameter in enumerate(parameters) if parameter.shape == shape]
                turned = orthogonal(torch.stack([updates[index] for index in alike]).to(self.dtype))
                turned = turned.to(parameters[alike[0]].dtype).unbind()
                size = 0.2 * max(shape) ** 0.5
                torch._foreach_add_([parameters[index] for index in alike], turned, alpha=-group["lr"] * size)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [N, rows, columns] with their singular values brought near 1 by the Newton-Schulz iteration."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
