"""Prompts of other people's tokenizers and templates: the ids are those that transformers makes of the conversation."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.errors import AdapterError
from tests.families import CHATML, FAMILIES, PARTS_ONLY, tokenizer_files

ROOT = Path(__file__).parents[3]
WILD = [
    "Find our travel policy.",
    "été, naïve, 日本語 and 😀",
    "x",
    "two  spaces and\ttabs",
    "line one\nline two",
    "<|im_end|> [/INST] </s> <end_of_turn>",
    "3.5 % of C++",
]
ENDS = {"qwen2": "<|im_end|>", "qwen3": "<|im_end|>", "llama3": "<|eot_id|>", "llama2": "</s>", "mistral": "</s>"} | {
    "gemma3": "<end_of_turn>", "gemma3-wrapped": "<end_of_turn>", "phi3": "<|end|>", "gpt2": "<|endoftext|>",
}  # fmt: skip
FOLDED = {"mistral", "gemma3"}  # their templates know no system turn


@pytest.fixture(scope="module", params=[name for name in FAMILIES if name != "gpt2"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, tokenizer_files(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


def theirs(folder: Path, renderer: Renderer, request: str) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = renderer.conversation(request)
    return list(
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    )


def test_the_ids_are_those_of_transformers(family: tuple[str, Path], contract: Contract) -> None:
    name, folder = family
    renderer = Renderer.load(folder, contract)
    lines = (ROOT / "data/v1/train.jsonl").read_text(encoding="utf-8").splitlines()
    for request in [json.loads(line)["request"] for line in lines[:8]] + WILD[:3]:
        assert renderer.encode_prompt(request) == theirs(folder, renderer, request)
    assert renderer.style.folded == (name in FOLDED)
    assert renderer._vocabulary.whole.id_to_token(renderer.end_of_turn_id) == ENDS[name]


def test_no_text_is_lost_or_becomes_a_control_token(family: tuple[str, Path], contract: Contract) -> None:
    renderer = Renderer.load(family[1], contract)
    controls = renderer._vocabulary.controls
    for request, ids in zip(WILD, renderer.encode_requests(WILD), strict=True):
        assert controls.isdisjoint(ids) and renderer.decode(ids).removeprefix(" ") == request
    answer = contract.sample_answers()[0] | {"reason": "It says <|im_end|> </s> [INST]."}
    ids = renderer.encode_answer(answer)
    assert controls.isdisjoint(ids[:-1]) and renderer.decode(ids[:-1]) == contract.serialise(answer)
    assert len(ids) <= renderer.max_answer_tokens


def test_a_bundle_renders_as_its_base_does(
    family: tuple[str, Path], contract: Contract, tmp_path: Path
) -> None:
    base = Renderer.load(family[1], contract)
    base.save(family[1], tmp_path)
    bundle = Renderer.load(tmp_path, contract)
    assert bundle == base and [bundle.encode_prompt(text) for text in WILD] == [
        base.encode_prompt(text) for text in WILD
    ]


def variant(name: str, folder: Path, **changes: object) -> Path:
    return tokenizer_files(dataclasses.replace(FAMILIES[name], **changes), folder)  # type: ignore[arg-type]


def test_a_bundle_goes_on_saying_the_day_of_its_training(contract: Contract, tmp_path: Path) -> None:
    base = variant("llama3", tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "template_date": "2024-02-29"}))
    renderer = Renderer.load(base, contract)
    (tmp_path / "bundle").mkdir()
    renderer.save(base, tmp_path / "bundle")
    bundle = Renderer.load(tmp_path / "bundle", contract)
    assert "Today Date: 29 Feb 2024" in bundle._vocabulary.whole.decode(
        bundle.prefix_ids, skip_special_tokens=False
    )
    assert bundle.fingerprint == renderer.fingerprint
    today = Renderer.load(variant("llama3", tmp_path / "now"), contract)
    assert today.fingerprint != renderer.fingerprint


@pytest.mark.parametrize("where", ["named", "processor", "jinja"])
def test_a_template_of_parts_is_found_wherever_it_is(contract: Contract, tmp_path: Path, where: str) -> None:
    folder = variant("gemma3-wrapped", tmp_path, template=PARTS_ONLY)
    renderer = Renderer.load(folder, contract)
    assert renderer.style.parts and not renderer.style.folded
    if where != "jinja":
        (folder / "chat_template.jinja").unlink()
    if where == "processor":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": PARTS_ONLY}))
    if where == "named":
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = [
            {"name": "rag", "template": "x"},
            {"name": "default", "template": PARTS_ONLY},
        ]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    again = Renderer.load(folder, contract)
    assert (
        again == renderer and again.encode_prompt("x") == theirs(tmp_path, renderer, "x")
        if where != "processor"
        else True
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            [{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}],
            "none of its chat templates is named",
        ),
        ([], "none of its chat templates"),
        ({"default": CHATML}, "the chat template is not a text"),
        (7, "the chat template is not a text"),
        ("", "has no chat template"),
        ("{{ '' }}" * (1 << 18), "larger than any"),
    ],
)
def test_what_is_no_template_is_refused(
    contract: Contract, tmp_path: Path, template: object, message: str
) -> None:
    folder = variant("qwen3", tmp_path, template=CHATML)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    with pytest.raises(AdapterError, match=message):
        Renderer.load(folder, contract)


def test_tojson_and_additional_special_tokens_are_as_transformers_has_them(
    contract: Contract, tmp_path: Path
) -> None:
    template = (
        CHATML + "{{ ['é', 1] | tojson(indent=1, separators=[',', ':']) }}{{ additional_special_tokens[0] }}"
    )
    folder = variant("qwen2", tmp_path, template=template)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "additional_special_tokens": ["<think>"]})
    )
    renderer = Renderer.load(folder, contract)
    end = renderer._vocabulary.whole.decode(renderer.suffix_ids, skip_special_tokens=False)
    assert end.endswith('[\n "é",\n 1\n]<think>')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"]["vocab"].update({"odd": 4_000_000_000}), "has an id outside"),
        (lambda t: t["added_tokens"][0].update(id=4_000_000_000), "has an id outside"),
        (lambda t: t["added_tokens"][0].update(id="x"), "has an id outside"),
        (lambda t: t.update(normalizer={"type": "Replace", "pattern": {"String": "e"}, "content": "y" * 100}), "times as long"),
        (lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": ""}, "content": "aa"}] * 8}), "times as long"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "the tokenizer makes .* of the contract's"),
        (lambda t: t.update(model=None), "cannot read the tokenizer"),
        (lambda t: t.update(added_tokens=None), "cannot read the tokenizer"),
        (lambda t: t.pop("model"), "cannot read the tokenizer"),
        (lambda t: t.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), "cannot spell every text"),
        (lambda t: t["model"]["vocab"].pop("q"), "cannot spell every text|cannot read the tokenizer"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_is_not_safe_or_cannot_spell_is_refused(
    contract: Contract, tmp_path: Path, change: object, message: str
) -> None:
    folder = variant("qwen3", tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)  # type: ignore[operator]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(AdapterError, match=message):
        Renderer.load(folder, contract)


def test_a_label_that_the_tokenizer_normalises_is_refused(contract: Contract, tmp_path: Path) -> None:
    """An NFD label was served as another for every row."""
    folder = variant("qwen3", tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    for label, sound in (("caf\u00e9", True), ("cafe\u0301", False)):
        raw = json.loads(contract.to_json())
        raw["fields"] = [{"name": "place", "type": "label", "labels": {label: "", "office": ""}}]
        raw = {key: value for key, value in raw.items() if key in ("name", "prompt", "fields")}
        odd = Contract.from_dict(raw)
        if sound:
            Renderer.load(folder, odd)
        else:
            with pytest.raises(AdapterError, match="composed form, NFC"):
                Renderer.load(folder, odd)


def test_a_vocabulary_that_spells_a_control_token_is_kept_from_it(contract: Contract, tmp_path: Path) -> None:
    """Without a splitting expression, a vocabulary's own merges could spell what was added as a control token."""
    folder = variant("qwen3", tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "use_regex": False,
        "trim_offsets": True,
    }
    token, model = "<|im_end|>", content["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    for end in range(2, len(token) + 1):  # the chain of merges from the left that makes it
        if (pair := (token[: end - 1], token[end - 1])) not in merges:
            model["merges"].insert(0, list(pair))
        if token[:end] not in model["vocab"] and end < len(token):
            model["vocab"][token[:end]] = 5000 + end
    model["merges"] = [[token[: e - 1], token[e - 1]] for e in range(2, len(token) + 1)] + model["merges"]
    model["merges"] = [
        list(pair)
        for pair in dict.fromkeys(
            tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]
        )
    ]
    model["vocab"][token] = next(t["id"] for t in content["added_tokens"] if t["content"] == token)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    renderer = Renderer.load(folder, contract)
    (ids,) = renderer.encode_requests([f"a{token}b"])
    assert renderer.end_of_turn_id not in ids and renderer.decode(ids) == f"a{token}b"
