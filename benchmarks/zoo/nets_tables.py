"""Small nets on tables, vectors and graphs, written as an ordinary user writes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.cases import Case, Shape, pixels
from benchmarks.zoo.outcomes import NETS


class Autoencoder(nn.Module):
    """Fully connected, from 64 numbers to 8 and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.encoder(x))
        return decoded


class Logistic(nn.Module):
    """Logistic regression of two classes: one probability for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x)).squeeze(1)


class OneHotTable(nn.Module):
    """Numeric columns, and two categories as one-hot columns, all in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.net = nn.Sequential(nn.Linear(6 + 5 + 7, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        numeric, categories = x[:, :6], x[:, 6:]
        logits: Tensor = self.net(torch.cat([self.norm(numeric), categories], dim=1))
        return logits


class EmbeddedTable(nn.Module):
    """Tables of embeddings for two categories: the row holds one-hot columns, which pick a row of each table."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(5, 4), nn.Embedding(7, 4)
        self.net = nn.Sequential(nn.Linear(6 + 4 + 4, 32), nn.GELU(), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        numeric, a, b = x.split([6, 5, 7], dim=1)
        logits: Tensor = self.net(torch.cat([numeric, a @ self.first.weight, b @ self.second.weight], dim=-1))
        return logits


class ImageAndTable(nn.Module):
    """A picture and a row of numbers of the same case."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten()
        )
        self.row = nn.Sequential(nn.Linear(10, 16), nn.ReLU())
        self.head = nn.Linear(8 * 16 + 16, 4)

    def forward(self, picture: Tensor, row: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([self.picture(picture), self.row(row)], dim=1))
        return logits


class Siamese(nn.Module):
    """Whether two pictures show the same: the squared difference of their features, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 16), nn.ReLU()
        )
        self.head = nn.Linear(16, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        difference = self.features(a) - self.features(b)
        return torch.sigmoid(self.head(difference**2))


class GraphConvolution(nn.Module):
    """Two layers of a GCN on one graph of 12 nodes, whose normalised adjacency is a constant."""

    adjacency: Tensor

    def __init__(self, nodes: int = 12) -> None:
        super().__init__()
        links = torch.eye(nodes) + torch.diag(torch.ones(nodes - 1), 1) + torch.diag(torch.ones(nodes - 1), -1)
        scale = links.sum(1).rsqrt()
        self.register_buffer("adjacency", scale[:, None] * links * scale[None, :])
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.adjacency @ self.first(x))
        x = self.adjacency @ self.second(x)
        return x.mean(dim=1)


class KernelMachine(nn.Module):
    """Decisions by two kernels with the support vectors: a polynomial one and an RBF."""

    support: Tensor

    def __init__(self, vectors: int = 10, features: int = 8) -> None:
        super().__init__()
        self.register_buffer("support", torch.randn(vectors, features) / 2)
        self.polynomial, self.rbf = nn.Linear(vectors, 1, bias=False), nn.Linear(vectors, 1)

    def forward(self, x: Tensor) -> Tensor:
        products = (0.25 * (x @ self.support.T) + 1) ** 3
        distances = ((x[:, None] - self.support) ** 2).sum(-1)
        both: Tensor = self.polynomial(products) + self.rbf(torch.exp(-0.1 * distances))
        return both


class CosineMatching(nn.Module):
    """How alike a normalised embedding is to each of a gallery, and to the mean of it."""

    gallery: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 8))
        self.register_buffer("gallery", F.normalize(torch.randn(6, 8), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        embedding = F.normalize(self.embed(x), dim=1)
        whole = F.cosine_similarity(embedding, self.gallery.mean(0, keepdim=True), dim=1)
        return torch.cat([embedding @ self.gallery.t(), whole.unsqueeze(1)], dim=1)


class LayerNormMLP(nn.Module):
    """A perceptron with layer norms between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU()
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.net(x))
        return logits


def categories(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Rows of 6 normal numbers and one-hot columns of a category among 5 and of one among 7; shape (count, 18)."""
    assert shape == (18,)
    numeric = torch.randn(count, 6, generator=generator)
    first, second = (F.one_hot(torch.randint(n, (count,), generator=generator), n).float() for n in (5, 7))
    return torch.cat([numeric, first, second], 1)


CASES = (
    Case("autoencoder", NETS, Autoencoder, ((64,),), (pixels,)),
    Case("logistic_regression", NETS, Logistic, ((30,),)),
    Case("tabular_one_hot", NETS, OneHotTable, ((18,),), (categories,)),
    Case("tabular_embeddings", NETS, EmbeddedTable, ((18,),), (categories,)),
    Case("image_and_table", NETS, ImageAndTable, ((1, 16, 16), (10,)), (pixels,)),
    Case("siamese", NETS, Siamese, ((1, 16, 16), (1, 16, 16))),
    Case("gcn", NETS, GraphConvolution, ((12, 5),)),
    Case("kernel_machine", NETS, KernelMachine, ((8,),)),
    Case("cosine_matching", NETS, CosineMatching, ((20,),)),
    Case("layernorm_mlp", NETS, LayerNormMLP, ((16,),)),
)
