"""PickScore: which of two pictures of a prompt people would pick, by a CLIP trained on such choices.

    s(x, c) = exp(logit_scale) cos(f(x), g(c))        P(x1 over x2) = softmax(s(x1, c), s(x2, c))

Source: Kirstain et al. 2023, arXiv:2305.01569, Sec. 3 and PickScore_v1. Values are raw, about 17 to 25; reward code
divides by 26 (`Card.reward_divisor`). The variant `rtdmd` is the reward of RTDMD: floats resized bilinearly, / 26.
"""

from dataclasses import replace

from metrics.base import Card, register
from metrics.clip import NO_GAP, PIL_GAP, ClipLogit

PICK = "yuvalkirstain/PickScore_v1"
CARD = Card(
    id="pick_score",
    version=1,
    title="PickScore",
    unit="logit",
    higher_is_better=True,
    range=(-float("inf"), float("inf")),
    source="Kirstain et al. 2023, arXiv:2305.01569, Sec. 3; PickScore_v1 in float32",
    description="How likely people are to pick a picture for its prompt, as a logit: a picture one point above "
    "another of the same prompt is expected to be picked 73 % of the time. Models lie between 20 and 24.",
    differentiable=True,
    preprocessing="PIL bicubic, shorter side to 224, centre crop; as a reward, antialiased bicubic on floats",
    comparable="Differences of pictures of one prompt mean something; values of different prompts do not. Papers' "
    "tables (RTDMD 20.6 to 24.0, DP-DMD 20.8 to 22.6, DMDR 20.1 to 23.0) are on this scale, on their own prompts.",
    fooled_by="It prefers detailed, contrasted, centred pictures, and forgives missing objects. It is a common "
    "training reward: a model trained on it wins here and loses elsewhere.",
    long_prompts="Cut to 77 tokens, the end token kept; the cut prompts are counted.",
    tensor_gap=PIL_GAP,
    reported_scale="tables: as here; rewards: divided by 26",
    reward_divisor=26.0,
    citation="Kirstain, Polyak, Singer, Matiana, Penna, Levy: Pick-a-Pic: An Open Dataset of User Preferences for "
    "Text-to-Image Generation, 2023, arXiv:2305.01569",
)


@register
class PickScore(ClipLogit):
    card = CARD
    features = (f"{PICK}:logit", f"{PICK}:text")


@register
class PickScoreRtdmd(ClipLogit):
    card = replace(
        CARD,
        id="pick_score.rtdmd",
        title="PickScore as RTDMD's reward",
        variant="rtdmd",
        unit="logit / 26",
        source="RTDMD's PickScore reward: bilinear resizing of floats, divided by 26",
        description="PickScore as RTDMD trains on it, about 0.8 to 0.9. Its tables report pick_score instead.",
        preprocessing="antialiased bilinear on floats, shorter side to 224, centre crop; the same as a reward",
        comparable="With rewards logged by RTDMD. Not with pick_score / 26: bilinear pixels differ.",
        tensor_gap=NO_GAP,
        reported_scale="RTDMD's logs: as here",
        reward_divisor=1.0,
    )
    features = (f"{PICK}:logit-bilinear", f"{PICK}:text")
    divisor = 26.0
