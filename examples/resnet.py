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
# # A residual network
#
# ResNet-8 (a stem, three blocks, seven convolutions on the longest path) for coloured pictures of 16 x 16. The pictures
# are synthetic: stripes of three directions and two colours, with noise. All activations become squares, which take one
# level each, so that the network needs no bootstrap. docs/tutorials/resnet18.md is about larger ones.

# %%
import time

import numpy as np
import torch
from torch import nn

import olac


class Block(nn.Module):
    """Two convolutions and a skip connection."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.skip(x))


def pictures(count, seed):
    """Striped pictures, shape (count, 3, 16, 16), and the class of each, 0 to 5."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(6, size=count)
    rows, columns = np.mgrid[:16, :16]
    directions = (rows, columns, rows + columns)
    found = 0.3 * rng.standard_normal((count, 3, 16, 16))
    for picture, kind in zip(found, classes, strict=True):
        stripes = np.sin(2 * np.pi * (directions[kind % 3] / 5 + rng.random()))
        picture[0 if kind < 3 else 2] += stripes
    return torch.tensor(found, dtype=torch.float32), torch.tensor(classes)


train_pictures, train_classes = pictures(1024, seed=0)
test_pictures, test_classes = pictures(200, seed=1)

# %%
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, bias=False),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    Block(8, 8, 1),
    Block(8, 16, 2),
    Block(16, 32, 2),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 6),
)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(4):
    for batch in torch.randperm(len(train_pictures)).split(64):
        loss = nn.functional.cross_entropy(model(train_pictures[batch]), train_classes[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()
with torch.no_grad():
    expected = model(test_pictures).argmax(1).numpy()
print(f"network: {np.mean(expected == test_classes.numpy()):.1%} of {len(test_pictures)} pictures are right")

# %%
program = olac.compile(model, train_pictures.split(64), degree=2)
simulated = program.simulate(test_pictures.numpy()).argmax(1)
estimate = program.estimate()
print(f"program: {np.mean(simulated == test_classes.numpy()):.1%} are right")
print(f"{program.parameters.depth} levels at ring 2^{program.parameters.log_ring}")
print(f"predicted: {estimate.seconds_per_image:.1f} s a picture, {estimate.server_gb:.1f} GB for the server")

# %%
client = olac.Client(program)
server = olac.Server(program, client.generate_keys())
start = time.perf_counter()
outputs = client.decrypt(server.run(client.encrypt(test_pictures[:2].numpy(), allow_out_of_range=True)))
print(f"two encrypted pictures took {time.perf_counter() - start:.1f} s")
print("shown:    ", test_classes[:2].tolist())
print("encrypted:", outputs.argmax(1).tolist())
assert (outputs.argmax(1) == simulated[:2]).all()
