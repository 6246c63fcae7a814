"""The published recipe of DTE's repository (Livernoche et al. 2024) in eager PyTorch: DDPM and DTE-C for vectors.

From the description in the paper and the settings of its code: Adam 1e-4 with L2 5e-4, 400 epochs of batch 64 without the incomplete
last batch. Every function takes float arrays ``[rows, features]`` and a torch device name.
"""

import math

import numpy as np
import torch
from torch import nn

EPOCHS, BATCH = 400, 64


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=5e-4)


def _batches(rows: torch.Tensor):
    order = torch.randperm(len(rows), device=rows.device)
    count = max(len(rows) // BATCH, 1)
    return (rows[order[i * BATCH : (i + 1) * BATCH]] for i in range(count))


def _as_rows(x: np.ndarray, device: str) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float32, device=device)


class Block(nn.Module):
    """BatchNorm, 128 -> 256, ReLU, dropout .4, 256 -> 128, dropout .1, skip."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.BatchNorm1d(128), nn.Linear(128, 256), nn.Linear(256, 128)

    def forward(self, h):
        up = nn.functional.dropout(torch.relu(self.up(self.norm(h))), 0.4, self.training)
        return h + nn.functional.dropout(self.down(up), 0.1, self.training)


class ResNet(nn.Module):
    """Three blocks of width 128; the step enters once, as a sinusoid of 256 through two layers."""

    def __init__(self, features: int):
        super().__init__()
        self.first, self.level = nn.Linear(features, 128), nn.Linear(256, 128)
        self.embed = nn.Sequential(nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 256))
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.last = nn.BatchNorm1d(128), nn.Linear(128, features)

    def forward(self, x, t):
        rates = torch.exp(-math.log(10_000) * torch.arange(128, device=x.device) / 128)
        angles = t[:, None].float() * rates
        embedding = self.embed(torch.cat([angles.cos(), angles.sin()], 1))
        h = self.first(x) + self.level(nn.functional.silu(embedding))
        for block in self.blocks:
            h = block(h)
        return self.last(torch.relu(self.norm(h)))


def _ddpm_schedule(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    beta = torch.linspace(1e-4, 1e-2, 1000, device=device)
    return beta, torch.cumprod(1 - beta, 0)


def fit_ddpm(train: np.ndarray, device: str = "cpu", epochs: int = EPOCHS) -> ResNet:
    """Noise prediction; stops after epoch 50 once an epoch's loss exceeds that of 40 epochs before."""
    torch.manual_seed(44)
    rows, (_, abar) = _as_rows(train, device), _ddpm_schedule(device)
    network = ResNet(rows.shape[1]).to(device)
    optimizer, history = _optimizer(network), []
    for epoch in range(epochs):
        total = 0.0
        for x in _batches(rows):
            t = torch.randint(0, len(abar), (len(x),), device=device)
            eps = torch.randn_like(x)
            noisy = abar[t, None].sqrt() * x + (1 - abar[t, None]).sqrt() * eps
            loss = ((network(noisy, t) - eps) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        history.append(total)
        if epoch > 50 and history[-1] > history[-41]:
            break
    return network.eval()


@torch.no_grad()
def score_ddpm(network: ResNet, test: np.ndarray, device: str = "cpu", steps: int = 250) -> np.ndarray:
    """The clean row through 250 ancestral steps; mean squared change, larger = more anomalous."""
    beta, abar = _ddpm_schedule(device)
    scores = []
    for x in _as_rows(test, device).split(1024):
        z = x
        for i in range(steps - 1, -1, -1):
            t = torch.full((len(z),), i, device=device)
            z = (z - beta[i] / (1 - abar[i]).sqrt() * network(z, t)) / (1 - beta[i]).sqrt()
            if i:
                z = z + (beta[i] * (1 - abar[i - 1]) / (1 - abar[i])).sqrt() * torch.randn_like(z)
        scores.append(((x - z) ** 2).mean(1).cpu().numpy())
    return np.concatenate(scores)


def fit_dte_c(train: np.ndarray, device: str = "cpu", epochs: int = EPOCHS) -> nn.Module:
    """A softmax over 7 bins of the step, handed to a cross-entropy that applies softmax once more, as published."""
    torch.manual_seed(44)
    rows = _as_rows(train, device)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 1e-2, 400, device=device), 0)
    network = nn.Sequential(
        *(nn.Linear(rows.shape[1], 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 7), nn.Softmax(1)),
    ).to(device)
    optimizer = _optimizer(network)
    for _ in range(epochs):
        for x in _batches(rows):
            t = torch.randint(0, len(abar), (len(x),), device=device)
            noisy = x + (1 - abar[t, None]).sqrt() * torch.randn_like(x)
            loss = nn.functional.cross_entropy(network(noisy), t * 7 // len(abar))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def score_dte_c(network: nn.Module, test: np.ndarray, device: str = "cpu") -> np.ndarray:
    """The expected bin at the clean row, larger = more anomalous."""
    probability = network(_as_rows(test, device))
    return (probability @ torch.arange(7, dtype=torch.float32, device=device)).cpu().numpy()


RECIPES = {"ddpm": (fit_ddpm, score_ddpm), "dte-c": (fit_dte_c, score_dte_c)}
