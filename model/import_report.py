"""Weights from elsewhere: an exact copy into a module, and an account of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ImportReport:
    """What an import did, name by name.

    `loaded` and `made_new` are names of the receiving module and cover it wholly; `left_over` are
    names of the source that nothing here has a place for.
    """

    source: str
    loaded: tuple[str, ...]
    made_new: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        titles = {"loaded": self.loaded, "made new": self.made_new, "left over": self.left_over}
        lines = [self.source]
        for title, names in titles.items():
            lines.append(f"  {title}: {len(names)}")
            # A model has hundreds of names; two parts of each tell which block they are of.
            blocks = Counter(".".join(name.split(".")[:2]) for name in names)
            lines += [f"    {block} ({count})" for block, count in blocks.items()]
        return "\n".join(lines)


def import_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    may_be_new: Collection[str] = (),
    left_over: Collection[str] = (),
) -> ImportReport:
    """Copy `tensors`, already under the module's own names, into `module`.

    Args:
        module: receives values; its dtypes stay (half precision is widened).
        tensors: the module's names to values.
        source: what the weights are, for the report and for errors.
        may_be_new: prefixes of names that may keep their fresh values.
        left_over: names in the source that were set aside on purpose, for the report.

    Raises:
        ValueError: for a name that the module does not have, a shape that differs, or an entry that
            is missing and not in `may_be_new`. The module is then untouched.
    """
    wanted = module.state_dict()
    unknown = sorted(set(tensors) - set(wanted))
    missing = sorted(set(wanted) - set(tensors))
    made_new = [name for name in missing if _is_new(name, may_be_new)]
    missing = sorted(set(missing) - set(made_new))
    misshapen = [
        f"{name} {tuple(value.shape)}, not {tuple(wanted[name].shape)}"
        for name, value in tensors.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    faults = [
        f"{len(names)} {title}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for title, names in (
            ("unknown", unknown),
            ("missing", missing),
            ("of another shape", misshapen),
        )
        if names
    ]
    if faults:
        raise ValueError(
            f"{source} does not fit this model ({'; '.join(faults)}); "
            "is it another preset's, or not this kind of checkpoint?"
        )
    with torch.no_grad():
        for name, value in tensors.items():
            wanted[name].copy_(value)
    return ImportReport(source, tuple(sorted(tensors)), tuple(made_new), tuple(sorted(left_over)))


def _is_new(name: str, may_be_new: Collection[str]) -> bool:
    # A count of batches is a statistic of the run that made the weights; checkpoints may omit it.
    return name.endswith(".num_batches_tracked") or name.startswith(tuple(may_be_new))
