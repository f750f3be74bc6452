"""What is done of a ladder, in a file of its folder, so that a call that was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.distill.arguments import DistillationArguments
from hfcompress.distill.logits_cache import data_digest
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_config
from hfcompress.models.profiling import TimeTable
from hfcompress.models.tokenizers import tokenizer_rules
from hfcompress.search.ladder import Rung
from hfcompress.search.processes import processes
from hfcompress.search.rows import HeldOut, Parts

_STATE = "ladder.json"
_VERSION = 3  # also where rungs are made in another way: those of one ladder are all made in the same


@dataclass(frozen=True)
class LeftOut:
    """A rung that is not in the ladder, though it was made or tried.

    Attributes:
        target: The speed-up that was asked.
        above: That of the rung that it was made of; 1 for the original.
        loses_more: Whether it loses more than ``max_drop`` allows, or was too fast to be made; else it is neither
            faster nor better.
        is_end: Whether that is beyond doubt, so that no faster one is tried.
        note: Why, in words.
        fastest: As fast as any model is predicted to be, where that was too slow; else 0.
    """

    target: float
    above: float
    loses_more: bool
    is_end: bool
    note: str
    fastest: float = 0.0


@dataclass
class State:
    """What is done, as the file in the ladder's folder has it.

    Attributes:
        file: The file.
        digest: Of the arguments.
        held_out: Which rows check and measure.
        settings: The arguments, but for the model and the rows.
        rungs: Those that are done.
        unfinished: The last one of an earlier call, where ``time_limit`` stopped its training; it is in the ladder
            until it is made again.
        left_out: Those that are not in the ladder.
        notes: What was not made.
        machine: What models are timed on.
        times: The table of times, on it.
        ended: Whether there is nothing left to do.
    """

    file: Path
    digest: str
    machine: str
    held_out: HeldOut
    settings: dict[str, Any]
    rungs: list[Rung] = field(default_factory=list)
    unfinished: Rung | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    times: TimeTable | None = None
    ended: bool = False

    @classmethod
    def open(cls, folder: Path, digest: str, machine: str, held_out: HeldOut, settings: dict[str, Any]) -> State:
        """Read what an earlier call with the same arguments has done; its table of times only if on this machine."""
        file = folder / _STATE
        nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not nearest.is_dir():
            raise CompressionError(f"output_dir={str(folder)!r}: {str(nearest)!r} is a file; name a folder.")
        settings = json.loads(json.dumps(settings))
        new = cls(file, digest, machine, held_out, settings)
        if not file.exists():
            return new
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            of_this_release, same = found["version"] == _VERSION, found["digest"] == digest
            given = found["settings"] if of_this_release else {}
            found = found if of_this_release and same else new.to_dict()
            rungs = [Rung.from_dict(one) for one in found["rungs"]]
            left_out = [LeftOut(**one) for one in found["left_out"]]
            notes, ended = list(found["notes"]), found["ended"]
            table = found["times"] if found["machine"] == machine else None
            times = table and TimeTable(
                tuple(table["heads"]), tuple(table["neurons"]), tuple(map(tuple, table["times"])), table["rest"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CompressionError(f"{file} cannot be read: {error!r:.200}; name another output_dir.") from error
        if not of_this_release:
            raise CompressionError(
                f"{file} is of a ladder that another release of hfcompress began; name another output_dir."
            )
        if not same:
            others = _differences(settings, given)
            by = f"other arguments ({others})" if others else "another model or other data"
            raise CompressionError(
                f"{file} is of a ladder that was made with {by}; name another output_dir, or remove that one."
            )
        there = [*takewhile(lambda rung: (folder / rung.name).is_dir(), rungs)]
        there = [replace(rung, folder=str(folder / rung.name)) for rung in there]
        kept = [*takewhile(lambda rung: not rung.stopped, there)]
        unfinished = there[len(kept)] if len(kept) < len(there) else None
        if len(kept) < len(rungs):  # the others are made again, and so is what was made of them
            left_out = [one for one in left_out if one.above in (1.0, *(rung.target for rung in kept))]
            ended = False
        return replace(
            new,
            rungs=kept,
            unfinished=unfinished,
            left_out=left_out,
            notes=notes if ended else [],
            times=times,
            ended=ended,
        )

    @property
    def all_rungs(self) -> list[Rung]:
        """The models that are there, from the slowest to the fastest."""
        made = {rung.target for rung in self.rungs}
        held = [] if self.unfinished is None or self.unfinished.target in made else [self.unfinished]
        return sorted([*self.rungs, *held], key=lambda rung: rung.target)

    def below(self, target: float) -> Rung | None:
        """Return the fastest rung of those that were asked to be slower."""
        return next((rung for rung in reversed(self.rungs) if rung.target < target), None)

    def to_make(self, targets: Sequence[float], *, refine: bool) -> list[float]:
        """Return the speed-ups of which there is still a rung to make.

        Args:
            targets: Those that are asked, ascending.
            refine: Whether one between the last that loses little and the first that loses more is tried.
        """
        tried = [rung.target for rung in self.rungs] + [one.target for one in self.left_out]
        left = [target for target in targets if target not in tried]
        if left and not self._is_at_end(tried):
            return left
        least = max((rung.target for rung in self.rungs), default=1.0)
        above = [one for one in self.left_out if one.loses_more and one.target > least]
        if not above:
            return []
        too_much, fastest = min(one.target for one in above), max(one.fastest for one in above)
        between = round(min(math.sqrt(too_much * least), 0.97 * fastest or math.inf), 1)
        is_new = between not in tried and all(target in targets for target in tried)
        return [between] if refine and is_new and least < between < too_much else []

    def _is_at_end(self, tried: Sequence[float]) -> bool:
        """Whether faster ones are not tried: one loses too much beyond doubt, or the last two do as measured."""
        if any(one.is_end for one in self.left_out):
            return True
        too_much = {one.target for one in self.left_out if one.loses_more}
        return len(tried) > 1 and {*sorted(tried)[-2:]} <= too_much

    def to_dict(self) -> dict[str, Any]:
        """Return it as the file has it."""
        return {
            "version": _VERSION,
            "digest": self.digest,
            "machine": self.machine,
            "settings": self.settings,
            "rows": asdict(self.held_out),
            "times": self.times and asdict(self.times),
            "rungs": [rung.to_dict() for rung in self.all_rungs],
            "left_out": [asdict(one) for one in self.left_out],
            "notes": self.notes,
            "ended": self.ended,
        }

    def write(self) -> None:
        """Write what is done, at once or not at all."""
        if not processes().is_main_process:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f".{_STATE}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.file)


def _differences(own: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Say which arguments differ, at most three of them."""
    found = {
        name: f"{name}={ours[name]!r:.40}, there {theirs.get(name)!r:.40}"
        for ours, theirs in ((own, there), (own.get("args", {}), there.get("args", {})))
        for name in ours
        if name not in ("args", "refine") and ours[name] != theirs.get(name)
    }
    return "; ".join([*found.values()][:3])


def describe_arguments(args: DistillationArguments) -> dict[str, Any]:
    """Return what of the arguments can change a model."""
    left_out = {"output_dir", "logging_dir", "run_name", "disable_tqdm", "hub_token", "logging_steps", "local_rank"}
    left_out |= {"use_cpu", "dataloader_pin_memory", "ddp_timeout"}
    return {name: value for name, value in json.loads(args.to_json_string()).items() if name not in left_out}


def digest_call(
    model: PreTrainedModel,
    teacher: nn.Module | None,
    parts: Parts,
    settings: dict[str, Any],
    tokenizers: Sequence[PreTrainedTokenizerBase | None],
) -> str:
    """Name a call by all that its result depends on.

    Args:
        model: The original.
        teacher: Another teacher, if there is one.
        parts: The rows.
        settings: The other arguments.
        tokenizers: That of the model, which is saved, and that of the teacher, if it has another.
    """
    found = [data_digest(model, settings, parts.train, parts.check, parts.measure)]
    found += [] if teacher is None else [data_digest(teacher, settings)]
    # Names of classes change no logits, but which of a teacher's are whose, and they are saved.
    configs = [get_config(one) for one in (model, teacher) if one is not None]
    found += [str(getattr(config, name, None)) for config in configs for name in ("id2label", "label2id")]
    found += [json.dumps(tokenizer_rules(one), sort_keys=True) for one in tokenizers if one is not None]
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:32]
