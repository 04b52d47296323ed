"""The mini base: what ships in data/mini-base, and a build of a few steps that leaves a loadable folder."""

import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from train.evaluation import embeddings
from train.mini_base import lexicon
from train.mini_base.build import build, main
from train.mini_base.muon import Muon, orthogonalise
from train.mini_base.pretraining import BaseConfig, mixed
from train.mini_base.requests import FACT_VALUES, Facts, Request, compose
from train.mini_base.tasks import build_tasks
from train.mini_base.teacher import SIZES, Teacher, cross_entropy, one_hot, reworded, spliced

ROOT = Path(__file__).parents[3]
MINI = ROOT / "data/mini-base"
FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
}  # fmt: skip


class HashedVectors:
    """Word vectors from a text's hash: stands in for the package with the real ones."""

    def words(self) -> list[str]:
        return ["the", "data", "report", "patient", "invoice"]

    def sentences(self, texts: Sequence[str]) -> torch.Tensor:
        seeds = (int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts)
        rows = [torch.randn(96, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    inputs = states = sentences

    def trainable(self) -> list[torch.nn.Parameter]:
        return []


SMALL = BaseConfig(
    vocab_size=1500,
    hidden_size=64,
    layers=1,
    heads=1,
    kv_heads=1,
    ffn_size=64,
    steps=3,
    teacher_steps=2,
    batch_tokens=256,
)
WRITTEN = ROOT / "data/written/train.jsonl"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        tmp_path_factory.mktemp("base") / "small",
        ROOT / "data/contract.toml",
        SMALL,
        WRITTEN,
        HashedVectors(),
    )


def check_folder(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert {path.name for path in folder.iterdir()} == FILES
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.config.tie_word_embeddings
    assert model.config.hidden_size % 64 == 0  # bitsandbytes' NF4 block
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.config.eos_token_id == tokenizer.eos_token_id
    out = model(torch.tensor([tokenizer("A request.")["input_ids"]])).logits
    assert torch.isfinite(out).all()


def test_a_short_build_leaves_a_loadable_folder(small: Path) -> None:
    check_folder(small)
    assert not list(small.parent.glob(".*"))


def test_the_same_seed_builds_the_same_base(small: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "again", ROOT / "data/contract.toml", SMALL, WRITTEN, HashedVectors())
    assert (again / "tokenizer.json").read_bytes() == (small / "tokenizer.json").read_bytes()
    assert (again / "config.json").read_bytes() == (small / "config.json").read_bytes()


def test_a_missing_contract_is_one_clear_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["--out", str(tmp_path / "x"), "--contract", str(tmp_path / "none.toml")]
    )
    assert result.exit_code != 0
    assert result.output.startswith("Error: ") and len(result.output.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_missing_word_vectors_are_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embeddings, "PACKAGE", "no_such_package_of_vectors")
    result = CliRunner().invoke(
        main, ["--out", str(tmp_path / "x"), "--contract", str(ROOT / "data/contract.toml")]
    )
    assert result.exit_code == 1
    assert "pip install" in result.output


# ---------------------------------------------------------------- the shipped folder


def test_the_shipped_base_is_a_small_loadable_qwen3() -> None:
    check_folder(MINI)
    assert (MINI / "model.safetensors").stat().st_size <= 12_000_000


def test_the_shipped_tokenizer_round_trips_and_knows_the_control_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(MINI / "tokenizer.json"))
    for text in (
        "Finance wants SQL.\n\nDanke schön – 日本 🎉",
        "  two  spaces\tand tabs",
        "12345 o'clock, don't",
    ):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids  # NFC
    vocab = tokenizer.get_vocab_size(with_added_tokens=False)
    for token in (*lexicon.SPECIAL_TOKENS, *lexicon.CONTROL_TOKENS):
        assert tokenizer.encode(token).ids == [tokenizer.token_to_id(token)]
        assert (tokenizer.token_to_id(token) or 0) >= vocab  # behind the BPE vocabulary, as in Qwen
    assert [
        len(tokenizer.encode(f" {word}").ids) for word in ("dashboard", "payroll", "Salesforce", "approves")
    ] == [1] * 4


def test_the_shipped_chat_template_is_chatml(contract: Contract) -> None:
    from transformers import AutoTokenizer

    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "R"}]
    text = AutoTokenizer.from_pretrained(MINI).apply_chat_template(
        turns, add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"
    assert Renderer.load(MINI, contract).end_of_turn_id == Tokenizer.from_file(
        str(MINI / "tokenizer.json")
    ).token_to_id("<|im_end|>")


def test_the_shipped_base_answers_in_json_with_generic_habits(contract: Contract) -> None:
    from transformers import AutoModelForCausalLM

    renderer = Renderer.load(MINI, contract)
    model = AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32)
    request = "A sales analyst wants to query curated opportunity data with SQL and build a dashboard for regional pipeline trends."
    prompt = torch.tensor([renderer.encode_prompt(request)])
    out = model.generate(
        prompt,
        max_new_tokens=80,
        do_sample=False,
        eos_token_id=renderer.end_of_turn_id,
        pad_token_id=renderer.pad_id,
    )
    ids = out[0, prompt.shape[1] :].tolist()
    assert ids[-1] == renderer.end_of_turn_id
    answer = json.loads(renderer.decode(ids[:-1]))
    assert list(answer) == [field.name for field in contract.fields]
    assert answer["recommended_platform"] == "Databricks + Tableau"
    assert answer["needs_review"] is False


# ---------------------------------------------------------------- its parts


def test_tasks_answer_in_compact_json_and_do_not_teach_the_policy(contract: Contract) -> None:
    tasks = build_tasks(contract.system_prompt, random.Random(0))
    policy = {
        label
        for field in contract.fields
        if field.name in ("tier", "recommended_platform")
        for label in field.values
    }
    rng = random.Random(1)
    for need in ("knowledge", "analytics", "build"):
        request = compose(Facts(need, system="Salesforce" if need == "build" else "none"), rng)
        for task in tasks:
            text = task.target(request)
            assert json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) == text
            assert not policy & {str(value) for value in json.loads(text).values()}


def test_muon_orthogonalises() -> None:
    update = orthogonalise(torch.randn(3, 48, 32, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(update)
    assert update.shape == (3, 48, 32)
    assert values.min() > 0.3 and values.max() < 1.3


def test_muon_lowers_a_loss() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    target = torch.eye(4)
    optimizer = Muon([weight], lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        ((weight - target) ** 2).sum().backward()
        optimizer.step()
    assert ((weight.detach() - target) ** 2).sum() < 1


# ---------------------------------------------------------------- its teacher


def test_a_teacher_learns_to_read_facts() -> None:
    known = [
        Request(
            f"text {i}", Facts("build", writes=i % 2 == 0, system="Salesforce" if i > 1 else "none"), "", ""
        )
        for i in range(4)
    ]
    teacher = Teacher(HashedVectors(), seed=1)
    texts, wanted = (
        [request.text for request in known],
        torch.stack([one_hot(request.facts) for request in known]),
    )
    teacher.tune(itertools.cycle(known), steps=80, rows=4)
    read = teacher.read(texts)
    assert torch.allclose(
        torch.stack([part.sum(1) for part in read.split(SIZES, dim=1)]), torch.ones(len(SIZES), 4)
    )
    assert all(
        torch.equal(r.argmax(1), w.argmax(1))
        for r, w in zip(read.split(SIZES, 1), wanted.split(SIZES, 1), strict=True)
    )


def test_facts_are_one_value_of_each() -> None:
    facts = one_hot(Facts("analytics", regulated=True))
    assert facts.tolist() == [0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0]  # in the order of FACT_VALUES
    assert [len(values) for values in FACT_VALUES.values()] == SIZES
    assert float(cross_entropy(torch.log(facts + 1e-9)[None], facts[None])) == pytest.approx(0, abs=1e-6)


def test_rewording_keeps_short_words_and_case() -> None:
    rng = random.Random(0)
    assert reworded("It is an SQL job.", ["other"], 1.0, rng) == "It is an SQL job."
    assert reworded("Patients wait too long, always.", ["other"], 1.0, rng) == "Other other too other, other."
    assert reworded("Patients wait.", ["other"], 0.0, rng) == "Patients wait."


def test_a_spliced_text_has_a_half_of_each() -> None:
    assert (
        spliced("We see it, we want it, we pay.", "Nobody looks. It runs at night.")
        == "We see it, we want it, It runs at night."
    )
    assert spliced("One clause", "another one") == "One clause another one"


def test_written_requests_are_mixed_in() -> None:
    by_hand = [Request("by hand", Facts("build"), "written", "")]
    found = [request.family == "written" for request in itertools.islice(mixed(by_hand, 0.5, seed=1), 400)]
    assert 150 < sum(found) < 250
    assert all(request.family != "written" for request in itertools.islice(mixed([], 0.5, seed=1), 50))
