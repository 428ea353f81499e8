"""The training loop's arithmetic that torch lacks: Muon for batches of equal matrices and convolutions, AdamW for the rest, an EMA.

In: a network in float32 with gradients. Out: updated weights, and the optimiser's state as named tensors. torch.optim.Muon (2.9 and later)
takes 2-D weights only, one by one; here equal shapes go through as a batch. It knows nothing about losses.
"""

from itertools import groupby

import torch

from .processes import laid_out

MOMENTUM, NS_STEPS, WEIGHT_DECAY = 0.95, 5, 0.01
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, Jordan et al. 2024
MOST = 1.0  # norm of a gradient
TABLES = ("embed", "slots", "places", "table", "leave", "heads", "gain")  # matrices by shape only, or outputs: AdamW


def orthogonal(matrices, dtype=torch.bfloat16):
    """(N, rows, columns) -> the nearest (semi-)orthogonal matrices, roughly, by five Newton-Schulz steps in `dtype`."""
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)  # before it is rounded: float16 ends at 6e-8
    tall = x.shape[1] > x.shape[2]
    x = (x.transpose(1, 2) if tall else x).to(dtype).contiguous()
    a, b, c = COEFFICIENTS
    for _ in range(NS_STEPS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b gram + c gram gram) x
    return (x.transpose(1, 2) if tall else x).float()


class MuonAdamW:
    """Muon on the hidden matrices of `net` (convolutions count as matrices of their output channels), AdamW on the rest.

    Without `muon` everything is AdamW's. One learning rate serves both: a Muon update is scaled to the size of an AdamW update
    (0.2 sqrt(max(rows, columns)), Moonlight). Parameters whose names begin with a key of `faster` learn at so many times that rate.
    """

    def __init__(self, net, muon=True, dtype=torch.bfloat16, faster=None):
        named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        self.factors = {name: next((more for first, more in (faster or {}).items() if name.startswith(first)), 1.0) for name, _ in named}
        hidden = [(name, p) for name, p in named if muon and p.ndim >= 2 and not any(part in TABLES for part in name.split("."))]
        self.groups = {}
        for name, p in hidden:
            self.groups.setdefault((p.shape[0], p[0].numel()), []).append((name, p))
        self.momentum = {name: torch.zeros_like(p) for name, p in hidden}
        rest = sorted((row for row in named if row[0] not in self.momentum), key=lambda row: self.factors[row[0]])  # as the groups have them
        self.rest = dict(rest)
        groups = [{"params": [p for _, p in some], "factor": factor} for factor, some in groupby(rest, lambda row: self.factors[row[0]])]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, foreach=True) if groups else None  # adapters are all hidden
        self.dtype = dtype

    @torch.no_grad()
    def step(self, lr):
        if self.adam:
            for group in self.adam.param_groups:
                group["lr"] = lr * group["factor"]
            self.adam.step()
        for (rows, columns), group in self.groups.items():
            members = [(name, p) for name, p in group if p.grad is not None]  # encoders of maps that nobody asked for have none
            if not members:
                continue
            grads, momentum = [p.grad for _, p in members], [self.momentum[name] for name, _ in members]
            torch._foreach_lerp_(momentum, grads, 1 - MOMENTUM)
            nesterov = torch._foreach_lerp(grads, momentum, MOMENTUM)
            update = orthogonal(torch.stack([g.reshape(rows, columns) for g in nesterov]), self.dtype)
            size = 0.2 * max(rows, columns) ** 0.5
            for (name, p), change in zip(members, update, strict=True):
                rate = lr * self.factors[name]
                p.mul_(1 - rate * WEIGHT_DECAY).sub_(change.view_as(p), alpha=rate * size)

    def state(self):
        """Named tensors that `restore` takes back."""
        names, rows = list(self.rest), self.adam.state_dict()["state"] if self.adam else {}
        adam = {f"adam/{names[i]}/{key}": value for i, row in rows.items() for key, value in row.items()}
        return {f"muon/{name}": value for name, value in self.momentum.items()} | adam

    def restore(self, state):
        for name, value in self.momentum.items():
            value.copy_(state[f"muon/{name}"])
        if not self.adam:
            return
        params = list(self.rest.values())
        known = [(i, name) for i, name in enumerate(self.rest) if f"adam/{name}/step" in state]  # none before the first update
        rows = {i: {key: state[f"adam/{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")} for i, name in known}
        for i, row in rows.items():
            row |= {key: laid_out(row[key], params[i]) for key in ("exp_avg", "exp_avg_sq")}
        self.adam.load_state_dict({"state": rows, "param_groups": self.adam.state_dict()["param_groups"]})


class HalfCopy:
    """A copy of a float32 network in `dtype`, in which forward and backward run; gradients go to the master, weights come back.

    With dtype float32 it is the network itself, and where the network is `sharded`, which makes its own copies. Multiply a loss by `scale` before its
    backward: in float16 small gradients would be zero. Gradients are so many times too large until `clip_gradients`.
    """

    def __init__(self, master, make, dtype, sharded=False):
        self.master, self.same = master, sharded or dtype == torch.float32
        self.scale = 4096.0 if dtype == torch.float16 else 1.0
        self.net = master if self.same else make().to(dtype)
        self.refresh()

    @torch.no_grad()
    def refresh(self):
        if not self.same:
            torch._foreach_copy_(tensors(self.net), tensors(self.master))

    @torch.no_grad()
    def add_gradients(self):
        """Moves the gradients to the master, in float32, on top of those that are there."""
        if not self.same:
            for p, q in zip(self.master.parameters(), self.net.parameters(), strict=True):
                if q.grad is not None:
                    grad, q.grad = q.grad.float(), None
                    p.grad = grad if p.grad is None else p.grad.add_(grad)

    def clip_gradients(self):
        """Takes `scale` out of the master's gradients and clips them to a norm of MOST; returns the norm before."""
        learned = [p for p in self.master.parameters() if p.grad is not None]
        if self.scale != 1:
            torch._foreach_div_([p.grad for p in learned], self.scale)
        return torch.nn.utils.clip_grad_norm_(learned, MOST)


@torch.no_grad()
def update_ema(target, student, rate):
    """theta* <- rate theta* + (1 - rate) theta, in place, over parameters and buffers of two modules of one class; rate in 0..1.

    Buffers that count (integers) are copied. Raises ValueError if the modules differ in the number of tensors.
    """
    for average, new in zip(tensors(target), tensors(student), strict=True):
        if average.is_floating_point():
            average.lerp_(new.to(average), 1 - rate)
        else:
            average.copy_(new)


def tensors(module):
    """Every parameter and buffer of a module, in its own order."""
    return [*module.parameters(), *module.buffers()]
