"""Prints the parameters after three steps of torch.optim.SGD in float64, for the test in src/optim.rs."""

import torch

parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=0.01)
for step in (1, 2, 3):
    parameter.grad = step * torch.tensor([0.5, 0.25, -1.0], dtype=torch.float64)
    optimiser.step()
print(parameter.tolist())
