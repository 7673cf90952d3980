"""LightningModules with the troubles of other people's, each at its smallest; made for either Lightning package."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset


class Items(Dataset):
    """Items made by a function of their number; no list of labels."""

    def __init__(self, make, count=12):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i >= self.count:
            raise IndexError(i)
        return self.make(i, torch.Generator().manual_seed(i))


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items[i] for i in range(len(self.items)))


def image(g):
    return torch.randn(1, 8, 8, generator=g)


def labelled(i, g):
    return image(g) + i % 3, i % 3


def net(out=3):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(64, out)),
    )


class Tokens(nn.Module):
    """An embedding and a feed-forward block, called with keywords; returns a dict."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.block = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.classifier = nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.block(self.embedding(input_ids))
        x = (
            x.mean(1)
            if attention_mask is None
            else (x * attention_mask[..., None]).sum(1) / attention_mask.sum(1, True)
        )
        found = {"logits": self.classifier(x)}
        return found if labels is None else {**found, "loss": F.cross_entropy(found["logits"], labels)}


def modules(pl):
    """{name: (module, data, options of the monitors)} of a Lightning package."""

    class Base(pl.LightningModule):
        def training_step(self, batch, batch_idx):
            return self.loss(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05)

    class Classifier(Base):
        def __init__(self):
            super().__init__()
            self.backbone = net()

        def forward(self, x):
            return self.backbone(x)

        def loss(self, batch):
            return F.cross_entropy(self(batch[0]), batch[1])

    class WithHead(Classifier):
        def __init__(self):
            super().__init__()
            self.auxiliary = nn.Linear(1, 500)

    class Scratch(Base):
        """Layers of its own, functional ReLU."""

        def __init__(self):
            super().__init__()
            self.l1, self.l2 = nn.Linear(64, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.l2(torch.relu(self.l1(x.flatten(1))))

        def loss(self, batch):
            return F.cross_entropy(self(batch[0]), batch[1])

    class AutoEncoder(Base):
        """Flattens in its training step."""

        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
            self.decoder = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 64))

        def forward(self, x):
            return self.decoder(self.encoder(x))

        def loss(self, batch):
            x = batch[0].flatten(1)
            return F.mse_loss(self(x), x)

    class GAN(Base):
        """Two networks, manual optimisation; forward makes images of codes."""

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 64))
            self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, z):
            return self.generator(z)

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            fake = self(torch.randn(len(batch[0]), 5))
            loss = self.discriminator(fake).mean() - self.discriminator(batch[0]).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    class Views(Base):
        """SimCLR, BYOL, DINO: two views in a list, a backbone and a head."""

        def __init__(self):
            super().__init__()
            self.backbone = net(8)
            self.projection_head = nn.Linear(8, 4)

        def forward(self, x):
            return self.projection_head(self.backbone(x))

        def loss(self, batch):
            first, second = batch[0]
            return -F.cosine_similarity(self(first), self(second)).mean()

    class Keywords(Base):
        """Hugging Face: forward passes a dict on; ModelOutput, integer inputs."""

        def __init__(self):
            super().__init__()
            self.model = Tokens()

        def forward(self, **inputs):
            return self.model(**inputs)

        def loss(self, batch):
            return self(**batch)["loss"]

    class Target(Base):
        """A language model: forward takes inputs and targets."""

        def __init__(self):
            super().__init__()
            self.model = Tokens()

        def forward(self, x, target):
            return self.model(x)["logits"] + 0 * target.sum()

        def loss(self, batch):
            return F.cross_entropy(self(*batch), batch[1])

    class Dicts(Base):
        """torchgeo: dict batches, a forward that takes anything and hands it on."""

        def __init__(self, out=3, criterion=F.cross_entropy):
            super().__init__()
            self.model, self.criterion = net(out), criterion

        def forward(self, *args, **kwargs):
            return self.model(*args, **kwargs)

        def loss(self, batch):
            y = self(batch["image"])
            return self.criterion(y.squeeze(1), batch["label"])

    class Segmentation(Base):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))

        def forward(self, x):
            return self.model(x)

        def loss(self, batch):
            return F.cross_entropy(self(batch["image"]), batch["mask"])

    class TwoInputs(Base):
        def __init__(self):
            super().__init__()
            self.left, self.right = net(4), net(4)
            self.top = nn.Linear(8, 3)

        def forward(self, a, b):
            return self.top(torch.cat([self.left(a), self.right(b)], 1))

        def loss(self, batch):
            return F.cross_entropy(self(batch[0], batch[1]), batch[2])

    class Sequences(Base):
        """A layer that returns a tuple, and one number per sample."""

        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6, batch_first=True)
            self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

        def loss(self, batch):
            return F.mse_loss(self(batch[0])[:, 0], batch[1])

    class WithoutForward(Base):
        def __init__(self):
            super().__init__()
            self.net = net()

        def loss(self, batch):
            return F.cross_entropy(self.net(batch[0]), batch[1])

    plain = Items(labelled)
    tokens = Items(
        lambda i, g: {
            "input_ids": torch.randint(9, (5,), generator=g), "attention_mask": torch.ones(5, dtype=torch.long),
            "labels": i % 3,
        }
    )  # fmt: skip
    texts = Items(lambda i, g: (torch.randint(9, (5,), generator=g), i % 3))
    pairs = Items(lambda i, g: (image(g), image(g), i % 3))
    dicts = Items(lambda i, g: {"image": image(g) + i % 3, "label": i % 3})
    number = Items(lambda i, g: {"image": image(g), "label": float(i)})
    masks = Items(lambda i, g: {"image": image(g), "mask": torch.ones(8, 8, dtype=torch.long)})
    found = {
        "classifier": (Classifier, plain, {}),
        "auxiliary_head": (WithHead, plain, {}),
        "scratch": (Scratch, plain, {}),
        "autoencoder": (AutoEncoder, plain, {}),
        "discriminator": (GAN, plain, {"network": "discriminator"}),
        "generator": (GAN, plain, {"unpack": lambda batch: (torch.randn(len(batch[0]), 5), None)}),
        "views": (Views, Items(lambda i, g: ([image(g), image(g)], i % 3)), {}),
        "views_unlabelled": (Views, Items(lambda i, g: ([image(g), image(g)], "file")), {}),
        "keywords": (Keywords, tokens, {"input_layer": "embedding"}),
        "target": (Target, texts, {"input_layer": "embedding"}),
        "dicts": (Dicts, dicts, {}),
        "regression": (lambda: Dicts(1, lambda y, t: F.mse_loss(y, t.float())), number, {}),
        "segmentation": (Segmentation, masks, {}),
        "two_inputs": (TwoInputs, pairs, {}),
        "sequences": (Sequences, Items(lambda i, g: (torch.randn(3, 4, generator=g), torch.tensor(i % 3.0))), {}),
        "without_forward": (WithoutForward, plain, {}),
        "stream": (Classifier, Stream(plain), {}),
        "tensors": (Classifier, TensorDataset(torch.linspace(-2, 2, 768).view(12, 1, 8, 8), torch.arange(12) % 3), {}),
        "call": (Classifier, plain, {"call": lambda module, batch: module.backbone(batch[0])}),
    }
    return {name: SimpleNamespace(make=m, data=DataLoader(d, 4), options=o) for name, (m, d, o) in found.items()}
