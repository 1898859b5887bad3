"""Clients that ask a service on the fake backend and know the right answer to each question."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from typing import Any

import httpx
from PIL import Image

from service.backends.fake import COLOURS
from tests.waiting import PATIENCE, wait_until


@dataclass(frozen=True)
class Question:
    """A picture of one colour, and whether it is asked for: the answer is all of it or nothing."""

    number: int

    def send(self, client: httpx.Client, url: str) -> httpx.Response:
        picture = BytesIO()
        Image.new("RGB", self._size, COLOURS[self._colour]).save(picture, "PNG")
        return client.post(
            f"{url}/segment",
            files={"image": picture.getvalue()},
            data={"expression": f"the {self._asked} thing {self.number}"},
        )

    def answered_by(self, answer: dict[str, Any]) -> bool:
        (result,) = answer["results"]
        width, height = self._size
        return result["area"] == (width * height if self._colour == self._asked else 0)

    @property
    def _size(self) -> tuple[int, int]:
        """Another area for each number."""
        return 64 + self.number % 100, 64

    @property
    def _colour(self) -> str:
        return list(COLOURS)[self.number % 3]

    @property
    def _asked(self) -> str:
        return list(COLOURS)[self.number % 2]


class Crowd:
    """People who ask one question after another, each until it is answered, at most `tries` times.

    They wait as long as Retry-After says. Leaving the block raises what one of them has met.
    """

    def __init__(self, url: str, tries: int) -> None:
        self.answered = self.asked_again = 0
        self._url = url
        self._tries = tries
        self._numbers = count()
        self._over = threading.Event()

    @classmethod
    @contextmanager
    def around(cls, url: str, people: int, tries: int = 1000) -> Iterator[Crowd]:
        crowd = cls(url, tries)
        with ThreadPoolExecutor(people) as pool:
            asking = [pool.submit(crowd._ask) for _ in range(people)]
            try:
                yield crowd
            finally:
                crowd._over.set()
                for person in asking:
                    person.result()

    def wait_for(self, more: int) -> None:
        """Until so many more questions are answered."""
        aim = self.answered + more
        wait_until(lambda: self.answered >= aim, f"{more} more answers")

    def _ask(self) -> None:
        with httpx.Client(timeout=PATIENCE) as client:
            while not self._over.is_set():
                question = Question(next(self._numbers))
                assert question.answered_by(self._until_answered(client, question).json())
                self.answered += 1

    def _until_answered(self, client: httpx.Client, question: Question) -> httpx.Response:
        end = time.monotonic() + PATIENCE
        for tried in range(1, self._tries + 1):
            try:
                response = question.send(client, self._url)
            except httpx.TransportError as error:
                pause, met = 0.1, repr(error)
            else:
                if response.status_code == 200:
                    return response
                assert response.status_code in (500, 503), response.text
                pause, met = float(response.headers.get("Retry-After", 0.1)), response.text
            assert tried < self._tries and time.monotonic() < end, f"not answered: {met}"
            self.asked_again += 1
            time.sleep(pause)
        raise AssertionError
