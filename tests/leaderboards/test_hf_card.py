"""Model cards: what huggingface_hub reads back is what the result states."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, metadata_load

from leaderboards.__main__ import main
from leaderboards.hf_card import card_text, write_card
from leaderboards.schema import ResultError
from leaderboards.store import read_entry
from tests.leaderboards.conftest import evidence_table, result_of

Add = Callable[..., Path]


def test_the_hub_s_parser_reads_every_value_back(add: Add) -> None:
    result = read_entry(add("student", model={"trained_on": ["score"]})).result
    found = ModelCard(card_text(result)).data.eval_results
    stated = result.tasks[0].metrics
    assert {one.metric_type: one.metric_value for one in found} == {name: m.value for name, m in stated.items()}
    by_type = {one.metric_type: one for one in found}
    assert by_type["score"].metric_args["trained_on"] and "(trained on)" in by_type["score"].metric_name
    assert not by_type["judge"].metric_args["trained_on"]
    assert by_type["judge"].metric_args["interval_95"] == [stated["judge"].low, stated["judge"].high]
    assert by_type["judge"].metric_args["evidence_sha256"] == result.evidence.digest  # type: ignore[union-attr]


def test_text_and_other_metadata_of_a_readme_stay_and_old_results_go(add: Add, tmp_path: Path) -> None:
    result = read_entry(add("student")).result
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: mit\ntags:\n- mine\nmodel-index:\n- name: old\n  results: []\n---\n# My model\n")
    assert write_card(result, tmp_path) == path
    metadata = metadata_load(path)
    assert metadata["license"] == "mit" and metadata["tags"][0] == "mine" and "fewstep-bench" in metadata["tags"]
    assert [one["name"] for one in metadata["model-index"]] == ["student"]
    assert path.read_text().endswith("# My model\n")
    before = path.read_bytes()
    write_card(result, tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("status", ["partial", "synthetic"])
def test_what_is_not_ranked_is_not_put_on_a_card(status: str) -> None:
    with pytest.raises(ResultError, match=status):
        card_text(result_of(evidence_table(), status=status))


def test_broken_metadata_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\na: [1\n---\n")
    with pytest.raises(ResultError, match="not valid YAML"):
        write_card(result_of(evidence_table()), tmp_path)


def test_the_command_prints_or_writes(add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add("student")
    board = ["--results", str(tmp_path / "results")]
    assert main(["publish", "--hf-card", "student", *board]) == 0
    assert "model-index:" in capsys.readouterr().out
    assert main(["publish", "--hf-card", "student", "--to", str(tmp_path / "ckpt"), *board]) == 0
    assert (tmp_path / "ckpt" / "README.md").is_file()
    assert main(["publish", *board]) == 2
    assert "--to is missing" in capsys.readouterr().err
