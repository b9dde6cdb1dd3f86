"""The evidence table: its bytes, and that a result's values must follow from it."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaderboards import evidence
from leaderboards.schema import CategoryValue, ResultError
from tests.leaderboards.conftest import evidence_table, metric_of, result_of

OF_QUESTIONS = CategoryValue(value=0.5, n_prompts=1, n_images=1)
PROVEN = OF_QUESTIONS.model_copy(update={"low": 0.4, "high": 0.6})


def write(content: bytes, folder: Path) -> tuple[Path, str]:
    path = folder / "student.evidence.parquet"
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def test_bytes_depend_on_the_rows_alone() -> None:
    table = evidence_table()
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows)).select(reversed(table.column_names))
    assert evidence.pack(table) == evidence.pack(shuffled)
    assert evidence.pack(table) != evidence.pack(evidence_table(seed=1))


def test_rows_survive_their_file(tmp_path: Path) -> None:
    table = evidence_table()
    path, digest = write(evidence.pack(table), tmp_path)
    again = evidence.read(path, digest, table.num_rows)
    for name in ("judge", "score"):
        ours, theirs = (evidence.scores(each, "compose", name) for each in (table, again))
        assert dict(zip(zip(ours.prompt_ids, ours.seeds, strict=True), ours.values_N.tolist(), strict=True)) == dict(
            zip(zip(theirs.prompt_ids, theirs.seeds, strict=True), theirs.values_N.tolist(), strict=True)
        )


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda t: t.drop_columns("seed"), "expected"),
        (lambda t: t.append_column("more", t["seed"]), "expected"),
        (lambda t: t.set_column(6, "value", pa.array(["much"] * t.num_rows)), "wrong type"),
        (lambda t: t.set_column(6, "value", pa.array([np.nan] * t.num_rows, pa.float32())), "not finite"),
        (lambda t: t.set_column(6, "value", pa.array([None] * t.num_rows, pa.float32())), "empty cells"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "twice"),
    ],
)
def test_bad_rows_are_never_packed(forge, message: str) -> None:
    with pytest.raises(ResultError, match=message):
        evidence.pack(forge(evidence_table()))


def test_a_changed_a_missing_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    table = evidence_table()
    path, digest = write(evidence.pack(table), tmp_path)
    with pytest.raises(ResultError, match="rows, the result states 3"):
        evidence.read(path, digest, 3)
    path.write_bytes(evidence.pack(evidence_table(seed=1)))
    with pytest.raises(ResultError, match="it was changed"):
        evidence.read(path, digest, table.num_rows)
    path, digest = write(b"PAR1 no Parquet PAR1", tmp_path)
    with pytest.raises(ResultError, match="not valid Parquet"):
        evidence.read(path, digest, 1)
    path.unlink()
    with pytest.raises(ResultError, match="missing"):
        evidence.read(path, digest, 1)


def test_damaged_files_with_the_right_digest_raise_nothing_but_a_line(tmp_path: Path) -> None:
    table = evidence_table()
    result, content, draw = result_of(table), evidence.pack(table), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in draw.integers(0, len(content), size=3):
            damaged[place] = draw.integers(256)
        path, digest = write(bytes(damaged), tmp_path)
        try:
            evidence.check(result, evidence.read(path, digest, table.num_rows), intervals=False)
        except ResultError as error:
            refused += str(error).isprintable()
    assert refused > 200  # the rest hit bytes that carry nothing


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    secret, digest = write(evidence.pack(evidence_table()), tmp_path)
    link = tmp_path / "link.parquet"
    link.symlink_to(secret)
    with pytest.raises(ResultError, match="missing"):
        evidence.read(link, digest, 48)


def test_other_columns_in_a_valid_parquet_file_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(evidence_table().rename_columns(["a", "b", "c", "d", "e", "f", "g"]), buffer)
    path, digest = write(buffer.getvalue(), tmp_path)
    with pytest.raises(ResultError, match="columns"):
        evidence.read(path, digest, 48)


def test_a_file_that_would_unpack_to_an_absurd_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digest = write(evidence.pack(evidence_table()), tmp_path)
    monkeypatch.setattr(evidence, "MAX_BYTES", 10)
    with pytest.raises(ResultError, match="larger than"):
        evidence.read(path, digest, 48)


def test_groups_of_questions_stand_beside_categories_without_an_interval() -> None:
    table = evidence_table()
    honest = metric_of(table, "judge")

    def stated(**more: CategoryValue) -> dict:
        return {
            "judge": metric_of(table, "judge", categories=honest.categories | more),
            "score": metric_of(table, "score"),
        }

    evidence.check(result_of(table, metrics=stated(entity=OF_QUESTIONS)), table)
    with pytest.raises(ResultError, match="categories are stated as"):
        evidence.check(result_of(table, metrics=stated(entity=PROVEN)), table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": 0.99}, "compose/judge: value is stated as 0.99"),
        ({"low": 0.5}, "low is stated as 0.5"),
        ({"n_prompts": 11}, "n_prompts is stated as 11"),
        ({"categories": {}}, "categories are stated as"),
        ({"splits": {}}, "splits are stated as"),
        ({"categories": {"invented": PROVEN}}, "categories are stated as"),
        ({"categories": {"invented": OF_QUESTIONS}}, "categories are stated as"),
        ({"splits": {"invented": OF_QUESTIONS}}, "splits are stated as"),
    ],
)
def test_values_must_follow_from_the_evidence(changes: dict, message: str) -> None:
    table = evidence_table()
    forged = {"judge": metric_of(table, "judge", **changes), "score": metric_of(table, "score")}
    with pytest.raises(ResultError, match=message):
        evidence.check(result_of(table, metrics=forged), table)


def test_the_smallest_change_of_a_value_is_seen() -> None:
    table = evidence_table()
    honest = metric_of(table, "score")
    assert honest.value is not None
    forged = {
        "judge": metric_of(table, "judge"),
        "score": metric_of(table, "score", value=np.nextafter(honest.value, 1)),
    }
    with pytest.raises(ResultError, match="compose/score: value"):
        evidence.check(result_of(table, metrics=forged), table, intervals=False)


def test_evidence_of_a_metric_that_the_result_hides_is_refused() -> None:
    table = evidence_table()
    with pytest.raises(ResultError, match="compose/score, which the result does not state"):
        evidence.check(result_of(table, metrics={"judge": metric_of(table, "judge")}), table)


def test_a_ranked_result_may_not_leave_prompts_out() -> None:
    table = evidence_table(prompts=10)
    with pytest.raises(ResultError, match='must be "partial"'):
        evidence.check(result_of(table), table)
    evidence.check(result_of(table, status="partial"), table)
