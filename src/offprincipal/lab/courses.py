"""Runs of other algorithms from one base, with points kept along each, so that they can be compared at equal distance.

What it is: RLVR, three kinds of supervised training, and RLVR with another optimizer, storage, data or advantage, each
for as many steps as RLVR and with its schedule (a tenth of warm-up, then constant), at one, three and ten times its
learning rate or at one; every point judged and compared with the base. What it is not: the comparison of courses with
each other (``claims.matching``), or the arms that differ in which weights may move (``arms``).
"""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from offprincipal import survey
from offprincipal.errors import CheckFailed
from offprincipal.lab.cell import SPLIT, answers_of_base
from offprincipal.lab.judge import PARTS, compare_arms, loaded
from offprincipal.lab.progress import Progress, silent
from offprincipal.lab.quiet import quiet, stage_seed
from offprincipal.lab.rlvr import run_grpo
from offprincipal.lab.run import versions
from offprincipal.lab.sampling import sample
from offprincipal.lab.settings import Preset, Steps
from offprincipal.lab.sft import run_sft, worked_answers
from offprincipal.lab.tasks import make_items, verify
from offprincipal.lab.world import END, load_arm, save_arm
from offprincipal.rows import one_thread

if TYPE_CHECKING:
    from transformers import Trainer

VARIANTS = {
    "rlvr-math": {"families": ("math",)},
    "rlvr-code": {"families": ("code",)},
    "rlvr-batch": {"scaled_by": "batch"},
}
"""RLVR on the problems of one family alone, and with advantages scaled over the whole batch, as in REINFORCE++ with
the baseline of the group (arXiv 2501.03262): each at RLVR's own rate."""

ALGORITHMS = ("rlvr", "rejection", "sft", "sft-off", "rlvr-bf16", "rlvr-sgd", *VARIANTS)
"""``rejection``: SFT on the base's own right answers to RLVR's problems; ``sft``: on worked answers to others;
``sft-off``: on the same in a format that the base never wrote; ``rlvr-bf16``: weights rounded to bfloat16 after every
step; ``rlvr-sgd``: plain SGD instead of AdamW."""

LADDER = (1.0, 3.0, 10.0)
"""Learning rates over that of the preset's RLVR."""

SGD_RATE = 4000.0
"""The one learning rate of SGD over that of AdamW (*ours*: it has no equal one; there it learns, at ten times it
collapses on ``tiny``)."""

SCHEMA = 2
"""Of ``run.json``; 2 has ``weights``."""

POINTS = (1 / 12, 1 / 6, 1 / 3, 2 / 3, 1.0)
"""Shares of the steps after which the weights are kept."""

WEIGHED = (
    "relative_delta_norm", "sparsity_bf16_linear", "nss_mean", "angle_mean_deg", "energy_principal_lift",
    "overlap_principal_excess",
)  # fmt: skip
"""What a record keeps of the comparison of a point with the base: columns of a comparison's runs."""

PART = PARTS[1]


@dataclass(frozen=True)
class Course:
    """One run: an algorithm at one learning rate."""

    algorithm: str
    learning_rate: float

    @property
    def place(self) -> str:
        """Its folder below ``matched/``.

        >>> Course("sft", 2.5e-5).place
        'sft/lr-2.5e-05'
        """
        return f"{self.algorithm}/lr-{self.learning_rate:g}"


def courses(preset: Preset, algorithms: tuple[str, ...] = ALGORITHMS) -> list[Course]:
    """Every course of these algorithms for a laboratory of this preset.

    >>> from offprincipal.lab.settings import PRESETS
    >>> len(courses(PRESETS["tiny"])), courses(PRESETS["tiny"])[-1]
    (19, Course(algorithm='rlvr-batch', learning_rate=2.5e-05))
    """
    rate = preset.rlvr.learning_rate
    ladders = dict.fromkeys(ALGORITHMS, LADDER) | {"rlvr-sgd": (SGD_RATE,)} | dict.fromkeys(VARIANTS, LADDER[:1])
    return [Course(name, float(f"{rate * step:.6g}")) for name in algorithms for step in ladders[name]]


def kept_steps(steps: int) -> list[int]:
    """After which steps the weights are kept.

    >>> kept_steps(60), kept_steps(2)
    ([5, 10, 20, 40, 60], [1, 2])
    """
    return sorted({max(1, round(share * steps)) for share in POINTS})


def train_course(course: Course, *, lab: Path, preset: Preset, seed: int, progress: Progress = silent) -> Course:
    """Train one course of a laboratory into ``matched/<algorithm>/lr-<rate>/``; it appears only when it is whole.

    Every point is a folder ``step-<n>`` as ``lab run`` writes them; ``run.json`` holds, per point, accuracy on the
    test half and KL, both of the weights rounded to bfloat16, and under ``weights`` the `WEIGHED` numbers of its
    float32 weights. On one thread; order and samples are the same for every course of a laboratory.

    Raises:
        CheckFailed: the base has no right answer to train on.
    """
    folder = lab / "matched" / course.place
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    started, own = time.monotonic(), stage_seed(seed, "matched")
    with one_thread(), quiet(own):
        before = answers_of_base(lab / "base", preset, seed, PART)
        data = own_answers(lab / "base", preset, seed) if course.algorithm == "rejection" else None
        model, tokenizer = load_arm(lab / "base")
        kept: dict[int, dict[str, torch.Tensor]] = {}
        torch.manual_seed(own)  # whether this process had to ask the base before or not
        began = time.monotonic()
        _train(course, model, tokenizer, preset, data, own, seed, progress, partial(_attach, course=course, kept=kept))
        record = {
            "schema_version": SCHEMA,
            **dataclasses.asdict(course),
            "seed": seed,
            "stage_seed": own,
            "settings": dataclasses.asdict(preset),
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "seconds_training": round(time.monotonic() - began, 1),
            "own_answers": data.counts if data else None,
            "points": [],
        }
        for step, weights in sorted(kept.items()):
            model.cpu().load_state_dict(weights)
            place = unfinished / f"step-{step}"
            save_arm(model, tokenizer, place)
            judged = compare_arms(lab / "base", place, preset, data_seed=seed, part=PART, before=before)
            record["points"].append({"step": step, **judged})
        weigh(record["points"], lab / "base", unfinished)
    record["seconds"] = round(time.monotonic() - started, 1)
    (unfinished / "run.json").write_text(json.dumps(record, indent=1) + "\n")
    os.replace(unfinished, folder)
    return course


def weigh(points: Sequence[dict[str, Any]], base: Path, folder: Path) -> None:
    """Put ``weights`` into every point: the `WEIGHED` numbers, None where one is not defined."""
    runs = {f"step-{point['step']}": folder / f"step-{point['step']}" / "master" for point in points}
    for point, run in zip(points, survey.compare(base, runs).summary["runs"], strict=True):
        point["weights"] = {name: run.get(name) for name in WEIGHED}


def _train(
    course: Course,
    model: Any,
    tokenizer: Any,
    preset: Preset,
    data: "OwnAnswers | None",
    own: int,
    seed: int,
    progress: Progress,
    attach: "Callable[[Trainer], None]",
) -> None:
    """The run itself: GRPO on RLVR's problems, or as many steps of SFT."""
    shared: dict[str, Any] = {"arm": course.place, "seed": own, "progress": progress, "attach": attach}
    if course.algorithm.startswith("rlvr"):
        shared |= {"split": SPLIT, "data_seed": seed, "learning_rate": course.learning_rate}
        run_grpo(model, tokenizer, preset, **shared, **VARIANTS.get(course.algorithm, {}))
        return
    plan = Steps(preset.rlvr.steps, preset.sft.batch, course.learning_rate)
    rows = worked_answers(plan, data_seed=seed, broken=course.algorithm == "sft-off") if data is None else data.rows
    run_sft(model, tokenizer, preset, rows, plan, schedule="constant_with_warmup", **shared)


@dataclass(frozen=True)
class OwnAnswers:
    """Distinct right answers that the base gave: problem and answer, and how many there were of what."""

    rows: tuple[tuple[str, str], ...]
    counts: Mapping[str, int]


@cache
def own_answers(base: Path, preset: Preset, data_seed: int) -> OwnAnswers:
    """What rejection sampling keeps of the base's answers to the problems of RLVR, as many as RLVR draws.

    Sampled at temperature 1 like RLVR's; kept are finished right answers, each once per problem, in the order of the
    problems. ``counts``: answers ``sampled`` and ``right``, ``distinct`` ones, ``problems`` posed and ``solved``.

    Raises:
        CheckFailed: none is right.
    """
    plan, rounds = preset.rlvr, -(-preset.rlvr.steps // preset.rlvr.updates)
    model, tokenizer = loaded(base, preset)
    end = tokenizer.get_vocab()[END]
    prompts = [item.prompt for item in make_items(rounds * plan.prompts, seed=data_seed, split=SPLIT)]
    found: dict[tuple[str, str], None] = {}
    right = 0
    with torch.random.fork_rng():
        torch.manual_seed(stage_seed(data_seed, "rejection"))
        for at in range(0, len(prompts), plan.prompts):
            asked = prompts[at : at + plan.prompts]
            answers = sample(model, tokenizer(asked).input_ids, plan.samples, preset.max_new_tokens, end)
            for number, (*text, last) in enumerate(answers):
                prompt, answer = asked[number // plan.samples], " ".join(tokenizer.convert_ids_to_tokens(text))
                if last == end and verify(prompt, answer):
                    right += 1
                    found[prompt, answer] = None
    if not found:
        asked_for = f"train 'rejection' from {str(base)!r}"
        nothing = f"none of {len(prompts) * plan.samples:,} answers of the base is right"
        raise CheckFailed(asked_for, nothing, "use a preset whose base was pretrained for longer, such as tiny")
    counts = {"sampled": len(prompts) * plan.samples, "right": right, "distinct": len(found)}
    counts |= {"problems": len(set(prompts)), "solved": len({prompt for prompt, _ in found})}
    return OwnAnswers(tuple(found), counts)


def _attach(trainer: "Trainer", *, course: Course, kept: dict[int, dict[str, torch.Tensor]]) -> None:
    """Give the trainer its optimizer and its storage, and keep its weights at the points."""
    from transformers import TrainerCallback

    wanted = set(kept_steps(trainer.args.max_steps))

    class Points(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            model = given["model"]
            if course.algorithm == "rlvr-bf16":
                for weight in model.parameters():
                    weight.data.copy_(weight.data.bfloat16())
            if state.global_step in wanted:
                kept[state.global_step] = {
                    name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()
                }

    if course.algorithm == "rlvr-sgd":
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), course.learning_rate)  # pyright: ignore
    trainer.add_callback(Points())
