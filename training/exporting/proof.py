"""Every artifact beside the network it was made from, on random, real and drawn input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import SegVLMConfig
from model.probe import EXPRESSIONS, TOLERANCES, Probe, draw_images
from model.segvlm import SegVLM
from model.tokenizer import Tokenizer
from training.parity import (
    Graphs,
    Trial,
    compare,
    complaints,
    random_requests,
    split_requests,
    trials_of,
)
from training.torch_graphs import TorchGraphs

from .errors import ExportError

RealInputs = tuple[NDArray[np.uint8], NDArray[np.int64]]


class Proof:
    """What the network answers, kept, and each artifact held against it.

    Raises:
        ExportError: if an answer of the network is not finite, or `real_inputs` do not fit it.
    """

    def __init__(
        self,
        model: SegVLM,
        tokenizer: Tokenizer,
        threshold: float,
        real_inputs: RealInputs | None,
    ) -> None:
        config, network = model.config, TorchGraphs.of_network(model)
        inputs = {"random": random_requests(config.image_size, config.word_length)}
        if real_inputs is not None:
            _check_real_inputs(config, *real_inputs)
            inputs["real"] = split_requests(*real_inputs)
        self._threshold = threshold
        self._trials: dict[str, list[Trial]] = {}
        for kind, requests in inputs.items():
            try:
                self._trials[kind] = trials_of(network, requests)
            except ValueError as error:
                raise ExportError(f"on {kind} input, {error}") from error
        self.probe = _ask(model, tokenizer)

    def measure(self, artifact: str, graphs: Graphs, precision: str = "fp32") -> dict[str, Any]:
        """What `parity` of config.json says of an artifact: differences by kind of input.

        Float32 must be within `parity`'s tolerances on all of them. Less precise graphs may differ
        from the network's answers to the probe as far as `model.probe.TOLERANCES` lets them, or no
        service would take them; what else they lose is measured in masks.

        Raises:
            ExportError: if the artifact is out of tolerance.
        """
        found: dict[str, Any] = {}
        for kind, trials in self._trials.items():
            try:
                found[kind] = compare(trials, graphs, self._threshold)
            except ValueError as error:
                raise ExportError(f"{artifact}: on {kind} input, {error}") from error
            told = complaints(found[kind]) if precision == "fp32" else []
            if told:
                raise ExportError(
                    f"{artifact} differs from the network on {kind} input: {'; '.join(told)}; "
                    "nothing was written. The pins of constraints.txt are known to agree"
                )
        pyramid, text = (
            graphs.encode_image(self.probe.images),
            graphs.encode_text(self.probe.tokens),
        )
        found["probe"] = difference = self.probe.difference(graphs.decode(pyramid, text))
        if not difference <= TOLERANCES[precision]:
            raise ExportError(
                f"{artifact}: its answer to the probe differs by {difference:.2g} standard "
                f"deviations, {precision} may by {TOLERANCES[precision]}; leave {precision} out"
            )
        return found


def _ask(model: SegVLM, tokenizer: Tokenizer) -> Probe:
    """The drawn question with the answer of `model`."""
    config = model.config
    images = draw_images(config.image_size)
    tokens = tokenizer.encode(EXPRESSIONS, config.word_length).tokens
    with torch.inference_mode():
        logits = model(torch.from_numpy(images), torch.from_numpy(tokens))
    return Probe(images, tokens, logits.numpy())


def _check_real_inputs(
    config: SegVLMConfig, images: NDArray[np.uint8], tokens: NDArray[np.int64]
) -> None:
    count, size = len(images), config.image_size
    expected = ((count, size, size, 3), (count, config.word_length))
    if count == 0 or (images.shape, tokens.shape) != expected:
        raise ExportError(
            f"real_inputs must be images {expected[0]} and tokens {expected[1]}, at least one of "
            f"each, not {images.shape} and {tokens.shape}"
        )
