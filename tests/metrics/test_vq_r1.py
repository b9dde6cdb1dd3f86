"""VQ-R1: what counts as a rating, what becomes of answers without one, and greedy answers of a true Qwen2.5-VL."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from metrics.base import Batch, Prompt, UserError
from metrics.encoders.vq_r1 import NEW_TOKENS, RETRY_TOKENS, rate
from metrics.vq_r1 import QUESTION, VisualQualityR1, read_rating
from metrics.vqa.qwen import VisionLanguageModel

PROMPTS = [Prompt(text=str(number)) for number in range(4)]


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("<answer>3.75</answer>", 3.75),
        ("<answer> 5 </answer>", 5.0),
        ("<answer>1.00</answer>", 1.0),
        ("<answer>2</answer> or rather <answer>\n4.25\n</answer>", 4.25),  # the last block
        ("score 3.5", 3.5),  # no block: the whole text
        ("The rating is 4.", 4.0),
        ("<answer>4.1", 4.1),
        ("<answer>4/5</answer>", None),
        ("<answer>4 / 5</answer>", None),
        ("<answer>-2</answer>", None),
        ("<answer>−2</answer>", None),
        ("<answer>+3</answer>", None),
        ("<answer>7.1</answer>", None),
        ("<answer>0.99</answer>", None),
        ("<answer>5.01</answer>", None),
        ("<answer>3.5.1</answer>", None),
        ("<answer>3,5</answer>", None),
        ("<answer>3 to 4</answer>", None),
        ("<answer>good</answer> 4", None),
        ("<answer></answer>", None),
        ("none", None),
        ("", None),
    ],
)
def test_only_one_plain_number_on_the_scale_is_a_rating(answer: str, rating: float | None) -> None:
    assert read_rating(answer) == rating


def summarise(answers: list[str]) -> np.ndarray:
    metric, batch = VisualQualityR1(), Batch(prompts=PROMPTS[: len(answers)], seeds=[0] * len(answers))
    rows = metric.measure({metric.features[0]: answers}, batch)
    values_N = metric.summarise(rows, batch.prompts).per_image_N
    assert values_N is not None
    return values_N


def test_an_unreadable_answer_is_marked_and_never_a_number() -> None:
    np.testing.assert_array_equal(summarise(["<answer>4</answer>", "no", "<answer>2.5</answer>"]), [4, np.nan, 2.5])


def test_no_rating_at_all_is_an_error_and_not_an_empty_mean() -> None:
    with pytest.raises(UserError, match=r"none of 2 answers holds a rating \(first: 'no'\)"):
        summarise(["no", "4/5"])


def test_an_unreadable_answer_is_asked_once_more_with_more_words() -> None:
    said = {(0, NEW_TOKENS): "<answer>4</answer>", (1, NEW_TOKENS): "well", (1, RETRY_TOKENS): "<answer>2</answer>",
            (2, NEW_TOKENS): "well", (2, RETRY_TOKENS): "well, well"}  # fmt: skip
    asked = []

    def say(image: np.ndarray, question: str, tokens: int) -> str:
        assert question == QUESTION
        asked.append((int(image[0, 0, 0]), tokens))
        return said[asked[-1]]

    images = [np.full((2, 2, 3), number, np.uint8) for number in range(3)]
    assert rate(say, images) == ["<answer>4</answer>", "<answer>2</answer>", "well, well"]
    assert asked == list(said)


class LettersProcessor:
    """Stands for Qwen2.5-VL's processor: fixed patches and ids, and what it was asked with."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: ",".join(str(int(x)) for x in ids))

    def apply_chat_template(self, turns: Sequence[Any], **options: Any) -> Any:
        from transformers import BatchFeature

        self.asked.append((turns, options))
        generator = torch.Generator().manual_seed(0)
        return BatchFeature(
            {
                "input_ids": torch.tensor([[5, 6, 60, 7]]),
                "attention_mask": torch.ones(1, 4, dtype=torch.long),
                "mm_token_type_ids": torch.tensor([[0, 0, 1, 0]]),
                "pixel_values": torch.randn(4, 3 * 2 * 14 * 14, generator=generator),
                "image_grid_thw": torch.tensor([[1, 2, 2]]),
            }
        )


def tiny_model(folder: Path) -> VisionLanguageModel:
    """Return a random Qwen2.5-VL of the true class, saved with a generation config that samples."""
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
              "fullatt_block_indexes": [0]}  # fmt: skip
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=60, vision_start_token_id=61)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=50, repetition_penalty=1.05, eos_token_id=63, pad_token_id=62
    )
    model.save_pretrained(folder)
    weights = SimpleNamespace(check=lambda: None, folder=lambda: folder, mend="fetch them")
    made = VisionLanguageModel(weights, torch.device("cpu"))  # type: ignore[arg-type]
    made.__dict__["_processor"] = LettersProcessor()
    return made


def test_the_model_decodes_greedily_whatever_its_folder_says(tmp_path: Path) -> None:
    made = tiny_model(tmp_path)
    image = np.zeros((28, 28, 3), np.uint8)
    answers = {made.say(image, QUESTION, 6) for _ in range(4)}
    assert len(answers) == 1
    (answer,) = answers
    assert 1 <= len(answer.split(",")) <= 6
    turns, options = made._processor.asked[0]
    assert turns[0][0]["content"][1] == {"type": "text", "text": QUESTION}
    assert options["add_vision_id"] is True and options["add_generation_prompt"] is True
