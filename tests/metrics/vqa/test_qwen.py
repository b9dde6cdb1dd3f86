"""The local answerer on shrunken random Qwen models of transformers' own classes, made here, read from a folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.base import UserError
from metrics.vqa.answerer import YES_OR_NO, Answer
from metrics.vqa.qwen import VisionLanguageModel
from metrics.weights import WeightFolder

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>")  # fmt: skip
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "{% if add_vision_id %}Picture {{ loop.index }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAIRS = [(48, 64, "Is it red?"), (96, 64, "How many cats are there? Answer in one word."), (64, 64, "Cat?")]
MEND = "python -m bring.them"


def tokenizer() -> Any:
    """Return a Qwen2Tokenizer over bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocabulary = {token: number for number, token in enumerate([SPECIAL[0], *sorted(ByteLevel.alphabet())])}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    return made


def model_and_processor(kind: str) -> tuple[Any, Any]:
    import transformers as library

    words = tokenizer()
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    text = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    common: dict[str, Any] = {
        "image_token_id": ids["image_pad"], "video_token_id": ids["video_pad"],
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": words.convert_tokens_to_ids("<|vision_end|>"),
    }  # fmt: skip
    if kind == "qwen2.5":
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
                  "fullatt_block_indexes": [1], "window_size": 56}  # fmt: skip
        config = library.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **common)
        network, processor = library.Qwen2_5_VLForConditionalGeneration, library.Qwen2_5_VLProcessor
        patches = {"patch_size": 14, "size": {"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28}}
    else:
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
                  "deepstack_visual_indexes": [0], "num_position_embeddings": 16}  # fmt: skip
        config = library.Qwen3VLConfig(text_config=text | {"head_dim": 16}, vision_config=vision, **common)
        network, processor = library.Qwen3VLForConditionalGeneration, library.Qwen3VLProcessor
        patches = {"patch_size": 16, "size": {"shortest_edge": 32 * 32, "longest_edge": 16 * 32 * 32}}
    torch.manual_seed(0)
    model = network(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # so that answers depend on pictures
    videos = library.Qwen3VLVideoProcessor() if kind == "qwen3" else library.Qwen2VLVideoProcessor()
    images = library.Qwen2VLImageProcessor(**patches)
    return model, processor(images, words, videos, chat_template=CHAT)


@pytest.fixture(scope="module", params=["qwen2.5", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    model, processor = model_and_processor(request.param)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def answerer(folder: Path, batch_size: int = 16) -> VisionLanguageModel:
    return VisionLanguageModel(WeightFolder(path=folder, mend=MEND), torch.device("cpu"), batch_size)


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width, _ in PAIRS]


def ask(folder: Path, batch_size: int = 16, images: list[np.ndarray] | None = None) -> list[Answer]:
    questions = [text for *_, text in PAIRS]
    return answerer(folder, batch_size).answer(images or pictures(), questions, [YES_OR_NO] * len(PAIRS))


def masses(answers: list[Answer]) -> np.ndarray:
    return np.array([answer.masses for answer in answers])


def by_hand(folder: Path, picture: np.ndarray, question: str) -> torch.Tensor:
    """Return P(first token) [V] from a text put together here: no chat template, no batch, no padding, all logits."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    text = (
        f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = processor(images=[Image.fromarray(picture)], text=[text], return_tensors="pt")
    with torch.no_grad():
        logits_L = AutoModelForImageTextToText.from_pretrained(folder).eval()(**inputs).logits[0, -1]
    exponents = (logits_L.double() - logits_L.max()).exp()
    return exponents / exponents.sum()


def test_probabilities_are_those_of_a_forward_by_hand(folder: Path) -> None:
    told = ask(folder)
    for answer, picture, (*_, question) in zip(told, pictures(), PAIRS, strict=True):
        wanted = by_hand(folder, picture, question)
        words = tokenizer()
        ids = [words.encode(text, add_special_tokens=False)[0] for text in YES_OR_NO]
        assert answer.masses == pytest.approx([float(wanted[i]) for i in ids], abs=1e-5)
        assert answer.text == words.decode([int(wanted.argmax())])
    assert masses(told).max() > 1e-4


def test_what_is_said_is_the_greedy_answer_to_a_numbered_picture_and_the_question(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, token by token: the text put together here, the likeliest token added, the whole read again."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from metrics.vq_r1 import QUESTION

    processor, model = (
        AutoProcessor.from_pretrained(folder),
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
    )
    picture = pictures()[0]
    text = (
        "<|im_start|>user\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>" + QUESTION + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    inputs = dict(processor(images=[Image.fromarray(picture)], text=[text], return_tensors="pt"))
    ids_1L = inputs["input_ids"]
    for _ in range(4):
        with torch.no_grad():
            token = model(**inputs).logits[0, -1].argmax().view(1, 1)
        for name, value in (("input_ids", token), ("attention_mask", torch.ones_like(token))):
            inputs[name] = torch.cat([inputs[name], value], dim=1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(token)], dim=1)
    wanted = processor.tokenizer.decode(inputs["input_ids"][0, ids_1L.shape[1] :], skip_special_tokens=True)
    made, read = answerer(folder), []
    generate = made._model.generate
    monkeypatch.setattr(made._model, "generate", lambda **asked: read.append(asked["input_ids"]) or generate(**asked))
    assert made.say(picture, QUESTION, 4) == wanted
    assert torch.equal(read[0], ids_1L)


def test_a_batch_answers_as_its_pairs_do_one_by_one(folder: Path) -> None:
    together, alone = ask(folder), ask(folder, batch_size=1)
    assert np.abs(masses(together) - masses(alone)).max() < 1e-5
    assert [answer.text for answer in together] == [answer.text for answer in alone]


def test_answers_depend_on_the_picture_and_the_question(folder: Path) -> None:
    told = masses(ask(folder))
    assert (
        np.abs(told - masses(ask(folder, images=[255 - picture for picture in pictures()]))).max(axis=1).min() > 1e-6
    )
    same = answerer(folder).answer([pictures()[0]] * 2, ["Cat?", "Dog?"], [YES_OR_NO] * 2)
    assert np.abs(np.subtract(*masses(same))).max() > 1e-6


def copied(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_truncated_weights_are_one_clear_line(folder: Path, tmp_path: Path) -> None:
    file = copied(folder, tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"truncated or damaged.*{MEND}"):
        ask(tmp_path)


def test_weights_of_another_size_are_one_clear_line(folder: Path, tmp_path: Path) -> None:
    config = copied(folder, tmp_path) / "config.json"
    table = json.loads(config.read_text())
    table["text_config"]["intermediate_size"] = 64
    config.write_text(json.dumps(table))
    with pytest.raises(UserError, match=rf"do not fit.*{MEND}"):
        ask(tmp_path)


def test_weights_that_lack_a_tensor_are_refused_instead_of_drawn_at_random(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = copied(folder, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("layers.1.mlp.down_proj.weight"))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"do not fit.*layers\.1\.mlp\.down_proj\.weight.*{MEND}"):
        ask(tmp_path)


def test_a_folder_of_no_picture_reading_model_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    config = copied(folder, tmp_path) / "config.json"
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=rf"bert.*{MEND}"):
        ask(tmp_path)
