"""The training loop: step, log, validate, save. Resumes to the same weights.

A run lives in one directory: config.yaml, log.jsonl, tensorboard/, last.pt (everything a resumed
run needs) and best.safetensors (the averaged weights with the best validation mean IoU).
"""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from model.checkpoint import save
from model.segvlm import SegVLM
from model.tokenizer import Tokenizer

from .config import OptimSection, TrainConfig
from .data.dataset import Batch, TrainingBatches
from .data.lmdb_store import PhraseStore
from .evaluate import evaluate
from .losses import RafTerms, raf_loss
from .predictors import TorchPredictor
from .run_files import load_state, refuse_other_config, save_state


def learning_rate_factor(step: int, optim: OptimSection) -> float:
    """What the base learning rates are multiplied by at `step`: warm-up, then the schedule."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    share = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    if optim.schedule == "step":
        passed = sum(step / optim.steps >= milestone for milestone in optim.milestones)
        return float(optim.decay**passed)
    return 1.0


def parameter_groups(model: SegVLM, optim: OptimSection) -> list[dict[str, Any]]:
    """Backbone and head, each with and without weight decay (biases and norms have none).

    The backbone is what comes pre-trained: the image encoder, and CLIP's text encoder with it.
    """
    from_clip = model.config.image_encoder.startswith("clip")
    backbone = ("image_encoder.", "text_encoder.") if from_clip else ("image_encoder.",)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(backbone), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "base_lr": optim.lr * (optim.backbone_lr_factor if in_backbone else 1.0),
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (in_backbone, decays), parameters in groups.items()
    ]


class Trainer:
    """One run on one device.

    Raises:
        ValueError: if `config.run.out` holds a run with another configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: SegVLM,
        tokenizer: Tokenizer,
        store: PhraseStore,
        device: torch.device,
    ) -> None:
        self.config, self.tokenizer, self.store, self.device = config, tokenizer, store, device
        self.out = Path(config.run.out)
        layout = torch.channels_last if config.optim.channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=layout)
        decay = config.optim.ema_decay
        self.average = AveragedModel(
            self.model,
            multi_avg_fn=get_ema_multi_avg_fn(decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        kind = torch.optim.AdamW if config.optim.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(parameter_groups(self.model, config.optim), lr=config.optim.lr)
        self.batches = TrainingBatches(
            store,
            tokenizer,
            config.data,
            image_size=model.config.image_size,
            word_length=model.config.word_length,
            steps=config.optim.steps,
            seed=config.run.seed,
        )
        self.step = 0
        self.best = -1.0
        self.stopping = False

    def run(self) -> None:
        """Train to the end, or until SIGTERM or SIGINT, after which the same call goes on."""
        self._open()
        loader = DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(self.step, self.config.optim.steps),
            num_workers=self.config.data.workers,
            generator=torch.Generator(),  # of its own, or a resumed run's dropout would differ
        )
        started, waited = time.perf_counter(), 0.0
        fetched = time.perf_counter()
        for batch in loader:
            waited += time.perf_counter() - fetched
            terms, norm = self.train_step(batch)
            self.step += 1
            if self.step % self.config.run.log_every == 0:
                spent = time.perf_counter() - started
                self._log_step(terms, norm, len(batch.tokens), waited, spent)
                started, waited = time.perf_counter(), 0.0
            self._validate_and_save()
            if self.stopping:
                break
            fetched = time.perf_counter()
        self._close()

    def train_step(self, batch: Batch) -> tuple[RafTerms, Tensor]:
        """One update: the loss terms and the gradient norm before clipping.

        Raises:
            FloatingPointError: if the loss is not finite; the batch is saved beside the run.
        """
        optim = self.config.optim
        factor = learning_rate_factor(self.step, optim)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.model.train()
        images, tokens, targets, index = (item.to(self.device) for item in batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=optim.precision == "bf16"):
            pyramid = self.model.encode_image(images)
            p3, p4, p5 = (level[index] for level in pyramid)
            logits = self.model.decode(p3, p4, p5, *self.model.encode_text(tokens))
        terms = raf_loss(logits, targets, self.config.loss)
        if not torch.isfinite(terms.total):
            path = self.out / "non_finite_batch.pt"
            torch.save(tuple(batch), path)
            raise FloatingPointError(
                f"the loss is {terms.total.item()} at step {self.step}; its batch is in {path}. "
                "Lower optim.lr, or continue with optim.precision=fp32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm or math.inf)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return RafTerms(*(term.detach() for term in terms)), norm

    def validate(self) -> float:
        """Mean IoU of the averaged weights over all phrases of the validation split."""
        predictor = TorchPredictor(self._averaged(), self.tokenizer, self.device)
        run, data = self.config.run, self.config.data
        report = evaluate(predictor, self.store, data.val_split, run.threshold, probes=False)
        summary = report.to_dict()
        self._write("validation", {"step": self.step, **summary})
        for name in ("mean_iou", "cum_iou"):
            self.board.add_scalar(f"validation/{name}", summary["all"][name], self.step)
        return float(summary["all"]["mean_iou"])

    def _averaged(self) -> SegVLM:
        model = self.average.module
        assert isinstance(model, SegVLM)
        return model

    def _validate_and_save(self) -> None:
        run, last = self.config.run, self.step == self.config.optim.steps
        if last or self.step % run.validate_every == 0:
            score = self.validate()
            if score > self.best:
                self.best = score
                save(self._averaged(), self.out / "best.safetensors")
        if last or self.stopping or self.step % run.save_every == 0:
            save_state(self.out / "last.pt", self.state())

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on; the data depends on the step alone."""
        return {
            "config": self.config.to_dict(),
            "step": self.step,
            "best": self.best,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),  # empty without a GPU
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state()` answered.

        Raises:
            ValueError: if the state was made under another configuration.
        """
        refuse_other_config(state["config"], self.config.to_dict(), self.out)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        torch.set_rng_state(state["rng"])
        torch.cuda.set_rng_state_all(state["cuda_rng"])

    def _open(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        last = self.out / "last.pt"
        if last.is_file():
            self.load_state(load_state(last))
            print(f"resuming {self.out} at step {self.step}", flush=True)
        else:
            torch.manual_seed(self.config.run.seed)
            text = yaml.safe_dump(self.config.to_dict(), sort_keys=False)
            (self.out / "config.yaml").write_text(text, encoding="utf-8")
        self.board = SummaryWriter(str(self.out / "tensorboard"))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def _close(self) -> None:
        self.board.close()
        ended = "stopped, run again to go on" if self.stopping else "done"
        print(f"{self.out}: {ended} at step {self.step}, best {self.best:.4f}", flush=True)

    def _log_step(
        self, terms: RafTerms, norm: Tensor, phrases: int, waited: float, spent: float
    ) -> None:
        row = {
            "step": self.step,
            "loss": terms.total.item(),
            "bce": terms.bce.item(),
            "focal": terms.focal.item(),
            "dice": terms.dice.item(),
            "gradient_norm": norm.item(),
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "phrases_per_second": phrases * self.config.run.log_every / spent,
            "data_wait_share": waited / spent,
        }
        self._write("train", row)
        for name, value in row.items():
            self.board.add_scalar(f"train/{name}", value, self.step)
        print(
            f"step {self.step}/{self.config.optim.steps}  loss {row['loss']:.4f}  "
            f"{row['phrases_per_second']:.1f} phrases/s",
            flush=True,
        )

    def _write(self, event: str, row: dict[str, Any]) -> None:
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **row}) + "\n")
