"""Pre-training of the demo's small CLIP on drawn images with generic captions.

CLIP's own symmetric loss gives the demo a CLIP that has seen "a photo of a red dress" but no
modification text, like the real one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from raycd.config import EncoderConfig, PretrainConfig
from raycd.data.demo.synthetic import pretraining_pairs
from raycd.durable import create_folder_once
from raycd.features.map_cache import moved
from raycd.model import threads
from raycd.model.encoder import Encoder, create
from raycd.progress import Bar
from raycd.run import fingerprint
from raycd.train.batches import Rows
from raycd.train.loop import Loop, Schedule

# Raise it when drawings, captions or this training change, so that older caches are not used
VERSION = 1
DEMO_MODEL = "raycd-demo"


def cached(config: PretrainConfig, target_pad: float | None, device: str = "cpu") -> Path:
    """Return the folder of the pre-trained encoder (as `Encoder.save` writes it).

    It is trained on first use, on `device`, and kept under `config.cache`. `target_pad` is
    `EncoderConfig.padding`.
    """
    settings = config.model_dump(exclude={"cache"})
    prefix = fingerprint("pretrain", VERSION, settings, target_pad)[:16]
    folder = Path(config.cache).expanduser() / f"{DEMO_MODEL}-{prefix}"
    create_folder_once(folder, lambda fresh: pretrain(config, target_pad, device).save(fresh))
    return folder


def pretrain(config: PretrainConfig, target_pad: float | None, device: str = "cpu") -> Encoder:
    """Draw, train on `device` and return the encoder, which is on the CPU."""
    torch.manual_seed(config.seed)
    threads.use(torch.get_num_threads())
    padding = {} if target_pad is None else {"target_pad": target_pad}
    encoder = create(EncoderConfig(name=DEMO_MODEL, pretrained="", **padding))
    encoder.to(device)
    schedule = Schedule(
        config.epochs, config.batch_size, config.lr, config.seed, warmup=0.1, decay="cosine"
    )
    loop = Loop(
        PreTrain(encoder, config),
        schedule,
        bar=lambda total, start: Bar(PreTrain.name, total=total, unit="images", start=start),
    )
    loop.run()
    encoder.cpu().eval()
    if device != "cpu":
        del loop  # and the optimizer: the card's memory is for the workers
        torch.cuda.empty_cache()
    return encoder


class PreTrain:
    """The task of pre-training."""

    name = "pre-train"

    def __init__(self, encoder: Encoder, config: PretrainConfig) -> None:
        self.encoder, self.config = encoder, config
        self.module: nn.Module = Contrast(encoder)
        pairs = list(pretraining_pairs(config.seed, config.images, encoder.preprocess.size[0]))
        self.pixels = torch.stack([encoder.preprocess(image) for image, _ in pairs])
        self.tokens = encoder.tokenize([text for _, text in pairs])

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW over all parameters."""
        return torch.optim.AdamW(
            self.module.parameters(), lr=self.config.lr, weight_decay=0.05, fused=True
        )

    def count(self, epoch: int) -> int:
        """Return the number of pairs, the same in every epoch."""
        return len(self.pixels)

    def kind(self, epoch: int) -> str:
        """Return "original", for every epoch."""
        return "original"

    def batches(
        self, epoch: int, rows: Sequence[Rows]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (pixels (B, S, S, 3), tokens (B, L)).

        Batch norms learn their statistics here, and only here.
        """
        self.module.train()
        for own in rows:
            at, device = torch.from_numpy(own), self.encoder.device
            yield moved(self.pixels[at], device), moved(self.tokens[at], device)

    def loss(self, module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return CLIP's symmetric cross entropy with its learnt logit scale."""
        logits_BB = module(*batch)
        own = torch.arange(len(logits_BB), device=logits_BB.device)
        return (F.cross_entropy(logits_BB, own) + F.cross_entropy(logits_BB.T, own)) / 2

    def select(self) -> float | None:
        """Return None: the last epoch is taken."""
        return None


class Contrast(nn.Module):
    """Encoder -> logits (B, B) of images against texts."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (B, B) of pixels (B, S, S, 3) against tokens (B, L)."""
        image_BD = F.normalize(self.encoder.encode_images(pixels), dim=-1)
        text_BD = F.normalize(self.encoder.encode_tokens(tokens), dim=-1)
        scale = self.encoder.clip.logit_scale.exp().clamp(max=100)
        logits: torch.Tensor = scale * image_BD @ text_BD.T
        return logits
