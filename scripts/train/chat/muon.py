"""Muon for matrices: momentum whose singular values are set to about one by a Newton-Schulz iteration.

After Keller Jordan's description, https://kellerjordan.github.io/posts/muon/. The rest of the parameters take AdamW.
"""

import torch
import torch.distributed as dist


def orthogonal(matrix, steps=5):
    a, b, c = 3.4445, -4.7750, 2.0315  # the quintic of the description above
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    if x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).float()


class Muon:
    """Several processes that hold the same gradients share the work: each makes some of the updates."""

    def __init__(self, matrices, momentum=0.95, weight_decay=0.01):
        self.matrices, self.momentum, self.weight_decay = matrices, momentum, weight_decay
        self.velocity = [torch.zeros_like(m) for m in matrices]
        self.shared = torch.zeros(sum(m.numel() for m in matrices))
        self.updates = [part.view_as(m) for part, m in zip(self.shared.split([m.numel() for m in matrices]), matrices)]

    @torch.no_grad()
    def step(self, rate, rank, processes):
        self.shared.zero_()
        for index, (matrix, velocity, update) in enumerate(zip(self.matrices, self.velocity, self.updates)):
            if index % processes == rank:
                velocity.lerp_(matrix.grad, 1 - self.momentum)
                update.copy_(orthogonal(matrix.grad.lerp(velocity, self.momentum)))
                update *= max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
        if processes > 1:
            dist.all_reduce(self.shared)
        for matrix, update in zip(self.matrices, self.updates):
            matrix.mul_(1 - rate * self.weight_decay).add_(update, alpha=-rate)
