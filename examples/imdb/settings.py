"""The presets, and the systems that the example compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PACKAGED = ("imdb", "rotten_tomatoes")  # data sets, as the package that carries them calls them
ALIASES = {"packaged": "imdb", "packaged-sentences": "rotten_tomatoes"}


@dataclass(frozen=True)
class FromScratch:
    """GPT-2 where no pretrained one is given, and how it is trained if not as the others."""

    layers: int = 4
    width: int = 256
    vocabulary: int = 8000
    learning_rate: float | None = None
    epochs: int | None = None


TINY = FromScratch(2, 32, 300)


@dataclass(frozen=True)
class Preset:
    """How much data and training."""

    reviews: int  # split 80/20, as the paper did
    test_reviews: int  # others, which are for testing only
    max_length: int
    learning_rate: float
    epochs: int
    further_epochs: int
    student_epochs: int
    batch_size: int = 16
    student_batch_size: int = 8
    models: str = "packaged"
    data: str = "imdb"
    scratch: FromScratch = FromScratch()


PRESETS = {
    # The paper's own numbers.
    "paper": Preset(4000, 4000, 128, 1e-5, epochs=5, further_epochs=5, student_epochs=13),
    # Sentences, fewer of them, and larger steps to make up for the fewer epochs.
    "quick": Preset(
        1000,
        1000,
        64,
        1e-4,
        epochs=2,
        further_epochs=1,
        student_epochs=3,
        data="rotten_tomatoes",
        scratch=FromScratch(2, 128, 4000, learning_rate=1e-3, epochs=6),
    ),
    "smoke": Preset(
        40,
        40,
        32,
        1e-3,
        epochs=2,
        further_epochs=1,
        student_epochs=2,
        batch_size=8,
        models="tiny",
        scratch=TINY,
    ),
}

Ends = tuple[float | None, float | None]


@dataclass(frozen=True)
class PaperPlot:
    """One figure of the paper: values after the first and the last epoch, None where they cannot be read off it."""

    number: int
    train_accuracy: Ends
    validation_accuracy: Ends
    train_loss: Ends
    validation_loss: Ends


@dataclass(frozen=True)
class System:
    """One row of the table: a model, and how it is pruned and trained."""

    key: str  # folder of its results
    title: str
    paper: PaperPlot | None = None  # None for a control that the paper lacks
    amount: float | None = None  # fraction of the fine-tuned BERT's prunable weights set to zero
    pruned: Literal["at once", "by quarters"] = "at once"  # before the further epochs, or during them
    keep: bool = True  # whether the zeros are kept
    flops: float | None = None  # share of the fine-tuned BERT's FLOPs left after heads and neurons are removed
    speedup: float | None = None  # how many times as fast as the fine-tuned BERT `compress` makes it
    student: bool = False  # whether it is the small model
    teacher: str = "bert"  # key of the fine-tuned model that the small or shrunken one is distilled from
    alpha: float = 0.5  # weight of the teacher in the loss of the small or shrunken model
    wrong_ids: bool = False  # whether the student reads the ids of another vocabulary than its own

    @property
    def has_teacher(self) -> bool:
        """Whether it is distilled from a fine-tuned model."""
        return (self.student or self.flops is not None or self.speedup is not None) and self.alpha > 0

    @property
    def starts_from_bert(self) -> bool:
        """Whether it is the fine-tuned BERT, pruned or not, trained further."""
        return not self.student and self.key not in ("bert", "gpt2")

    @property
    def needs(self) -> list[str]:
        """Keys of the systems that it starts from or learns from."""
        above = [one.key for one in SYSTEMS if 0 < (one.speedup or 0) < (self.speedup or 0)]  # of the same ladder
        return sorted({*["bert"] * self.starts_from_bert, *[self.teacher] * self.has_teacher, *above})


SYSTEMS = (
    System("bert", "BERT", PaperPlot(2, (0.72, 0.96), (0.83, 0.84), (0.55, 0.15), (0.41, 0.58))),
    System("gpt2", "GPT-2", PaperPlot(1, (0.57, 0.85), (0.66, 0.80), (1.4, 0.4), (0.65, 0.48))),
    System(
        "pruned-10", "BERT pruned 10 %", PaperPlot(3, (0.95, 1.0), (0.84, 0.84), (0.15, 0.0), (None, 0.9)), amount=0.1
    ),
    System(
        "pruned-20", "BERT pruned 20 %", PaperPlot(4, (0.99, 1.0), (0.84, 0.84), (None, 0.0), (None, 1.15)), amount=0.2
    ),
    System(
        "student", "KD student", PaperPlot(5, (0.5, 0.97), (0.62, 0.74), (0.045, 0.03), (0.045, 0.03)), student=True
    ),
    System("control", "BERT trained on, nothing pruned"),
    System("pruned-20-not-kept", "BERT pruned 20 %, zeros not kept", amount=0.2, keep=False),
    System("pruned-by-5", "BERT pruned 5 % at a time to 20 %", amount=0.2, pruned="by quarters"),
    System("half-flops", "BERT shrunk to half its FLOPs, distilled", flops=0.5),
    System("compress-2x", "BERT made twice as fast by `compress`", speedup=2),
    System("compress-4x", "BERT made four times as fast by `compress`", speedup=4),
    System("student-alone", "the student without a teacher", student=True, alpha=0.0),
    System("student-wrong-ids", "KD student, ids of another vocabulary", student=True, wrong_ids=True),
    System("student-of-gpt2", "KD student, distilled from GPT-2", student=True, teacher="gpt2"),
)

# The quick preset's, without --systems: the paper's five, and the controls of its pruning.
QUICK_SYSTEMS = ("bert", "gpt2", "pruned-10", "pruned-20", "student", "control", "pruned-20-not-kept")
