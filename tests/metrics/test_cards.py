from pathlib import Path

import pytest
from huggingface_hub import constants

from metrics import selfcheck
from metrics.__main__ import main
from metrics.base import available, make
from metrics.cards import page
from metrics.features import FeatureRunner
from metrics.selfcheck import Check, check_metric, near


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))


BUILT_IN = [identity for identity, made in available().items() if made.__module__.startswith("metrics.")]


@pytest.mark.parametrize("identity", BUILT_IN)
def test_every_card_says_all_that_a_reader_must_know(identity: str) -> None:
    metric = make(identity)
    card, runner = metric.card, FeatureRunner(metric.features)
    texts = ["title", "unit", "source", "description", "comparable", "fooled_by", "preprocessing", "citation"]
    texts += ["tensor_gap"] if card.differentiable else []
    texts += ["long_prompts"] if any(runner.truncates(key) for key in metric.features) else []
    assert [name for name in texts if not getattr(card, name).strip()] == []
    assert card.version >= 1
    assert card.reward_divisor > 0


@pytest.mark.parametrize("identity", BUILT_IN)
def test_every_page_renders_its_card(identity: str) -> None:
    card, text = make(identity).card, page(identity)
    assert text.startswith(f"# {card.title} (`{identity}`)\n\n{card.description}\n")
    for part in (card.comparable, card.fooled_by, card.preprocessing, card.long_prompts, card.source, card.citation):
        assert part in text
    assert "\n\n\n" not in text
    assert not any(line.rstrip() != line for line in text.splitlines())


def test_a_page_lists_published_weights_with_licence_and_digest() -> None:
    text = page("aesthetic")
    assert "sac+logos+ava1-l14-linearMSE.pth` | 3.7 MB | `21dd590f3ccdc646" in text
    assert "OpenAI CLIP ViT-L/14" in text  # the head reads its embedding
    assert "`python -m metrics.weights fetch laion-aesthetic-v2`" in text
    assert "not known yet: results are `synthetic`" in page("pick_score")


def test_a_page_shows_the_selfcheck_of_the_weights_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Not run with the weights of this machine: `python -m metrics.selfcheck micro_aesthetic`" in page(
        "micro_aesthetic"
    )
    check = Check("micro_aesthetic", "published", "paper", lambda: [near("a number", 2.5, 2, tolerance=0.01)])
    monkeypatch.setattr(selfcheck, "_CHECKS", {"micro_aesthetic": [check]})
    check_metric("micro_aesthetic")
    assert "| published | a number | 2.5 | 2 ± 0.01 | **wrong** |" in page("micro_aesthetic")


def test_the_command_shows_or_writes_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", "micro_diversity"]) == 0
    assert capsys.readouterr().out == page("micro_diversity") + "\n"
    assert main(["card", "micro_diversity", "shapes_geneval", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "shapes_geneval.md").read_text() == page("shapes_geneval")
    assert main(["card", "micro_diversty"]) == 2
    assert "did you mean 'micro_diversity'" in capsys.readouterr().err


def test_the_list_names_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(identity in shown for identity in available())
