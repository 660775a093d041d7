# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Heartbeats: 1-D convolutions on encrypted signals
#
# A convolutional network tells three kinds of synthetic heartbeats apart. docs/tutorials/ecg.md explains each step.

# %%
import numpy as np
import torch
from torch import nn

import olac

KINDS = ("normal", "premature", "blocked")
WAVES = {  # place, height and width of each wave of a beat
    "normal": [(32, 0.15, 5), (58, -0.15, 2), (64, 1.0, 2.5), (70, -0.25, 2), (96, 0.3, 8)],
    "premature": [(60, 0.9, 8), (74, -0.4, 6), (100, -0.3, 9)],
    "blocked": [(32, 0.15, 5), (60, 0.8, 3), (70, 0.7, 3.5), (98, -0.2, 8)],
}


def beats(count, seed):
    """Beats of 128 samples, shape (count, 1, 128), and the number of the kind of each."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(len(KINDS), size=count)
    signals = 0.05 * rng.standard_normal((count, 1, 128))
    for signal, kind in zip(signals, kinds, strict=True):
        for place, height, width in WAVES[KINDS[kind]]:
            shifted = place + rng.normal(0, 2)
            signal += height * rng.normal(1, 0.15) * np.exp(-((np.arange(128) - shifted) ** 2) / (2 * width**2))
    return torch.tensor(signals, dtype=torch.float32), torch.tensor(kinds)


train_beats, train_kinds = beats(1024, seed=0)
test_beats, test_kinds = beats(300, seed=1)

# %%
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv1d(1, 8, 7, stride=2, padding=3),
    nn.BatchNorm1d(8),
    nn.ReLU(),
    nn.AvgPool1d(2),
    nn.Conv1d(8, 16, 5, padding=2),
    nn.BatchNorm1d(16),
    nn.ReLU(),
    nn.AvgPool1d(4),
    nn.Flatten(),
    nn.Linear(128, len(KINDS)),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(8):
    for batch in torch.randperm(len(train_beats)).split(64):
        loss = nn.functional.cross_entropy(model(train_beats[batch]), train_kinds[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()
with torch.no_grad():
    expected = model(test_beats).argmax(1).numpy()
print(f"network: {np.mean(expected == test_kinds.numpy()):.1%} of {len(test_beats)} beats are right")

# %% [markdown]
# A recording has many beats, so the program is compiled for 16 in a run.

# %%
program = olac.compile(model, train_beats.split(64), batch=16)
simulated = program.simulate(test_beats.numpy()).argmax(1)
print(f"program: {np.mean(simulated == test_kinds.numpy()):.1%} are right")
print(f"predicted: {program.estimate().seconds_per_image * 1000:.1f} ms a beat")

client = olac.Client(program)
server = olac.Server(program, client.generate_keys())
outputs = client.decrypt(server.run(client.encrypt(test_beats[:16].numpy(), allow_out_of_range=True)))
for kind, output in list(zip(test_kinds, outputs, strict=False))[:5]:
    print(f"{KINDS[kind]:<10} encrypted: {KINDS[output.argmax()]}")
assert (outputs.argmax(1) == simulated[:16]).all()
