"""Studies: claims of papers that were put to the test, and measured speed. Committed JSON, shown on the page.

    leaderboards/studies/<name>.json    kind "claims", "speed" (ratios) or "measurements" (figures of one device);
                                        schema: leaderboards/studies.schema.json

A claim is about a difference of two arms. Its verdict is no opinion but follows from the 95 % interval [low, high]
and from s, the smallest difference that would matter, both stated:

    claimed       holds                       does not hold
    above         low > 0                     high < s
    not below     low > -s                    high < -s
    near          -s < low and high < s       the whole interval lies outside -s .. s
    apart from    low > 0 or high < 0         -s < low and high < s

"below" and "not above" are mirror images. Otherwise a claim is undecided: more seeds or prompts are needed; `power`
and `detectable` say how far the study could see. With fewer seeds of training than needed it is not judged at all.
"above" is held to its direction and refuted by its size, so that a difference between 0 and s is both: `remark` then
says which of the two a verdict is about. READING is this table in words.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from leaderboards.schema import MAX_FILE_BYTES, Count, Name, Number, ResultError, Strict, first_fault, json_schema_of

STUDIES = Path(__file__).parent / "studies"
READING = (
    "Claims are judged one by one, without correction for their number: where nothing differs one in forty claims of "
    "a direction holds by chance, one in twenty of those of a difference. Beside the headline claims stands p of no "
    "difference, and p by Holm for as many headline claims as have one: one may hold whose p by Holm is above .05. "
    "Verdicts follow from the 95 % interval and from the size s that would matter. Claimed above 0: holds where the "
    "whole interval is above 0, does not hold where it is below s. Not below 0: the same around -s. Near 0: holds "
    "where it is within s of 0, does not hold where all of it is farther away; apart from 0: holds where it leaves 0 "
    "out, does not hold where it is within s of 0. Below and not above are mirror images. Undecided: neither. Not "
    "judged: too few seeds. An interval covers seeds of training and prompts, or seeds alone where it says so; those "
    "of levels and figures are of each arm for itself: whether two arms differ, the claims say. Bands around curves "
    "reach from the lowest seed to the highest. Power: how probably such a study would confirm the claim, were the "
    "difference as large as would just matter (of near, not below and not above: were there none); small power means "
    "that 'undecided' was to be expected."
)
Verdict = Literal["holds", "does not hold", "undecided"]
Compared = Literal["equal passes", "equal updates", "its start"]  # "its start": arms[1] is where arms[0] began
Claimed = Literal["above", "below", "not below", "not above", "near", "apart from"]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,79}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e12)]


class Source(Strict):
    """Where the claim is made."""

    paper: str  # "DMDR v2, arXiv:2511.13649"
    where: str  # "Sec. 4.3, Table 4"


class Effect(Strict):
    """The measured difference, `arms[0]` minus `arms[1]` of a claim."""

    measure: str  # "shapes_geneval, share of right pictures"
    unit: str
    value: Number
    low: Number  # 95 % interval
    high: Number
    claimed: Claimed  # 0
    smallest: Annotated[float, Field(ge=0, le=1e30)]  # size of a difference that would matter

    @model_validator(mode="after")
    def _ordered(self) -> "Effect":
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the value {self.value} lies outside its interval {self.low} to {self.high}")
        return self

    @property
    def verdict(self) -> Verdict:
        """What the interval says of the claim."""
        s, mirrored = self.smallest, self.claimed in ("below", "not above")
        low, high = (-self.high, -self.low) if mirrored else (self.low, self.high)
        within, outside = -s < low and high < s, low > s or high < -s
        holds, fails = {
            "above": (low > 0, high < s or high <= 0),
            "not below": (low > -s, high < -s),
            "near": (within, outside),
            "apart from": (low > 0 or high < 0, within),
        }[{"below": "above", "not above": "not below"}.get(self.claimed, self.claimed)]
        return "holds" if holds else "does not hold" if fails else "undecided"

    @property
    def remark(self) -> str:
        """What the verdict alone does not tell: a size below what matters, or a difference the other way round."""
        s, verdict = self.smallest, self.verdict
        within = -s < self.low and self.high < s
        if self.claimed in ("above", "below", "apart from") and verdict == "holds":
            return f"by less than {s:g}" if within else ""
        if self.claimed in ("above", "below") and verdict == "does not hold":
            opposite = self.high <= 0 if self.claimed == "above" else self.low >= 0
            return "the other way round" if opposite else f"any such difference is below {s:g}"
        return ""


class Point(Strict):
    """One point of a figure; `low` and `high` where an interval stands behind it."""

    x: Number | str
    y: Number
    low: Number | None = None
    high: Number | None = None


class Series(Strict):
    name: Name
    measure: str = ""  # what it is of, where a figure shows several measures
    points: Annotated[list[Point], Field(min_length=1, max_length=10_000)]


class Figure(Strict):
    """What a reader should see: lines over numbers, or intervals beside names."""

    id: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9-]{0,79})?$")] = ""  # names its picture, where it has one
    title: str
    x: str  # titles of the axes
    y: str
    series: Annotated[list[Series], Field(min_length=1)]


class Claim(Strict):
    """One claim, how it was tested, and what came out."""

    id: Id
    statement: str
    source: Source
    arms: Annotated[list[str], Field(min_length=2, max_length=2)]
    at: Compared = "equal passes"
    topic: str = ""
    headline: bool = False
    effect: Effect | None  # None: too little is there to say anything
    seeds: list[int]  # of training
    seeds_needed: Count = 1
    prompts: Count  # 0: the measure is one number per training
    images_per_prompt: Count = 1
    # of each arm, mean of its seeds, where equal passes made them unequal
    iterations: list[Count] = Field(default_factory=list)
    power: Share | None  # probability to confirm the claim where it is as true as would matter; None = unknown
    detectable: Annotated[float, Field(ge=0, le=1e30)] | None = None  # smallest difference confirmed 4 times of 5
    p: Share | None = None  # of no difference, two-sided; None = no error is known
    p_holm: Share | None = None  # of a headline claim, among all that have a p
    verdict: Verdict | Literal["not judged"]
    remark: str = ""  # Effect.remark
    notes: str = ""  # what the test leaves open
    figure: Figure | None = None

    @model_validator(mode="after")
    def _verdict_follows(self) -> "Claim":
        if self.verdict == "not judged":
            if self.remark:
                raise ValueError("a claim that is not judged has no remark on its verdict")
            if len(self.seeds) >= self.seeds_needed and not self.notes:
                raise ValueError("the claim has all its seeds: judge it, or say in `notes` why not")
            return self
        if self.effect is None or len(self.seeds) < max(1, self.seeds_needed):
            raise ValueError(f"{len(self.seeds)} seeds of {self.seeds_needed}: the verdict must be 'not judged'")
        if self.verdict != self.effect.verdict:
            raise ValueError(
                f"the verdict {self.verdict!r} does not follow: its interval says {self.effect.verdict!r}"
            )
        if self.remark != self.effect.remark:
            raise ValueError(f"the remark must be {self.effect.remark!r}, which its interval says")
        return self


class Level(Strict):
    """One measure of one arm: mean over its seeds, and the 95 % interval where there are two or more."""

    value: Number
    low: Number | None = None
    high: Number | None = None


class Arm(Strict):
    """Where one arm stands; which of two stands higher, the claims say."""

    title: str
    seeds: Count  # 0: not trained
    network_passes: Count
    iterations: Count  # mean of its seeds
    levels: list[Level | None]  # by the study's measures; None = no value


class Change(Strict):
    """What was changed after some runs were known."""

    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    what: str


class Claims(Strict):
    """A study of claims."""

    schema_version: Literal[1] = 1
    kind: Literal["claims"] = "claims"
    title: str
    about: str  # world, models, budget
    command: str  # that makes this file
    claims: Annotated[list[Claim], Field(min_length=1)]
    figures: list[Figure] = Field(default_factory=list)  # of the study as a whole
    measures: list[str] = Field(default_factory=list)  # of the arms' levels
    arms: list[Arm] = Field(default_factory=list)
    changes: list[Change] = Field(default_factory=list)  # of the plan

    @model_validator(mode="after")
    def _ids_differ(self) -> "Claims":
        if len({claim.id for claim in self.claims}) < len(self.claims):
            raise ValueError("two claims have one id")
        if any(len(arm.levels) != len(self.measures) for arm in self.arms):
            raise ValueError("an arm needs one level, or null, for each of the measures")
        return self


def sections(study: Claims) -> list[tuple[str, list[Claim]]]:
    """Return the claims under their headings: headline claims, then the others by topic, as the plan orders them."""
    found: dict[str, list[Claim]] = {"Headline claims": [claim for claim in study.claims if claim.headline]}
    for claim in study.claims:
        if not claim.headline:
            found.setdefault(claim.topic or "Further claims", []).append(claim)
    return [(title, claims) for title, claims in found.items() if claims]


class Speed(Strict):
    """A ratio of two times or sizes, measured side by side in one run; above 1 = the first is better."""

    id: Id
    what: str  # "scoring 512 pictures, eight metrics"
    ours: str  # "one pass per encoder"
    other: str  # "the official packages, one after the other"
    ratio: Positive
    low: Positive | None = None  # 95 % interval over repetitions
    high: Positive | None = None
    repetitions: Count
    wanted: Positive | None = None  # the bar it was held to
    unit: str = "times as fast"
    setting: str = ""  # sizes, number format, device


class Speeds(Strict):
    """Measured ratios."""

    schema_version: Literal[1] = 1
    kind: Literal["speed"] = "speed"
    title: str
    about: str
    command: str
    rows: Annotated[list[Speed], Field(min_length=1)]


class Beside(Strict):
    """A figure that stands beside a measured one: a paper's, or one taken in turns with it. No ratio is formed."""

    value: Positive
    what: str  # "Few-Step Joint RL and DMD, Time (second number)"
    source: str  # file of leaderboards/reported, or "measured in the same run"
    notes: str = ""


class Measured(Strict):
    """One figure of one device, in a unit of its own."""

    id: Id
    what: str  # "dmdr-joint-sd3m: seconds per iteration, mean of a cycle"
    value: Positive
    unit: str
    repetitions: Count
    setting: str  # model, sizes; device
    versions: dict[str, str]
    beside: list[Beside] = Field(default_factory=list)


class Measurements(Strict):
    """Measured figures."""

    schema_version: Literal[1] = 1
    kind: Literal["measurements"] = "measurements"
    title: str
    about: str
    command: str
    rows: Annotated[list[Measured], Field(min_length=1)]


AnyStudy = Claims | Speeds | Measurements
Study = Annotated[AnyStudy, Field(discriminator="kind")]
_STUDY: TypeAdapter[AnyStudy] = TypeAdapter(Study)


def read_studies(folder: Path = STUDIES) -> Mapping[str, AnyStudy]:
    """Return every study of a folder by the name of its file. Raises ResultError naming file, key and fault."""
    return {path.stem: read_study(path) for path in sorted(folder.glob("*.json"))}


def read_study(path: Path) -> AnyStudy:
    """Read and validate one study. Raises ResultError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ResultError(f"{path}: larger than {MAX_FILE_BYTES // 2**20} MiB: not a study")
        return _STUDY.validate_json(path.read_bytes())
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise ResultError(f"{path}: {first_fault(error, 'study')}") from error


def study_json_schema() -> str:
    """Return the text of `studies.schema.json`."""
    return json_schema_of(Study)
