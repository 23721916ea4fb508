"""Pairing by hand-made checkpoints: prefixes, tied heads, padding, and everything that stays unpaired."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from offprincipal.checkpoint import Checkpoint, open_checkpoint
from offprincipal.errors import InputError
from offprincipal.pairs import Plan, Unpaired, pair

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
UP = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path):
    def make(name: str, tensors: dict[str, torch.Tensor], **config: object) -> Checkpoint:
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        if config:
            (folder / "config.json").write_text(json.dumps(config))
        return open_checkpoint(folder)

    return make


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def names(plan: Plan) -> list[str]:
    return [made.name for made in plan.pairs]


def test_a_plan_in_natural_order(checkpoint) -> None:
    content = {UP.format(i): tensor(4, 3, seed=i) for i in (0, 2, 10)}
    tuned = {name: (weight * 2).float() for name, weight in content.items()}
    plan = pair(checkpoint("a", content, model_type="llama"), checkpoint("b", tuned, model_type="llama"))
    assert names(plan) == [UP.format(0), UP.format(2), UP.format(10)]
    assert plan.unpaired == ()
    first = plan.pairs[0]
    assert (first.shape, first.base_dtype, first.tuned_dtype) == ((4, 3), "bfloat16", "float32")
    assert (first.count, first.nbytes) == (12, 12 * 6)
    before, after = pickle.loads(pickle.dumps(first)).load()
    assert before.is_contiguous()
    assert torch.equal(before, content[first.name])
    assert torch.equal(after, tuned[first.name])
    assert len(pickle.dumps(first)) < 2000
    assert [made.nbytes for made in plan.largest_first()] == sorted((made.nbytes for made in plan.pairs), reverse=True)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "-model.", "model.language_model."]
)
def test_prefixes(checkpoint, prefix: str) -> None:
    content = {NORM: tensor(3), UP.format(0): tensor(4, 3), EMBED: tensor(8, 3)}

    def renamed(name: str) -> str:
        if prefix == "-model.":
            return name.removeprefix("model.")
        if prefix == "model.language_model.":
            return name.replace("model.", prefix, 1)
        return prefix + name

    tuned = {renamed(name): weight for name, weight in content.items()}
    plan = pair(checkpoint("a", content, model_type="llama"), checkpoint("b", tuned))
    assert names(plan) == sorted(content)
    assert plan.unpaired == ()


def test_two_tensors_of_one_canonical_name(checkpoint) -> None:
    content = {UP.format(0): tensor(4, 3)}
    tuned = {**content, "module." + UP.format(0): tensor(4, 3, seed=1)}
    plan = pair(checkpoint("a", content), checkpoint("b", tuned))
    assert len(plan.pairs) == 1
    reason = f"{UP.format(0)} is {UP.format(0)} already"
    assert plan.unpaired == (Unpaired("tuned", "module." + UP.format(0), (4, 3), reason),)


class TestTiedHeads:
    CONTENT = {EMBED: tensor(8, 3), NORM: tensor(3)}  # noqa: RUF012  (never changed)

    def plan(self, checkpoint, base: bool, tuned: bool, base_tied: bool | None, tuned_tied: bool | None) -> Plan:
        """A plan where each side stores its head or not and says that it is tied or not."""
        made = []
        for label, stored, tied in (("a", base, base_tied), ("b", tuned, tuned_tied)):
            head = {HEAD: tensor(8, 3, seed=5)} if stored else {}
            config = {} if tied is None else {"model_type": "qwen3", "tie_word_embeddings": tied}
            made.append(checkpoint(label, {**self.CONTENT, **head}, **config))
        return pair(*made)

    @pytest.mark.parametrize(
        ("base", "tuned", "skipped"),
        [(0, 0, []), (1, 0, ["base"]), (0, 1, ["tuned"]), (1, 1, ["base", "tuned"])],
    )
    def test_tied_on_both_sides_is_counted_once(self, checkpoint, base: bool, tuned: bool, skipped: list[str]) -> None:
        plan = self.plan(checkpoint, base, tuned, True, True)
        assert names(plan) == [EMBED, NORM]
        assert [item.side for item in plan.unpaired] == skipped
        assert all(item.harmless and "tied to model.embed_tokens.weight" in item.reason for item in plan.unpaired)

    def test_untied_on_both_sides_is_a_pair(self, checkpoint) -> None:
        plan = self.plan(checkpoint, True, True, False, False)
        assert names(plan) == [HEAD, EMBED, NORM]
        assert plan.unpaired == ()

    @pytest.mark.parametrize("stored", [False, True])
    def test_untied_by_the_tune_compares_with_the_embedding(self, checkpoint, stored: bool) -> None:
        plan = self.plan(checkpoint, stored, True, True, False)
        assert names(plan) == [HEAD, EMBED, NORM]
        before, after = plan.pairs[0].load()
        assert torch.equal(before, self.CONTENT[EMBED])
        assert torch.equal(after, tensor(8, 3, seed=5))
        assert (plan.pairs[0].place.kind, plan.pairs[1].place.kind) == ("head", "embed")
        assert len(plan.unpaired) == stored

    def test_tied_by_the_tune_compares_with_the_embedding(self, checkpoint) -> None:
        plan = self.plan(checkpoint, True, False, False, True)
        before, after = plan.pairs[0].load()
        assert torch.equal(before, tensor(8, 3, seed=5))
        assert torch.equal(after, self.CONTENT[EMBED])

    def test_a_side_without_config_borrows_the_other_one(self, checkpoint) -> None:
        plan = self.plan(checkpoint, False, True, None, True)
        assert names(plan) == [EMBED, NORM]
        assert [item.side for item in plan.unpaired] == ["tuned"]

    def test_an_untied_head_that_is_missing_is_reported(self, checkpoint) -> None:
        plan = self.plan(checkpoint, False, True, False, False)
        assert names(plan) == [EMBED, NORM]
        assert plan.unpaired == (Unpaired("tuned", HEAD, (8, 3), f"the base checkpoint has no {HEAD}"),)

    def test_nothing_known_and_the_head_absent_on_one_side_means_tied(self, checkpoint) -> None:
        plan = self.plan(checkpoint, False, True, None, None)
        assert names(plan) == [HEAD, EMBED, NORM]
        assert torch.equal(plan.pairs[0].load()[0], self.CONTENT[EMBED])


def test_a_padded_vocabulary_is_compared_on_its_common_rows(checkpoint) -> None:
    base = {EMBED: tensor(10, 3), HEAD: tensor(10, 3, seed=1)}
    tuned = {EMBED: tensor(12, 3, seed=2), HEAD: tensor(8, 3, seed=3)}
    plan = pair(checkpoint("a", base, model_type="llama"), checkpoint("b", tuned, model_type="llama"))
    assert {made.name: made.shape for made in plan.pairs} == {EMBED: (10, 3), HEAD: (8, 3)}
    for made in plan.pairs:
        before, after = made.load()
        assert torch.equal(before, base[made.name][: made.shape[0]])
        assert torch.equal(after, tuned[made.name][: made.shape[0]])
        assert made.nbytes == 2 * made.count * 2
    assert plan.unpaired == (
        Unpaired("base", HEAD, (2, 3), "rows 8 to 9 of the vocabulary have no partner; the first 8 are compared"),
        Unpaired("tuned", EMBED, (2, 3), "rows 10 to 11 of the vocabulary have no partner; the first 10 are compared"),
    )


def test_shapes_that_differ_are_listed_on_both_sides(checkpoint) -> None:
    base = {UP.format(0): tensor(4, 3), EMBED: tensor(8, 3), NORM: tensor(3)}
    tuned = {UP.format(0): tensor(5, 3), EMBED: tensor(8, 4), NORM: tensor(3)}
    plan = pair(checkpoint("a", base), checkpoint("b", tuned))
    assert names(plan) == [NORM]
    assert [(item.side, item.tensor) for item in plan.unpaired] == [
        ("base", EMBED), ("tuned", EMBED), ("base", UP.format(0)), ("tuned", UP.format(0)),
    ]  # fmt: skip
    assert plan.unpaired[2].reason == "shapes differ: [4, 3] here, [5, 3] on the other side"


def test_buffers_and_integers_are_skipped_with_a_reason(checkpoint) -> None:
    content = {
        NORM: tensor(3),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "steps": torch.tensor([3]),
    }
    plan = pair(checkpoint("a", content), checkpoint("b", content))
    assert names(plan) == [NORM]
    assert [(item.side, item.tensor, item.reason) for item in plan.unpaired] == [
        (side, name, reason)
        for side in ("base", "tuned")
        for name, reason in (
            ("model.layers.0.self_attn.rotary_emb.inv_freq", "a constant stored beside the weights"),
            ("steps", "I64 values are not weights"),
        )
    ]
    assert all(item.harmless for item in plan.unpaired)


def test_unknown_names_pair_by_name_and_are_folded_to_two_axes(checkpoint) -> None:
    content = {"thing.weight": tensor(4, 3, 2), "thing.gain": tensor(1).reshape(()), "mixer.A_log": tensor(7)}
    plan = pair(checkpoint("a", content, model_type="unheard_of"), checkpoint("b", content, model_type="unheard_of"))
    assert {made.name: made.shape for made in plan.pairs} == {
        "thing.weight": (4, 6), "thing.gain": (1,), "mixer.A_log": (7,),
    }  # fmt: skip
    assert {made.place.kind for made in plan.pairs} == {"other"}
    assert not any(made.place.linear for made in plan.pairs)
    for made in plan.pairs:
        assert torch.equal(made.load()[0], content[made.name].reshape(made.shape))


def test_no_common_tensor_is_an_error(checkpoint) -> None:
    a, b = checkpoint("a", {"x": tensor(3)}), checkpoint("b", {"y": tensor(3)})
    message = r"cannot compare .* with .*: no tensor of one .* \(first names: 'x' and 'y'\); check that the second is"
    with pytest.raises(InputError, match=message):
        pair(a, b)


def test_tensors_of_one_side_only(checkpoint) -> None:
    a = checkpoint("a", {NORM: tensor(3), UP.format(0): tensor(4, 3)})
    b = checkpoint("b", {NORM: tensor(3), UP.format(1): tensor(4, 3)})
    assert pair(a, b).unpaired == (
        Unpaired("base", UP.format(0), (4, 3), f"the tuned checkpoint has no {UP.format(0)}"),
        Unpaired("tuned", UP.format(1), (4, 3), f"the base checkpoint has no {UP.format(1)}"),
    )
