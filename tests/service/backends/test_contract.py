"""One suite for every backend: what `service/backends/base.py` promises.

The models are the fake, a small random SegVLM exported for the test, and the bundle that the
repository ships. `pytest -m gpu` runs the same suite over what a GPU can run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model.probe import TOLERANCES
from model.segvlm import SegVLM
from service.backends.arrays import ArrayFeatures
from service.backends.torch_features import TensorFeatures
from service.engine import Engine
from service.metrics import Metrics
from service.settings import Settings
from tests.service.backends.conftest import LARGEST, Subject, eager

pytestmark = pytest.mark.long(80)

PATIENCE = 60.0  # seconds; only a hanging test ever waits this long


def held_bytes(features: Any) -> int:
    """What really stays in memory as long as `features` live."""
    if isinstance(features, TensorFeatures):
        assert all(not tensor.requires_grad for tensor in features.tensors)
        return sum(tensor.untyped_storage().nbytes() for tensor in features.tensors)
    assert isinstance(features, ArrayFeatures)
    total = 0
    for array in features.arrays:
        while isinstance(array.base, np.ndarray):
            array = array.base
        total += array.nbytes
    return total


def in_thread(function: Callable[[], Any]) -> Any:
    """What `function` answers in a thread of its own."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join(PATIENCE)
    assert answers, "the thread did not answer"
    return answers[0]


def test_what_it_says_of_itself(subject: Subject) -> None:
    backend = subject.model.backend
    assert backend.name and backend.precision in TOLERANCES
    assert backend.asynchronous is ("cuda" in backend.name or "tensorrt" in backend.name)
    assert list(backend.batch_sizes) == sorted(set(backend.batch_sizes))
    assert (backend.batch_sizes[0], backend.batch_sizes[-1]) == (1, LARGEST)
    memory = backend.memory_bytes()
    assert all(isinstance(size, int) and size > 0 for size in memory.values())
    assert bool(memory) is backend.asynchronous


def test_shapes_and_types(subject: Subject) -> None:
    backend, side = subject.model.backend, subject.model.spec.image_size
    images = backend.encode_image(subject.images[:3])
    texts = backend.encode_text(subject.tokens[:3])
    logits = backend.decode(images, texts)()
    assert (len(images), len(texts)) == (3, 3)
    assert (logits.dtype, logits.shape) == (np.float32, (3, side // 4, side // 4))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_any_batch_is_its_rows(subject: Subject, size: int) -> None:
    rows = range(LARGEST - size, LARGEST)
    subject.assert_same(subject.ask(rows, rows), subject.answers[list(rows)])


def test_rows_change_places_with_their_answers(subject: Subject) -> None:
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    subject.assert_same(subject.ask(order, order), subject.answers[order])


def test_image_and_text_both_matter(subject: Subject) -> None:
    first, other_text, other_image = subject.ask([0, 0, 1], [0, 1, 0])
    assert not np.allclose(first, other_text)
    assert not np.allclose(first, other_image)


def test_features_go_into_any_batch(subject: Subject) -> None:
    """Encoded alone and together, decoded in other company, once and again, one image for many."""
    backend = subject.model.backend
    images = [*backend.encode_image(subject.images[:2]), *backend.encode_image(subject.images[2:3])]
    texts = [*backend.encode_text(subject.tokens[:1]), *backend.encode_text(subject.tokens[1:3])]
    pairs = [(2, 0), (0, 1), (0, 0), (1, 2), (0, 2)]
    logits = backend.decode([images[i] for i, _ in pairs], [texts[t] for _, t in pairs])()
    subject.assert_same(logits, subject.ask(*zip(*pairs, strict=True)))
    alone = [backend.decode([images[i]], [texts[t]])()[0] for i, t in pairs]
    subject.assert_same(np.stack(alone), logits)


def test_what_was_given_out_stays_as_it_is(subject: Subject) -> None:
    """Features and logits do not change when more is encoded and decoded; inputs never do."""
    backend = subject.model.backend
    images, tokens = subject.images.copy(), subject.tokens.copy()
    images.flags.writeable = tokens.flags.writeable = False
    features = backend.encode_image(images[:3]), backend.encode_text(tokens[:3])
    logits = backend.decode(*features)()
    kept = logits.copy()
    for rows in ([3, 4, 5], [5, 4, 3]):
        subject.ask(rows, rows)
    np.testing.assert_array_equal(logits, kept)
    np.testing.assert_array_equal(backend.decode(*features)(), kept)
    np.testing.assert_array_equal(images, subject.images)
    np.testing.assert_array_equal(tokens, subject.tokens)


def test_arrays_are_read_only(subject: Subject) -> None:
    for features in subject.model.backend.encode_image(subject.images[:2]):
        for array in getattr(features, "arrays", ()):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


def test_a_row_holds_no_more_than_it_says(subject: Subject) -> None:
    backend = subject.model.backend
    for encode, rows in (
        (backend.encode_image, subject.images),
        (backend.encode_text, subject.tokens),
    ):
        (alone,) = encode(rows[:1])
        together = encode(rows)
        for features in (alone, *together):
            assert features.nbytes == alone.nbytes == held_bytes(features) > 0


def test_two_in_flight_waited_for_elsewhere(subject: Subject) -> None:
    backend = subject.model.backend
    images = backend.encode_image(subject.images[:4])
    texts = backend.encode_text(subject.tokens[:4])
    first, second = backend.decode(images[:2], texts[:2]), backend.decode(images[2:], texts[2:])
    subject.assert_same(in_thread(second), subject.answers[2:4])
    subject.assert_same(in_thread(first), subject.answers[:2])


def test_exported_is_eager(subject: Subject, lively_lite: SegVLM) -> None:
    if not subject.case.lively:
        pytest.skip("its model is another")
    expected = eager(lively_lite, subject.images, subject.tokens)
    difference = np.abs(subject.answers - expected).max() / np.abs(expected).max()
    assert difference <= subject.case.tolerance.eager


def test_its_own_question_is_answered(subject: Subject) -> None:
    model = subject.model
    images = model.backend.encode_image(model.probe.images)
    logits = model.backend.decode(images, model.backend.encode_text(model.probe.tokens))()
    assert model.probe.difference(logits) <= TOLERANCES[model.backend.precision]


def test_it_works_on_after_an_exception(subject: Subject) -> None:
    backend = subject.model.backend
    texts = backend.encode_text(subject.tokens[:2])
    with pytest.raises(Exception, match=r"."):
        backend.decode(backend.encode_image(subject.images[:2, ..., :2]), texts)()
    subject.assert_same(subject.ask([0, 1], [0, 1]), subject.answers[:2])


def test_memory_can_be_released_at_any_time(subject: Subject) -> None:
    backend = subject.model.backend
    features = backend.encode_image(subject.images[:2]), backend.encode_text(subject.tokens[:2])
    backend.release_memory()
    subject.assert_same(backend.decode(*features)(), subject.answers[:2])


def test_tokenizer_keeps_the_end_token_of_what_it_cuts(subject: Subject) -> None:
    length = subject.model.spec.word_length
    encoded = subject.model.tokenizer.encode(["dog", "dog " * 40], length)
    assert encoded.truncated.tolist() == [False, True]
    assert encoded.tokens.dtype == np.int64
    end = encoded.tokens[0][encoded.tokens[0] != 0][-1]
    assert encoded.tokens[1, -1] == end


def test_engine_warms_up_on_it(subject: Subject) -> None:
    engine = Engine(subject.model, Settings(), Metrics())
    engine.start()
    assert engine.stop(PATIENCE)
    assert engine.warm
