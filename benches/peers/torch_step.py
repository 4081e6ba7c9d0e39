"""One side of run.py: torch's train step. VARIANT is `eager`, `channels_last` or `compile`. See side.py."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import nets
from side import KD_SHARE, MOMENTUM, RATE, TEMPERATURE, Job


def loss_of(logits, labels, teacher):
    student, teacher = F.log_softmax(logits / TEMPERATURE, 1), F.log_softmax(teacher / TEMPERATURE, 1)
    kd = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (1 - KD_SHARE) * F.cross_entropy(logits, labels) + KD_SHARE * kd


def main():
    job = Job()
    torch.set_num_threads(job.threads)
    torch.set_num_interop_threads(1)
    tensors = load_file(job.weights)
    net = nets.build(job.net, tensors)
    x, labels, teacher = (tensors[name] for name in ("x", "y", "teacher_logits"))
    if job.variant == "channels_last":
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)
    forward = lambda: loss_of(net(x), labels, teacher)
    if job.variant == "compile":
        forward = torch.compile(forward)

    def step():
        optimiser.zero_grad()
        loss = forward()
        loss.backward()
        optimiser.step()
        return loss.item()

    job.time(step, sum(p.numel() for p in net.parameters()))


main()
